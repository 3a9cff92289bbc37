"""Handshakes on the poller: done or failed, exactly one of them, exactly once."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from OpenSSL import SSL

from identity.svid import PeerIdentity
from proxy.net.poller import Poller
from proxy.net.stream import TlsStream
from proxy.net.tls import Credentials, Handshake
from tests.support.mtls import API, WEB, Hand, credentials

Pair = Callable[[], tuple[socket.socket, socket.socket]]
_ALPN = (b"h2", b"http/1.1")


class Outcome:
    """What a handshake said."""

    def __init__(self) -> None:
        self.stream: TlsStream | None = None
        self.peer: PeerIdentity | None = None
        self.alpn = "?"
        self.failed: list[tuple[str, str]] = []
        self.done = 0

    def on_done(self, stream: TlsStream, peer: PeerIdentity, alpn: str) -> None:
        self.done += 1
        self.stream, self.peer, self.alpn = stream, peer, alpn

    def on_failed(self, why: str, detail: str) -> None:
        self.failed.append((why, detail))


def begin(poller: Poller, sock: socket.socket, **more: Any) -> tuple[Handshake, Outcome]:
    outcome = Outcome()
    arguments: dict[str, Any] = {
        "alpn": _ALPN,
        "server": True,
        "deadline": poller.now + 10.0,
        "done": outcome.on_done,
        "failed": outcome.on_failed,
    }
    handshake = Handshake(poller, sock, more.pop("credentials", credentials(API)), **{**arguments, **more})
    handshake.start()
    return handshake, outcome


def shake(poller: Poller, hand: Hand) -> None:
    for _ in range(10):
        hand.step()
        poller.dispatch(0)


def caller(sock: socket.socket, who: Credentials | None = None, alpn: tuple[bytes, ...] = _ALPN) -> Hand:
    return Hand(sock, (who or credentials(WEB)).client(alpn), server=False)


def test_a_peer_with_an_svid_is_known_by_it(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours)
    shake(poller, caller(theirs))
    assert (outcome.done, outcome.failed, outcome.alpn) == (1, [], "h2")
    assert outcome.peer is not None
    assert outcome.peer.uri == WEB
    assert len(poller) == 0, "the stream registers itself when it is started"


def test_bytes_pass_after_the_handshake_and_a_clean_end_is_told_from_a_cut(poller: Poller, pair: Pair) -> None:
    from tests.unit.net.test_stream import Recorder

    for clean in (True, False):
        ours, theirs = pair()
        _, outcome = begin(poller, ours)
        hand = caller(theirs)
        shake(poller, hand)
        stream, owner = outcome.stream, Recorder()
        assert stream is not None
        stream.owner = owner
        stream.start()
        hand.tls.send(b"hello")
        poller.dispatch(0)
        stream.send(b"world")
        poller.flush()
        assert hand.tls.recv(100) == b"world"
        if clean:
            hand.tls.shutdown()
        theirs.close()
        poller.dispatch(0)
        poller.dispatch(0)
        assert owner.data == b"hello"
        assert owner.eof is clean
        stream.abort()


def test_the_client_side_judges_the_server(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours, server=False, credentials=credentials(WEB), server_name="api.shop")
    hand = Hand(theirs, credentials(API).server(_ALPN), server=True)
    shake(poller, hand)
    assert outcome.peer is not None
    assert outcome.peer.uri == API
    assert hand.tls.get_servername() == b"api.shop"


def test_without_a_common_protocol_there_is_none(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours, alpn=())
    shake(poller, caller(theirs, alpn=()))
    assert (outcome.done, outcome.alpn) == (1, "")


def test_a_peer_of_another_authority_is_refused(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours)
    stranger = credentials("spiffe://other.test/ns/shop/sa/web", "other.test")
    hand = Hand(theirs, _trusting_anybody(stranger), server=False)
    shake_until_refused(poller, hand)
    assert outcome.done == 0
    assert [why for why, _ in outcome.failed] in (["trust_domain"], ["untrusted_root"])
    assert ours.fileno() == -1


def _trusting_anybody(who: Credentials) -> SSL.Context:
    context = who.client(_ALPN)
    context.set_verify(SSL.VERIFY_NONE, None)
    return context


def shake_until_refused(poller: Poller, hand: Hand) -> None:
    for _ in range(10):
        try:
            hand.step()
        except SSL.Error:
            pass
        poller.dispatch(0)


def test_a_peer_without_a_certificate_is_refused(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_alpn_protos(list(_ALPN))
    shake_until_refused(poller, Hand(theirs, context, server=False))
    assert outcome.done == 0
    assert [why for why, _ in outcome.failed] == ["no_certificate"]


def test_a_peer_that_speaks_no_tls_is_refused(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours)
    theirs.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    poller.dispatch(0)
    assert [why for why, _ in outcome.failed] == ["protocol"]
    assert ours.fileno() == -1


def test_a_peer_that_goes_away_is_told_as_such(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours)
    theirs.close()
    poller.dispatch(0)
    assert [why for why, _ in outcome.failed] == ["closed"]


def test_a_handshake_that_takes_too_long_is_given_up(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours)
    poller.now += 9.0
    poller.fire_due()
    assert outcome.failed == []
    poller.now += 2.0
    poller.fire_due()
    assert [why for why, _ in outcome.failed] == ["timeout"]
    assert (len(poller), ours.fileno()) == (0, -1)
    assert theirs.recv(1) == b""


def test_a_finished_handshake_does_not_time_out(poller: Poller, pair: Pair) -> None:
    ours, theirs = pair()
    _, outcome = begin(poller, ours)
    shake(poller, caller(theirs))
    poller.now += 60.0
    poller.fire_due()
    assert (outcome.done, outcome.failed) == (1, [])
    assert ours.fileno() != -1


def test_a_cancelled_handshake_says_nothing(poller: Poller, pair: Pair) -> None:
    ours, _ = pair()
    handshake, outcome = begin(poller, ours)
    handshake.cancel()
    poller.now += 60.0
    poller.fire_due()
    poller.dispatch(0)
    assert (outcome.done, outcome.failed, len(poller), ours.fileno()) == (0, [], 0, -1)


def test_an_owner_that_fails_when_told_of_success_is_not_told_of_failure_too(
    poller: Poller, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = pair()
    outcome = Outcome()

    def boom(*args: object) -> None:
        outcome.done += 1
        raise RuntimeError("bug")

    begin(poller, ours, done=boom, failed=outcome.on_failed)
    shake(poller, caller(theirs))
    assert (outcome.done, outcome.failed) == (1, [])
    assert ours.fileno() == -1
    assert poller.crashes == 1
    assert "internal error" in caplog.text


def test_contexts_are_made_once_for_each_side_and_offer() -> None:
    made = Credentials(credentials(API).context)
    assert made.server(_ALPN) is made.server(_ALPN)
    assert made.server(_ALPN) is not made.server(())
    assert made.server(_ALPN) is not made.client(_ALPN)


def test_credentials_know_when_they_have_ended() -> None:
    made = credentials(API)
    assert not made.expired(made.context.not_after - 1)
    assert made.expired(made.context.not_after)
