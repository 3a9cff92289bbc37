"""Accepting: bounded, paced, and patient when descriptors run out."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.net.listener import Accepted, Address, Bucket, Listener, ListenFailed, bind, plain_host
from proxy.net.poller import Poller

LOOPBACK = Address("127.0.0.1", 0)


class Door:
    """A listening socket with its listener and what came in."""

    def __init__(self, poller: Poller, sock: socket.socket | None = None, **more: Any) -> None:
        self.sock = sock or bind(LOOPBACK)
        self.accepted: list[Accepted] = []
        self.listener = Listener(poller, self.sock, self.accepted.append, **more)
        self.listener.start()
        self.callers: list[socket.socket] = []

    def call(self, count: int = 1) -> None:
        for _ in range(count):
            self.callers.append(socket.create_connection(self.sock.getsockname()))

    def close(self) -> None:
        for one in [*self.callers, *(accepted.sock for accepted in self.accepted), self.sock]:
            one.close()


@pytest.fixture
def doors() -> Iterator[list[Door]]:
    made: list[Door] = []
    yield made
    for door in made:
        door.close()


def test_a_connection_is_handed_over_with_its_addresses(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller))
    door.call()
    poller.dispatch(1)
    (accepted,) = door.accepted
    assert accepted.peer == "{}:{}".format(*door.callers[0].getsockname())
    assert accepted.local == "{}:{}".format(*door.sock.getsockname())
    assert accepted.peer_host == "127.0.0.1"
    assert accepted.sock.getblocking() is False
    assert accepted.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert door.listener.accepted == 1


def test_a_flood_takes_turns_with_traffic(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller))
    door.call(20)
    poller.dispatch(1)
    assert len(door.accepted) == 16
    poller.dispatch(1)
    assert len(door.accepted) == 20


def test_whom_the_gate_refuses_is_closed_at_once(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller, gate=lambda: False))
    door.call()
    poller.dispatch(1)
    assert (door.accepted, door.listener.accepted) == ([], 0)
    assert door.callers[0].recv(1) == b""


def test_without_descriptors_the_listener_rests_instead_of_spinning(
    poller: Poller, doors: list[Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    doors.append(door := Door(poller))
    door.call()

    class Starved:
        def __getattr__(self, name: str) -> Any:
            return getattr(door.sock, name)

        def accept(self) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

    door.listener._sock = Starved()  # type: ignore[assignment]
    assert poller.dispatch(1) == 1
    assert poller.dispatch(0) == 0, "must not be reported again while it rests"
    door.listener._sock = door.sock
    poller.now += 0.05
    poller.fire_due()
    assert poller.dispatch(0) == 0
    poller.now += 0.1
    poller.fire_due()
    poller.dispatch(1)
    assert len(door.accepted) == 1


@pytest.mark.parametrize("code", [errno.ECONNABORTED, errno.EPROTO, errno.EPERM])
def test_a_caller_that_is_gone_already_costs_nothing(poller: Poller, doors: list[Door], code: int) -> None:
    doors.append(door := Door(poller))
    door.call()
    failures = [OSError(code, "gone")]

    class Once:
        def __getattr__(self, name: str) -> Any:
            return getattr(door.sock, name)

        def accept(self) -> Any:
            if failures:
                raise failures.pop()
            return door.sock.accept()

    door.listener._sock = Once()  # type: ignore[assignment]
    poller.dispatch(1)
    poller.dispatch(1)
    assert len(door.accepted) == 1
    door.listener._sock = door.sock


def test_an_accept_that_raises_costs_one_connection(
    poller: Poller, doors: list[Door], caplog: pytest.LogCaptureFixture
) -> None:
    doors.append(door := Door(poller))
    take = door.listener.accept

    def boom(accepted: Accepted) -> None:
        accepted.sock.close()
        door.listener.accept = take
        raise RuntimeError("bug")

    door.listener.accept = boom
    door.call(2)
    poller.dispatch(1)
    poller.dispatch(1)
    assert len(door.accepted) == 1
    assert poller.crashes == 1
    assert "internal error" in caplog.text


def test_a_closed_listener_accepts_nothing_and_what_it_accepted_goes_on(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller))
    door.call()
    poller.dispatch(1)
    door.listener.close()
    assert len(poller) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(door.accepted[0].local.rpartition(":")[2])))
    door.callers[0].send(b"x")
    assert door.accepted[0].sock.recv(1) == b"x"


def test_a_listener_closed_while_it_rests_stays_closed(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller, pace=Bucket(1.0, 1.0, poller.now)))
    door.call(2)
    poller.dispatch(1)
    door.listener.close()
    poller.now += 10.0
    poller.fire_due()
    assert len(poller) == 0


def test_a_listener_closed_by_what_it_accepted_stops(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller))
    take = door.listener.accept

    def last(accepted: Accepted) -> None:
        take(accepted)
        door.listener.close()

    door.listener.accept = last
    door.call(2)
    poller.dispatch(1)
    assert (len(door.accepted), len(poller), poller.crashes) == (1, 0, 0)


# -- pace -----------------------------------------------------------------------------------------------------


def test_what_the_pace_does_not_allow_waits_in_the_kernel(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller, pace=Bucket(1.0, 2.0, poller.now)))
    door.call(3)
    poller.dispatch(1)
    assert len(door.accepted) == 2
    assert poller.dispatch(0) == 0
    poller.now += 1.5
    poller.fire_due()
    door.listener.on_ready(1)
    assert len(door.accepted) == 3


def test_only_connections_are_paced_not_looking_for_them(poller: Poller, doors: list[Door]) -> None:
    doors.append(door := Door(poller, pace=Bucket(0.001, 4.0, poller.now)))
    for _ in range(4):
        door.call()
        poller.dispatch(1)
    assert len(door.accepted) == 4


def test_a_bucket_fills_to_its_brim_and_no_further() -> None:
    bucket = Bucket(10.0, 2.0, 100.0)
    assert [bucket.take(100.0) for _ in range(2)] == [0.0, 0.0]
    assert bucket.take(100.0) == pytest.approx(0.1)
    assert bucket.take(100.05) == pytest.approx(0.05)
    assert bucket.take(100.125) == 0.0
    assert [bucket.take(200.0) for _ in range(2)] == [0.0, 0.0]
    assert bucket.take(200.0) > 0


# -- binding --------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said_with_its_exit_code() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(ListenFailed, match="in use") as caught:
            bind(where)
    assert caught.value.exit_code == 73


def test_a_port_that_is_not_permitted_is_said_with_a_hint() -> None:
    failed = ListenFailed(Address("0.0.0.0", 443), PermissionError(errno.EACCES, "Permission denied"))
    assert failed.exit_code == 77
    assert "CAP_NET_BIND_SERVICE" in str(failed)


def test_several_workers_may_share_a_port() -> None:
    with bind(LOOPBACK, shared=True) as one:
        where = Address("127.0.0.1", one.getsockname()[1])
        with bind(where, shared=True) as two:
            assert one.getsockname() == two.getsockname()


def test_a_unix_socket_has_its_mode(tmp_path: Path, poller: Poller) -> None:
    path = tmp_path / "s"
    umask = os.umask(0)
    try:
        with bind(Address(path=str(path)), mode=0o600):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.umask(0) == 0, "the process's umask is given back"
    finally:
        os.umask(umask)


def test_a_caller_over_a_unix_socket_has_no_address(tmp_path: Path, poller: Poller) -> None:
    path = str(tmp_path / "s")
    sock = bind(Address(path=path))
    accepted: list[Accepted] = []
    Listener(poller, sock, accepted.append).start()
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        poller.dispatch(1)
    assert [(a.peer, a.local, a.peer_host) for a in accepted] == [("unix:", f"unix:{path}", "")]
    for end in (sock, accepted[0].sock):
        end.close()


def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    where = Address(path=str(tmp_path / "s"))
    bind(where).close()
    with bind(where):
        pass


def test_a_unix_socket_on_which_somebody_answers_is_left_alone(tmp_path: Path) -> None:
    where = Address(path=str(tmp_path / "s"))
    with bind(where):
        with pytest.raises(ListenFailed, match="another process answers"):
            bind(where)
        with socket.socket(socket.AF_UNIX) as still:
            still.connect(where.path)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenFailed, match="not a socket"):
        bind(Address(path=str(path)))
    assert path.read_text() == "data"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("10.0.0.1", 80), "10.0.0.1:80"),
        (Address("::1", 80), "[::1]:80"),
        (Address(path="/run/s"), "unix:/run/s"),
    ],
)
def test_addresses_are_written_as_people_do(address: Address, text: str) -> None:
    assert str(address) == text


def test_an_ipv4_caller_of_an_ipv6_socket_is_written_as_ipv4() -> None:
    assert plain_host("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain_host("::ffff:abcd") == "::ffff:abcd"
    assert plain_host("fe80::1") == "fe80::1"
