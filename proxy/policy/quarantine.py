"""Identities that nobody may talk to, and that may talk to nobody: what to do first about a compromised workload.

A quarantine stands above all policies and default actions, ``audit`` too, and asks for nothing but the two
identities: a call is refused when its caller or its callee is blocked, whatever the method, path or protocol, and
whichever proxy sees it first. Between two identities that are not blocked it changes nothing.

Principals are SPIFFE IDs without their scheme, as in policies, and are compared whole: a quarantine has no patterns.
``exempt`` are those a blocked identity may still exchange calls with, such as the workload that examines it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from identity.spiffe import SpiffeId, SpiffeIdError
from proxy.errors import AccessDenied
from proxy.policy.engine import Decision

QUARANTINED: Final = "quarantined"
MAX_BLOCKS: Final = 1000
MAX_EXEMPT: Final = 100
MAX_REASON: Final = 500  # characters


@dataclass(frozen=True, slots=True)
class Block:
    """One identity in quarantine. ``since``, ``until``: seconds of the epoch; 0 = until it is lifted."""

    principal: str
    since: float
    until: float = 0.0
    exempt: tuple[str, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        for name in (self.principal, *self.exempt):
            _check_principal(name)
        if len(self.exempt) > MAX_EXEMPT:
            raise ValueError(f"more than {MAX_EXEMPT} exempt identities")
        if len(self.reason) > MAX_REASON or not self.reason.isprintable():
            raise ValueError(f"the reason must be one line of at most {MAX_REASON} characters")

    def holds(self, other: str | None, now: float) -> bool:
        """Whether a call between the blocked identity and ``other`` is refused now."""
        return (not self.until or now < self.until) and (other is None or other not in self.exempt)


class Quarantine:
    """All blocks of a proxy. Never changed after it was made."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        """Of several blocks of one identity the last counts. Raises ValueError for more than MAX_BLOCKS."""
        self.blocks: Mapping[str, Block] = {block.principal: block for block in blocks}
        if len(self.blocks) > MAX_BLOCKS:
            raise ValueError(f"more than {MAX_BLOCKS} identities in quarantine")

    def __len__(self) -> int:
        return len(self.blocks)

    def hit(self, caller: str | None, callee: str | None, now: float) -> Block | None:
        """The block that refuses a call from ``caller`` to ``callee`` (None: not known), if any."""
        for one, other in ((caller, callee), (callee, caller)):
            block = self.blocks.get(one) if one is not None else None
            if block is not None and block.holds(other, now):
                return block
        return None

    def check(self, caller: str | None, callee: str | None, now: float) -> None:
        """Raises AccessDenied for a call that is refused."""
        block = self.hit(caller, callee, now)
        if block is not None:
            raise AccessDenied(refusal(block))

    def with_block(self, block: Block) -> Quarantine:
        """The same and ``block``. Raises ValueError when there are too many."""
        return Quarantine([*self.blocks.values(), block])

    def without(self, principal: str) -> Quarantine:
        return Quarantine(block for block in self.blocks.values() if block.principal != principal)

    def live(self, now: float) -> Quarantine:
        """Without what has run out."""
        return Quarantine(block for block in self.blocks.values() if not block.until or now < block.until)

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(block) for block in self.blocks.values()]

    @classmethod
    def from_json(cls, text: bytes | str) -> Quarantine:
        """What ``as_json`` gave. Raises ValueError for anything else."""
        found = json.loads(text)
        if not isinstance(found, list):
            raise ValueError("not a list of blocks")  # noqa: TRY004 (for the caller it is one kind of failure)
        return cls(block_from_json(item) for item in found)


def block_from_json(item: object) -> Block:
    """One block from its JSON object. Raises ValueError."""
    if not isinstance(item, dict) or not item.keys() <= {field.name for field in fields(Block)}:
        raise ValueError("a block has principal, since, until, exempt and reason, and nothing else")
    exempt = item.get("exempt", ())
    texts = [item.get("principal"), item.get("reason", ""), *exempt] if isinstance(exempt, list | tuple) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("principal, exempt and reason are text")
    times = [item.get("since"), item.get("until", 0.0)]
    if not all(isinstance(time, int | float) and not isinstance(time, bool) and 0 <= time < 1e12 for time in times):
        raise ValueError("since and until are seconds of the epoch")
    return Block(str(item["principal"]), float(times[0]), float(times[1]), tuple(exempt), str(item.get("reason", "")))


def refusal(block: Block) -> Decision:
    """The decision about a call that ``block`` refuses. It names the quarantine in place of a policy."""
    digest = f"quarantine {block.principal} {block.since} {block.until} {sorted(block.exempt)}"
    return Decision(False, QUARANTINED, policy=f"quarantine/{block.principal}", digest=digest)


def _check_principal(name: str) -> None:
    try:
        found = SpiffeId.parse(f"spiffe://{name}")
    except SpiffeIdError as error:
        raise ValueError(f"{name!r} is not a SPIFFE ID without its scheme: {error}") from None
    if not found.path:
        raise ValueError(f"{name!r} names a trust domain, not a workload")
