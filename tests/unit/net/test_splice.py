"""Two streams joined: bytes, back-pressure, half-close, and one end."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from proxy.net.poller import Poller
from proxy.net.splice import Splice
from proxy.net.stream import HIGH_WATER, Stream
from tests.support.build import interpreted_only

Pair = Callable[[], tuple[socket.socket, socket.socket]]
_PIECE = 64 * 1024


class Joined:
    """A splice with both far ends: ``caller`` and ``app``."""

    def __init__(self, poller: Poller, pair: Pair) -> None:
        self.poller = poller
        near, self.caller = pair()
        far, self.app = pair()
        self.ends: list[str] = []
        self.splice = Splice(Stream(poller, near), Stream(poller, far), lambda _, reason: self.ends.append(reason))
        self.splice.start()

    def pump(self) -> None:
        self.poller.flush()
        for _ in range(1000):
            if not self.poller.dispatch(0):
                return
        raise AssertionError("the poller never comes to rest")

    def fill(self, sock: socket.socket, limit: int = 20_000_000) -> int:
        """Write until nothing more is taken."""
        sent = 0
        while sent < limit:
            try:
                sent += sock.send(b"x" * _PIECE)
            except BlockingIOError:
                before = self.splice.received + self.splice.sent
                self.pump()
                if self.splice.received + self.splice.sent == before:
                    return sent
        return sent

    def read_all(self, sock: socket.socket) -> int:
        got = 0
        while True:
            self.pump()
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                return got
            if not data:
                return got
            got += len(data)


@pytest.fixture
def joined(poller: Poller, pair: Pair) -> Joined:
    return Joined(poller, pair)


def at_eof(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False


def test_bytes_pass_both_ways_and_are_counted(joined: Joined) -> None:
    joined.caller.send(b"hello")
    joined.app.send(b"hi")
    joined.pump()
    assert joined.app.recv(100) == b"hello"
    assert joined.caller.recv(100) == b"hi"
    assert (joined.splice.received, joined.splice.sent) == (5, 2)


def test_a_server_that_speaks_first_is_heard(joined: Joined) -> None:
    joined.app.send(b"220 ready\r\n")
    joined.pump()
    assert joined.caller.recv(100) == b"220 ready\r\n"


@pytest.mark.parametrize("towards", ["app", "caller"])
def test_who_does_not_read_stops_the_other_and_memory_is_bounded(joined: Joined, towards: str) -> None:
    writer, reader = (joined.caller, joined.app) if towards == "app" else (joined.app, joined.caller)
    kept = joined.splice.far if towards == "app" else joined.splice.near
    sent = joined.fill(writer)
    assert sent < 20_000_000
    assert kept.pending <= HIGH_WATER + 256 * 1024
    assert joined.read_all(reader) == sent
    writer.send(b"more")
    assert joined.read_all(reader) == 4
    assert joined.ends == []


def test_a_half_close_passes_and_the_other_way_stays_open(joined: Joined) -> None:
    joined.caller.send(b"question")
    joined.caller.shutdown(socket.SHUT_WR)
    joined.pump()
    assert joined.app.recv(100) == b"question"
    assert at_eof(joined.app)
    assert joined.ends == []
    joined.app.send(b"answer")
    joined.pump()
    assert joined.caller.recv(100) == b"answer"
    joined.app.shutdown(socket.SHUT_WR)
    joined.pump()
    assert at_eof(joined.caller)
    assert joined.ends == [""]


def test_a_half_close_waits_for_what_is_queued(joined: Joined) -> None:
    sent = joined.fill(joined.app)
    joined.app.shutdown(socket.SHUT_WR)
    joined.caller.shutdown(socket.SHUT_WR)
    assert joined.read_all(joined.caller) == sent
    assert at_eof(joined.caller)
    assert joined.ends == [""]


def test_a_connection_that_breaks_ends_both(joined: Joined) -> None:
    joined.app.send(b"x")  # unread by nobody: closing with it makes a reset
    joined.caller.send(b"unread")
    joined.pump()
    joined.app.close()
    joined.pump()
    assert joined.ends == ["upstream_closed"]
    assert joined.splice.near.closed
    assert joined.splice.far.closed
    assert len(joined.poller) == 0


def test_a_truncated_tls_side_is_cut_and_never_looks_complete(joined: Joined) -> None:
    joined.splice.far.owner.on_eof(clean=False)  # type: ignore[union-attr]
    assert joined.ends == ["upstream_closed"]
    assert joined.splice.near.closed


def test_the_end_is_told_once(joined: Joined) -> None:
    joined.splice.end("draining")
    joined.splice.end("draining")
    joined.splice.end("")
    joined.pump()
    assert joined.ends == ["draining"]
    assert at_eof(joined.caller)
    assert at_eof(joined.app)


@interpreted_only
def test_a_crash_of_one_side_ends_both(joined: Joined, caplog: pytest.LogCaptureFixture) -> None:
    def boom(*args: object) -> None:
        raise RuntimeError("bug")

    joined.splice.note = boom  # type: ignore[method-assign]
    joined.caller.send(b"x")
    joined.pump()
    assert joined.ends == ["internal_error"]
    assert len(joined.poller) == 0
    assert "internal error" in caplog.text


def test_movement_is_noted_for_the_idle_limit(joined: Joined) -> None:
    joined.splice.moved_at = 0.0
    joined.caller.send(b"x")
    joined.pump()
    assert joined.splice.moved_at == joined.poller.now


def test_a_splice_on_which_nothing_moves_ends(joined: Joined) -> None:
    joined.splice.idle = 60.0
    joined.splice.sweep(joined.splice.moved_at + 59.0)
    assert joined.ends == []
    joined.splice.sweep(joined.splice.moved_at + 61.0)
    assert joined.ends == ["idle_timeout"]


def test_without_limits_a_splice_lasts(joined: Joined) -> None:
    joined.splice.sweep(joined.splice.moved_at + 1e6)
    assert joined.ends == []


def test_no_splice_outlives_a_certificate(joined: Joined) -> None:
    joined.splice.cut_at = joined.poller.now + 10.0
    joined.splice.sweep(joined.poller.now + 9.0)
    assert joined.ends == []
    joined.splice.sweep(joined.poller.now + 11.0)
    assert joined.ends == ["certificate_expired"]


def test_a_splice_is_judged_again(joined: Joined) -> None:
    joined.splice.judge_again()
    verdicts = ["", "deny_policy_matched"]
    joined.splice.judge = lambda: verdicts.pop(0)
    joined.splice.judge_again()
    assert joined.ends == []
    joined.splice.judge_again()
    assert joined.ends == ["deny_policy_matched"]
