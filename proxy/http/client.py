"""The upstream's side: a connection that carries exchanges to an endpoint.

The pool (``proxy/upstream/cluster.py``) owns it and is told when it can take work again (``idle``) and when it
is gone (``closed``). Whether it may be used again is the engine's word (S-13), asked at check-out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from identity.svid import PeerIdentity
from proxy.errors import SidewallError, UpstreamGone
from proxy.http.connection import Engine, HttpConnection
from proxy.net.stream import Stream
from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    GoAwayReceived,
    Headers,
    InformationalReceived,
    PingAcknowledged,
    RequestHead,
    ResponseReceived,
    StreamDrained,
    StreamReset,
    TrailersReceived,
)

if TYPE_CHECKING:
    from proxy.http.exchange import Exchange

_REFUSED_STREAM: Final = 0x7
_NO_ERROR: Final = 0x0
_PING_AFTER: Final = 30.0  # F-19, seconds without a byte while exchanges are open
_PING_WAIT: Final = 10.0


class ClientEngine(Engine, Protocol):
    """The client half of an engine."""

    @property
    def can_open(self) -> bool: ...
    def open_stream(self, head: RequestHead, headers: Headers, *, end_stream: bool) -> int: ...


class Pool(Protocol):
    """Who owns the connection."""

    def released(self, connection: ClientConnection, exchange: Exchange) -> None:
        """An exchange left the connection (which may be closed): there may be room for a parked one."""

    def has_room(self) -> None:
        """An HTTP/2 connection may take an exchange."""

    def retire(self, connection: ClientConnection) -> None:
        """The connection takes no new exchange."""

    def lost(self, connection: ClientConnection) -> None:
        """The connection is closed."""

    def again(self, connection: ClientConnection, exchange: Exchange, error: SidewallError) -> None:
        """Nothing of the exchange reached the upstream: it may be tried once more (S-32)."""


class ClientConnection(HttpConnection[ClientEngine]):
    """See the module's text. ``address`` and ``peer`` say where it leads."""

    __slots__ = ("_pinged_at", "address", "cut_at", "draining", "expires_at", "opened", "peer", "pool")

    def __init__(
        self, stream: Stream, engine: ClientEngine, pool: Pool, address: str, peer: PeerIdentity | None
    ) -> None:
        super().__init__(stream, engine)
        self.pool = pool
        self.address = address
        self.peer = peer
        self.opened = 0
        self.draining = False  # takes no new exchange; closes when the last has ended
        self.cut_at = self.expires_at = 0.0  # monotonic, 0 = never (S-4)
        if peer is not None:
            left = max(peer.not_after - self.poller.wall(), 0.0)
            self.cut_at = self.poller.now + left
            self.expires_at = self.cut_at - min(30.0, left / 10)
        self._pinged_at = 0.0
        stream.owner = self

    def start(self) -> None:
        self.engine.start()
        self.stream.start()
        self.touch()

    @property
    def usable(self) -> bool:
        """True when an exchange can be opened now."""
        return not self.closed and not self.draining and self.engine.can_open

    # -- exchanges ----------------------------------------------------------------------------------------

    def open(self, exchange: Exchange, ended: bool) -> int:
        """Write the head of ``exchange``; returns its stream id here."""
        stream_id = self.engine.open_stream(exchange.head, exchange.headers, end_stream=ended)
        self.exchanges[stream_id] = exchange
        self.opened += 1
        self.last_active = self.poller.now
        record = exchange.record
        record.upstream_address = self.address
        record.upstream_peer = self.peer
        record.upstream_version = self.engine.version
        self.touch()
        return stream_id

    def abort(self, stream_id: int, code: int) -> None:
        """The caller needs this exchange no more."""
        if stream_id in self.exchanges and not self.closed:
            self.engine.reset(stream_id, code)
            self.touch()

    def forget(self, exchange: Exchange) -> None:
        if self.exchanges.pop(exchange.up_id, None) is None:
            return
        self.last_active = self.poller.now
        if self.draining or self.engine.must_close:
            self.touch()
        self.pool.released(self, exchange)

    # -- events -------------------------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        engine = self.engine
        engine.now = self.last_active = self.poller.now
        self._pinged_at = 0.0
        self._dispatch(engine.receive(data))

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            _HANDLERS[type(event)](self, event)
        if self.engine.version == 20 or self.engine.must_close:
            self.touch()  # HTTP/2 answers many frames by itself; HTTP/1.1 writes only what it was told to

    def _on_response(self, event: ResponseReceived) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.response_head(event.head, event.end_stream)

    def _on_informational(self, event: InformationalReceived) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.informational(event.status, event.headers)

    def _on_data(self, event: DataReceived) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is None:
            self.acknowledge(event.stream_id, event.size)
        else:
            exchange.response_data(event.data, event.size, event.end_stream)

    def _on_trailers(self, event: TrailersReceived) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.response_trailers(event.headers)

    def _on_reset(self, event: StreamReset) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is None:
            return
        if event.by_peer and event.code == _REFUSED_STREAM:
            self._unprocessed(exchange, "refused by the upstream")
            return
        reason = "upstream_reset" if event.by_peer else "upstream_protocol_error"
        if event.by_peer and event.reason == "truncated":
            reason = "upstream_closed"
        exchange.fail(SidewallError(event.reason, reason=reason))

    def _unprocessed(self, exchange: Exchange, detail: str) -> None:
        """The peer says it did not begin: safe to try elsewhere unless body bytes have left."""
        error = UpstreamGone(detail, wrote=exchange.wrote)
        if exchange.wrote or exchange.response_started:
            exchange.fail(error)
            return
        self.exchanges.pop(exchange.up_id, None)
        self.blocked.discard(exchange)
        exchange.client = None
        exchange.up_id = 0
        self.pool.again(self, exchange, error)

    def _on_drained_stream(self, event: StreamDrained) -> None:
        self.touch()

    def _on_goaway(self, event: GoAwayReceived) -> None:
        self.draining = True
        for exchange in list(self.exchanges.values()):
            if exchange.up_id > event.last_stream_id:
                self._unprocessed(exchange, "connection is going away")
        self.pool.retire(self)

    def _on_ended(self, event: ConnectionEnded) -> None:
        self.draining = True
        reason = "upstream_protocol_error" if event.reason else "upstream_closed"
        self._fail_all(reason, event.detail or event.reason)

    def _ignore(self, event: Event) -> None:
        pass

    # -- ending -------------------------------------------------------------------------------------------

    def on_eof(self, clean: bool) -> None:
        if clean:
            self._dispatch(self.engine.receive_eof())
        if any(exchange.tunnel for exchange in self.exchanges.values()):
            return  # a tunnel may still be written to
        self._fail_all("upstream_closed", "" if clean else "TLS ended without close_notify")
        self._close()

    def on_lost(self, detail: str) -> None:
        self._fail_all("upstream_closed", detail)
        self._close()

    def on_crash(self, error: Exception) -> None:
        self._fail_all("internal_error", type(error).__name__)
        self._close()

    def _fail_all(self, reason: str, detail: str) -> None:
        self.draining = True  # before the first failure makes room for one that waits
        for exchange in list(self.exchanges.values()):
            exchange.fail(SidewallError(detail, reason=reason))

    def after_flush(self) -> None:
        if self.draining and not self.exchanges and not self.stream.pending:
            self._close()
            return
        super().after_flush()
        if self.engine.version == 20 and self.usable:
            self.pool.has_room()  # a reset has left, or the peer allows more streams than before

    def finish_closing(self) -> None:
        self._fail_all("upstream_closed", "connection closing")
        self._close()

    def drain(self) -> None:
        """Take no new exchange; close after the last."""
        self.draining = True
        self.pool.retire(self)
        self.engine.shut_down()
        self.touch()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            # What is still unwritten belongs to requests that were given up: it must not look complete (S-6).
            (self.stream.abort if self.stream.pending else self.stream.close)()
            self.pool.lost(self)

    def shut(self, reason: str = "draining") -> None:
        """Close now; what is open on it fails with ``reason``."""
        self._fail_all(reason, "")
        self._close()

    # -- time ---------------------------------------------------------------------------------------------

    def sweep(self, now: float, idle: float, write: float) -> None:
        """Certificate end (S-4), idle end (T-5), a peer that takes nothing (T-10), a silent one (F-19)."""
        if self.expires_at and now > self.expires_at and not self.draining:
            self.drain()
        if self.cut_at and now > self.cut_at:
            self._fail_all("certificate_expired", "")
            self._close()
            return
        if not self.exchanges:
            if idle and now - self.last_active > idle:
                self._close()
        elif self.stream.pending and write and now - self.stream.last_write > write:
            self._fail_all("upstream_timeout", "the upstream does not read")
            self._close()
        elif self.engine.version == 20:
            self._keep_alive(now)

    def _keep_alive(self, now: float) -> None:
        if self._pinged_at:
            if now - self._pinged_at > _PING_WAIT:
                self._fail_all("upstream_closed", "no answer to PING")
                self._close()
        elif now - self.last_active > _PING_AFTER:
            self._pinged_at = now
            self.engine.ping()
            self.touch()


_HANDLERS: Final[dict[type[Event], Any]] = {
    ResponseReceived: ClientConnection._on_response,
    InformationalReceived: ClientConnection._on_informational,
    DataReceived: ClientConnection._on_data,
    TrailersReceived: ClientConnection._on_trailers,
    StreamReset: ClientConnection._on_reset,
    StreamDrained: ClientConnection._on_drained_stream,
    GoAwayReceived: ClientConnection._on_goaway,
    ConnectionEnded: ClientConnection._on_ended,
    PingAcknowledged: ClientConnection._ignore,
}
