"""The caller's side: a connection that receives requests, and makes an ``Exchange`` of each.

The connection does not know what is done with a request: that is the ``Service``'s business (``inbound.py``,
``outbound.py``). It knows how an answer is written, when the connection may carry another request, and how it
is brought to an end: ``drain`` (GOAWAY twice, ``connection: close``), ``expire`` (certificate or age), ``cut``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.answer import ANSWERS, render_http
from proxy.errors import SidewallError
from proxy.http.connection import Engine, HttpConnection
from proxy.http.exchange import Exchange
from proxy.http.facts import Facts, Times, Use
from proxy.net.stream import HIGH_WATER, Stream
from proxy.observe.record import ExchangeRecord
from proxy.wire.events import (
    ConnectionEnded,
    DataReceived,
    Event,
    GoAwayReceived,
    Headers,
    PingAcknowledged,
    RequestReceived,
    RequestRefused,
    ResponseHead,
    StreamDrained,
    StreamReset,
    TrailersReceived,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_ERROR: Final = 0x0
_ENHANCE_YOUR_CALM: Final = 0xB


class ServerEngine(Engine, Protocol):
    """The server half of an engine."""

    @property
    def wants_read(self) -> bool: ...
    def send_informational(self, stream_id: int, status: int, headers: Headers) -> None: ...
    def send_response(
        self, stream_id: int, status: int, headers: Headers, *, length: int | None, end_stream: bool
    ) -> None: ...
    def resume(self) -> list[Event]: ...


class Service(Protocol):
    """What is done with requests. ``handle`` must hand the exchange to a connection, park it, or raise."""

    times: Times

    def handle(self, exchange: Exchange) -> None: ...
    def response_headers(self, exchange: Exchange, head: ResponseHead) -> Headers: ...
    def done(self, exchange: Exchange) -> None: ...
    def refused(self, connection: ServerConnection, record: ExchangeRecord) -> None: ...
    def closed(self, connection: ServerConnection) -> None: ...
    def note_malformed(self, reason: str) -> None: ...


class ServerConnection(HttpConnection[ServerEngine]):
    """See the module's text."""

    __slots__ = (
        "_ending",
        "_head_since",
        "_late",
        "_parting",
        "_resume",
        "cut_at",
        "draining",
        "expires_at",
        "facts",
        "requests",
        "requests_left",
        "service",
        "use",
    )

    def __init__(self, stream: Stream, engine: ServerEngine, service: Service, facts: Facts) -> None:
        super().__init__(stream, engine)
        self.service = service
        self.facts = facts
        self.use = Use()  # shared by all connections of the peer once the worker has counted this one in
        self.requests = 0
        self.requests_left = 0  # 0 = unlimited, else counted down (L-19)
        self.expires_at = 0.0  # monotonic: drain from here on (T-7, or a little before cut_at)
        self.cut_at = 0.0  # monotonic: a certificate has ended, nothing is forwarded any more (S-4)
        self.draining = False
        self._ending = False
        self._parting = False  # between the two steps of ``drain``
        self._head_since = 0.0
        self._resume = False
        self._late: list[int] = []  # HTTP/2 streams answered before their request ended
        stream.owner = self

    def start(self, *, watched: bool = False) -> None:
        """Begin to serve; ``watched`` says that the poller watches the stream already."""
        self.engine.start()
        if not watched:
            self.stream.start()
        self.touch()

    # -- bytes in -----------------------------------------------------------------------------------------

    def on_data(self, data: bytes) -> None:
        engine = self.engine
        engine.now = self.last_active = self.poller.now
        self._dispatch(engine.receive(data))
        self._note_head()
        if not engine.wants_read and not self.closed:
            self.stream.pause()

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            _HANDLERS[type(event)](self, event)
        if self.engine.version == 20 or self.engine.must_close:
            self.touch()  # HTTP/2 answers many frames by itself; HTTP/1.1 writes only what it was told to

    def _note_head(self) -> None:
        # T-2 counts from the first byte of a head (or of a header block) to its end, however slowly it drips.
        if not getattr(self.engine, "mid_head", False):
            self._head_since = 0.0
        elif not self._head_since:
            self._head_since = self.poller.now

    def on_eof(self, clean: bool) -> None:
        if not clean:
            self._all_gone("downstream_closed", "TLS ended without close_notify")
            return
        self._dispatch(self.engine.receive_eof())
        if self.engine.version == 20 or not self.exchanges:
            self._all_gone("downstream_closed", "")
        elif not any(exchange.tunnel for exchange in self.exchanges.values()):
            self.engine.shut_down()  # half-closed after a complete request: it still gets its answer (F-4)

    def on_lost(self, detail: str) -> None:
        self._all_gone("downstream_closed", detail)

    def on_crash(self, error: Exception) -> None:
        self._all_gone("internal_error", type(error).__name__)

    def _all_gone(self, reason: str, detail: str) -> None:
        for exchange in list(self.exchanges.values()):
            exchange.abandon(reason, detail)
        cut = reason in ("internal_error", "write_timeout")
        self._close(self.stream.abort if cut else self.stream.close)

    # -- events -------------------------------------------------------------------------------------------

    def _on_request(self, event: RequestReceived) -> None:
        self.requests += 1
        now = self.poller.now
        facts = self.facts
        record = ExchangeRecord(facts.direction, facts.listener, self.poller.wall(), now)
        exchange = Exchange(self, event.stream_id, event.head, event.end_stream, record)
        self.exchanges[event.stream_id] = exchange
        _fill(record, event, facts)
        try:
            self.service.handle(exchange)
        except SidewallError as error:
            exchange.fail(error)
        if self.requests_left and self.requests >= self.requests_left:
            self.drain()

    def _on_refused(self, event: RequestRefused) -> None:
        exchange = self.exchanges.get(event.stream_id)
        self.service.note_malformed(event.reason)
        if exchange is not None:
            error = SidewallError(event.detail, reason=event.reason)
            exchange.fail(error)
            return
        record = ExchangeRecord(
            self.facts.direction, self.facts.listener, self.poller.wall(), self.poller.now
        )
        self._answer_refused(event, record)
        self.service.refused(self, record)

    def _answer_refused(self, event: RequestRefused, record: ExchangeRecord) -> None:
        answer = ANSWERS[event.reason]
        record.reason, record.flags, record.details = event.reason, answer.flag, event.detail
        record.version = self.engine.version
        record.peer, record.peer_address = self.facts.peer, self.facts.peer_address
        record.local_address, record.tls_version = self.facts.local, self.facts.tls_version
        record.ended_at = self.poller.now
        if self.engine.version == 20 and not getattr(event, "answerable", False):
            return  # the engine has reset the stream
        headers, body = render_http(answer, event.reason)
        record.status, record.bytes_sent = answer.status, len(body)
        self._write_answer(event.stream_id, answer.status, headers, body, close=self.engine.version != 20)

    def _on_data(self, event: DataReceived) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is None:
            self.acknowledge(event.stream_id, event.size)  # answered already: read and forget
        else:
            exchange.request_data(event.data, event.size, event.end_stream)

    def _on_trailers(self, event: TrailersReceived) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.request_trailers(event.headers)

    def _on_reset(self, event: StreamReset) -> None:
        exchange = self.exchanges.get(event.stream_id)
        if exchange is not None:
            exchange.abandon("downstream_reset" if event.by_peer else "local_reset", event.reason)

    def _on_drained_stream(self, event: StreamDrained) -> None:
        self.touch()

    def _on_goaway(self, event: GoAwayReceived) -> None:
        self.draining = True  # the peer opens no more streams; those that are open end by themselves

    def _on_ended(self, event: ConnectionEnded) -> None:
        if event.reason:
            self.service.note_malformed(event.reason)
        for exchange in list(self.exchanges.values()):
            exchange.abandon("downstream_closed", event.detail or event.reason)

    def _ignore(self, event: Event) -> None:
        pass

    # -- bytes out ----------------------------------------------------------------------------------------

    def send_head(self, exchange: Exchange, head: ResponseHead, end: bool) -> None:
        headers = self.service.response_headers(exchange, head)
        self.engine.send_response(
            exchange.stream_id, head.status, headers, length=head.length, end_stream=end
        )
        self._resume = self._resume or head.status == 101
        self.touch()

    def answer(self, exchange: Exchange, status: int, headers: Headers, body: bytes, *, close: bool) -> None:
        """Write an answer of ours in place of the upstream's."""
        self._write_answer(exchange.stream_id, status, headers, body, close=close)
        self.response_done(exchange)

    def _write_answer(
        self, stream_id: int, status: int, headers: Headers, body: bytes, *, close: bool
    ) -> None:
        engine = self.engine
        if close and engine.version != 20:
            engine.shut_down()
        grpc = bool(headers) and headers[0] == (b"content-type", b"application/grpc")
        engine.send_response(
            stream_id, status, headers, length=None if grpc else len(body), end_stream=not body
        )
        if body:
            engine.send_data(stream_id, body, True)
        self.touch()

    def response_done(self, exchange: Exchange) -> None:
        """Everything of the answer is in the engine."""
        if self.engine.version != 20:
            self._resume = True
        elif not exchange.request_ended:
            self._late.append(exchange.stream_id)
        self.touch()

    def end_tunnel(self) -> None:
        """Both directions of an upgraded connection have ended: close once everything is written."""
        self._ending = True
        self.touch()

    def end_call(self, exchange: Exchange, trailers: Headers) -> bool:
        """End a gRPC answer that has begun with ``trailers``. False when bytes of it still wait to be sent, which
        would reach the caller first."""
        if self.engine.version != 20 or self.closed or self.engine.queued(exchange.stream_id):
            return False
        self.engine.send_trailers(exchange.stream_id, trailers)
        self.response_done(exchange)
        return True

    def cut(self, exchange: Exchange, code: int) -> None:
        """End an answer that has begun and cannot be completed."""
        if exchange.head.version == 10 and not self.closed:
            self._close(self.stream.abort)  # its body may end with the connection: no polite end then (S-6)
        elif not self.closed:
            self.engine.reset(exchange.stream_id, code)
            self.touch()

    def forget(self, exchange: Exchange) -> None:
        self.exchanges.pop(exchange.stream_id, None)
        if self.engine.version == 20 and not self.closed:
            self.engine.release(exchange.stream_id)  # type: ignore[attr-defined]
        self.service.done(exchange)
        self.last_active = self.poller.now
        if self.draining:
            self.touch()

    def after_flush(self) -> None:
        if self._ending and self.stream.pending < HIGH_WATER:
            self._close(self.stream.close)
            return
        if self._resume and self.stream.pending < HIGH_WATER:  # who does not read answers gets no more of them
            self._resume = False
            self._continue_reading()
            if self._dirty:
                return  # that wrote something: it is flushed before anything is closed
        if self._late:
            self._reset_late()
        idle = self.engine.is_idle and not self.exchanges and not self.engine.queued(0)
        if self.draining and idle and not self._parting and self.stream.pending < HIGH_WATER:
            self._close(self.stream.close)
            return
        super().after_flush()

    def _continue_reading(self) -> None:
        # HTTP/1.1: the next pipelined request, or the first bytes of a tunnel.
        if self.engine.must_close or self.closed:
            return
        self._dispatch(self.engine.resume())
        self._note_head()
        if self.engine.wants_read and not self.held:
            self.stream.resume()

    def _reset_late(self) -> None:
        # RFC 9113, 8.1: NO_ERROR asks the peer to stop sending a request that was answered already. Only after
        # the answer has left the engine, which would drop it otherwise.
        waiting = []
        for stream_id in self._late:
            if self.engine.queued(stream_id):
                waiting.append(stream_id)
            else:
                self.engine.reset(stream_id, _NO_ERROR)
                self.touch()
        self._late = waiting

    # -- ending -------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """First step: announce the end. No request that arrives from now on is lost."""
        if not self.draining and not self.closed:
            self.draining = True
            self.engine.shut_down()
            self.touch()
            self._parting = True
            self.poller.call_at(self.poller.now + 1.0, self._drain_again)

    def _drain_again(self) -> None:
        # HTTP/2: second GOAWAY, about a round trip later, with the last stream that will be processed (RFC 9113,
        # 6.8). HTTP/1.1: a request that was on its way has come by now, and its answer said that it is the last.
        self._parting = False
        if not self.closed:
            self.engine.finish()
            self.touch()

    def finish_closing(self) -> None:
        if self.stream.pending >= HIGH_WATER:
            return  # the engine may hold the rest of the last answer; ``on_drained`` comes back here
        if not self.exchanges:
            self._close(self.stream.close)
            return
        for exchange in list(self.exchanges.values()):
            exchange.abandon("downstream_closed", "connection closing")
        self._close(self.stream.close)

    def shut(self, reason: str) -> None:
        """End now; open exchanges are recorded with ``reason``. HTTP/2 peers get a last GOAWAY."""
        if self.closed:
            return
        for exchange in list(self.exchanges.values()):
            exchange.abandon(reason)
        if self.engine.version == 20:
            self.engine.finish()
            self.stream.send(self.engine.take())
        self._close(self.stream.close)

    def _close(self, how: Callable[[], None]) -> None:
        if not self.closed:
            self.closed = True
            how()
            self.service.closed(self)

    # -- time ---------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Called about twice a second; compares clocks with the limits of section T."""
        times = self.service.times
        if self._head_since and now - self._head_since > times.head:
            self._head_too_slow()
        elif self.stream.pending and times.write and now - self.stream.last_write > times.write:
            self._all_gone("write_timeout", "the caller does not read")
        elif self.exchanges:
            self._sweep_exchanges(now, times)
        elif times.idle and now - self.last_active > times.idle:
            self.drain()
        if self.cut_at and now > self.cut_at:
            self.shut("certificate_expired")
        elif self.expires_at and now > self.expires_at:
            self.drain()

    def _head_too_slow(self) -> None:
        self._head_since = 0.0
        self.service.note_malformed("head_timeout")
        if self.engine.version != 20 and not self.exchanges:
            answer = ANSWERS["head_timeout"]
            headers, body = render_http(answer, "head_timeout")
            self._write_answer(self.requests + 1, answer.status, headers, body, close=True)
            return
        self.engine.fail(_ENHANCE_YOUR_CALM, "head_timeout")
        self.touch()

    def _sweep_exchanges(self, now: float, times: Times) -> None:
        for exchange in list(self.exchanges.values()):
            still = now - exchange.moved_at
            waits = exchange.request_ended and not exchange.response_started
            if exchange.total and waits and still > exchange.total:
                exchange.fail(SidewallError(reason="upstream_timeout"))
            elif times.stream_idle and still > times.stream_idle and not exchange.tunnel:
                exchange.fail(SidewallError(reason="idle_timeout"))


def _fill(record: ExchangeRecord, event: RequestReceived, facts: Facts) -> None:
    head = event.head
    record.method = head.method
    record.path = head.path
    record.authority = head.authority
    record.version = head.version
    record.is_grpc = head.is_grpc
    record.peer = facts.peer
    record.peer_address = facts.peer_address
    record.local_address = facts.local
    record.tls_version = facts.tls_version


_HANDLERS: Final[dict[type[Event], Any]] = {
    RequestReceived: ServerConnection._on_request,
    RequestRefused: ServerConnection._on_refused,
    DataReceived: ServerConnection._on_data,
    TrailersReceived: ServerConnection._on_trailers,
    StreamReset: ServerConnection._on_reset,
    StreamDrained: ServerConnection._on_drained_stream,
    GoAwayReceived: ServerConnection._on_goaway,
    ConnectionEnded: ServerConnection._on_ended,
    PingAcknowledged: ServerConnection._ignore,
}
