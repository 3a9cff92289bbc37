"""One request and its one answer: the joint between a caller's stream and an upstream's stream.

Theory of operation. An ``Exchange`` is made by a ``ServerConnection`` when a request head has been validated.
The service (inbound or outbound) judges and routes it and hands it to a ``ClientConnection`` at once
(``opened``), or leaves it *parked* until a connection exists; body bytes that arrive meanwhile are kept in
``_waiting``, bounded by the caller's window. From then on both connections call the exchange synchronously
with what they read, and it writes to the other side's engine. Nothing here awaits, locks or starts a task.

    caller --request_data--> Exchange --engine.send_data--> upstream
    caller <-engine.send_data-- Exchange <--response_data-- upstream

Back-pressure: after each write the exchange compares the backlog of the side it wrote to with HIGH_WATER.
Above it, the bytes are not acknowledged to their sender (HTTP/2 keeps its window shut, HTTP/1.1 stops reading)
until that side has drained to LOW_WATER.

Ends. ``finish`` runs exactly once, whatever happens first, writes the record and detaches both sides:
the answer was written to its end; a failure became an answer (``fail`` before the response head, a reset or
a cut connection after it: a truncated answer never looks complete); the caller went away (``abandon``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from proxy.answer import ANSWERS, Answer, answer_to, render_grpc, render_grpc_end, render_http
from proxy.errors import SidewallError
from proxy.http.facts import Shown
from proxy.net.poller import Timer
from proxy.net.stream import HIGH_WATER, LOW_WATER
from proxy.observe.record import ExchangeRecord
from proxy.wire.events import Headers, RequestHead, ResponseHead

if TYPE_CHECKING:
    from proxy.http.client import ClientConnection
    from proxy.http.connection import HttpConnection
    from proxy.http.server import ServerConnection

_CANCEL: Final = 0x8
_INTERNAL_ERROR: Final = 0x2
_NO_ERROR: Final = 0x0


class Parking(Protocol):
    """Where an exchange waits for a connection; told when it stops waiting."""

    def leave(self, exchange: Exchange) -> None: ...


class Exchange:
    """See the module's text. ``record`` is filled on the way and handed to the service's telemetry once."""

    __slots__ = (
        "_held_request",
        "_held_response",
        "_trailers",
        "_waiting",
        "_waiting_size",
        "client",
        "finished",
        "head",
        "headers",
        "most_body",
        "moved_at",
        "parking",
        "record",
        "request_ended",
        "response_ended",
        "response_started",
        "server",
        "stream_id",
        "timer",
        "token",
        "total",
        "tried",
        "tunnel",
        "up_id",
        "wrote",
    )

    def __init__(
        self, server: ServerConnection, stream_id: int, head: RequestHead, ended: bool, record: ExchangeRecord
    ) -> None:
        self.server = server
        self.stream_id = stream_id
        self.head = head
        self.headers: Headers = head.headers  # what goes upstream; the service replaces it
        self.record = record
        self.client: ClientConnection | None = None
        self.up_id = 0
        self.request_ended = ended
        self.response_started = False
        self.response_ended = False
        self.finished = False
        self.tunnel = False
        self.most_body = 0  # L-6: bytes, 0 = no limit
        self.wrote = False  # a body byte of the request was handed to an upstream: no second attempt
        self.tried = 0
        self.parking: Parking | None = None
        self.moved_at = record.started_at
        self.total = 0.0  # T-4: seconds from the end of the request to the response head; 0 = no limit
        self.timer: Timer | None = None  # the caller's own deadline (grpc-timeout)
        self.token: Shown | None = None  # what the caller's tokens said, where somebody looks at them
        self._waiting: list[tuple[bytes, int, bool]] = []
        self._waiting_size = 0
        self._trailers: Headers | None = None  # of a request that waits for a connection
        self._held_request = 0
        self._held_response = 0

    def __repr__(self) -> str:
        state = "finished" if self.finished else "parked" if self.client is None else "open"
        return f"<Exchange {self.head.method!r} {self.head.path!r} {state}>"

    def stream_on(self, connection: HttpConnection[Any]) -> int:
        """The stream id of this exchange on one of its two connections."""
        return self.stream_id if connection is self.server else self.up_id

    # -- towards the upstream -----------------------------------------------------------------------------

    def opened(self, client: ClientConnection) -> None:
        """A connection took the exchange: send the head and what was waiting."""
        self.parking = None
        self.tried += 1
        self.record.attempts = self.tried
        self.record.sent_at = client.poller.now
        ended = self.request_ended and not self._waiting and self._trailers is None
        self.up_id = client.open(self, ended)
        self.client = client  # not before: an engine may refuse to open
        waiting, self._waiting, self._waiting_size = self._waiting, [], 0
        for data, size, end in waiting:
            if self.finished:  # an earlier piece was one too many (L-6)
                self.server.acknowledge(self.stream_id, size)
            else:
                self.request_data(data, size, end)
        if self._trailers is not None and not self.finished:
            self.request_trailers(self._trailers)
        if waiting and not self.server.held:
            self.server.stream.resume()  # the counterpart of the pause in ``_wait``

    def request_data(self, data: bytes, size: int, end: bool) -> None:
        """Body bytes of the caller (``size`` to acknowledge); ``end`` when they are the last."""
        self.moved_at = self.server.poller.now
        self.request_ended = self.request_ended or end
        client = self.client
        if self.most_body and self.record.bytes_received + len(data) > self.most_body:
            self.server.acknowledge(self.stream_id, size)
            self.fail(SidewallError(reason="body_too_large"))
            return
        if client is None:
            self._wait(data, size, end)
            return
        if data:
            self.wrote = True
            self.record.bytes_received += len(data)
        client.engine.send_data(self.up_id, data, end)
        client.touch()
        if end and self.response_ended:
            self.response_done()  # a tunnel whose other direction had ended before
            return
        if not size or client.backlog(self.up_id) < HIGH_WATER:  # nothing to give back: nothing to hold for
            self.server.acknowledge(self.stream_id, size)
            return
        if not self._held_request:
            self.server.hold()
            client.blocked.add(self)
        self._held_request += size

    def _wait(self, data: bytes, size: int, end: bool) -> None:
        self._waiting.append((data, size, end))
        self._waiting_size += size
        if self._waiting_size > LOW_WATER and self.server.engine.version != 20:
            self.server.stream.pause()  # resumed when the waiting bytes have been taken

    def request_trailers(self, headers: Headers) -> None:
        self.request_ended = True
        token = self.token
        if token is not None and token.reserved:  # an app may merge trailers into the head
            headers = [field for field in headers if field[0].replace(b"_", b"-") not in token.reserved]
        if self.client is None:
            self._trailers = headers
            return
        self.client.engine.send_trailers(self.up_id, headers)
        self.client.touch()

    def drained(self, connection: HttpConnection[Any]) -> None:
        """Output of ``connection`` drained: let the other side send again."""
        if connection is self.server:
            size, self._held_response = self._held_response, 0
            if self.client is not None and size:
                self.client.release(self.up_id, size)
        else:
            size, self._held_request = self._held_request, 0
            if size:
                self.server.release(self.stream_id, size)

    # -- towards the caller -------------------------------------------------------------------------------

    def informational(self, status: int, headers: Headers) -> None:
        self.moved_at = self.server.poller.now
        if not self.response_started:
            self.server.engine.send_informational(self.stream_id, status, headers)
            self.server.touch()

    def response_head(self, head: ResponseHead, end: bool) -> None:
        """The upstream's final head."""
        server, record = self.server, self.record
        self.moved_at = record.first_byte_at = server.poller.now
        self.response_started = True
        record.status = head.status
        if record.is_grpc:
            self._note_grpc(head.headers)
        if head.upgrade is not None:
            self.tunnel = True
        server.send_head(self, head, end)
        if end:
            self.response_done()

    def response_data(self, data: bytes, size: int, end: bool) -> None:
        """Body bytes of the upstream (``size`` to acknowledge)."""
        server, client = self.server, self.client
        self.moved_at = server.poller.now
        self.record.bytes_sent += len(data)
        server.engine.send_data(self.stream_id, data, end)
        server.touch()
        if client is not None and size:
            if server.backlog(self.stream_id) < HIGH_WATER:
                client.acknowledge(self.up_id, size)
            else:
                if not self._held_response:
                    client.hold()
                    server.blocked.add(self)
                self._held_response += size
        if end:
            self.response_ended = True
            if self.request_ended or not self.tunnel:
                self.response_done()

    def response_trailers(self, headers: Headers) -> None:
        if self.record.is_grpc:
            self._note_grpc(headers)
        self.server.engine.send_trailers(self.stream_id, headers)
        self.server.touch()
        self.response_done()

    def _note_grpc(self, headers: Headers) -> None:
        for name, value in headers:
            if name == b"grpc-status" and value.isdigit() and len(value) < 3:
                self.record.grpc_status = int(value)

    def response_done(self) -> None:
        """The answer was written to its end. A request that still goes on is of no use to anybody now."""
        client = self.client
        if client is not None and not self.request_ended:
            client.abort(self.up_id, _NO_ERROR)
        self.server.response_done(self)
        if self.tunnel:
            self.server.end_tunnel()
        self.finish()

    # -- failures -----------------------------------------------------------------------------------------

    def fail(self, error: SidewallError) -> None:
        """Nothing better can come from the upstream: answer, or cut what has begun."""
        if self.finished:
            return
        answer = answer_to(error)
        self._note(error.reason, answer, error.detail)
        self._drop_upstream()
        if not self.response_started:
            self._answer(answer, error)
        elif not self._end_call(answer, error):
            self.server.cut(self, _INTERNAL_ERROR)
        self.finish()

    def abandon(self, reason: str, detail: str = "") -> None:
        """The caller went away, or its side is being closed; nothing more can be written to it."""
        if self.finished:
            return
        self._note(reason, ANSWERS[reason], detail)
        self._drop_upstream()
        self.finish()

    def _note(self, reason: str, answer: Answer, detail: str) -> None:
        record = self.record
        record.reason = reason
        record.flags = answer.flag
        record.details = detail
        if not self.response_started:
            record.status = answer.status
            if record.is_grpc:
                record.grpc_status = answer.grpc
        elif record.is_grpc and record.grpc_status is None:
            record.grpc_status = answer.grpc

    def _drop_upstream(self) -> None:
        if self.parking is not None:
            self.parking.leave(self)
            self.parking = None
        if self.client is not None:
            self.client.abort(self.up_id, _CANCEL)

    def _answer(self, answer: Answer, error: SidewallError) -> None:
        record = self.record
        decision_id = str(getattr(error, "decision_id", "") or "")
        trace_id = record.trace.trace_id if record.trace is not None else b""
        if record.is_grpc and answer.status != 400:
            headers = render_grpc(answer, error.reason, decision_id)
            self.server.answer(self, 200, headers, b"", close=answer.close)
            record.status = 200
            return
        headers, body = render_http(answer, error.reason, decision_id, trace_id)
        self.server.answer(self, answer.status, headers, body, close=answer.close)
        record.bytes_sent += len(body)

    def _end_call(self, answer: Answer, error: SidewallError) -> bool:
        """Tell a caller whose gRPC call is no longer allowed so in trailers. False where it must be cut."""
        if not self.record.is_grpc or answer.who not in ("policy", "authority"):
            return False
        trailers = render_grpc_end(answer, error.reason, str(getattr(error, "decision_id", "")))
        return self.server.end_call(self, trailers)

    def finish(self) -> None:
        """Detach both sides and write the record; only the first call does anything."""
        if self.finished:
            return
        self.finished = True
        self.record.ended_at = self.server.poller.now
        if self.timer is not None:
            self.timer.cancel()
        client = self.client
        if self._held_response and client is not None:
            client.release(self.up_id, self._held_response)
        if self._held_request:
            self.server.release(self.stream_id, self._held_request)
        if self._waiting:
            self._drop_waiting()
        self.server.blocked.discard(self)
        if client is not None:
            client.blocked.discard(self)
            client.forget(self)
        self.server.forget(self)

    def _drop_waiting(self) -> None:
        # Their window belongs to the whole connection: give it back although nobody read the bytes.
        for _, size, _ in self._waiting:
            self.server.acknowledge(self.stream_id, size)
        self._waiting.clear()
        if not self.server.held:
            self.server.stream.resume()
