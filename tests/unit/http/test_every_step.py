"""One conversation, cut off at every step it has, in every way it can be: nothing may be left behind.

The conversation uploads and downloads, waits for a connection, is held back both ways, and is drained. After
each of its steps one thing goes wrong; then everything is closed, and every count must be zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from proxy.wire.events import ConnectionEnded, GoAwayReceived, RequestRefused, StreamReset
from tests.support.rig import Peer, Rig, answer, data, request, upload

_PIECE = 60_000


def conversation(rig: Rig) -> Iterator[None]:
    """Yields after each step. Stops quietly when what it needs is gone."""
    yield
    _tell(rig.caller, upload(1), data(1, _PIECE))
    for _ in _steps(rig):
        yield
    if not rig.cluster.dials or not rig.service.exchanges:
        return
    up = rig.connect()
    yield
    up.engine.window = 0
    for _ in range(5):
        _tell(rig.caller, data(1, _PIECE))
        for _ in _steps(rig):
            yield
    up.engine.window = None
    for exchange in rig.service.exchanges:
        if exchange.client is not None and not exchange.finished:
            rig.poller.run(exchange.client.touch)
    yield
    if not rig.exchange.finished:
        _tell(up, answer(1, end=False))
    for _ in range(8):
        if not rig.exchange.finished:
            _tell(up, data(1, _PIECE))
        for _ in _steps(rig):
            yield
    rig.caller.read()
    yield
    rig.poller.run(rig.server.drain)
    yield
    if not rig.exchange.finished:
        _tell(rig.caller, data(1, 0, end=True))
        _tell(up, data(1, 0, end=True))
    for _ in _steps(rig):
        yield
    rig.caller.read()
    rig.pass_time(1.5)
    yield


def _tell(peer: Peer, *events: object) -> None:
    try:
        peer.tell(*events)  # type: ignore[arg-type]
    except OSError:
        peer.engine.inbox.clear()  # closed by what went wrong


def _steps(rig: Rig) -> Iterator[None]:
    for _ in range(50):
        if not rig.poller.dispatch(0):
            return
        yield


def _up(rig: Rig) -> Peer | None:
    return rig.upstreams[0] if rig.upstreams else None


def _close(peer: Peer | None) -> None:
    if peer is not None:
        peer.sock.close()


def _say(peer: Peer | None, *events: object) -> None:
    if peer is not None:
        _tell(peer, *events)


def _every_connection(rig: Rig, act: Callable[..., None]) -> None:
    for endpoint in rig.cluster.endpoints:
        for pool in endpoint.pools.values():
            for connection in pool.all():
                act(connection)


WRONGS: dict[str, Callable[[Rig], object]] = {
    "caller vanishes": lambda rig: _close(rig.caller),
    "upstream vanishes": lambda rig: _close(_up(rig)),
    "caller resets": lambda rig: _say(rig.caller, StreamReset(1, 8)),
    "upstream resets": lambda rig: _say(_up(rig), StreamReset(1, 2)),
    "upstream refuses": lambda rig: _say(_up(rig), StreamReset(1, 7)),
    "upstream goes away": lambda rig: _say(_up(rig), GoAwayReceived(0, 0)),
    "upstream breaks the protocol": lambda rig: _say(_up(rig), ConnectionEnded("frame_error")),
    "body is malformed": lambda rig: _say(rig.caller, RequestRefused(1, "bad_chunk", opened=True)),
    "server is cut": lambda rig: rig.poller.run(lambda: rig.server.shut("draining")),
    "cluster is cut": lambda rig: rig.poller.run(rig.cluster.shut),
    "server crashes": lambda rig: rig.poller.run(lambda: rig.server.on_crash(RuntimeError("bug"))),
    "client crashes": lambda rig: rig.poller.run(
        lambda: _every_connection(rig, lambda connection: connection.on_crash(RuntimeError("bug")))
    ),
    "address goes away": lambda rig: rig.poller.run(lambda: rig.cluster.set_addresses([])),
    "nothing moves": lambda rig: rig.sweep(1000.0),
    "another request comes": lambda rig: _say(rig.caller, request(3)),
    "the dial fails": lambda rig: rig.refuse_dial() if rig.cluster.dials else None,
}


def run_until(step: int, wrong: Callable[[Rig], object], caller: int, upstream: int) -> tuple[Rig, bool]:
    """The conversation with ``wrong`` after its step; also says whether it came that far."""
    rig = Rig(caller, upstream)
    reached = False
    for number, _ in enumerate(conversation(rig)):
        if number == step:
            reached = True
            wrong(rig)
            rig.poller.flush()
    return rig, reached


def finish(rig: Rig) -> None:
    """Let everything come to its end, as a worker does."""
    rig.pump()
    rig.poller.run(lambda: rig.server.shut("draining"))
    rig.poller.run(rig.cluster.shut)
    while rig.cluster.dials:
        rig.refuse_dial()
    rig.pump()
    rig.pass_time(40.0)


def _cases() -> Iterator[tuple[str, int, int]]:
    for wrong in WRONGS:
        for caller in (11, 20):
            for upstream in (11, 20):
                if caller == 20 or wrong != "another request comes":  # HTTP/1.1 keeps a second one to itself
                    yield wrong, caller, upstream


@pytest.mark.parametrize(("wrong", "caller", "upstream"), list(_cases()))
def test_whenever_it_goes_wrong_nothing_is_left(wrong: str, caller: int, upstream: int) -> None:
    step, reached = 0, True
    while reached:
        rig, reached = run_until(step, WRONGS[wrong], caller, upstream)
        finish(rig)
        where = f"{wrong} after step {step}"
        assert rig.left() == {}, where
        assert rig.cluster.connections == 0, where
        assert rig.server.closed, where
        assert len(rig.poller) == 0, where
        assert len(rig.service.ended) == 1, where
        rig.close()
        step += 1
    assert step > 5, "the conversation has steps"


@pytest.mark.parametrize(("caller", "upstream"), [(11, 11), (11, 20), (20, 11), (20, 20)])
def test_undisturbed_it_ends_well(caller: int, upstream: int) -> None:
    rig, _ = run_until(-1, lambda rig: None, caller, upstream)
    assert [(record.status, record.reason) for record in rig.service.records] == [(200, "")]
    assert rig.record.bytes_received == 6 * _PIECE
    assert rig.record.bytes_sent == 8 * _PIECE
    finish(rig)
    assert rig.left() == {}
    rig.close()
