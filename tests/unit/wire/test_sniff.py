from __future__ import annotations

import pytest

from proxy.wire.sniff import PREFACE, sniff

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.parametrize(
    ("data", "protocol"),
    [
        (PREFACE, "h2"),
        (PREFACE + b"\x00\x00\x00\x04", "h2"),
        (b"GET / HTTP/1.1\r\n", "http1"),
        (b"\r\nGET /", "http1"),
        (b"\r\nGET / HTTP/1.1\r\nHost: a-long-name.example\r\n\r\n", "http1"),
        (b"PRI / HTTP/1.1\r\n", "http1"),
        (b"M-SEARCH * HTTP/1.1", "http1"),
        (HELLO, "tls"),
        (b"\x16\x02\x00", "unknown"),
        (b"\x00\x00", "unknown"),
        (b" GET", "unknown"),
        (b"SSH-2.0-OpenSSH_9", "unknown"),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAA", "unknown"),
        (b"\r\n" * 20, "unknown"),
        (b"\r\n" * 4, "more"),
    ],
)
def test_the_first_bytes_name_the_protocol(data: bytes, protocol: str) -> None:
    assert sniff(data) == protocol


@pytest.mark.parametrize(("data", "protocol"), [(PREFACE, "h2"), (HELLO[:2], "tls"), (b"GET ", "http1")])
def test_too_few_bytes_ask_for_more(data: bytes, protocol: str) -> None:
    assert [sniff(data[:count]) for count in range(len(data))] == ["more"] * len(data)
    assert sniff(data) == protocol


def test_a_preface_that_goes_wrong_is_not_http2() -> None:
    assert sniff(PREFACE[:-1] + b"X") == "http1"  # PRI is a method; the HTTP/1.1 engine answers it
