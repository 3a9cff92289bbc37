"""Streams and the poller over socket pairs."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from proxy.net.poller import Poller
from proxy.net.stream import HIGH_WATER, Stream


class Recorder:
    """An owner that remembers."""

    def __init__(self) -> None:
        self.data = b""
        self.eof: bool | None = None
        self.lost = ""
        self.drained = 0
        self.crashed = 0

    def on_data(self, data: bytes) -> None:
        self.data += data

    def on_eof(self, clean: bool) -> None:
        self.eof = clean

    def on_lost(self, detail: str) -> None:
        self.lost = detail

    def on_drained(self) -> None:
        self.drained += 1

    def on_crash(self, error: Exception) -> None:
        self.crashed += 1


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def start(poller: Poller, sock: socket.socket) -> tuple[Stream, Recorder]:
    owner = Recorder()
    stream = Stream(poller, sock, owner)
    stream.start()
    return stream, owner


Ends = tuple[socket.socket, socket.socket]


def test_bytes_reach_the_owner_and_back(poller: Poller, ends: Ends) -> None:
    stream, owner = start(poller, ends[0])
    ends[1].send(b"hello")
    poller.dispatch(0)
    assert owner.data == b"hello"
    stream.send(b"wor")
    stream.send(b"ld")
    poller.flush()
    assert ends[1].recv(100) == b"world"
    assert stream.pending == 0


def test_a_paused_stream_is_not_read_until_resumed(poller: Poller, ends: Ends) -> None:
    stream, owner = start(poller, ends[0])
    stream.pause()
    ends[1].send(b"later")
    poller.dispatch(0)
    assert owner.data == b""
    stream.resume()
    poller.dispatch(0)
    assert owner.data == b"later"


def test_what_the_kernel_does_not_take_waits_and_drains(poller: Poller, ends: Ends) -> None:
    stream, owner = start(poller, ends[0])
    whole = b"x" * (4 * HIGH_WATER)
    stream.send(whole)
    poller.flush()
    assert stream.pending > 0
    got = b""
    for _ in range(1000):
        try:
            got += ends[1].recv(65536)
        except BlockingIOError:
            if not poller.dispatch(0) and not stream.pending:
                break
    assert got == whole
    assert owner.drained == 1
    assert stream.pending == 0


def test_the_end_of_the_peer_is_told_once(poller: Poller, ends: Ends) -> None:
    stream, owner = start(poller, ends[0])
    ends[1].send(b"bye")
    ends[1].shutdown(socket.SHUT_WR)
    poller.dispatch(0)
    poller.dispatch(0)
    assert (owner.data, owner.eof) == (b"bye", True)
    assert poller.dispatch(0) == 0, "a half-closed stream must not spin"
    stream.send(b"still here")
    poller.flush()
    assert ends[1].recv(100) == b"still here"


def test_half_close_follows_what_is_queued(poller: Poller, ends: Ends) -> None:
    stream, _ = start(poller, ends[0])
    stream.send(b"last")
    stream.send_eof()
    poller.flush()
    assert ends[1].recv(100) == b"last"
    assert ends[1].recv(100) == b""


def test_close_flushes_says_goodbye_and_lingers_for_the_peer(poller: Poller, ends: Ends) -> None:
    stream, owner = start(poller, ends[0])
    stream.send(b"answer")
    stream.close()
    poller.flush()
    assert ends[1].recv(100) == b"answer"
    assert ends[1].recv(100) == b""
    ends[1].send(b"ignored")
    poller.dispatch(0)
    assert not stream.closed
    ends[1].close()
    poller.dispatch(0)
    assert stream.closed
    assert (owner.data, owner.eof) == (b"", None)


def test_a_peer_that_never_closes_is_cut_after_the_linger(poller: Poller, ends: Ends) -> None:
    stream, _ = start(poller, ends[0])
    stream.close()
    poller.flush()
    poller.now += 2.0
    poller.fire_due()
    assert stream.closed


def test_abort_closes_at_once_and_tells_nobody(poller: Poller, ends: Ends) -> None:
    stream, owner = start(poller, ends[0])
    stream.send(b"never")
    stream.abort()
    poller.flush()
    assert stream.closed
    assert ends[1].recv(100) == b""
    assert (owner.eof, owner.lost) == (None, "")
    assert len(poller) == 0


def test_a_broken_connection_is_told(poller: Poller) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    ours.setblocking(False)
    stream, owner = start(poller, ours)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    theirs.close()
    poller.dispatch(1)
    assert owner.lost
    assert stream.closed
    listener.close()


def test_peeking_tells_an_idle_socket_from_one_with_surplus(poller: Poller, ends: Ends) -> None:
    stream, _ = start(poller, ends[0])
    assert stream.peek_idle()
    ends[1].send(b"x")
    assert not stream.peek_idle()


def test_peeking_sees_a_peer_that_has_closed(poller: Poller, ends: Ends) -> None:
    stream, _ = start(poller, ends[0])
    ends[1].close()
    assert not stream.peek_idle()


def test_an_owner_that_raises_costs_its_own_connection_only(
    poller: Poller, ends: Ends, caplog: pytest.LogCaptureFixture
) -> None:
    stream, owner = start(poller, ends[0])

    def boom(data: bytes) -> None:
        raise RuntimeError("bug")

    owner.on_data = boom  # type: ignore[method-assign]
    ends[1].send(b"x")
    poller.dispatch(0)
    assert stream.closed
    assert (owner.crashed, poller.crashes) == (1, 1)
    assert "internal error" in caplog.text


def test_timers_fire_in_order_and_cancelled_ones_do_not(poller: Poller) -> None:
    fired: list[str] = []
    poller.call_at(poller.now + 2, lambda: fired.append("second"))
    poller.call_at(poller.now + 1, lambda: fired.append("first"))
    poller.call_at(poller.now + 1.5, lambda: fired.append("never")).cancel()
    poller.now += 3
    poller.fire_due()
    assert fired == ["first", "second"]


def test_cancelled_timers_do_not_pile_up(poller: Poller) -> None:
    for _ in range(20_000):
        poller.call_at(poller.now + 100, lambda: None).cancel()
    assert len(poller._heap) <= 8192
