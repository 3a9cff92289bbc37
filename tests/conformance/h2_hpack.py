"""h2spec's group "hpack" (RFC 7541): a block that cannot be decoded ends the connection with COMPRESSION_ERROR."""

from __future__ import annotations

from tests.conformance.h2_driver import Case, goaway
from tests.support.h2_frames import GET, block, headers

_BROKEN = (goaway(9),)


def _case(name: str, title: str, *, before: bytes = b"", after: bytes = b"") -> Case:
    return Case(f"hpack/{name}", title, [headers(1, before + block(GET) + after)], _BROKEN)


HPACK = [
    _case("2.3.3/1", "an indexed field with an index beyond the table", after=b"\xc6"),
    _case("2.3.3/2", "a literal field with an index beyond the table", after=b"\x7f\x07\x00"),
    _case("4.2/1", "a table size update at the end of a block", after=b"\x21"),
    _case("5.2/1", "Huffman padding longer than 7 bits", after=b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"),
    _case("5.2/2", "Huffman padding of zeros", after=b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"),
    _case("5.2/3", "Huffman with EOS", after=b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"),
    _case("6.1/1", "an indexed field with index 0", after=b"\x80"),
    _case("6.3/1", "a table size update above the announced size", before=b"\x3f\xe2\x1f"),
]
