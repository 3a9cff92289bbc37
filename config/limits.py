"""Limits and times, each with its id in the specification of security and the answer when it is passed."""

from __future__ import annotations

from dataclasses import dataclass

from config.kinds import Choice, duration, integer, number, size
from config.settings import setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bytes, counts and rates. What happens at each: SECURITY, "Limits"."""

    request_line: int = setting(size(8000, 2**20), 16 * 1024, "[L-1] 8000 must always pass (RFC 9112); 414")
    head: int = setting(size(8192, 2**20), 64 * 1024, "[L-2] head in all, or decoded field list; 431")
    headers: int = setting(integer(8, 10_000), 100, "[L-3] fields, trailers and cookie crumbs included; 431")
    header: int = setting(size(1024, 2**20), 32 * 1024, "[L-4] one field; 431")
    empty_lines: int = setting(integer(0, 100), 4, "[L-5] empty lines before a request; 400")
    body: int = setting(size(), 0, "[L-6] bytes of a request body, 0 = streamed without limit; 413")
    stream_window: int = setting(size(16 * 1024, 2**24), 64 * 1024, "[L-7] read-ahead of one stream")
    connection_window: int = setting(size(64 * 1024, 2**27), 2**20, "[L-7] read-ahead of one connection")
    streams: int = setting(integer(1, 10_000), 100, "[L-8] concurrent streams of a connection; REFUSED_STREAM")
    resets_burst: int = setting(integer(1, 100_000), 100, "[L-9] resets by the caller at once; GOAWAY")
    resets_per_second: float = setting(number(0.1, 1e5), 10.0, "[L-9] and lasting (rapid reset)")
    own_resets_burst: int = setting(integer(1, 100_000), 20, "[L-10] resets the caller made us send; GOAWAY")
    own_resets_per_second: float = setting(number(0.1, 1e5), 2.0, "[L-10] and lasting (MadeYouReset)")
    control_burst: int = setting(integer(1, 100_000), 100, "[L-11] PING and SETTINGS at once; GOAWAY")
    control_per_second: float = setting(number(0.1, 1e5), 10.0, "[L-11] and lasting")
    settings_entries: int = setting(integer(6, 1000), 32, "[L-11] entries of one SETTINGS frame")
    empty_frames: int = setting(integer(1, 10_000), 10, "[L-12] empty frames in a row; GOAWAY")
    priority_per_stream: int = setting(integer(1, 10_000), 100, "[L-13] PRIORITY frames for each stream opened")
    continuations: int = setting(integer(1, 100), 8, "[L-15] CONTINUATION frames of one head")
    hpack_table: int = setting(size(0, 65536), 4096, "[L-16] header compression table")
    glitches: int = setting(integer(1, 100_000), 50, "[L-17] protocol oddities of a connection; GOAWAY")
    outbound_frames: int = setting(integer(10, 100_000), 1000, "[L-18] control frames waiting for a slow reader")
    requests_per_connection: int = setting(integer(1), 100_000, "[L-19] then the caller is moved, +-10 %")
    connections: int = setting(integer(1, 10**6), 10_000, "[L-20] connections in all, of one worker")
    connections_per_peer: int = setting(integer(1, 10**6), 1000, "[L-20] of one SPIFFE ID")
    handshakes: int = setting(integer(1, 10**5), 512, "[L-20] connections whose handshake is not over")
    requests: int = setting(integer(1, 10**6), 4096, "[L-21] requests in flight; 503 and retry-after")
    requests_per_peer: int = setting(integer(1, 10**6), 512, "[L-21] of one SPIFFE ID")
    app_connections: int = setting(integer(1, 10**5), 256, "[L-22] connections to the app")
    app_pending: int = setting(integer(0, 10**6), 1024, "[L-22] requests that wait for one of them; 503")
    handshakes_per_second: int = setting(integer(1, 10**5), 200, "[L-23] new handshakes; accepting waits")
    interim_answers: int = setting(integer(1, 1000), 32, "[S-31] 1xx answers of the app before the real one; 502")
    chunk_line: int = setting(size(64, 65536), 4096, "one chunk-size line; 400")
    chunk_extensions: int = setting(size(0, 2**20), 16 * 1024, "chunk extensions, plus a quarter of the body; 400")
    underscore: str = setting(
        Choice("a way to treat header names with '_'", "reject", "drop"),
        "reject",
        "[S-9] apps fold '_' to '-', so such a name can forge another",
    )
    escaped_slash: str = setting(
        Choice("a way to treat %2F in paths", "reject", "keep"),
        "reject",
        "[S-23] proxy and app may disagree on what %2F parts",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTimeouts:
    """Times of one listener; what is not written comes from the top-level ``timeouts``. 0s lifts a limit."""

    handshake: float = setting(duration(0.1, 600.0), 10.0, "[T-1] TLS handshake, absolute; close")
    header: float = setting(duration(0.1, 600.0), 10.0, "[T-2] a request's head, absolute; 408")
    stream: float = setting(duration(), 60.0, "[T-3] no byte either way; 408 or 504")
    request: float = setting(duration(), 15.0, "[T-4] until the response begins; not for gRPC and upgrades; 504")
    idle: float = setting(duration(), 600.0, "[T-5] connection without a request")
    max_age: float = setting(duration(), 3600.0, "[T-7] age of a connection, +-10 %; never past a certificate's end")
    write: float = setting(duration(0.1, 3600.0), 30.0, "[T-10] a reader that takes nothing; reset")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTimeouts:
    """Times of one upstream; what is not written comes from the top-level ``timeouts``."""

    connect: float = setting(duration(0.05, 600.0), 5.0, "[T-6] TCP and TLS to a peer; 503")
    idle: float = setting(duration(), 300.0, "[T-5] pooled connection without a request")
    write: float = setting(duration(0.1, 3600.0), 30.0, "[T-10] a peer that takes nothing; reset")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """The defaults of all listeners and upstreams. 0s lifts a limit where it may be lifted."""

    handshake: float = setting(duration(0.1, 600.0), 10.0, "[T-1] TLS handshake, absolute; close")
    header: float = setting(duration(0.1, 600.0), 10.0, "[T-2] a request's head, absolute; 408")
    stream: float = setting(duration(), 60.0, "[T-3] no byte either way; 408 or 504")
    request: float = setting(duration(), 15.0, "[T-4] until the response begins; not for gRPC and upgrades; 504")
    idle: float = setting(duration(), 600.0, "[T-5] inbound connection without a request")
    pool_idle: float = setting(duration(), 300.0, "[T-5] pooled connection without a request")
    connect_app: float = setting(duration(0.05, 600.0), 1.0, "[T-6] connect to the app, which is near; 503")
    connect: float = setting(duration(0.05, 600.0), 5.0, "[T-6] TCP and TLS to a peer; 503")
    max_age: float = setting(duration(), 3600.0, "[T-7] age of a connection, +-10 %; never past a certificate's end")
    close: float = setting(duration(0.05, 60.0), 1.0, "[T-9] TLS close, and close after an error")
    write: float = setting(duration(0.1, 3600.0), 30.0, "[T-10] a reader that takes nothing; reset")
