"""Raw HTTP/1.1 heads -> start line and fields. The one module that imports httptools (llhttp). Pure.

llhttp is used for what it is good at, cutting fields fast, and is fed exactly one head at a time, up to and
including its empty line: bodies, 1xx, trailers and tunnels are ours (``http1_server.py``, ``http1_client.py``).
Before it sees a byte the raw head is checked: sizes (L-1..L-4), byte classes, line ends, folding, and the start
line, which llhttp reads more generously than a proxy may (two spaces, HTTP/2.0, any method). Afterwards the
number of fields must equal the number of lines: two readers that count differently are two interpretations.

A parser is kept from one head to the next only while llhttp believes that no body follows; otherwise it would
take the next head for a body. A new one costs 0.2 us.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NoReturn

import httptools

from proxy.errors import MalformedRequest
from proxy.wire.events import Field, Headers
from proxy.wire.limits import WireLimits
from proxy.wire.validate import METHODS, refuse_method

# HTAB and everything printable, obs-text included (RFC 9110 5.5); with line ends: what a head may consist of.
_LINE_BYTES: Final = bytes(c for c in range(256) if c == 0x09 or (c >= 0x20 and c != 0x7F))
HEAD_BYTES: Final = _LINE_BYTES + b"\r\n"
_VERSIONS: Final = {b"HTTP/1.1": 11, b"HTTP/1.0": 10}
_ANY_VERSION: Final = re.compile(rb"HTTP/[0-9](?:\.[0-9])?", re.IGNORECASE)
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_BAD_BYTES: Final = "control character, bare CR or bare LF"
_LINE_END: Final = (b"", b"\r", b"\n")  # what a first byte may be that begins no start line
# Which of our words is meant by llhttp's, tried in this order.
_REASONS: Final = (
    ("be present with", "bad_transfer_encoding"),  # Content-Length and Transfer-Encoding, in either order
    ("Content-Length", "bad_content_length"),
    ("Transfer-Encoding", "bad_transfer_encoding"),
    ("header value", "bad_header_value"),
    ("header", "bad_header_name"),
)


def _refuse(reason: str, detail: str = "") -> NoReturn:
    raise MalformedRequest(detail, reason=reason)


class _Fields:
    """llhttp's callback object; apart from the engine, so that parser and engine form no reference cycle."""

    __slots__ = ("append",)

    def __init__(self) -> None:
        self.append: Callable[[Field], None] = Headers().append

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((name.lower(), value))


class HeadReader:
    """Reads the heads of one connection. ``requests`` says which kind."""

    __slots__ = ("_limits", "_parser", "_requests", "_sink")

    def __init__(self, limits: WireLimits, *, requests: bool) -> None:
        self._limits = limits
        self._requests = requests
        self._sink = _Fields()
        self._parser: httptools.HttpRequestParser | httptools.HttpResponseParser | None = None

    def read_request(self, raw: bytes) -> tuple[bytes, bytes, int, Headers]:
        """One head -> (method, target, version 10 or 11, fields). Raises MalformedRequest."""
        end, lines = self._check_untrusted(raw)
        parts = raw[:end].split(b" ")
        if len(parts) != 3:
            _refuse("bad_request_line", repr(raw[: min(end, 128)]))
        method, target, protocol = parts
        version = _VERSIONS.get(protocol)
        if version is None:
            _refuse_version(protocol)
        if method not in METHODS:  # before llhttp, which has no word for it
            refuse_method(method)
        return method, target, version, self._fields_untrusted(raw, lines)

    def read_response(self, raw: bytes) -> tuple[int, int, Headers]:
        """One head -> (status, version 10 or 11, fields). Raises MalformedRequest, for the engine to translate."""
        end, lines = self._check_untrusted(raw)
        match = _STATUS_LINE.fullmatch(raw, 0, end)
        if match is None:
            _refuse("bad_status_line", repr(raw[: min(end, 128)]))
        version = 10 + int(match[1])
        return int(match[2]), version, self._fields_untrusted(raw, lines)

    def forget(self) -> None:
        """llhttp waits for a body now, or for nothing at all: the next head needs a new parser."""
        self._parser = None

    def _check_untrusted(self, raw: bytes) -> tuple[int, int]:
        """The raw rules of 2.3 and L-1..L-4 -> (length of the start line, number of lines)."""
        limits = self._limits
        end = raw.find(b"\r\n")
        if end > limits.request_line:
            _refuse("uri_too_long")
        if len(raw) > limits.head:
            _refuse("head_too_large")
        ends = raw.translate(None, _LINE_BYTES)  # what is left may only be the CRLFs
        lines = len(ends) >> 1
        if raw.count(b"\r\n") != lines or ends != b"\r\n" * lines:
            self._refuse_bytes(raw, end)
        if lines - 2 > limits.headers:
            _refuse("too_many_headers")
        if len(raw) > limits.header and max(map(len, raw[end:].split(b"\n"))) > limits.header:
            _refuse("head_too_large", "one field")
        return end, lines

    def _refuse_bytes(self, raw: bytes, end: int) -> NoReturn:
        start_line = "bad_request_line" if self._requests else "bad_status_line"
        _refuse(start_line if bad_bytes(raw[: end + 2]) else "bad_header_value", _BAD_BYTES)

    def _fields_untrusted(self, raw: bytes, lines: int) -> Headers:
        sink, parser = self._sink, self._parser
        if parser is None:
            make = httptools.HttpRequestParser if self._requests else httptools.HttpResponseParser
            parser = self._parser = make(sink)
        fields: Headers = []
        sink.append = fields.append
        try:
            parser.feed_data(raw)
        except httptools.HttpParserUpgrade:
            self._parser = None  # not an error: llhttp stops after a head that asks for another protocol
        except httptools.HttpParserInvalidURLError as error:
            self._parser = None
            _refuse("bad_target", str(error))
        except httptools.HttpParserError as error:
            self._parser = None
            _refuse(_reason(str(error)), str(error))
        if len(fields) != lines - 2:  # a folded line, if llhttp ever let one pass
            _refuse("bad_header_name", "fields and lines differ in number")
        if b" \r" in raw or (b"\t" in raw and b"\t\r" in raw):  # llhttp keeps the space after a value
            fields = [(name, value.rstrip(b" \t")) for name, value in fields]
        return fields


def _refuse_version(protocol: bytes) -> NoReturn:
    known = _ANY_VERSION.fullmatch(protocol)
    _refuse("version_unsupported" if known else "bad_request_line", repr(protocol[:32]))


def _reason(text: str) -> str:
    for words, reason in _REASONS:
        if words in text:
            return reason
    return "bad_header_name"


def bad_bytes(piece: bytes) -> bool:
    """True when ``piece`` of a head holds a control character, or a CR or LF that is not part of CRLF.

    A CR that ends the piece may still be followed by its LF.
    """
    if piece.translate(None, HEAD_BYTES):
        return True
    pairs = piece.count(b"\r\n")
    return piece.count(b"\n") != pairs or piece.count(b"\r") - piece.endswith(b"\r") != pairs


class HeadBuffer:
    """Collects the bytes of one head, however they are cut, in linear time.

    ``add`` returns the whole head once it is there; ``rest`` is what followed it. What cannot become a head is
    refused at once, not when the caller's time is up: "\\n\\n" would otherwise never end.
    """

    __slots__ = ("_buffer", "_empty_lines", "_limits", "_lines", "_reason", "rest")

    def __init__(self, limits: WireLimits, *, requests: bool) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._empty_lines = 0
        self._lines = 0
        self._reason = "bad_request_line" if requests else "bad_status_line"
        self.rest = b""

    def __len__(self) -> int:
        return len(self._buffer)

    def add(self, data: bytes) -> bytes | None:
        """Bytes -> the whole head with its empty line, or None while it is incomplete. Raises MalformedRequest."""
        if self._buffer:
            return self._add_more(data)
        if data[:1] in _LINE_END:
            data = self._skip_empty_lines(data)
            if data in _LINE_END:
                self._buffer += data
                return None
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._note(data)
            return None
        self.rest = data[end:]
        self._empty_lines = 0
        return data[:end]

    def _add_more(self, data: bytes) -> bytes | None:
        buffer = self._buffer
        before = len(buffer)
        if before < 4:  # too short to be searched at the seam: begin again
            data = bytes(buffer) + data
            self.clear()
            return self.add(data)
        end = (buffer[-3:] + data).find(b"\r\n\r\n") + 4
        if end < 4:
            self._note(data)
            return None
        buffer += data
        end += before - 3
        head, self.rest = bytes(buffer[:end]), bytes(buffer[end:])
        self._empty_lines = 0
        self.clear()
        return head

    def clear(self) -> None:
        """Forget an incomplete head."""
        self._buffer.clear()
        self._lines = 0

    def _skip_empty_lines(self, data: bytes) -> bytes:
        """RFC 9112 2.2: empty lines before a start line are skipped; L-5 says how many."""
        while data[:2] == b"\r\n":
            data = data[2:]
            self._empty_lines += 1
            if self._empty_lines > self._limits.empty_lines:
                _refuse(self._reason, "empty lines")
        if data[:1] == b"\n" or (data[:1] == b"\r" and len(data) > 1):
            _refuse(self._reason, "bare CR or LF")
        return data

    def _note(self, data: bytes) -> None:
        """Keep an incomplete head after the checks that need not wait for its end (L-1..L-3)."""
        buffer, limits = self._buffer, self._limits
        seam = bytes(buffer[-1:])
        buffer += data
        if bad_bytes(data if seam != b"\r" else seam + data):
            _refuse("bad_header_value" if b"\r\n" in buffer else self._reason, _BAD_BYTES)
        self._lines += data.count(b"\n")
        if not self._lines and len(buffer) > limits.request_line:
            _refuse("uri_too_long")
        if len(buffer) > limits.head:
            _refuse("head_too_large")
        if self._lines - 1 > limits.headers:
            _refuse("too_many_headers")
