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

AUDIT policies and those under dry run decide nothing. What they say is in ``Decision.notes``: the AUDIT rule that
matches, and the answer there would be if every policy under dry run were enforced (AUTHZ 10, 19.5).

Where Istio leaves room or has a knob, we hold to its literal semantics: principals are compared as text, with
``x*`` and ``*x`` knowing nothing of segments, and hosts are the whole authority, so that ``api`` does not match
``api:8080`` (write both, as Istio advises). In two places the reading is ours. ``namespaces``, ``serviceAccounts``
and ``trustDomains`` go by structure rather than by text: they see the parts of an ID of the form ``/ns/a/sa/b``
and of no other. And a policy with ``targetRefs``, which Istio keeps from sidecars, applies here: to the workload
that is named like the Service, and on the route (a listener's name) that is named like the HTTPRoute or GRPCRoute.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from config.resources.authorization import Action
from proxy.errors import AccessDenied
from proxy.policy.compiled import CompiledRule
from proxy.policy.decision import DENIED, FAILED, NO_ALLOW, Decision, Note
from proxy.policy.facts import AccessRequest, WorkloadFacts
from proxy.policy.selection import CompiledPolicies, Default, Tables, applies, compile_policies, selects

__all__ = [
    "DENIED",
    "FAILED",
    "NO_ALLOW",
    "AccessRequest",
    "CompiledPolicies",
    "Decision",
    "DecisionCache",
    "Default",
    "Note",
    "Permit",
    "WorkloadFacts",
    "authorize",
    "compile_policies",
    "decide",
    "nearest_miss",
    "permit_configured",
    "selects",
]

_NEAR: Final = 32  # rules looked at for `nearest`, so that a denial costs a bounded time


_AUTHORIZED: Final = object()


class Permit:
    """Proof that policy was asked and said yes. Forwarding needs one; only this module can make it."""

    __slots__ = ("decision",)

    def __init__(self, decision: Decision, authorized: object) -> None:
        if authorized is not _AUTHORIZED or not decision.allowed:
            raise TypeError("a permit is made by authorization only")
        self.decision = decision


# -- deciding -----------------------------------------------------------------------------------------------


def decide(policies: CompiledPolicies, request: AccessRequest) -> Decision:
    """The verdict on ``request``. Pure; never raises (S-22: an exception is a denial)."""
    try:
        decision = _judge(policies, request)
    except Exception:
        return Decision(False, FAILED, digest=policies.digest)
    if policies.has_notes and (notes := _notes(policies, request, decision)):
        return decision.noting(notes)
    return decision


def _judge(policies: CompiledPolicies, request: AccessRequest) -> Decision:
    rule = policies.tables[request.protocol].first_match(request)
    if rule is not None:
        return policies.verdict(rule)
    if policies.default == "istio" and policies.is_open(request):
        return policies.open
    audited = policies.default == "audit"
    return Decision(
        audited,
        NO_ALLOW,
        audited=audited,
        digest=policies.digest,
        nearest=partial(_nearest, policies, request),
    )


def _notes(policies: CompiledPolicies, request: AccessRequest, decision: Decision) -> tuple[Note, ...]:
    """Policies that are not enforced change no verdict, neither by what they say nor by failing."""
    notes = []
    try:
        audit = policies.audit[request.protocol].first_match(request) if policies.audit is not None else None
        if audit is not None:
            notes.append(Note("audit", str(audit.policy), audit.index))
        if policies.shadow is not None and (note := _dry_run(policies, policies.shadow, request, decision)):
            notes.append(note)
    except Exception:
        notes.append(Note("failed"))
    return tuple(notes)


def _dry_run(policies: CompiledPolicies, shadow: Tables, request: AccessRequest, decision: Decision) -> Note | None:
    rule = shadow[request.protocol].first_match(request)
    if rule is not None and rule.policy.action == Action.DENY:
        return Note("dry-run", str(rule.policy), rule.index, False)
    if decision.reason == DENIED:  # by a policy that is enforced, whatever the others say
        return Note("dry-run", decision.policy, decision.rule, False) if rule is not None else None
    if rule is not None:
        return Note("dry-run", str(rule.policy), rule.index, True)
    if decision.policy is None and not decision.reason and _would_close(policies, request):
        return Note("dry-run", allowed=False)
    return None


def _would_close(policies: CompiledPolicies, request: AccessRequest) -> bool:
    """Whether an ALLOW policy under dry run would switch on that what nothing allows is denied."""
    allowing = (p for p in policies.policies if p.dry_run and p.action == Action.ALLOW)
    return any(applies(policy, policies.workload, request) for policy in allowing)


def nearest_miss(
    policies: CompiledPolicies, request: AccessRequest, limit: int | None = None
) -> CompiledRule | None:
    """The ALLOW rule that matches ``request`` but for the fewest clauses, those about the caller before all others;
    None when there is none that could match on its protocol. With a ``limit`` only so many rules are looked at."""
    table = policies.tables[request.protocol]
    choices = [table.rules] if limit is None else [table.near(request, limit), table.allowing(limit)]
    for rules in choices:  # what names the caller may all be about other routes
        allowing = (rule for rule in rules if rule.policy.action == Action.ALLOW)
        about = [rule for rule in allowing if applies(rule.policy, policies.workload, request)]
        if about:
            return min(about, key=lambda rule: rule.distance(request))
    return None


def _nearest(policies: CompiledPolicies, request: AccessRequest) -> str | None:
    rule = nearest_miss(policies, request, _NEAR)
    misses = rule.misses(request) if rule is not None else []
    return f"{rule}:{misses[0].shown}" if misses else None


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

    __slots__ = (
        *("_half", "_hosts", "_methods", "_new", "_old", "_paths", "_places", "_policies", "_principals"),
        "needs_more",
    )

    def __init__(self, policies: CompiledPolicies, max_entries: int = 8192) -> None:
        used = policies.http_facts_used
        self.needs_more = policies.needs_more
        self._policies = policies
        self._half = max(1, max_entries // 2)
        self._principals = not used.isdisjoint(("principals", "namespaces", "serviceAccounts", "trustDomains"))
        self._places = not used.isdisjoint(("ports", "targetRefs"))
        self._methods = "methods" in used
        self._hosts = not used.isdisjoint(("hosts", "authority"))
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
        route: str = "",
    ) -> Permit:
        """A permit. ``namespace`` must follow from ``principal``; ``host`` is the authority as sent; ``path`` is
        canonical. Raises AccessDenied, which carries the decision.

        Not when ``needs_more`` is True: the policies ask for facts that are not given here, so that ``authorize``
        must be asked with all of them, each time."""
        key = (
            principal if self._principals else None,
            method if self._methods else None,
            host if self._hosts else None,
            path if self._paths else None,
            (port, route) if self._places else None,
        )
        found = self._new.get(key)
        if found is None:
            found = self._older(key) or self._decide(key, principal, namespace, port, method, host, path, route)
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
        route: str,
    ) -> Permit | Decision:
        request = AccessRequest(
            principal=principal,
            namespace=namespace,
            port=port,
            method=method.decode("latin-1"),
            host=host.decode("latin-1"),
            path=path.decode("latin-1"),
            route=route,
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
