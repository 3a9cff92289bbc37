"""Kills an authority at every point at which it writes, and looks at what it finds afterwards.

    python -m tests.support.ca_crash FOLDER statements|writes|torn|moments --every N [--offset N] [--rounds N]

A child (forked, so that nothing is imported again) runs ``SCRIPT``, a fixed series of acts of an authority, and tells
through a pipe which of them have returned and what they gave out. It is killed with SIGKILL

- ``statements``: at the n-th SQL statement, begin or end of a commit, or call of ``os`` that changes a file;
- ``writes``: at the n-th system call that changes a file, SQLite's own included; ``torn``: with half of its bytes
  written. Needs ``kill_at_write.c`` as LD_PRELOAD;
- ``moments``: by its parent, after a random time.

Then the authority is opened as after any other crash. It must be whole: its journal verifies, ends at the border
between two acts, and everything else in the store is what a run that nobody disturbed had at that border; nothing
was given out that is not in the journal; and it goes on. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.engine.default import DefaultDialect

from identity.authority import new_key
from identity.ca import backup
from identity.ca.issuing import X509Request
from identity.ca.model import KINDS, CaError, Issued, NoSuchThing, NotAllowed
from identity.ca.service import CaService
from tests.support.ca import AGENT, MINUTE, NOW, SHORT, attest, entry, issue, new_ca, spiffe_id

LATER = NOW + 31 * MINUTE  # when the next authorities are due
Tell = Callable[[str, str], None]


# -- the acts -----------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """What the acts share. ``tell``: reports (kind, value) to the parent."""

    folder: Path
    tell: Tell
    token: str = ""
    _ca: CaService | None = None

    @property
    def ca(self) -> CaService:
        assert self._ca is not None
        return self._ca

    def create(self) -> None:
        self._ca = new_ca(self.folder / "ca", settings=SHORT)

    def entries(self) -> None:
        self.ca.create_entry(entry(id="web"), now=NOW)

    def change_entry(self) -> None:
        self.ca.update_entry({**self.ca.get_entry("web"), "hint": "new"}, now=NOW)

    def apply(self) -> None:
        self.ca.apply_entries([entry(f"/w/{n}", id=f"w{n}") for n in range(20)], prune=True, now=NOW)

    def make_token(self) -> None:
        self.token = self.ca.create_token(spiffe_id("/host/1"), ttl=86400.0, now=NOW)

    def use_token(self) -> None:
        self.ca.consume_token(self.token, source="", now=NOW)
        self.tell("used", self.token)

    def join(self) -> None:
        attest(self.ca, "/host/1")

    def one(self) -> None:
        self.give(issue(self.ca))

    def many(self) -> None:
        asked = [X509Request(spiffe_id(f"/w/{n}"), new_key().public_key(), None, (), "", AGENT) for n in range(5)]
        for made in self.ca.issue_many(asked, NOW):
            assert isinstance(made, Issued)
            self.give(made)

    def jwt(self) -> None:
        self.tell("jwt", self.ca.issue_jwt(spiffe_id(), ["db"], caller=AGENT, now=NOW))

    def back_up(self) -> None:
        self.ca.backup(self.folder / "backup", now=NOW)

    def prepare_root(self) -> None:
        self.ca.prepare_authority("x509-root", now=NOW)

    def activate_root(self) -> None:
        self.ca.activate_authority("x509-root", force=True, now=NOW)

    def taint(self) -> None:
        self.ca.taint_authority("x509-root", force=True, now=NOW)

    def revoke_root(self) -> None:
        self.ca.revoke_authority("x509-root", force=True, now=NOW)

    def tick_jwt(self) -> None:
        self.ca.prepare_authority("jwt", now=NOW)

    def again(self) -> None:
        self.give(issue(self.ca))

    def ban(self) -> None:
        self.ca.ban(spiffe_id("/host/1"), "stolen", now=NOW)

    def restore(self) -> None:
        CaService.restore(self.folder / "backup", self.folder / "restored", now=NOW).close()

    def close(self) -> None:
        self.ca.close()

    def give(self, made: Issued) -> None:
        self.tell("issued", made.serial)


SCRIPT: tuple[Callable[[Scene], None], ...] = (
    Scene.create, Scene.entries, Scene.change_entry, Scene.apply, Scene.make_token, Scene.use_token, Scene.join,
    Scene.one, Scene.many, Scene.jwt, Scene.back_up, Scene.prepare_root, Scene.activate_root, Scene.taint,
    Scene.revoke_root, Scene.tick_jwt, Scene.again, Scene.ban, Scene.restore, Scene.close,
)  # fmt: skip


def play(folder: Path, tell: Tell) -> None:
    scene = Scene(folder, tell)
    for act in SCRIPT:
        act(scene)
        tell("done", act.__name__)


# -- what a store holds, without what is random -------------------------------------------------------------


def state(ca: CaService) -> dict[str, Any]:
    views = ca.authorities()
    return {
        "entries": ca.list_entries(),
        "nodes": ca.nodes(),
        "tokens": len(ca.tokens(now=NOW)),
        "issued": len(ca.issued(now=NOW)),
        "revoked": sorted(found.what for found in ca.revocations(NOW).entries if found.kind == "id"),
        "authorities": sorted((view.kind, view.state, view.tainted, view.has_key) for view in views),
        "bundle": ca.bundle().sequence,
        "changed": ca.changed(),
    }


@dataclass
class Undisturbed:
    """A run to its end: after each act (in order) the number of journal records, and the state."""

    borders: list[int] = field(default_factory=list)
    states: dict[int, dict[str, Any]] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Undisturbed:
        self, scene = cls(), Scene(folder, lambda kind, value: None)
        for act in SCRIPT[:-1]:
            act(scene)
            self.borders.append(scene.ca.journal_head()[0])
            self.states[self.borders[-1]] = state(scene.ca)
        self.kinds = [record.kind for record in scene.ca.log()]
        scene.close()
        return self

    def border_after(self, acts: int) -> int:
        """The number of journal records after so many acts; the last one, closing, writes none."""
        return self.borders[min(acts, len(self.borders)) - 1] if acts else 0


# -- afterwards ---------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What a child has said before it ended."""

    done: list[str] = field(default_factory=list)
    issued: list[str] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    jwt: list[str] = field(default_factory=list)


def check(folder: Path, told: Told, reference: Undisturbed) -> str:
    """Open what the crash has left. Gives a word for what was found; AssertionError when it is not right."""
    try:
        ca = CaService.open(folder / "ca", now=NOW)
        found = "opened"
    except NoSuchThing:
        assert told.done == [], "an authority that was made is gone"
        ca = new_ca(folder / "ca", settings=SHORT)
        found = "created again"
    with ca:
        _check_whole(ca, told, reference)
        _check_goes_on(ca, told)
    _check_backup(folder, told)
    return found


def _check_whole(ca: CaService, told: Told, reference: Undisturbed) -> None:
    verdict = ca.verify_journal()
    assert verdict.ok, verdict.problem
    records = ca.log()
    assert [record.kind for record in records] == reference.kinds[: len(records)]
    before, after = (reference.border_after(len(told.done) + more) for more in (0, 1))
    assert len(records) in {before or after, after}, (len(records), before, after)
    assert state(ca) == reference.states[len(records)], (told.done, records[-1].kind)
    journaled = {record.facts.get("serial") for record in records if record.kind == "x509-svid"}
    assert set(told.issued) <= journaled, "a certificate was given out that the journal does not know"
    assert len(told.jwt) <= sum(record.kind == "jwt-svid" for record in records)
    for kind in KINDS:
        assert sum((view.kind, view.state) == (kind, "active") for view in ca.authorities()) == 1


def _check_goes_on(ca: CaService, told: Told) -> None:
    for secret in told.used:
        with contextlib.suppress(NotAllowed):
            ca.consume_token(secret, source="", now=NOW)
            raise AssertionError("a token was good twice")
    made = issue(ca, "/after", caller=NEUTRAL, now=LATER)
    assert made.serial in {view.serial for view in ca.issued(now=LATER)}
    ca.tick(LATER)
    assert ca.verify_journal().ok
    assert not ca.status(LATER).problems


NEUTRAL = type(AGENT)("operator", "test")


def _check_backup(folder: Path, told: Told) -> None:
    """The file of the backup is there whole or not at all; what was restored is whole or no authority."""
    file, restored = folder / "backup", folder / "restored"
    if file.exists():
        backup.check(file)
    assert file.exists() or "back_up" not in told.done
    try:
        with CaService.open(restored, now=NOW) as ca:
            assert ca.verify_journal().ok
            issue(ca, "/after", caller=NEUTRAL)
    except NoSuchThing:
        assert "restore" not in told.done
    except CaError as error:
        raise AssertionError(f"half restored: {error}") from error


# -- killing ------------------------------------------------------------------------------------------------


class Statements:
    """Counts points in Python, and kills at one of them."""

    def __init__(self) -> None:
        self.count, self._at = 0, -1

    def arm(self, at: int) -> None:
        """In the child: from here on, for good."""
        self._at = at
        for name in ("before_cursor_execute", "after_cursor_execute", "begin", "commit", "rollback"):
            event.listen(Engine, name, lambda *_: self._point())
        self._around(DefaultDialect, "do_commit")
        for name in ("fsync", "replace", "unlink", "mkdir", "open"):
            self._around(os, name)

    def _point(self) -> None:
        self.count += 1
        if self.count == self._at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _around(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            self._point()
            result = real(*arguments, **more)
            self._point()
            return result

        setattr(owner, name, counted)


class Writes:
    """The same in C, under SQLite (see ``kill_at_write.c``)."""

    def __init__(self, torn: bool) -> None:
        self._library, self._torn = ctypes.CDLL(None), torn

    def arm(self, at: int) -> None:
        self._library.kill_arm(ctypes.c_long(at), int(self._torn))

    @property
    def count(self) -> int:
        self._library.kill_count.restype = ctypes.c_long
        return int(self._library.kill_count())


class Moments:
    """Counts nothing: the parent kills."""

    count = 0

    def arm(self, at: int) -> None:
        pass


Killer = Statements | Writes | Moments


def run_child(folder: Path, killer: Killer, at: int, after: float | None = None) -> tuple[Told, int, bool]:
    """Play the script in a child that is killed at point ``at`` or after so many seconds. Gives what it told, the
    points it has counted, and whether it came to its end."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(folder, killer, at, write)
    os.close(write)
    if after is not None:
        threading.Timer(after, lambda: _kill(pid)).start()
    told, points = Told(), 0
    with os.fdopen(read) as lines:
        for line in lines:
            kind, value = json.loads(line)
            if kind == "points":
                points = int(value)
            else:
                getattr(told, kind).append(value)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0, f"the child failed by itself: {status}"
    return told, points, status == 0


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _child(folder: Path, killer: Killer, at: int, write: int) -> None:
    def tell(kind: str, value: str) -> None:
        os.write(write, json.dumps([kind, value]).encode() + b"\n")

    code = 1
    try:
        killer.arm(at)
        play(folder, tell)
        tell("points", str(killer.count))
        code = 0
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


# -- the series ---------------------------------------------------------------------------------------------


def series(base: Path, how: str, every: int, offset: int, rounds: int) -> dict[str, Any]:
    reference = Undisturbed.of(_fresh(base / "reference"))
    killer: Killer = Statements() if how == "statements" else Moments() if how == "moments" else Writes(how == "torn")
    begin = time.monotonic()
    _, points, ended = run_child(_fresh(base / "whole"), killer, 1_000_000)
    length = time.monotonic() - begin
    assert ended
    rng = random.Random(offset)
    found: dict[str, int] = {}
    turns = range(rounds) if how == "moments" else range(1 + offset % every, points + 1, every)
    for turn in turns:
        folder = _fresh(base / "turn")
        after = rng.uniform(0, length) if how == "moments" else None
        told, _, ended = run_child(folder, killer, turn, after)
        assert how == "moments" or not ended
        try:
            word = check(folder, told, reference)
        except Exception as error:
            raise AssertionError(f"killed at {how} {turn}, after {told.done}: {error}") from error
        found[word] = found.get(word, 0) + 1
    return {"how": how, "points": points, "killed": sum(found.values()), **found}


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("how", choices=["statements", "writes", "torn", "moments"])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    print(json.dumps(series(options.folder, options.how, options.every, options.offset, options.rounds)))


if __name__ == "__main__":
    main()
