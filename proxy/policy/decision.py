"""A decision, and what is noted beside it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Final, NamedTuple

from proxy.policy.facts import AccessRequest

NO_ALLOW: Final = "no_allow_policy_matched"
DENIED: Final = "deny_policy_matched"
FAILED: Final = "authorization_failed"


class Note(NamedTuple):
    """What a policy says that decides nothing. ``kind`` is

    audit      a rule of an AUDIT policy matches
    dry-run    a rule under dry run matches, or the answer would be another: ``allowed`` is the answer there would
               be if all policies under dry run were enforced, ``policy`` and ``rule`` what would give it
    failed     the evaluation of these policies failed"""

    kind: str
    policy: str | None = None
    rule: int | None = None
    allowed: bool | None = None

    def __str__(self) -> str:
        word = "" if self.allowed is None else " would allow" if self.allowed else " would deny"
        return f"{self.kind}{word}" + (f" {self.policy}#{self.rule}" if self.policy is not None else "")


class Decision:
    """What was decided and by which rule. Not changed after it was made.

    ``reason`` is "" or a word of ``proxy.errors.REASONS``; ``policy`` ("namespace/name") and ``rule`` (its index)
    name the rule that matched, None when none did. ``notes``: what policies say that are not enforced."""

    __slots__ = ("_digest", "_nearest", "allowed", "audited", "notes", "policy", "reason", "rule")

    def __init__(
        self,
        allowed: bool,
        reason: str = "",
        *,
        policy: str | None = None,
        rule: int | None = None,
        audited: bool = False,
        digest: str = "",
        nearest: Callable[[], str | None] | str | None = None,
        notes: tuple[Note, ...] = (),
    ) -> None:
        self.allowed = allowed
        self.reason = reason
        self.policy = policy
        self.rule = rule
        self.audited = audited
        self._digest = digest
        self._nearest = nearest
        self.notes = notes

    def noting(self, notes: tuple[Note, ...]) -> Decision:
        """The same decision with ``notes``."""
        return Decision(
            self.allowed,
            self.reason,
            policy=self.policy,
            rule=self.rule,
            audited=self.audited,
            digest=self._digest,
            nearest=self._nearest,
            notes=notes,
        )

    @property
    def nearest(self) -> str | None:
        """The ALLOW rule that came nearest and its first failing clause: ``shop/allow-web#0:methods``.

        None when a rule matched or none exists. Looked for when first asked, never in more than 32 rules."""
        found = self._nearest
        if callable(found):
            try:
                found = found()
            except Exception:
                found = None  # a hint for people: its failure must not become one of the request
            self._nearest = found
        return found

    def id(self, request: AccessRequest) -> str:
        """26 characters (base32) that commit to the policies, the facts of ``request``, verdict and rule.

        The same question to the same policies has the same id: it can be derived again from both (SHA-256,
        cut to 128 bits)."""
        verdict = [self.allowed, self.audited, self.reason, self.policy, self.rule]
        text = json.dumps(["sidewall decision 1", self._digest, request.canonical(), verdict], sort_keys=True)
        return base64.b32encode(hashlib.sha256(text.encode()).digest()[:16]).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        rule = f" by {self.policy}#{self.rule}" if self.policy is not None else ""
        word = "audited" if self.audited else "allowed" if self.allowed else "denied"
        return f"<Decision {word} {self.reason}{rule}>"
