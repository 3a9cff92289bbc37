"""The process behind a Unix socket: real ones that connect, and scripted ones that change while they are looked at."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from identity.attest import sockets, unix
from identity.attest.executable import MAX_KEPT, ProgramHashes, path_of
from identity.attest.proc import REASONS, AttestationError, ProcFolder, start_time
from identity.attest.units import fragment_paths
from identity.attest.unix import UnixPeer
from identity.rpc import LocalPeer

CONNECT = """
import os, socket, sys
os.setgroups([]) if os.geteuid() == 0 else None
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print("connected", flush=True)
for line in sys.stdin:
    exec(line); print("done", flush=True)
"""


class Program:
    """A real process that has connected and does as it is told."""

    def __init__(self, path: str, python: str = sys.executable) -> None:
        arguments = [python, "-S", "-c", CONNECT, path]
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.answer()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def do(self, statement: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        assert self.answer() == "done\n"

    def end(self) -> None:
        """The process, not its children."""
        self.process.kill()
        self.process.wait()

    def clean_up(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Door:
    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "socket")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.programs: list[Program] = []
        self.peers: list[UnixPeer] = []

    def program(self, python: str = sys.executable) -> tuple[Program, socket.socket]:
        program = Program(self.path, python)
        self.programs.append(program)
        return program, self.listener.accept()[0]

    def peer(self, python: str = sys.executable) -> tuple[Program, UnixPeer]:
        program, sock = self.program(python)
        with sock:
            self.peers.append(UnixPeer.of(sock))
        return program, self.peers[-1]

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for program in self.programs:
            program.clean_up()
        self.listener.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.close()


@pytest.fixture(params=["SO_PEERPIDFD", "pidfd_open"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the pidfd: new kernels', and old ones' on a new kernel."""
    if request.param == "pidfd_open":
        monkeypatch.setattr(sockets, "peer_pidfd", lambda sock: None)
    return str(request.param)


def as_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("changing the user needs root: run as root")


# -- real processes -----------------------------------------------------------------------------------------


def test_the_process_that_connected_is_known_by_its_credentials(door: Door, kernel: str) -> None:
    program, peer = door.peer()
    local: LocalPeer = peer
    assert (local.pid, local.uid, local.gid) == (program.process.pid, os.geteuid(), os.getegid())
    assert local.still_there()


def test_its_selectors_have_spires_names(door: Door, kernel: str) -> None:
    _, peer = door.peer()
    uid = os.geteuid()
    program = os.path.realpath(sys.executable)
    assert peer.selectors() >= {
        f"unix:uid:{uid}",
        f"unix:user:{pwd.getpwuid(uid).pw_name}",
        f"unix:gid:{os.getegid()}",
        f"unix:path:{program}",
    }
    assert not [one for one in peer.selectors() if one.startswith("unix:sha256")]
    digest = hashlib.sha256(Path(program).read_bytes()).hexdigest()
    assert f"unix:sha256:{digest}" in peer.selectors(hash_exe=True)


def test_supplementary_groups_are_selectors(door: Door) -> None:
    as_root()
    program, sock = door.program()
    program.do("os.setgroups([1, 54321])")
    with sock, closing(UnixPeer.of(sock)) as peer:
        found = {one for one in peer.selectors() if "supplementary" in one}
    assert found == {
        "unix:supplementary_gid:1",
        "unix:supplementary_gid:54321",
        "unix:supplementary_group:daemon",
    }


def test_a_caller_that_has_ended_is_not_there_any_more(door: Door, kernel: str) -> None:
    program, peer = door.peer()
    os.kill(program.process.pid, signal.SIGKILL)
    os.waitid(
        os.P_PID, program.process.pid, os.WEXITED | os.WNOWAIT
    )  # ended, not reaped: its number is still its own
    assert not peer.still_there()
    program.end()
    assert not peer.still_there()
    with pytest.raises(AttestationError) as refused:
        peer.selectors()
    assert refused.value.reason == "gone"


def test_a_caller_that_ended_before_anybody_looked_is_refused(door: Door, kernel: str) -> None:
    program, sock = door.program()
    program.end()
    with sock, pytest.raises(AttestationError) as refused:
        UnixPeer.of(sock)
    assert refused.value.reason == "gone"


def test_a_caller_that_changes_its_user_gets_nothing_more(door: Door) -> None:
    as_root()
    program, peer = door.peer()
    program.do("os.seteuid(2345)")
    assert not peer.still_there()
    program.do("os.seteuid(0)")
    program.do("os.setgroups([7])")
    assert not peer.still_there()


def test_a_caller_that_changed_its_user_after_it_connected_is_refused(door: Door) -> None:
    as_root()
    program, sock = door.program()
    program.do("os.setuid(2345)")
    with sock, pytest.raises(AttestationError) as refused:
        UnixPeer.of(sock)
    assert refused.value.reason == "changed"


def test_a_caller_that_becomes_another_program_gets_nothing_more(door: Door) -> None:
    program, peer = door.peer()
    shell = shutil.which("sh")
    assert program.process.stdin is not None
    program.process.stdin.write(f"os.execv({shell!r}, [{shell!r}, '-c', 'echo done; read x'])\n")
    program.process.stdin.flush()
    assert program.answer() == "done\n"
    assert not peer.still_there()


def test_a_child_with_the_connection_is_not_the_caller(door: Door, kernel: str) -> None:
    """The connection lives on in the child; who connected has ended."""
    program, sock = door.program()
    program.do("os.fork() or __import__('signal').pause()")
    program.end()
    with sock, pytest.raises(AttestationError):
        UnixPeer.of(sock)


def test_on_an_old_kernel_who_has_given_the_connection_away_is_not_believed(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "peer_pidfd", lambda sock: None)
    program, sock = door.program()
    program.do("os.fork() or __import__('signal').pause()")
    program.do("s.close()")
    with sock, pytest.raises(AttestationError) as refused:
        UnixPeer.of(sock)
    assert refused.value.reason == "not_the_caller"


def test_a_pidfd_that_is_not_of_the_credentials_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "peer_pidfd", lambda sock: os.pidfd_open(os.getpid()))
    _, sock = door.program()
    with sock, pytest.raises(AttestationError) as refused:
        UnixPeer.of(sock)
    assert refused.value.reason == "gone"


def test_the_path_of_a_program_that_was_replaced_is_not_told(door: Door, tmp_path: Path) -> None:
    copy = tmp_path / "python"
    shutil.copy(os.path.realpath(sys.executable), copy)
    program, peer = door.peer(str(copy))
    assert f"unix:path:{copy}" in peer.selectors()
    copy.unlink()
    copy.write_text("another")
    assert peer.still_there()  # an update does not end connections
    assert not [one for one in peer.selectors() if one.startswith("unix:path")]


def test_a_program_mounted_over_another_does_not_have_its_path(door: Door, tmp_path: Path) -> None:
    as_root()
    victim, own = tmp_path / "postgres", tmp_path / "own"
    shutil.copy("/bin/true", victim)
    shutil.copy(os.path.realpath(sys.executable), own)
    mounted = f'mount --bind {own} {victim} && exec {victim} -S -c "$0" {door.path}'
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here: run as root")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = ["unshare", "--mount", "sh", "-c", mounted, CONNECT]
    with subprocess.Popen(command, text=True, env={"PYTHONHOME": sys.base_prefix, **os.environ}, **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline() == "connected\n"
        sock, _ = door.listener.accept()
        with sock, closing(UnixPeer.of(sock)) as peer:
            assert peer._facts.exe == str(victim)  # what the link says, and SPIRE believes
            assert not [one for one in peer.selectors() if one.startswith("unix:path")]
        process.kill()


def test_only_unix_sockets_have_a_process_behind_them() -> None:
    with socket.socket() as sock, pytest.raises(AttestationError) as refused:
        UnixPeer.of(sock)
    assert refused.value.reason == "not_local"


def test_nothing_stays_open(door: Door, kernel: str) -> None:
    program, sock = door.program()
    before = len(os.listdir("/proc/self/fd"))
    peer = UnixPeer.of(sock)
    peer.selectors(hash_exe=True)
    peer.close()
    peer.close()
    assert not peer.still_there()
    program.end()
    with pytest.raises(AttestationError):
        UnixPeer.of(sock)
    assert len(os.listdir("/proc/self/fd")) == before
    sock.close()


# -- scripted ones ------------------------------------------------------------------------------------------


def stat_line(start: int, name: str = "app") -> bytes:
    return f"42 ({name}) S {' '.join(['7'] * 18)} {start} 8 9\n".encode()


def status_text(uid: int, gid: int, groups: str = "", name: str = "app") -> bytes:
    ids = f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n"
    return f"Name:\t{name}\nState:\tS (sleeping)\n{ids}Groups:\t{groups}\n".encode()


class Scripted:
    """A folder of /proc that tells what ``files`` has; ``then`` is called after each read."""

    def __init__(self, **files: bytes) -> None:
        self.files = {"stat": stat_line(100), "status": status_text(1, 2), "cgroup": b"0::/\n"} | files
        self.exe = "/usr/bin/app"
        self.looks = 0
        self.then: Callable[[int], None] = lambda looks: None
        self.closed = 0

    def read(self, name: str) -> bytes:
        content = self.files.get(name)
        if content is None:
            raise ProcessLookupError(name)
        if name == "stat":
            self.looks += 1
            self.then(self.looks)
        return content

    def link(self, name: str) -> str:
        return self.exe

    def open(self, name: str) -> int:
        raise PermissionError(name)

    def stat(self, name: str) -> os.stat_result:
        raise PermissionError(name)

    def names(self, folder: str) -> list[str]:
        return []

    def close(self) -> None:
        self.closed += 1


def scripted_peer(proc: Scripted) -> UnixPeer:
    return UnixPeer((os.getpid(), 1, 2), os.pidfd_open(os.getpid()), proc)


CHANGES: dict[str, tuple[dict[str, bytes | None], str]] = {
    "another start time": ({"stat": stat_line(101)}, "changed"),
    "another user": ({"status": status_text(0, 2)}, "changed"),
    "another group": ({"status": status_text(1, 0)}, "changed"),
    "more groups": ({"status": status_text(1, 2, "27")}, "changed"),
    "it has gone": ({"stat": None}, "gone"),
    "its folder is another's format": ({"status": b"Uid: 1\n"}, "unreadable"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_the_two_looks_is_refused(name: str) -> None:
    change, reason = CHANGES[name]
    proc = Scripted()
    proc.then = lambda looks: proc.files.update(change) if looks == 1 else None  # type: ignore[arg-type]
    with pytest.raises(AttestationError) as refused:
        scripted_peer(proc)
    assert refused.value.reason == reason
    assert proc.closed == 1


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_later_ends_it(name: str) -> None:
    proc = Scripted()
    peer = scripted_peer(proc)
    assert peer.still_there()
    proc.files.update(CHANGES[name][0])  # type: ignore[arg-type]
    assert not peer.still_there()
    peer.close()


@pytest.mark.parametrize("name", CHANGES)
def test_selectors_are_not_told_when_anything_changes_while_they_are_read(name: str) -> None:
    proc = Scripted()
    peer = scripted_peer(proc)
    proc.then = lambda looks: proc.files.update(CHANGES[name][0]) if looks == 3 else None  # type: ignore[arg-type]
    with pytest.raises(AttestationError):
        peer.selectors()
    peer.close()


def test_credentials_that_are_not_the_sockets_are_refused() -> None:
    proc = Scripted(status=status_text(3, 2))
    with pytest.raises(AttestationError) as refused:
        scripted_peer(proc)
    assert refused.value.reason == "changed"


def test_closing_waits_for_whoever_still_reads() -> None:
    proc = Scripted()
    peer = scripted_peer(proc)

    def close_meanwhile(looks: int) -> None:
        peer.close()
        assert proc.closed == 0

    proc.then = close_meanwhile
    with pytest.raises(AttestationError, match="closed"):
        peer.selectors()
    assert proc.closed == 1


def test_a_caller_without_names_or_rights_to_look_has_only_its_numbers() -> None:
    proc = Scripted(status=status_text(54321, 54322, "54323"))
    peer = UnixPeer((os.getpid(), 54321, 54322), os.pidfd_open(os.getpid()), proc)
    assert peer.selectors(hash_exe=True) == {"unix:uid:54321", "unix:gid:54322", "unix:supplementary_gid:54323"}
    peer.close()


def test_a_service_has_its_unit_and_the_units_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "fragment_paths", lambda unit: frozenset({f"/lib/systemd/system/{unit}"}))
    peer = scripted_peer(Scripted(cgroup=b"0::/system.slice/web.service\n"))
    assert {one for one in peer.selectors() if one.startswith("systemd")} == {
        "systemd:id:web.service",
        "systemd:fragment_path:/lib/systemd/system/web.service",
    }
    peer.close()


class Credentials(socket.socket):
    """A Unix socket whose kernel tells what the test likes."""

    pid = 0

    def getsockopt(self, level: int, name: int, size: int = 0) -> bytes:  # type: ignore[override]
        return sockets._UCRED.pack(self.pid, 0, 0)


def test_a_caller_of_another_process_namespace_is_refused() -> None:
    with Credentials(socket.AF_UNIX) as sock, pytest.raises(AttestationError) as refused:
        UnixPeer.of(sock)
    assert refused.value.reason == "other_namespace"


def test_every_reason_has_words() -> None:
    for reason in REASONS:
        assert REASONS[reason] in str(AttestationError(reason, "more"))


# -- /proc/PID/stat -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["app", "a b", "a) S 1 2 3", ")", "", "((", "a\nb", "x) R 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 666 1 1"]
)
def test_the_start_time_is_read_behind_the_name_whatever_the_name_is(name: str) -> None:
    assert start_time(stat_line(4711, name).decode()) == 4711


@pytest.mark.parametrize("line", ["", "42", "42 (app", "42 (app) S", "42 (app) S 1 2 x", "42 app S " + "1 " * 40])
def test_what_is_no_stat_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="stat"):
        start_time(line)


def test_the_start_time_is_the_kernels() -> None:
    proc = ProcFolder(os.getpid())
    text = proc.read("stat").decode()
    proc.close()
    assert start_time(text) == int(text.rpartition(") ")[2].split()[19])


# -- programs -----------------------------------------------------------------------------------------------


class OneFile(Scripted):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def open(self, name: str) -> int:
        return os.open(self.path, os.O_RDONLY)

    def stat(self, name: str) -> os.stat_result:
        return os.stat(self.path)


def test_a_hash_is_kept_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"one")
    at = file.stat()
    hashes = ProgramHashes(wall=lambda: at.st_ctime + 60)
    assert hashes.of(OneFile(file)) == hashlib.sha256(b"one").hexdigest()
    assert len(hashes) == 1
    os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))  # sets ctime, as a change with the mtime set back does
    file.write_bytes(b"two")
    os.utime(file, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert file.stat().st_mtime_ns == at.st_mtime_ns
    assert hashes.of(OneFile(file)) == hashlib.sha256(b"two").hexdigest()


def test_the_hash_of_a_file_changed_a_moment_ago_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"one")
    hashes = ProgramHashes(wall=lambda: file.stat().st_ctime + 1)
    assert hashes.of(OneFile(file)) == hashlib.sha256(b"one").hexdigest()
    assert len(hashes) == 0


def test_a_program_that_is_too_large_has_no_hash(tmp_path: Path) -> None:
    file = tmp_path / "program"
    file.write_bytes(b"12345")
    assert ProgramHashes(limit=4).of(OneFile(file)) == ""
    assert ProgramHashes(limit=5).of(OneFile(file)) != ""


def test_no_more_hashes_are_kept_than_the_limit(tmp_path: Path) -> None:
    hashes = ProgramHashes(wall=lambda: 1e12)
    for number in range(MAX_KEPT + 5):
        file = tmp_path / str(number)
        file.write_bytes(b"x")
        hashes.of(OneFile(file))
    assert len(hashes) == MAX_KEPT


def test_a_path_counts_only_when_it_leads_to_the_running_file(tmp_path: Path) -> None:
    file, link = tmp_path / "program", tmp_path / "link"
    file.write_bytes(b"x")
    link.symlink_to(file)
    (tmp_path / "program (deleted)").write_bytes(b"x")
    proc = OneFile(file)
    assert path_of(proc, str(file)) == str(file)
    for text in (str(link), f"{file} (deleted)", str(tmp_path / "missing"), "program", "", str(tmp_path)):
        assert path_of(proc, text) == ""


# -- units --------------------------------------------------------------------------------------------------


def test_a_units_file_is_found_in_systemds_order(tmp_path: Path) -> None:
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    for folder in (etc, lib):
        folder.mkdir()
    (tmp_path / "usr").symlink_to(lib)
    (etc / "web.service").write_text("")
    (lib / "web.service").write_text("")
    (lib / "db@.service").write_text("")
    folders = [str(etc), str(tmp_path / "usr")]
    assert fragment_paths("web.service", folders) == {str(etc / "web.service")}
    assert fragment_paths("db@main.service", folders) == {
        str(tmp_path / "usr" / "db@.service"),
        str(lib / "db@.service"),
    }
    for unit in ("missing.service", "session-1.scope", "../etc/web.service", "@.service", "/web.service"):
        assert fragment_paths(unit, folders) == frozenset()
