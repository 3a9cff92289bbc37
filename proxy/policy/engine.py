"""May it? The one decision, used by the proxy and by every tool that asks what the proxy would do.

    compile_policies(documents, workload, default) -> CompiledPolicies       at load
    decide(policies, request) -> Decision                                    pure; for tools
    authorize(policies, request) -> Permit, or AccessDenied                  for the data path
    DecisionCache(policies).authorize(...)                                   the same, remembered

The order is Istio's (AUTHZ 2.1): a matching DENY rule denies; otherwise a matching ALLOW rule allows; otherwise
nothing allows it. What that means is ``default``:

    deny     denied, also where no ALLOW policy selects the workload (S-22)
    istio    denied if an ALLOW policy selects the workload, allowed if none does
    audit    decided as by ``deny`` and let through; ``audited`` is True and ``reason`` says what it would have been

Four things hold whatever the policies are. ``decide`` is total: an exception inside is a denial with reason
``authorization_failed``, under every default. The order, names and ages of documents change no verdict. The
rule that is named is the first of those that match, by (namespace, name, index). A request is forwarded only
with a ``Permit``, and only this module makes one.

Where Istio leaves room or has a knob, we hold to its literal semantics: principals are compared as text, with
``x*`` and ``*x`` knowing nothing of segments, and hosts are the whole authority, so that ``api`` does not match
``api:8080`` (write both, as Istio advises). In one place the reading is ours, by structure rather than by text:
``namespaces`` sees the namespace of an ID of the form ``/ns/a/sa/b`` and of no other.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Literal, get_args

from config.resources.authorization import Action, AuthorizationPolicy
from proxy.errors import AccessDenied
from proxy.policy.compiled import CompiledRule, RuleTable, compile_rules
from proxy.policy.facts import HTTP, TCP, AccessRequest, WorkloadFacts

__all__ = [
    "AccessRequest",
    "CompiledPolicies",
    "Decision",
    "DecisionCache",
    "Default",
    "Permit",
    "WorkloadFacts",
    "authorize",
    "compile_policies",
    "decide",
    "nearest_miss",
    "permit_configured",
]

Default = Literal["deny", "istio", "audit"]

NO_ALLOW: Final = "no_allow_policy_matched"
DENIED: Final = "deny_policy_matched"
FAILED: Final = "authorization_failed"

_NEAR: Final = 32  # rules looked at for `nearest`, so that a denial costs a bounded time


class Decision:
    """What was decided and by which rule. Not changed after it was made.

    ``reason`` is "" or a word of ``proxy.errors.REASONS``; ``policy`` ("namespace/name") and ``rule`` (its index)
    name the rule that matched, None when none did."""

    __slots__ = ("_digest", "_nearest", "allowed", "audited", "policy", "reason", "rule")

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
    ) -> None:
        self.allowed = allowed
        self.reason = reason
        self.policy = policy
        self.rule = rule
        self.audited = audited
        self._digest = digest
        self._nearest = nearest

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


_AUTHORIZED: Final = object()


class Permit:
    """Proof that policy was asked and said yes. Forwarding needs one; only this module can make it."""

    __slots__ = ("decision",)

    def __init__(self, decision: Decision, authorized: object) -> None:
        if authorized is not _AUTHORIZED or not decision.allowed:
            raise TypeError("a permit is made by authorization only")
        self.decision = decision


# -- compiling ----------------------------------------------------------------------------------------------


class CompiledPolicies:
    """The policies that apply to one workload, ready to decide. Never changed after it was made.

    ``policies`` are the documents that select the workload, in order of rank. ``digest`` (64 hex digits) names
    them and the default. ``http_facts_used``: the facts of a request that an HTTP decision can depend on."""

    __slots__ = ("default", "digest", "has_allow", "http_facts_used", "open", "policies", "tables", "workload")

    def __init__(
        self, policies: tuple[AuthorizationPolicy, ...], workload: WorkloadFacts, default: Default
    ) -> None:
        self.policies = policies
        self.workload = workload
        self.default: Default = default
        self.digest = _digest(policies, default)
        self.has_allow = any(policy.action == Action.ALLOW for policy in policies)
        self.tables = {protocol: _tables(policies, protocol) for protocol in (HTTP, TCP)}
        self.http_facts_used = frozenset(
            test.fact for table in self.tables[HTTP].values() for rule in table.rules for test in rule.tests
        )
        self.open = Decision(True, digest=self.digest)
        for tables in self.tables.values():
            for action, table in tables.items():
                for rule in table.rules:
                    rule.verdict = self._verdict(action, rule)

    def _verdict(self, action: Action, rule: CompiledRule) -> Decision:
        audited = action == Action.DENY and self.default == "audit"
        return Decision(
            action == Action.ALLOW or audited,
            DENIED if action == Action.DENY else "",
            policy=str(rule.policy),
            rule=rule.index,
            audited=audited,
            digest=self.digest,
        )

    def __len__(self) -> int:
        return len(self.policies)


def compile_policies(
    policies: Iterable[AuthorizationPolicy], workload: WorkloadFacts, default: Default = "deny"
) -> CompiledPolicies:
    """Those of ``policies`` that select ``workload`` (AUTHZ 3), compiled. Raises ValueError for a document that the
    parser would have refused: a field, an action or a default that is not known must not be skipped."""
    if default not in get_args(Default):
        raise ValueError(f"{default!r} is not a default")
    selected = sorted((p for p in policies if selects(p, workload)), key=lambda p: (p.namespace, p.name))
    return CompiledPolicies(tuple(selected), workload, default)


def selects(policy: AuthorizationPolicy, workload: WorkloadFacts) -> bool:
    """Whether ``policy`` applies to ``workload``: its namespace or the root one, and every label it names."""
    if policy.namespace not in (workload.namespace, workload.root_namespace):
        return False
    return all(workload.labels.get(key) == value for key, value in policy.selector)


def _tables(policies: tuple[AuthorizationPolicy, ...], protocol: str) -> dict[Action, RuleTable]:
    return {
        action: RuleTable(compile_rules([p for p in policies if p.action is action], protocol))
        for action in Action
    }


def _digest(policies: tuple[AuthorizationPolicy, ...], default: str) -> str:
    content = [
        [p.namespace, p.name, p.action, sorted(p.selector), [_rule_content(p, i) for i in range(len(p.rules))]]
        for p in policies
    ]
    return hashlib.sha256(json.dumps([default, content]).encode()).hexdigest()


def _rule_content(policy: AuthorizationPolicy, index: int) -> object:
    rule = policy.rules[index]
    return [
        [[(clause.field, clause.values) for clause in entry.clauses] for entry in side]
        for side in (rule.sources, rule.operations)
    ]


# -- deciding -----------------------------------------------------------------------------------------------


def decide(policies: CompiledPolicies, request: AccessRequest) -> Decision:
    """The verdict on ``request``. Pure; never raises (S-22: an exception is a denial)."""
    try:
        return _judge(policies, request)
    except Exception:
        return Decision(False, FAILED, digest=policies.digest)


def _judge(policies: CompiledPolicies, request: AccessRequest) -> Decision:
    tables = policies.tables[request.protocol]
    rule = tables[Action.DENY].first_match(request) or tables[Action.ALLOW].first_match(request)
    if rule is not None:
        verdict: Decision = rule.verdict
        return verdict
    if policies.default == "istio" and not policies.has_allow:
        return policies.open
    audited = policies.default == "audit"
    return Decision(
        audited,
        NO_ALLOW,
        audited=audited,
        digest=policies.digest,
        nearest=partial(_nearest, policies, request),
    )


def nearest_miss(
    policies: CompiledPolicies, request: AccessRequest, limit: int | None = None
) -> CompiledRule | None:
    """The ALLOW rule that matches ``request`` but for the fewest clauses, those about the caller before all others;
    None when there is none that could match on its protocol. With a ``limit`` only so many rules are looked at."""
    table = policies.tables[request.protocol][Action.ALLOW]
    rules = table.rules if limit is None else table.near(request, limit)
    return min(rules, key=lambda rule: rule.distance(request), default=None)


def _nearest(policies: CompiledPolicies, request: AccessRequest) -> str | None:
    rule = nearest_miss(policies, request, _NEAR)
    misses = rule.misses(request) if rule is not None else []
    return f"{rule}:{misses[0].clause.field}" if misses else None


def authorize(policies: CompiledPolicies, request: AccessRequest) -> Permit:
    """A permit for ``request``. Raises AccessDenied, which carries the decision."""
    decision = decide(policies, request)
    if decision.allowed:
        return Permit(decision, _AUTHORIZED)
    raise AccessDenied(decision)


_CONFIGURED: Final = Permit(Decision(True), _AUTHORIZED)


def permit_configured(upstream: str) -> Permit:
    """The permit for a call of our own app to a configured upstream: Istio judges where traffic enters a workload,
    never where it leaves (AUTHZ 2.5)."""
    return _CONFIGURED


# -- remembering --------------------------------------------------------------------------------------------

_LONGEST: Final = 1024  # bytes of method, host and path together; longer requests are decided each time


class DecisionCache:
    """``authorize`` for HTTP, remembered by what the policies look at and nothing else: where no policy names a path,
    all paths share an entry.

    At most ``max_entries`` are kept, in two halves. A hit in the older half moves the entry to the newer; when
    the newer is full it becomes the older, whose entries are forgotten. So what is in use stays, however many
    made-up paths come by, and nothing is ever searched for the oldest."""

    __slots__ = ("_half", "_hosts", "_methods", "_new", "_old", "_paths", "_policies", "_ports", "_principals")

    def __init__(self, policies: CompiledPolicies, max_entries: int = 8192) -> None:
        used = policies.http_facts_used
        self._policies = policies
        self._half = max(1, max_entries // 2)
        self._principals = not used.isdisjoint(("principals", "namespaces"))
        self._ports = "ports" in used
        self._methods = "methods" in used
        self._hosts = "hosts" in used
        self._paths = "paths" in used
        self._new: dict[object, Permit | Decision] = {}
        self._old: dict[object, Permit | Decision] = {}

    def authorize(
        self,
        *,
        principal: str | None,
        namespace: str | None,
        port: int,
        method: bytes,
        host: bytes,
        path: bytes,
    ) -> Permit:
        """A permit. ``namespace`` must follow from ``principal``; ``host`` is the authority as sent; ``path`` is
        canonical. Raises AccessDenied, which carries the decision."""
        key = (
            principal if self._principals else None,
            method if self._methods else None,
            host if self._hosts else None,
            path if self._paths else None,
            port if self._ports else None,
        )
        found = self._new.get(key)
        if found is None:
            found = self._older(key) or self._decide(key, principal, namespace, port, method, host, path)
        if isinstance(found, Permit):
            return found
        raise AccessDenied(found)

    def _older(self, key: tuple[object, ...]) -> Permit | Decision | None:
        found = self._old.get(key)
        if found is not None:
            self._keep(key, found)
        return found

    def _decide(
        self,
        key: tuple[object, ...],
        principal: str | None,
        namespace: str | None,
        port: int,
        method: bytes,
        host: bytes,
        path: bytes,
    ) -> Permit | Decision:
        request = AccessRequest(
            principal=principal,
            namespace=namespace,
            port=port,
            method=method.decode("latin-1"),
            host=host.decode("latin-1"),
            path=path.decode("latin-1"),
        )
        decision = decide(self._policies, request)
        found = Permit(decision, _AUTHORIZED) if decision.allowed else decision
        if len(method) + len(host) + len(path) <= _LONGEST and decision.reason != FAILED:
            self._keep(key, found)
        return found

    def _keep(self, key: tuple[object, ...], found: Permit | Decision) -> None:
        if len(self._new) >= self._half:
            self._old, self._new = self._new, {}
        self._new[key] = found

    def __len__(self) -> int:
        return len(self._new) + len(self._old)
