"""Limits of the HTTP engines, with the ids of the security specification. Values come from the configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WireLimits:
    """Bytes and counts; ``proxy.errors`` names what happens when one is passed. Every default has its id."""

    request_line: int = 16 * 1024  # L-1
    head: int = 64 * 1024  # L-2: names + values + 32 per field on HTTP/2; raw bytes on HTTP/1.1
    headers: int = 100  # L-3: fields of a head, trailers and cookie crumbs included
    header: int = 32 * 1024  # L-4
    empty_lines: int = 4  # L-5
    body: int = 0  # L-6: 0 = no limit
    stream_window: int = 64 * 1024  # L-7
    connection_window: int = 1024 * 1024  # L-7
    streams: int = 100  # L-8
    resets_burst: int = 100  # L-9: client resets, token bucket
    resets_per_second: float = 10.0
    own_resets_burst: int = 20  # L-10: resets the peer made us send (MadeYouReset)
    own_resets_per_second: float = 2.0
    control_burst: int = 100  # L-11: PING and SETTINGS frames, token bucket
    control_per_second: float = 10.0
    settings_entries: int = 32  # L-11
    empty_frames: int = 10  # L-12: in a row
    priority_per_stream: int = 100  # L-13: times (1 + streams opened)
    continuations: int = 8  # L-15
    hpack_table: int = 4096  # L-16
    glitches: int = 50  # L-17
    outbound_frames: int = 1000  # L-18: control frames queued towards a slow reader
    interim_answers: int = 32  # S-31
    chunk_line: int = 4096  # 2.3
    chunk_extensions: int = 16 * 1024  # 2.3: plus a quarter of the body
    underscore: str = "reject"  # S-9: reject | drop
    escaped_slash: str = "reject"  # S-23: reject | keep
    path_normalization: str = "strict"  # S-23: strict, or one of Istio's (proxy.wire.path)
    authority: str = "check"  # S-24: check | ignore (RPC on Unix sockets: there is none, clients write anything)
