"""Malformed HTTP/1.1, row by row of the requirements on parsing (2.3): what is sent, and what must become of it."""

from __future__ import annotations

from dataclasses import dataclass

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: api.shop\r\n\r\n"
HOST = b"Host: api.shop\r\n"
POST = b"POST /hit HTTP/1.1\r\n" + HOST
GET = b"GET /hit HTTP/1.1\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Row:
    """``status``: what may be answered, 0 = a close without an answer. ``reason``: "" = not asked."""

    name: str
    sent: bytes
    status: tuple[int, ...] = (400,)
    reason: str = ""


def heads(prefix: bytes, status: tuple[int, ...], reason: str, lines: dict[str, bytes]) -> list[Row]:
    """Rows that differ in some header lines."""
    return [Row(name, prefix + text + b"\r\n", status, reason) for name, text in lines.items()]


def lengths(values: dict[str, bytes]) -> list[Row]:
    lines = {name: b"Content-Length: " + value + b"\r\n" for name, value in values.items()}
    return heads(POST, (400,), "bad_content_length", lines)


def codings(status: tuple[int, ...], reason: str, values: dict[str, bytes]) -> list[Row]:
    lines = {name: b"Transfer-Encoding: " + value + b"\r\n" for name, value in values.items()}
    return [
        Row(row.name, row.sent + b"0\r\n\r\n", row.status, row.reason) for row in heads(POST, status, reason, lines)
    ]


def targets(status: tuple[int, ...], reason: str, values: dict[str, bytes]) -> list[Row]:
    return [
        Row(name, b"GET " + value + b" HTTP/1.1\r\n" + HOST + b"\r\n", status, reason)
        for name, value in values.items()
    ]


def chunks(status: tuple[int, ...], reason: str, values: dict[str, bytes]) -> list[Row]:
    return [Row(name, CHUNKED + value, status, reason) for name, value in values.items()]


CHAPTERS: dict[str, list[Row]] = {
    "content-length": [
        *lengths(
            {
                "plus": b"+3",
                "minus": b"-1",
                "hexadecimal": b"0x3",
                "underscore": b"1_0",
                "superscript": "³".encode(),
                "superscript latin-1": "³".encode("latin-1"),
                "empty": b"",
                "2^64+3": b"18446744073709551619",
                "2^63": b"9223372036854775808",
                "space inside": b"1 0",
                "decimal point": b"3.0",
                "arabic digit": "٣".encode(),
                "leading zero": b"03",
            }
        ),
        *heads(
            POST,
            (400,),
            "",
            {
                "two that differ": b"Content-Length: 3\r\nContent-Length: 4\r\n",
                "two that agree": b"Content-Length: 3\r\nContent-Length: 3\r\n",
                "list that differs": b"Content-Length: 3, 4\r\n",
                "list that agrees": b"Content-Length: 3, 3\r\n",
                "with transfer-encoding": b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
                "behind transfer-encoding": b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
                "underscore twin": b"Content_Length: 3\r\n",
            },
        ),
    ],
    "transfer-encoding": [
        *codings(
            (400,),
            "bad_transfer_encoding",
            {
                "xchunked": b"xchunked",
                "identity": b"identity",
                "chunked, identity": b"chunked, identity",
                "chunked twice in a list": b"chunked, chunked",
                "quoted": b'"chunked"',
                "parameter": b"chunked;q=1",
                "trailing comma": b"chunked,",
                "leading comma": b",chunked",
                "nbsp before": b"\xa0chunked",
                "nbsp behind": b"chunked\xa0",
                "empty": b"",
            },
        ),
        *codings((400,), "", {"vertical tab": b"\x0bchunked", "form feed": b"chunked\x0c"}),
        *codings((400, 501), "encoding_unsupported", {"gzip, chunked": b"gzip, chunked"}),
        *codings((400, 501), "", {"gzip": b"gzip"}),
        *heads(
            POST,
            (400,),
            "",
            {
                "two lines": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                "two lines, the second other": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
                "space before the colon": b"Transfer-Encoding : chunked\r\n",
                "underscore twin": b"Transfer_Encoding: chunked\r\n",
                "folded": b"Transfer-Encoding:\r\n chunked\r\n",
            },
        ),
        Row(
            "in HTTP/1.0",
            b"POST /hit HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            reason="bad_transfer_encoding",
        ),
    ],
    "field lines": [
        *heads(
            GET + HOST,
            (400,),
            "",
            {
                "space before the colon": b"X-A : 1\r\n",
                "tab before the colon": b"X-A\t: 1\r\n",
                "no colon": b"X-A\r\n",
                "empty name": b": 1\r\n",
                "name with parentheses": b"X(A): 1\r\n",
                "8-bit name": b"X-\xe4: 1\r\n",
                "NUL in the name": b"X\0A: 1\r\n",
                "NUL in the value": b"X-A: 1\x002\r\n",
                "control byte in the value": b"X-A: 1\x012\r\n",
                "DEL in the value": b"X-A: 1\x7f2\r\n",
                "bare CR in the value": b"X-A: 1\r2\r\n",
                "bare CR hides a field": b"X-A: 1\rTransfer-Encoding: chunked\r\n",
                "bare LF ends a line": b"X-A: 1\nX-B: 2\r\n",
                "obs-fold with space": b"X-A: 1\r\n 2\r\n",
                "obs-fold with tab": b"X-A: 1\r\n\t2\r\n",
                "space before the first name": b" X-A: 1\r\n",
                "underscore in a name": b"X_A: 1\r\n",
            },
        ),
        Row("first line folded", GET + b" X-A: 1\r\n" + HOST + b"\r\n"),
        Row("LF only everywhere", b"GET /hit HTTP/1.1\nHost: api.shop\n\n"),
        Row("bare LF ends the head", GET + HOST + b"X-A: 1\r\n\n"),
        Row("CR CR LF", GET + HOST + b"X-A: 1\r\r\n\r\n"),
        Row("101 fields", GET + HOST + b"A: 1\r\n" * 100 + b"\r\n", (431,), "too_many_headers"),
        Row("a field of 33 KiB", GET + HOST + b"A: " + b"x" * 33_000 + b"\r\n\r\n", (431,), "head_too_large"),
        Row(
            "a head of 66 KiB", GET + HOST + (b"A: " + b"x" * 1000 + b"\r\n") * 66 + b"\r\n", (431,), "head_too_large"
        ),
    ],
    "host": heads(
        GET,
        (400,),
        "",
        {
            "absent": b"X-A: 1\r\n",
            "empty": b"Host:\r\n",
            "twice, equal": HOST + HOST,
            "twice, different": HOST + b"Host: other\r\n",
            "list": b"Host: api.shop, other\r\n",
            "userinfo": b"Host: me@api.shop\r\n",
            "space": b"Host: api shop\r\n",
            "path": b"Host: api.shop/x\r\n",
            "query": b"Host: api.shop?x\r\n",
            "port of letters": b"Host: api.shop:http\r\n",
            "port with sign": b"Host: api.shop:+80\r\n",
            "port too large": b"Host: api.shop:65536\r\n",
            "empty port": b"Host: api.shop:\r\n",
            "two ports": b"Host: api.shop:80:80\r\n",
            "8-bit": b"Host: \xe4pi.shop\r\n",
            "escaped": b"Host: api%2eshop\r\n",
            "empty label": b"Host: api..shop\r\n",
            "open bracket": b"Host: [::1\r\n",
            "zone": b"Host: [fe80::1%25eth0]\r\n",
            "underscore twin": HOST + b"X_Forwarded_Host: other\r\n",
        },
    ),
    "target": [
        *targets(
            (400,),
            "",
            {
                "space": b"/a b",
                "tab": b"/a\tb",
                "control": b"/a\x01b",
                "NUL": b"/a\0b",
                "8-bit": b"/\xe4",
                "fragment": b"/a#b",
                "no leading slash": b"hit",
                "asterisk with GET": b"*",
                "absolute with userinfo": b"http://me@api.shop/",
                "absolute with empty authority": b"http:///x",
                "absolute with another scheme": b"ftp://api.shop/",
                "absolute without slashes": b"http:api.shop",
                "absolute with a bad port": b"http://api.shop:x/",
                "escaped slash": b"/a%2fb",
                "escaped backslash": b"/a%5cb",
                "backslash": b"/a\\b",
                "escaped NUL": b"/a%00b",
                "malformed escape": b"/a%zz",
                "half an escape": b"/a%2",
                "path parameter behind dots": b"/a/..;/b",
                "double escape of a dot": b"/%252e%252e/b/%2e%2f",
            },
        ),
        Row("too long", b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", (414,), "uri_too_long"),
    ],
    "request line": [
        Row("HTTP/0.9", b"GET /hit\r\n\r\n", (400, 505)),
        Row("HTTP/1.2", b"GET /hit HTTP/1.2\r\n" + HOST + b"\r\n", (400, 505), "version_unsupported"),
        Row("HTTP/2.0", b"GET /hit HTTP/2.0\r\n" + HOST + b"\r\n", (400, 505), "version_unsupported"),
        Row("lower-case version", b"GET /hit http/1.1\r\n" + HOST + b"\r\n", (400, 505)),
        Row("version without minor", b"GET /hit HTTP/1\r\n" + HOST + b"\r\n", (400, 505)),
        Row("two-digit minor", b"GET /hit HTTP/1.10\r\n" + HOST + b"\r\n", (400, 505)),
        Row("space behind", b"GET /hit HTTP/1.1 \r\n" + HOST + b"\r\n"),
        Row("tab behind", b"GET /hit HTTP/1.1\t\r\n" + HOST + b"\r\n"),
        Row("two spaces", b"GET  /hit HTTP/1.1\r\n" + HOST + b"\r\n"),
        Row("tab instead of space", b"GET\t/hit HTTP/1.1\r\n" + HOST + b"\r\n"),
        Row("leading space", b" GET /hit HTTP/1.1\r\n" + HOST + b"\r\n"),
        Row("lower-case method", b"get /hit HTTP/1.1\r\n" + HOST + b"\r\n", (400, 405, 501)),
        Row("unknown method", b"FETCH /hit HTTP/1.1\r\n" + HOST + b"\r\n", (405, 501), "method_unknown"),
        Row("five empty lines first", b"\r\n" * 5 + GET + HOST + b"\r\n"),
        Row("CONNECT", b"CONNECT api.shop:443 HTTP/1.1\r\n" + HOST + b"\r\n", (405, 404), "method_not_allowed"),
        Row("CONNECT with a path", b"CONNECT /hit HTTP/1.1\r\n" + HOST + b"\r\n", (405, 404), "method_not_allowed"),
        Row("TRACE", b"TRACE /hit HTTP/1.1\r\n" + HOST + b"\r\n", (405,), "method_not_allowed"),
        Row("TRACK", b"TRACK /hit HTTP/1.1\r\n" + HOST + b"\r\n", (405,), "method_not_allowed"),
        Row("TLS garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
    ],
    "chunks": [
        *chunks(
            (400,),
            "bad_chunk",
            {
                "0x": b"0x3\r\nabc\r\n0\r\n\r\n",
                "plus": b"+3\r\nabc\r\n0\r\n\r\n",
                "minus": b"-3\r\nabc\r\n0\r\n\r\n",
                "underscore": b"1_0\r\n" + b"x" * 16 + b"\r\n0\r\n\r\n",
                "no digits": b"\r\nabc\r\n0\r\n\r\n",
                "letters": b"xyz\r\nabc\r\n0\r\n\r\n",
                "space before": b" 3\r\nabc\r\n0\r\n\r\n",
                "space behind": b"3 \r\nabc\r\n0\r\n\r\n",
                "tab behind": b"3\t\r\nabc\r\n0\r\n\r\n",
                "17 digits": b"00000000000000003\r\nabc\r\n0\r\n\r\n",
                "overflow": b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n",
                "LF ends the size": b"3\nabc\r\n0\r\n\r\n",
                "LF ends the data": b"3\r\nabc\n0\r\n\r\n",
                "CR ends the size": b"3\rabc\r\n0\r\n\r\n",
                "no CRLF behind the data": b"3\r\nabc0\r\n\r\n",
                "more data than said": b"3\r\nabcdef\r\n0\r\n\r\n",
                "LF in an extension": b"3;a=b\nc\r\nabc\r\n0\r\n\r\n",
                "CR in an extension": b"3;a=b\rc\r\nabc\r\n0\r\n\r\n",
                "NUL in an extension": b"3;a=\0\r\nabc\r\n0\r\n\r\n",
                "line over 4 KiB": b"3;a=" + b"x" * 5000 + b"\r\nabc\r\n0\r\n\r\n",
                "20 KiB of extensions": (b"1;a=" + b"x" * 1000 + b"\r\na\r\n") * 20 + b"0\r\n\r\n",
                "superscript": "³\r\nabc\r\n0\r\n\r\n".encode(),
            },
        ),
        *chunks(
            (400,),
            "",
            {
                "LF ends the last chunk": b"3\r\nabc\r\n0\n\n",
                "LF ends the trailers": b"3\r\nabc\r\n0\r\nA: 1\n\r\n",
                "trailer without colon": b"3\r\nabc\r\n0\r\nAbc\r\n\r\n",
                "trailer with space before the colon": b"3\r\nabc\r\n0\r\nA : 1\r\n\r\n",
                "folded trailer": b"3\r\nabc\r\n0\r\nA: 1\r\n 2\r\n\r\n",
                "NUL in a trailer": b"3\r\nabc\r\n0\r\nA: \0\r\n\r\n",
            },
        ),
        *chunks((400, 431), "too_many_headers", {"101 trailers": b"0\r\n" + b"A: 1\r\n" * 101 + b"\r\n"}),
        *chunks((400, 431), "head_too_large", {"a trailer of 33 KiB": b"0\r\nA: " + b"x" * 33_000 + b"\r\n\r\n"}),
    ],
    "singletons": [
        *heads(
            GET + HOST,
            (400,),
            "duplicate_header",
            {
                "authorization": b"Authorization: Basic a\r\nAuthorization: Basic b\r\n",
                "content-type": b"Content-Type: a/b\r\nContent-Type: a/c\r\n",
                "content-type joined": b"Content-Type: a/b, a/c\r\n",
                "x-request-id": b"X-Request-Id: 1\r\nX-Request-Id: 2\r\n",
                "traceparent": b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" * 2,
                "upgrade": b"Connection: upgrade\r\n" + b"Upgrade: websocket\r\n" * 2,
                "sec-websocket-key": b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" * 2,
                "sec-websocket-version": b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8\r\n",
            },
        ),
        *heads(
            GET + HOST,
            (400,),
            "connection_header",
            {
                "connection nominates host": b"Connection: host\r\n",
                "connection nominates identity": b"Connection: x-forwarded-client-cert\r\n",
                "connection nominates content-length": b"Connection: content-length\r\n",
                "connection nominates authorization": b"Connection: authorization\r\n",
            },
        ),
        Row(
            "unknown expectation", POST + b"Expect: 200-ok\r\nContent-Length: 0\r\n\r\n", (417,), "expectation_failed"
        ),
        *heads(GET + HOST, (400,), "underscore_header", {"identity in disguise": b"X_Forwarded_Client_Cert: me\r\n"}),
    ],
}
