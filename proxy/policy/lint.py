"""What policies do not do although they seem to: ``sidewall policy check``.

The reader of the documents has found what is wrong with single values (a principal with its scheme, a port without
quotes). This looks at rules beside each other, and answers exactly: a rule is called superfluous only if there is no
request on which it decides anything. Whatever the analysis could not work out is said as such (SW0310).

A rule counts with the workloads its policy selects, on HTTP and on TCP. Policies of action AUDIT and those under dry
run decide nothing; they are looked at for what they say by themselves, and neither shadow nor hide others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain

from config.problems import Problem, Severity
from config.resources.authorization import Action, AuthorizationPolicy, Place, Rule
from proxy.policy.analysis import ROOT_NAMESPACE, uncovered
from proxy.policy.analysis_model import boxes_of, is_enforced, new_space, rule_boxes, scopes_of
from proxy.policy.analysis_search import MAX_EFFORT, Box, Space
from proxy.policy.analysis_words import Exhausted, TooComplex
from proxy.policy.facts import HTTP, TCP, WorkloadFacts
from proxy.policy.selection import selects

Policies = Sequence[AuthorizationPolicy]


def lint(
    policies: Policies,
    *,
    workloads: Iterable[WorkloadFacts] = (),
    trust_domains: Collection[str] = (),
    root_namespace: str = ROOT_NAMESPACE,
    effort: int = MAX_EFFORT,
    strict_paths: bool = True,
) -> list[Problem]:
    """Findings in the order of the documents, none of them an error. ``workloads``: all that there are, or none when
    that is not known; the same for ``trust_domains``. ``effort`` and ``strict_paths`` are those of ``new_space``."""
    known = list(workloads)
    found = [
        *chain.from_iterable(_said_aloud(policy) for policy in policies),
        *_doubles(policies),
        *(_selects_nothing(policy) for policy in policies if known and not any(selects(policy, w) for w in known)),
        *(chain.from_iterable(_foreign(policy, trust_domains) for policy in policies) if trust_domains else ()),
        *_Rules(policies, root_namespace, new_space(effort, strict_paths=strict_paths)).findings(),
    ]
    files = list(dict.fromkeys(policy.place.file for policy in policies))
    return sorted(found, key=lambda problem: (files.index(problem.file), problem.line, problem.column))


def _finding(
    code: str,
    policy: AuthorizationPolicy,
    message: str,
    hint: str,
    *,
    severity: Severity = "warning",
    rule: int | None = None,
    place: Place | None = None,
    path: str = "",
) -> Problem:
    if place is None:
        place = policy.place if rule is None else policy.rules[rule].place
    return Problem(
        code,
        message,
        severity,
        file=policy.place.file,
        line=place.line,
        column=place.column,
        path=path or ("spec" if rule is None else f"spec.rules[{rule}]"),
        hint=hint,
        subject=f"AuthorizationPolicy {policy}",
    )


# -- one policy by itself -----------------------------------------------------------------------------------


def _said_aloud(policy: AuthorizationPolicy) -> Iterator[Problem]:
    """What empty lists mean (AUTHZ 2.2): easily written, and as easily misread."""
    whom = _whom(policy)
    if not policy.rules and policy.action == Action.ALLOW:
        text = f"no rules: {whom} let nothing in but what other ALLOW policies do"
        hint = "write rules: [{}] if everything was meant; nothing to do if not"
        yield _finding("SW0308", policy, text, hint, severity="info", path="spec.rules")
    for index, rule in enumerate(policy.rules):
        if _is_empty(rule):
            yield _about_everything(policy, index, whom)


def _about_everything(policy: AuthorizationPolicy, index: int, whom: str) -> Problem:
    if policy.action == Action.ALLOW:
        text = f"this rule matches everything: {whom} let everybody in, also callers without a certificate"
        hint = "name callers with from, or methods and paths with to"
        return _finding("SW0308", policy, text, hint, rule=index)
    word = "deny" if policy.action == Action.DENY else "note"
    text = f"this rule matches everything: {whom} {word} every request"
    return _finding("SW0308", policy, text, "nothing to do if that was meant", severity="info", rule=index)


def _is_empty(rule: Rule) -> bool:
    entries = (*rule.sources, *rule.operations)
    return not rule.conditions and not any(entry.clauses for entry in entries)


def _whom(policy: AuthorizationPolicy) -> str:
    if policy.target_refs:
        return "those of targetRefs"
    if not policy.selector:
        return f"all workloads of namespace {policy.namespace}"
    labels = ", ".join(f"{key}={value}" for key, value in policy.selector)
    return f"workloads with {labels}"


def _selects_nothing(policy: AuthorizationPolicy) -> Problem:
    what = "targetRefs name" if policy.target_refs else "this selects"
    text = f"{what} no workload there is: {_whom(policy)} in namespace {policy.namespace}"
    return _finding("SW0306", policy, text, "compare with the labels of the workload, and with its namespace")


def _foreign(policy: AuthorizationPolicy, known: Collection[str]) -> Iterator[Problem]:
    for index, rule in enumerate(policy.rules):
        for fact, values, place in _named_domains(rule):
            for value in values:
                domain = value if fact == "trustDomains" else value.partition("/")[0]
                if domain and "*" not in domain and domain not in known and "://" not in value:
                    text = f"'{domain}' is not a trust domain of ours, so nobody comes with {value}"
                    hint = f"ours: {', '.join(sorted(known))}; a federated one is named with --trust-domain"
                    yield _finding("SW0307", policy, text, hint, rule=index, place=place)


def _named_domains(rule: Rule) -> Iterator[tuple[str, tuple[str, ...], Place]]:
    for entry in rule.sources:
        for clause in entry.clauses:
            if clause.fact in ("principals", "trustDomains"):
                yield clause.fact, clause.values, clause.place
    for condition in rule.conditions:
        if condition.key in ("source.principal", "source.trustDomain"):
            fact = "trustDomains" if condition.key == "source.trustDomain" else "principals"
            yield fact, (*condition.values, *condition.not_values), condition.place


# -- policies beside each other -----------------------------------------------------------------------------


def _doubles(policies: Policies) -> Iterator[Problem]:
    """Policies that say the same under two names."""
    first: dict[object, AuthorizationPolicy] = {}
    for policy in policies:
        scope = (policy.namespace, frozenset(policy.selector), frozenset(policy.target_refs))
        says = (scope, policy.action, policy.dry_run, policy.rules)
        before = first.setdefault(says, policy)
        if before is not policy:
            text = f"this policy says the same as {before} in {before.place}"
            yield _finding("SW0309", policy, text, "remove one of them")


class _Rules:
    """Rules beside each other, as boxes on both protocols."""

    def __init__(self, policies: Policies, root: str, space: Space) -> None:
        self._space = space
        self._policies = policies
        self._root = root
        self._boxes: dict[tuple[Action, str], list[Box]] = {}
        self._useless: set[str] = set()

    def findings(self) -> Iterator[Problem]:
        """From the last rule to the first: of two that say the same the later one is superfluous."""
        for policy in reversed(self._policies):
            for index in reversed(range(len(policy.rules))):
                try:
                    yield from self._about(policy, index)
                except Exhausted as error:
                    yield self._gave_up(policy, index, error, "this and the rules before it were not compared")
                    return
                except TooComplex as error:
                    yield self._gave_up(policy, index, error, "nothing is known about this rule beside others")

    def _gave_up(self, policy: AuthorizationPolicy, index: int, error: TooComplex, text: str) -> Problem:
        hint = f"it was not worked out: {error}"
        return _finding("SW0310", policy, text, hint, severity="info", rule=index)

    def _about(self, policy: AuthorizationPolicy, index: int) -> Iterator[Problem]:
        own = {protocol: self._own(policy, index, protocol) for protocol in (HTTP, TCP)}
        if not any(self._space.possible(box) for box in own[HTTP]):
            self._useless.add(f"{policy}#{index}")
            text = "this rule can never match"
            if any(self._space.possible(box) for box in own[TCP]):
                text += " a request; on plain TCP, where its HTTP clauses do not count, it does"
            hint = "two of its clauses exclude each other, or a value is one that no request has"
            yield _finding("SW0303", policy, text, hint, rule=index)
        elif is_enforced(policy) and policy.action in (Action.ALLOW, Action.DENY):
            yield from self._beside_others(policy, index, own)

    def _beside_others(
        self, policy: AuthorizationPolicy, index: int, own: dict[str, list[Box]]
    ) -> Iterator[Problem]:
        name = f"{policy}#{index}"
        if policy.action == Action.ALLOW:
            hiding = self._cover(own, Action.DENY, "")
            if hiding is not None:
                self._useless.add(name)
                text = f"this rule allows nothing: {hiding} denies all that it matches"
                yield _finding("SW0305", policy, text, "DENY comes first: narrow it, or remove this rule", rule=index)
                return
        covering = self._cover(own, policy.action, name)
        if covering is not None:
            self._useless.add(name)
            word = "allows" if policy.action == Action.ALLOW else "denies"
            text = f"this rule changes nothing: {covering} {word} all that it matches"
            yield _finding("SW0304", policy, text, "remove it, or narrow the other", rule=index)

    def _own(self, policy: AuthorizationPolicy, index: int, protocol: str) -> list[Box]:
        scopes = scopes_of(policy, protocol, self._root, None)
        rule = policy.rules[index]
        return [box for scope in scopes for box in rule_boxes(policy, index, rule, protocol, scope)]

    def _cover(self, own: dict[str, list[Box]], action: Action, name: str) -> str | None:
        """The rules of ``action``, but for ``name`` and those found useless, that match whatever ``own`` does. None:
        there is a request that none of them matches."""
        others = {
            protocol: [box for box in self._of(action, protocol) if str(box.mark) not in {name, *self._useless}]
            for protocol in own
        }
        for protocol, boxes in own.items():
            if uncovered(self._space, boxes, others[protocol]) is not None:
                return None
        return self._named(own, others)

    def _named(self, own: dict[str, list[Box]], others: dict[str, list[Box]]) -> str:
        """One rule if one suffices, else how many do together."""
        near: dict[str, None] = {}
        for protocol, boxes in own.items():
            for box in boxes:
                near.update((str(o.mark), None) for o in others[protocol] if self._space.may_meet(box, o))
        for name in near:
            if all(
                uncovered(self._space, boxes, [o for o in others[protocol] if str(o.mark) == name]) is None
                for protocol, boxes in own.items()
            ):
                return name
        return f"{', '.join(list(near)[:3])}{' and others' if len(near) > 3 else ''} together"

    def _of(self, action: Action, protocol: str) -> list[Box]:
        found = self._boxes.get((action, protocol))
        if found is None:
            known = [self._boxes_or_none(policy, action, protocol) for policy in self._policies]
            found = self._boxes[action, protocol] = list(chain.from_iterable(known))
        return found

    def _boxes_or_none(self, policy: AuthorizationPolicy, action: Action, protocol: str) -> list[Box]:
        try:
            return boxes_of([policy], action, protocol, self._root, None)
        except TooComplex:  # said where its own rules are looked at; beside others it covers nothing
            return []
