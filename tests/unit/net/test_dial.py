"""Opening connections: exactly one of done and failed, never from within ``start``."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from identity.svid import PeerIdentity
from proxy.net.dial import Dial
from proxy.net.listener import Address
from proxy.net.poller import Poller
from proxy.net.stream import Stream
from tests.support.mtls import API, WEB, Hand, credentials


class Outcome:
    def __init__(self) -> None:
        self.stream: Stream | None = None
        self.peer: PeerIdentity | None = None
        self.failed: list[tuple[str, str]] = []
        self.done = 0

    def on_done(self, stream: Stream, peer: PeerIdentity | None, alpn: str) -> None:
        self.done += 1
        self.stream, self.peer, self.alpn = stream, peer, alpn

    def on_failed(self, reason: str, detail: str) -> None:
        self.failed.append((reason, detail))

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.failed]


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def address(sock: socket.socket) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host, port)


def dial(poller: Poller, where: Address, outcome: Outcome, **more: Any) -> Dial:
    arguments: dict[str, Any] = {"deadline": poller.now + 5.0, "done": outcome.on_done, "failed": outcome.on_failed}
    made = Dial(poller, where, **{**arguments, **more})
    made.start()
    assert (outcome.done, outcome.failed) == (0, [])
    return made


def test_a_listening_endpoint_is_connected(poller: Poller, listener: socket.socket) -> None:
    outcome = Outcome()
    dial(poller, address(listener), outcome)
    poller.dispatch(1)
    assert (outcome.done, outcome.failed, outcome.peer) == (1, [], None)
    assert outcome.stream is not None
    assert outcome.stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    outcome.stream.abort()


def test_a_unix_endpoint_is_connected(poller: Poller, tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        outcome = Outcome()
        dial(poller, Address(path=path), outcome)
        poller.dispatch(1)
        assert outcome.stream is not None
        outcome.stream.abort()


def test_a_unix_endpoint_whose_queue_is_full_is_a_failed_connect(poller: Poller, tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        outcome = Outcome()
        dial(poller, Address(path=path), outcome)
        poller.dispatch(0)
        poller.fire_due()
        assert (outcome.done, outcome.reasons) == (0, ["upstream_connect_failed"])
        assert len(poller) == 0


def test_nobody_listening_is_a_failed_connect(poller: Poller, listener: socket.socket) -> None:
    where = address(listener)
    listener.close()
    outcome = Outcome()
    dial(poller, where, outcome)
    poller.dispatch(1)
    poller.fire_due()
    assert (outcome.done, outcome.reasons) == (0, ["upstream_connect_failed"])
    assert "refused" in outcome.failed[0][1]
    assert len(poller) == 0


def test_a_unix_path_that_does_not_exist_is_a_failed_connect(poller: Poller, tmp_path: Path) -> None:
    outcome = Outcome()
    dial(poller, Address(path=str(tmp_path / "no.sock")), outcome)
    poller.fire_due()
    assert outcome.reasons == ["upstream_connect_failed"]


def test_no_descriptor_left_is_a_failed_connect(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*args: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("proxy.net.dial.socket.socket", no_socket)
    outcome = Outcome()
    dial(poller, Address("127.0.0.1", 1), outcome)
    poller.fire_due()
    assert outcome.failed == [("upstream_connect_failed", "Too many open files")]


class Deaf(socket.socket):
    """Connects for ever."""

    def connect_ex(self, where: Any) -> int:
        return errno.EINPROGRESS


def _deaf(poller: Poller, monkeypatch: pytest.MonkeyPatch, outcome: Outcome) -> Dial:
    monkeypatch.setattr("proxy.net.dial.socket.socket", Deaf)
    return dial(poller, Address("127.0.0.1", 1), outcome)


def test_a_connect_that_takes_too_long_is_given_up(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome()
    _deaf(poller, monkeypatch, outcome)
    poller.now += 4.0
    poller.fire_due()
    assert outcome.failed == []
    poller.now += 2.0
    poller.fire_due()
    assert outcome.reasons == ["upstream_connect_timeout"]
    assert len(poller) == 0


def test_a_cancelled_connect_says_nothing(poller: Poller, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = Outcome()
    _deaf(poller, monkeypatch, outcome).cancel()
    poller.now += 60.0
    poller.fire_due()
    assert (outcome.done, outcome.failed, len(poller)) == (0, [], 0)


# -- mTLS -----------------------------------------------------------------------------------------------------


class Far:
    """An mTLS server stepped by hand."""

    def __init__(self, listener: socket.socket, who: str = API) -> None:
        self.sock, _ = listener.accept()
        self.sock.setblocking(False)
        self.hand = Hand(self.sock, credentials(who).server((b"h2",)), server=True)

    def shake(self, poller: Poller, outcome: Outcome) -> None:
        for _ in range(1000):
            poller.dispatch(0)
            if outcome.done or outcome.failed:
                return
            self.hand.step()


def secure(poller: Poller, listener: socket.socket, outcome: Outcome, **more: Any) -> Dial:
    arguments: dict[str, Any] = {"credentials": credentials(WEB), "alpn": (b"h2",), "expect": frozenset({API})}
    return dial(poller, address(listener), outcome, **{**arguments, **more})


def test_the_expected_peer_is_accepted(poller: Poller, listener: socket.socket) -> None:
    outcome = Outcome()
    secure(poller, listener, outcome)
    far = Far(listener)
    far.shake(poller, outcome)
    assert outcome.failed == []
    assert outcome.peer is not None
    assert (outcome.peer.uri, outcome.alpn) == (API, "h2")
    assert outcome.stream is not None
    outcome.stream.abort()
    far.sock.close()


@pytest.mark.parametrize("expect", [frozenset({WEB}), frozenset()])
def test_another_peer_of_the_same_trust_domain_is_refused(
    poller: Poller, listener: socket.socket, expect: frozenset[str]
) -> None:
    outcome = Outcome()
    secure(poller, listener, outcome, expect=expect)
    far = Far(listener)
    far.shake(poller, outcome)
    assert (outcome.done, outcome.reasons) == (0, ["upstream_identity_mismatch"])
    assert API in outcome.failed[0][1]
    assert len(poller) == 0
    far.sock.close()


def test_a_peer_that_speaks_no_tls_is_refused(poller: Poller, listener: socket.socket) -> None:
    outcome = Outcome()
    secure(poller, listener, outcome)
    far, _ = listener.accept()
    far.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    for _ in range(3):
        poller.dispatch(0.1)
    assert outcome.reasons == ["upstream_tls_failed"]
    far.close()


def test_connect_and_handshake_share_one_deadline(poller: Poller, listener: socket.socket) -> None:
    outcome = Outcome()
    secure(poller, listener, outcome)
    poller.dispatch(1)
    poller.now += 6.0
    poller.fire_due()
    assert outcome.reasons == ["upstream_connect_timeout"]
    assert len(poller) == 0


def test_cancelling_during_the_handshake_closes_the_socket(poller: Poller, listener: socket.socket) -> None:
    outcome = Outcome()
    made = secure(poller, listener, outcome)
    poller.dispatch(1)
    far, _ = listener.accept()
    made.cancel()
    poller.now += 60.0
    poller.fire_due()
    assert (outcome.done, outcome.failed, len(poller)) == (0, [], 0)
    far.settimeout(5)
    while far.recv(65536):
        pass
    far.close()


def test_cancelling_after_success_leaves_the_connection_alone(poller: Poller, listener: socket.socket) -> None:
    outcome = Outcome()
    made = secure(poller, listener, outcome)
    far = Far(listener)
    far.shake(poller, outcome)
    assert outcome.stream is not None
    outcome.stream.start()
    made.cancel()
    assert not outcome.stream.closed
    assert outcome.stream.sock.fileno() != -1
    assert len(poller) == 1
    outcome.stream.abort()
    far.sock.close()


@pytest.mark.parametrize("tls", [False, True])
def test_an_owner_that_fails_when_told_of_success_is_not_told_of_failure_too(
    poller: Poller, listener: socket.socket, caplog: pytest.LogCaptureFixture, tls: bool
) -> None:
    outcome = Outcome()

    def boom(stream: Stream, peer: PeerIdentity | None, alpn: str) -> None:
        outcome.done += 1
        outcome.stream = stream
        raise RuntimeError("bug")

    if tls:
        secure(poller, listener, outcome, done=boom)
        far = Far(listener)
        far.shake(poller, outcome)
        far.sock.close()
    else:
        dial(poller, address(listener), outcome, done=boom)
        poller.dispatch(1)
    assert (outcome.done, outcome.failed) == (1, [])
    assert "internal error" in caplog.text
    assert outcome.stream is not None
    outcome.stream.abort()
