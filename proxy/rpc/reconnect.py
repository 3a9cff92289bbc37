"""Coming back after a break: the policy that users of a channel share."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from identity.renewal import backoff
from identity.rpc import RpcError, Status


async def with_reconnect(
    connect: Callable[[], Awaitable[None]],
    *,
    report: Callable[[RpcError, float], None],
    rng: random.Random | None = None,
    final: frozenset[Status] = frozenset({Status.INVALID_ARGUMENT}),
) -> None:
    """Run ``connect`` (which opens a channel and uses it until it breaks) again and again, with back-off: 1 s to
    60 s, each +-50 %, from the beginning once it has lasted a minute. ``report``: told each RpcError and the wait.

    Returns when ``connect`` returns. Raises RpcError with a status of ``final``."""
    rng = rng or random.SystemRandom()
    failures = 0
    while True:
        began = trio.current_time()
        try:
            return await connect()
        except RpcError as error:
            if error.status in final:
                raise
            failures = 1 if trio.current_time() - began > 60.0 else failures + 1
            wait = backoff(failures, rng)
            report(error, wait)
        await trio.sleep(wait)
