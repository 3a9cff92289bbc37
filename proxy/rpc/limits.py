"""What a caller may ask of an RPC server, and the accounts that are kept of callers (C-10)."""

from __future__ import annotations

from dataclasses import dataclass

from identity.rpc import Caller
from proxy.net.listener import Bucket

_MAX_ACCOUNTS = 4096


@dataclass(frozen=True, slots=True)
class RpcLimits:
    """Counts are of one caller: a process behind a Unix socket, a SPIFFE ID behind mTLS, an address without either.
    Times are seconds."""

    streams: int = 16  # open calls
    messages_per_second: float = 4.0  # calls begun, and further messages of a bidi call
    messages_burst: float = 32.0
    connections: int = 16
    all_connections: int = 1024  # of this server
    request: float = 10.0  # until the request of a call is there, and until a new connection makes its first call
    idle: float = 120.0  # a connection whose calls have ended
    write: float = 30.0  # a caller who does not read
    handshake: float = 5.0
    longest_unary: float = 60.0


class Account:
    """What one caller has open now, and how fast it asks."""

    __slots__ = ("bucket", "connections", "streams")

    def __init__(self, limits: RpcLimits, now: float) -> None:
        self.bucket = Bucket(limits.messages_per_second, limits.messages_burst, now)
        self.connections = 0
        self.streams = 0


class Accounts:
    """Accounts by caller. One outlives its connections until its bucket is full again: calling back gains nothing."""

    def __init__(self, limits: RpcLimits) -> None:
        self._limits = limits
        self._accounts: dict[str, Account] = {}
        self._left_at: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._accounts)

    def open(self, key: str, now: float) -> Account | None:
        """Count a new connection of ``key``. None when it has too many, or when there are too many callers."""
        account = self._accounts.get(key)
        if account is None:
            if len(self._accounts) >= _MAX_ACCOUNTS:
                return None
            account = self._accounts[key] = Account(self._limits, now)
        if account.connections >= self._limits.connections:
            return None
        account.connections += 1
        self._left_at.pop(key, None)
        return account

    def close(self, key: str, now: float) -> None:
        """A connection of ``key`` has ended."""
        account = self._accounts[key]
        account.connections -= 1
        if not account.connections:
            self._left_at[key] = now

    def forget_old(self, now: float) -> None:
        """Drop accounts of callers who have gone and whose bucket is full again."""
        limits = self._limits
        kept = limits.messages_burst / limits.messages_per_second
        for key in [key for key, left in self._left_at.items() if now - left > kept]:
            del self._accounts[key], self._left_at[key]


def account_key(caller: Caller, host: str) -> str:
    """Whose account a connection is on."""
    if caller.local is not None:
        return f"pid:{caller.local.pid}"
    return caller.peer.uri if caller.peer is not None else f"host:{host}"
