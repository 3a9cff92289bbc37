"""The chunked transfer coding (RFC 9112 7.1), read strictly. Pure.

    chunked-body = *( size [ extensions ] CRLF data CRLF ) 1*"0" [ extensions ] CRLF trailers CRLF

Two readers that disagree about where a chunk ends disagree about where the next request begins, so nothing here
is repaired: sizes are 1 to 16 hexadecimal digits below 2^63, every line ends with CRLF, data is followed by
CRLF at once, extensions keep their grammar (and are dropped: nobody may rely on them through a proxy). Bounded
are a chunk's line, all extensions together (16 KiB and a quarter of the body, CVE-2023-39326), and trailers,
which count towards the head's limits.
"""

from __future__ import annotations

import re
from typing import Final, NoReturn

from proxy.errors import MalformedRequest
from proxy.wire.events import Headers
from proxy.wire.http1_heads import bad_bytes
from proxy.wire.limits import WireLimits
from proxy.wire.validate import check_trailers

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_LINE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,16})((?:;[ \t]*%b(?:[ \t]*=[ \t]*(?:%b|%b))?[ \t]*)*)" % (_TOKEN, _TOKEN, _QUOTED)
)
_BEGUN: Final = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;[^\r\n]*)?\r?")  # what a line may look like before its end
_TOO_LONG: Final = 1 << 63

_SIZE, _DATA, _DATA_END, _TRAILERS, _DONE = range(5)


def _refuse(detail: str, reason: str = "bad_chunk") -> NoReturn:
    raise MalformedRequest(detail, reason=reason)


class ChunkedReader:
    """Decodes one body. ``fields`` and ``size`` say what the head has used of L-3 and L-2.

    After ``feed`` returned True, ``trailers`` holds what may pass of them, ``rest`` the bytes that followed.
    """

    __slots__ = (
        "_body",
        "_extensions",
        "_fields",
        "_left",
        "_limits",
        "_line",
        "_size",
        "_state",
        "rest",
        "trailers",
    )

    def __init__(self, limits: WireLimits, *, fields: int = 0, size: int = 0) -> None:
        self._limits = limits
        self._fields = fields
        self._size = size
        self._state = _SIZE
        self._line = b""  # an incomplete line; bounded by L-2 or the limit of a chunk's line
        self._left = 0  # of the current chunk's data or, behind it, of its CRLF
        self._body = 0
        self._extensions = 0
        self.trailers: Headers = []
        self.rest = b""

    def feed(self, data: bytes, out: list[bytes]) -> bool:
        """Append decoded pieces to ``out``; True when the body has ended. Raises MalformedRequest.

        What was decoded before an error is in ``out``: a reader that got the bytes one by one has seen it too.
        """
        if self._line:
            data, self._line = self._line + data, b""
        place = 0
        while place < len(data):
            if self._state == _DATA:
                place = self._read_data(data, place, out)
            elif self._state == _DATA_END:
                place = self._read_data_end(data, place)
            else:
                end = data.find(b"\r\n", place)
                if end < 0:
                    self._keep_line(data[place:])
                    return False
                self._read_line(data[place:end])
                place = end + 2
                if self._state == _DONE:
                    self.rest = data[place:]
                    return True
        return False

    def _read_data(self, data: bytes, place: int, out: list[bytes]) -> int:
        end = min(place + self._left, len(data))
        out.append(data[place:end])
        self._left -= end - place
        self._body += end - place
        if not self._left:
            self._state, self._left = _DATA_END, 2
        return end

    def _read_data_end(self, data: bytes, place: int) -> int:
        wanted = b"\r\n"[2 - self._left :]
        given = data[place : place + self._left]
        if not wanted.startswith(given):
            _refuse("data not followed by CRLF")
        self._left -= len(given)
        if not self._left:
            self._state = _SIZE
        return place + len(given)

    def _keep_line(self, line: bytes) -> None:
        """An incomplete line: refuse what can only get worse, keep the rest."""
        if self._state == _TRAILERS:
            if bad_bytes(line):
                _refuse("control character, bare CR or LF", "bad_trailer")
            self._count_trailer(len(line))
        elif not _BEGUN.fullmatch(line):
            _refuse("size")
        elif len(line.rstrip(b"\r")) > self._limits.chunk_line:
            _refuse("line too long")
        self._line = line

    def _read_line(self, line: bytes) -> None:
        if self._state == _TRAILERS:
            self._read_trailer(line)
            return
        if len(line) > self._limits.chunk_line:
            _refuse("line too long")
        match = _LINE.fullmatch(line)
        if match is None:
            _refuse(f"size line {line[:32]!r}")
        self._extensions += len(match[2])
        if self._extensions > self._limits.chunk_extensions + self._body // 4:
            _refuse("too many extensions")
        size = int(match[1], 16)  # 1 to 16 hex digits, checked by the pattern
        if size >= _TOO_LONG:
            _refuse("size overflows")
        self._left = size
        self._state = _DATA if size else _TRAILERS

    def _count_trailer(self, size: int) -> None:
        if self._size + size > self._limits.head or size > self._limits.header:
            _refuse("trailers", "head_too_large")
        if self._fields > self._limits.headers:
            _refuse("trailers", "too_many_headers")

    def _read_trailer(self, line: bytes) -> None:
        if not line:
            self.trailers = check_trailers(self.trailers)
            self._state = _DONE
            return
        name, colon, value = line.partition(b":")
        if not colon or bad_bytes(line) or line[-1:] == b"\r":
            _refuse(repr(line[:64]), "bad_trailer")
        self._fields += 1
        self._count_trailer(len(line))
        self._size += len(line) + 2
        self.trailers.append((name.lower(), value.strip(b" \t")))
