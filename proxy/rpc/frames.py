"""Messages in the body of a gRPC stream (gRPC over HTTP/2, "Length-Prefixed-Message"). Pure."""

from __future__ import annotations

from collections.abc import Iterator

from identity.rpc import RpcError, Status

_PREFIX = 5  # one byte of flags, four of length


def frame(message: bytes) -> bytes:
    """A message as it stands in the body. We never compress: what we send is small, or keys."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class MessageReader:
    """Body bytes -> messages. ``limit``: bytes of the longest message that is taken."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that ``data`` completes. Raises RpcError at the first that cannot be taken, as soon as its
        prefix is there: RESOURCE_EXHAUSTED when too long, UNIMPLEMENTED when compressed, INTERNAL when senseless."""
        self._data += data
        while len(self._data) >= _PREFIX:
            end = _PREFIX + self._length()
            if len(self._data) < end:
                return
            message = bytes(self._data[_PREFIX:end])
            del self._data[:end]
            yield message

    def _length(self) -> int:
        flags = self._data[0]
        if flags == 1:
            raise RpcError(Status.UNIMPLEMENTED, "compressed messages are not supported")
        if flags:
            raise RpcError(Status.INTERNAL, "malformed message prefix")
        length = int.from_bytes(self._data[1:_PREFIX], "big")
        if length > self.limit:
            raise RpcError(Status.RESOURCE_EXHAUSTED, f"a message of {length} bytes; at most {self.limit} are taken")
        return length

    @property
    def is_between(self) -> bool:
        """True when no message has begun."""
        return not self._data
