"""Why it was decided so: the same compiled rules as ``decide``, asked clause by clause, and the least edit that would
change the answer.

``explain`` gives facts, ``render`` the text of ``sidewall policy explain``. An edit is not guessed: it is applied
to the documents and decided again, and offered only when the request is then allowed. Nothing here is for the
caller: rule text stays with those who may read the policy folder (S-28).
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, Final

from config.resources.authorization import Action, AuthorizationPolicy, Clause, Entry, Place, Rule
from config.resources.authorization import Condition as When
from proxy.policy.compiled import WHEN, CompiledRule, Condition, http_fields
from proxy.policy.engine import (
    DENIED,
    FAILED,
    CompiledPolicies,
    Decision,
    compile_policies,
    decide,
    nearest_miss,
)
from proxy.policy.facts import HTTP, AccessRequest
from proxy.policy.selection import applies

_SHOWN: Final = 10  # policies; the rest is counted
_LISTED: Final = 6  # values of one clause
_LABEL: Final = 25  # columns
_WHO: Final = {
    "headers": "request",
    "claims": "token",
    "requestPrincipals": "token",
    "request.auth.audiences": "token",
    "request.auth.presenter": "token",
    "connection.sni": "connection",
    "destination.ip": "connection",
}
_IDENTITY: Final = ("principals", "namespaces", "serviceAccounts", "trustDomains")
_FARTHEST: Final = (True, 1 << 30, 0)
_PLAIN_YAML: Final = re.compile(r"[A-Za-z/_.][A-Za-z0-9/_.~*$+=;()@:-]*")


@dataclass(frozen=True, slots=True)
class ClauseVerdict:
    """One clause: ``label`` as in the document (``to.operation.methods``) and what to say about it."""

    label: str
    holds: bool
    text: str
    nearest: bool  # the clause at which the nearest rule fails
    clause: Clause


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """One rule by its nearest source and operation. On TCP (AUTHZ 7) ``http_only`` names the fields that are
    ignored, or, for an ALLOW rule, because of which the rule is not ``counted``."""

    index: int
    clauses: tuple[ClauseVerdict, ...]
    http_only: tuple[str, ...]
    counted: bool


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    policy: AuthorizationPolicy
    rules: tuple[RuleVerdict, ...]


@dataclass(frozen=True, slots=True)
class Edit:
    """In ``policy``, at ``place``: the list ``field`` becomes ``values``; without values it is taken away. ``key`` is
    that of the condition whose ``values`` or ``notValues`` it is."""

    policy: AuthorizationPolicy
    rule: int
    field: str
    values: tuple[str, ...]
    place: Place
    key: str = ""

    def __str__(self) -> str:
        of = f" of {self.key}" if self.key else ""
        if not self.values:
            return f"remove {self.field}{of}"
        return f"{self.field}{of}: [{', '.join(map(_yaml, self.values))}]"


@dataclass(frozen=True, slots=True)
class Explanation:
    """``policies`` are the ones that tell most, ``further`` counts the rest. ``edits``, made together, allow the
    request; ``advice`` says in words what to do where no edit of a list does."""

    request: AccessRequest
    decision: Decision
    summary: str
    policies: tuple[PolicyVerdict, ...]
    further: int
    edits: tuple[Edit, ...]
    advice: str


def explain(policies: CompiledPolicies, request: AccessRequest) -> Explanation:
    """Why ``decide`` answers as it does. ``request.protocol`` must be ``http`` or ``tcp`` (ValueError)."""
    if request.protocol not in policies.tables:
        raise ValueError(f"{request.protocol!r} is neither http nor tcp")
    decision = decide(policies, request)
    near = nearest_miss(policies, request) if decision.policy is None and decision.reason else None
    verdicts = _verdicts(policies, request, decision, near)
    edits, advice = _remedy(policies, request, decision, near)
    return Explanation(
        request=request,
        decision=decision,
        summary=_summary(policies, request, decision),
        policies=tuple(verdicts[:_SHOWN]),
        further=max(0, len(verdicts) - _SHOWN),
        edits=edits,
        advice=advice,
    )


# -- what was decided ---------------------------------------------------------------------------------------


def _summary(policies: CompiledPolicies, request: AccessRequest, decision: Decision) -> str:
    text = _why(policies, request, decision)
    return f"{text}; policy.default: audit lets it pass" if decision.audited else text


def _why(policies: CompiledPolicies, request: AccessRequest, decision: Decision) -> str:
    if decision.reason == FAILED:
        return "the evaluation failed, which denies"
    if decision.policy is not None:
        action = "DENY" if decision.reason == DENIED else "ALLOW"
        return f"rule {decision.rule} of {action} policy {decision.policy} matches"
    count = sum(_is_asked(policies, policy, request) for policy in policies.policies)
    if not count:
        return f"no ALLOW policy selects {policies.workload} (policy.default: {policies.default})"
    if count == 1:
        return f"1 ALLOW policy selects {policies.workload}, it does not match"
    return f"{count} ALLOW policies select {policies.workload}, none matches"


def _verdicts(
    policies: CompiledPolicies, request: AccessRequest, decision: Decision, near: CompiledRule | None
) -> list[PolicyVerdict]:
    compiled = {(str(rule.policy), rule.index): rule for rule in policies.tables[request.protocol].rules}
    if decision.policy is not None and decision.rule is not None:
        rule = compiled[decision.policy, decision.rule]
        return [PolicyVerdict(rule.policy, (_rule_verdict(rule, request, near),))]
    found = []
    for policy in policies.policies:
        if _is_asked(policies, policy, request):
            known = [compiled.get((str(policy), index)) for index in range(len(policy.rules))]
            distance = min((rule.distance(request) for rule in known if rule), default=_FARTHEST)
            found.append((distance, _policy_verdict(policy, known, request, near)))
    return [verdict for _, verdict in sorted(found, key=lambda pair: pair[0])]


def _is_asked(policies: CompiledPolicies, policy: AuthorizationPolicy, request: AccessRequest) -> bool:
    """Whether ``policy`` could have allowed ``request``."""
    allowing = policy.action == Action.ALLOW and not policy.dry_run
    return allowing and applies(policy, policies.workload, request)


def _policy_verdict(
    policy: AuthorizationPolicy,
    known: list[CompiledRule | None],
    request: AccessRequest,
    near: CompiledRule | None,
) -> PolicyVerdict:
    rules = [
        RuleVerdict(index, (), tuple(http_fields(policy.rules[index])), False)
        if rule is None
        else _rule_verdict(rule, request, near)
        for index, rule in enumerate(known)
    ]
    return PolicyVerdict(policy, tuple(rules))


def _rule_verdict(rule: CompiledRule, request: AccessRequest, near: CompiledRule | None) -> RuleVerdict:
    misses = rule.misses(request)
    first = misses[0] if misses and rule is near else None
    clauses = []
    for side in (rule.sources, rule.operations):
        chosen = min(range(len(side)), key=lambda n: sum(not t.holds(request) for t in side[n]), default=0)
        for test in side[chosen] if side else ():
            clauses.append(_clause_verdict(rule, test, request, chosen if len(side) > 1 else None, test is first))
    ignored = () if request.protocol == HTTP else tuple(http_fields(rule.policy.rules[rule.index]))
    return RuleVerdict(rule.index, tuple(clauses), ignored, True)


def _clause_verdict(
    rule: CompiledRule, test: Condition, request: AccessRequest, entry: int | None, nearest: bool
) -> ClauseVerdict:
    holds = test.holds(request)
    text = _text(rule, test, test.value(request), holds)
    return ClauseVerdict(_label(test, entry), holds, text, nearest, test.clause)


def _label(test: Condition, entry: int | None) -> str:
    if test.side == WHEN:
        return f"when {test.shown}" if test.key else test.shown
    side = test.side if entry is None else test.side.replace(".", f"[{entry}].", 1)
    return f"{side}.{test.shown}"


def _text(rule: CompiledRule, test: Condition, value: Any, holds: bool) -> str:
    listed = _list(test.clause.values)
    hits = [] if value is None else [v for v in test.clause.values if _matches(rule, test, v, value)]
    if test.negative:
        return f"not {listed}" if holds else f"{said(value)} is excluded by {_list(hits)}"
    if holds:
        return plain(hits[0])
    if value is None:
        return f"{listed}   (the {_WHO.get(test.fact, 'caller')} has none)"
    # A list of short words is best said beside what was asked; a long pattern speaks for itself.
    return listed if test.fact in ("principals", "paths") else f"{said(value)} is not in {listed}"


def _matches(rule: CompiledRule, test: Condition, pattern: str, value: Any) -> bool:
    return bool(test.field.compile([pattern], rule.policy.namespace).matches(value))


# -- what would allow it ------------------------------------------------------------------------------------


def _remedy(
    policies: CompiledPolicies, request: AccessRequest, decision: Decision, near: CompiledRule | None
) -> tuple[tuple[Edit, ...], str]:
    if not decision.reason or decision.reason == FAILED:
        return (), ""
    if decision.policy is not None:
        return (), f"narrow or remove rule {decision.rule} of {decision.policy}"
    edits = _edits(near, request) if near is not None else ()
    if edits and _allows(policies, request, edits):
        return edits, ""
    misses = near.misses(request) if near is not None else []
    lacking = [test for test in misses if test.value(request) is None]
    if request.principal is None and any(test.fact in _IDENTITY for test in lacking):
        return (), "call with a client certificate: without one there is no principal and no namespace"
    if lacking and len(lacking) == len(misses):
        return (), "call with " + " and ".join(f"{test.shown}: {_list(test.clause.values)}" for test in lacking)
    return (), f"add a rule to an ALLOW policy that selects {policies.workload}:  {_least_rule(request)}"


def _edits(rule: CompiledRule, request: AccessRequest) -> tuple[Edit, ...]:
    edits = []
    for test in rule.misses(request):
        values = _mended(rule, test, test.value(request))
        if values is None:
            return ()
        edits.append(Edit(rule.policy, rule.index, test.clause.field, values, test.clause.place, test.key))
    return tuple(edits)


def _mended(rule: CompiledRule, test: Condition, value: Any) -> tuple[str, ...] | None:
    """The values with which the clause would hold; None when no exact value can say it."""
    if value is None or test.fact == "targetRefs":
        return None
    if test.negative:
        return tuple(v for v in test.clause.values if not _matches(rule, test, v, value))
    for text in _writable(test, value):
        if _matches(rule, test, text, value):
            return (*test.clause.values, text)
    return None


def _writable(test: Condition, value: Any) -> list[str]:
    """Values that say exactly what the request has, where the language of the field can."""
    if test.fact == "requestPrincipals":
        value = "/".join(value)
    values = [value] if isinstance(value, str | int) else value if isinstance(value, list | tuple) else []
    texts = [str(one) for one in values if isinstance(one, str | int) and not isinstance(one, bool)]
    return [text for text in texts if text and "*" not in (text[0], text[-1]) and "{" not in text and text.isascii()]


def _allows(policies: CompiledPolicies, request: AccessRequest, edits: tuple[Edit, ...]) -> bool:
    documents = [apply_edits(policy, edits) for policy in policies.policies if policy is edits[0].policy]
    others = [policy for policy in policies.policies if policy is not edits[0].policy]
    edited = compile_policies([*others, *documents], policies.workload, "deny")
    return decide(edited, request).allowed


def apply_edits(policy: AuthorizationPolicy, edits: tuple[Edit, ...]) -> AuthorizationPolicy:
    """``policy`` with those of ``edits`` that are about it."""
    rules = list(policy.rules)
    for edit in edits:
        if edit.policy == policy or (edit.policy.namespace, edit.policy.name) == (policy.namespace, policy.name):
            rules[edit.rule] = _edited(rules[edit.rule], edit)
    return dataclasses.replace(policy, rules=tuple(rules))


def _edited(rule: Rule, edit: Edit) -> Rule:
    def mend(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        return tuple(
            dataclasses.replace(entry, clauses=tuple(c for c in map(mended, entry.clauses) if c.values))
            for entry in entries
        )

    def mended(clause: Clause) -> Clause:
        at_place = clause.field == edit.field and clause.place == edit.place and not edit.key
        return dataclasses.replace(clause, values=edit.values) if at_place else clause

    conditions = tuple(c for c in (_edited_when(c, edit) for c in rule.conditions) if c.values or c.not_values)
    sources, operations = mend(rule.sources), mend(rule.operations)
    return dataclasses.replace(rule, sources=sources, operations=operations, conditions=conditions)


def _edited_when(when: When, edit: Edit) -> When:
    if (when.key, when.place) != (edit.key, edit.place):
        return when
    if edit.field == "values":
        return dataclasses.replace(when, values=edit.values)
    return dataclasses.replace(when, not_values=edit.values)


def _least_rule(request: AccessRequest) -> str:
    rule: dict[str, str] = {}
    if request.principal is not None:
        rule["from"] = f"[{{source: {{principals: [{_yaml(request.principal)}]}}}}]"
    if request.protocol == HTTP:
        what = f"methods: [{_yaml(request.method)}], paths: [{_yaml(request.path)}]"
    else:
        what = f"ports: [{_yaml(str(request.port))}]"
    rule["to"] = f"[{{operation: {{{what}}}}}]"
    return "{" + ", ".join(f"{key}: {value}" for key, value in rule.items()) + "}"


# -- text ---------------------------------------------------------------------------------------------------


def render(explanation: Explanation, *, unicode: bool = True) -> list[str]:
    """Lines without line ends. ``unicode`` False: ASCII marks."""
    decision = explanation.decision
    lines = [f"{'ALLOW' if decision.allowed else 'DENY':<6} {explanation.summary}"]
    if explanation.policies:
        lines.append("")
    for verdict in explanation.policies:
        lines += _render_policy(verdict, ("√ ", "× ") if unicode else ("ok", "x "))
    if explanation.further:
        lines.append(f"  and {explanation.further} more, none nearer")
    lines += [f"  not enforced: {note}" for note in decision.notes]
    lines += _render_remedy(explanation)
    return lines


def _render_policy(verdict: PolicyVerdict, marks: tuple[str, str]) -> list[str]:
    policy = verdict.policy
    action = "" if policy.action == Action.ALLOW else f" ({policy.action})"
    head = f"  AuthorizationPolicy {policy}{action}"
    lines = [f"{head:<50}  {policy.place}" if policy.place.line else head]
    for rule in verdict.rules:
        lines += _render_rule(rule, marks)
    if not policy.rules:
        lines.append("    no rules, so it matches nothing")
    return lines


def _render_rule(rule: RuleVerdict, marks: tuple[str, str]) -> list[str]:
    lead = f"    rule {rule.index:<3}"
    fields = _list(rule.http_only)
    if not rule.counted:
        return [f"{lead} {marks[1]} does not count on TCP: only HTTP has {fields}"]
    if not rule.clauses:
        note = f", as TCP has no {fields}" if fields else ""
        return [f"{lead} {marks[0]} matches everything{note}"]
    width = max(_LABEL, *(len(clause.label) + 2 for clause in rule.clauses))
    lines = []
    for clause in rule.clauses:
        mark = marks[0] if clause.holds else marks[1]
        note = "        <- nearest miss" if clause.nearest else ""
        lines.append(f"{lead} {clause.label:<{width}}{mark} {clause.text}{note}")
        lead = " " * len(lead)
    return lines


def _render_remedy(explanation: Explanation) -> list[str]:
    lines = [
        f"{edit.place if edit.place.line else edit.policy}   {edit}" for edit in explanation.edits
    ] or [explanation.advice]
    if lines == [""]:
        return []
    leads = ["to allow it   ", *["              "] * (len(lines) - 1)]
    return ["", *(lead + line for lead, line in zip(leads, lines, strict=True))]


def _list(values: tuple[str, ...] | list[str]) -> str:
    text = ", ".join(plain(value) for value in values[:_LISTED])
    return text if len(values) <= _LISTED else f"{text}, {len(values) - _LISTED} more"


def said(value: Any) -> str:
    """A fact for a terminal: several values of one header, a list in a claim."""
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value[:_LISTED]) or "an empty list"
    return plain(value)


def plain(value: Any) -> str:
    """Text for a terminal: what could steer it is escaped."""
    text = str(value)
    return text if text.isprintable() else ascii(text)[1:-1]


def _yaml(value: str) -> str:
    return value if _PLAIN_YAML.fullmatch(value) and not value.endswith(":") else json.dumps(value)
