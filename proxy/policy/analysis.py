"""What changes when policies change: exactly, for every request there can be.

    diff(old, new) -> Diff          newly allowed and newly denied, each class with one request that shows it

A verdict is "allowed" when no DENY rule matches and an ALLOW rule does (or, with default ``istio``, when no ALLOW
policy selects the workload). What is newly allowed is therefore in some way in which the new policies allow, and in
none of the ways of their DENY rules; and in a DENY rule of the old ones, or in none of their ALLOW rules. Each such
pair is a question to ``analysis_search``. A rule that stands unchanged in both is answered at a glance, so the cost
follows what changed and not what is there.

The answer is a proof where it says that nothing changes, and every example it gives has been judged by ``decide``
with the old and with the new documents; should that contradict, ``Contradiction`` is raised, which is a bug.
Documents of action AUDIT and those in dry run decide nothing and change nothing. Under default ``audit`` everything
passes; what is compared is the verdict that would be enforced.

``uncovered`` is the other half: ways in which rules match that other rules do not cover. Lint and mutation testing
live on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import chain, product
from typing import Final

from config.resources.authorization import Action, AuthorizationPolicy
from proxy.policy.analysis_axes import Literals
from proxy.policy.analysis_example import Example, example_of
from proxy.policy.analysis_model import Way, boxes_of, is_enforced, meet_of, new_space, scopes_of
from proxy.policy.analysis_search import MAX_EFFORT, Box, Space
from proxy.policy.analysis_words import Exhausted, Language, TooComplex
from proxy.policy.engine import CompiledPolicies, Decision, Default, compile_policies, decide
from proxy.policy.facts import HTTP, TCP, AccessRequest, WorkloadFacts

__all__ = ["Change", "Contradiction", "Diff", "Judge", "TooComplex", "diff", "find_change", "uncovered"]

ROOT_NAMESPACE: Final = "istio-system"
_PARTS: Final = 3  # a rule that differs from its other version in more places is another rule

Policies = Sequence[AuthorizationPolicy]


class Contradiction(Exception):
    """The analysis and ``decide`` disagree about a request: a bug of ours, never of a policy."""


@dataclass(frozen=True, slots=True)
class Change:
    """A class of requests whose verdict changes, and one of them.

    ``opens``: the way by which the side that allows lets it in, None: because no ALLOW policy selects the workload.
    ``closes``: the DENY rule by which the other side refuses it, None: because nothing allows it there.
    ``axis``: the fact in which the rule's other version says something else ("" when there is none)."""

    protocol: str
    example: Example
    old: Decision
    new: Decision
    opens: Way | None
    closes: Way | None
    axis: str

    @property
    def request(self) -> AccessRequest:
        return self.example.request

    @property
    def workload(self) -> WorkloadFacts:
        return self.example.workload


@dataclass(frozen=True, slots=True)
class Diff:
    """False exactly when no request changes its verdict. ``unknown``: why the search gave up on something, so that
    there may be more changes than are listed; "" when it did not."""

    allowed: tuple[Change, ...]
    denied: tuple[Change, ...]
    unknown: str = ""

    def __bool__(self) -> bool:
        return bool(self.allowed or self.denied or self.unknown)


class Judge:
    """``decide`` for any workload, with the policies of each compiled once."""

    def __init__(self, policies: Policies, default: Default) -> None:
        self._policies = policies
        self._default = default
        self._compiled: dict[tuple[object, ...], CompiledPolicies] = {}

    def compiled(self, workload: WorkloadFacts) -> CompiledPolicies:
        labels = sorted(workload.labels.items())
        key = (workload.namespace, workload.name, workload.root_namespace, *labels)
        found = self._compiled.get(key)
        if found is None:
            found = self._compiled[key] = compile_policies(self._policies, workload, self._default)
        return found

    def decide(self, workload: WorkloadFacts, request: AccessRequest) -> Decision:
        return decide(self.compiled(workload), request)

    def __call__(self, example: Example) -> Decision:
        return self.decide(example.workload, example.request)


def is_let_in(decision: Decision) -> bool:
    """The verdict, without the leniency of ``policy.default: audit``."""
    return decision.allowed and not decision.audited


class _Side:
    """One set of documents on one protocol."""

    def __init__(
        self, policies: Policies, protocol: str, workload: WorkloadFacts | None, root: str, default: Default
    ) -> None:
        self.allow = boxes_of(policies, Action.ALLOW, protocol, root, workload)
        self.deny = boxes_of(policies, Action.DENY, protocol, root, workload)
        # Where default deny is on: everywhere, or where an ALLOW policy applies.
        self.closed = [Box({})]
        if default == "istio":
            self.closed = closed_by_istio(policies, protocol, root, workload)
        self.has_gaps = default == "istio"

    def openings(self) -> list[_Part]:
        """What is let in but for DENY."""
        gap = [_Part(Box({}), self.closed)] if self.has_gaps else []
        return [*(_Part(box) for box in self.allow), *gap]

    def own_openings(self, other: _Side) -> list[_Part]:
        """The same without what the same rules of ``other`` let in."""
        gap = [_Part(Box({}), self.closed)] if self.has_gaps else []
        known = {box.key for box in other.allow}
        new = [box for box in self.allow if box.key not in known]
        return [*(part for box in new for part in _parts(box, other.allow_of)), *gap]

    def own_denials(self, other: _Side) -> list[_Part]:
        """What is denied, without what the same rules of ``other`` deny."""
        known = {box.key for box in other.deny}
        return [part for box in self.deny if box.key not in known for part in _parts(box, other.deny_of)]

    def gaps(self) -> list[_Part]:
        """What nothing lets in."""
        return [_Part(box, self.allow) for box in self.closed]

    @cached_property
    def allow_of(self) -> dict[str, list[Box]]:
        return _by_rule(self.allow)

    @cached_property
    def deny_of(self) -> dict[str, list[Box]]:
        return _by_rule(self.deny)


def closed_by_istio(
    policies: Policies, protocol: str, root: str, workload: WorkloadFacts | None
) -> list[Box]:
    """Where an ALLOW policy applies, so that what none matches is denied (AUTHZ 2.2)."""
    allowing = (policy for policy in policies if policy.action == Action.ALLOW and is_enforced(policy))
    return [Box(scope) for policy in allowing for scope in scopes_of(policy, protocol, root, workload)]


@dataclass(frozen=True, slots=True)
class _Part:
    """``box`` without ``unless``. ``axis``: where it leaves what the same rule says on the other side; ``core``:
    the part that leaves it there only, and so has the examples that are easiest to read."""

    box: Box
    unless: Sequence[Box] = ()
    axis: str = ""
    core: Box | None = None


def _by_rule(boxes: Iterable[Box]) -> dict[str, list[Box]]:
    found: dict[str, list[Box]] = {}
    for box in boxes:
        found.setdefault(str(box.mark), []).append(box)
    return found


def _parts(box: Box, others: dict[str, list[Box]]) -> list[_Part]:
    """``box`` as far as the most similar way of the same rule on the other side does not reach: what is in ``box``
    and not in that is in ``box`` and outside of one of its literals."""
    twins = others.get(str(box.mark), ())
    if not twins:
        return [_Part(box)]
    twin = max(twins, key=lambda other: len(box.key & other.key))
    left = [
        (axis, literal)
        for axis, literals in twin.parts.items()
        for literal in literals
        if literal not in box.parts.get(axis, ())
    ]
    strange = sum(not _akin(predicate, box.parts.get(axis, ())) for axis, (predicate, _) in left)
    if len(left) > _PARTS or strange > 1:
        return [_Part(box)]
    parts = []
    for axis, (predicate, wanted) in left:
        outside = Box({axis: ((predicate, not wanted),)})
        part = Box(meet_of(box, outside).parts, box.mark)
        rest = [Box({other: (literal,)}) for other, literal in left if literal != (predicate, wanted)]
        parts.append(_Part(part, (), axis, reduce(meet_of, rest, part)))
    return parts


def _akin(predicate: object, literals: Literals) -> bool:
    """Whether one of ``literals`` has a value in common with ``predicate``."""
    for other, _ in literals:
        if isinstance(predicate, Language) and isinstance(other, Language):
            if not set(predicate.patterns).isdisjoint(other.patterns):
                return True
        elif isinstance(predicate, frozenset) and isinstance(other, frozenset) and predicate & other:
            return True
    return False


def diff(
    old: Policies,
    new: Policies,
    *,
    workload: WorkloadFacts | None = None,
    default: Default = "deny",
    root_namespace: str = ROOT_NAMESPACE,
    effort: int = MAX_EFFORT,
    strict_paths: bool = True,
) -> Diff:
    """All changes for ``workload``, or for every workload there can be, after at most ``effort`` steps.
    ``strict_paths``: as for ``new_space``. Raises TooComplex for conditions that are beyond analysis."""
    if workload is not None:
        root_namespace = workload.root_namespace
        old, new = (_selecting(policies, workload) for policies in (old, new))
    unknown: list[str] = []
    changes = []
    space = new_space(effort, strict_paths=strict_paths)
    try:
        for change in _changes(old, new, workload, default, root_namespace, space, unknown):
            changes.append(change)
    except Exhausted as error:
        unknown.append(str(error))
    return Diff(
        tuple(change for change in changes if is_let_in(change.new)),
        tuple(change for change in changes if is_let_in(change.old)),
        unknown[0] if unknown else "",
    )


def find_change(
    old: Policies,
    new: Policies,
    *,
    workload: WorkloadFacts | None = None,
    default: Default = "deny",
    effort: int = MAX_EFFORT,
) -> Change | None:
    """The first change, or None when no request changes its verdict. Raises TooComplex."""
    root = ROOT_NAMESPACE
    if workload is not None:
        root = workload.root_namespace
        old, new = (_selecting(policies, workload) for policies in (old, new))
    unknown: list[str] = []
    found = next(_changes(old, new, workload, default, root, new_space(effort), unknown), None)
    if found is None and unknown:
        raise TooComplex(unknown[0])
    return found


def _changes(
    old: Policies,
    new: Policies,
    workload: WorkloadFacts | None,
    default: Default,
    root: str,
    space: Space,
    unknown: list[str],
) -> Iterator[Change]:
    judges = (Judge(old, default), Judge(new, default))
    for protocol in (HTTP, TCP):
        was, is_now = (_Side(policies, protocol, workload, root, default) for policies in (old, new))
        for opened, before, after in ((True, was, is_now), (False, is_now, was)):
            for values, opening, closing in _newly_let_in(space, before, after, unknown):
                example = example_of(values, protocol, workload, root)
                yield _verified(example, judges, opened, opening, closing)


def _selecting(policies: Policies, workload: WorkloadFacts) -> list[AuthorizationPolicy]:
    return list(compile_policies(policies, workload).policies)


_Found = tuple[dict[str, object], _Part, _Part]


def _newly_let_in(space: Space, before: _Side, after: _Side, unknown: list[str]) -> Iterator[_Found]:
    """One for each pair of a rule's part that lets in now and a reason for which it was not before. Why a pair could
    not be judged is added to ``unknown``."""
    pairs = chain(
        product(after.openings(), before.own_denials(after)),
        product(after.own_openings(before), before.gaps()),
    )
    seen = set()
    for opening, closing in pairs:
        why = (_name(opening), _name(closing))
        if why in seen or not space.may_meet(opening.box, closing.box):
            continue
        try:
            values = _in_both(space, opening, closing, after.deny)
        except Exhausted:
            raise
        except TooComplex as error:
            unknown.append(str(error))
            continue
        if values is not None:
            seen.add(why)
            yield values, opening, closing


def _in_both(space: Space, opening: _Part, closing: _Part, deny: Sequence[Box]) -> dict[str, object] | None:
    avoid = [*deny, *opening.unless, *closing.unless]
    if opening.core is not None or closing.core is not None:
        found = space.outside(meet_of(opening.core or opening.box, closing.core or closing.box), avoid)
        if found is not None:
            return found
    return space.outside(meet_of(opening.box, closing.box), avoid)


def _name(part: _Part) -> str:
    return f"{part.box.mark or ''} {part.axis}"


def _verified(
    example: Example, judges: tuple[Judge, Judge], opened: bool, opening: _Part, closing: _Part
) -> Change:
    old, new = (judge(example) for judge in judges)
    if (is_let_in(old), is_let_in(new)) != (not opened, opened):
        raise Contradiction(f"{example.request!r} to {example.workload}: {old!r} and {new!r}")
    ways = (opening.box.mark, closing.box.mark)
    return Change(example.request.protocol, example, old, new, *ways, opening.axis or closing.axis)


def uncovered(space: Space, boxes: Iterable[Box], others: Sequence[Box]) -> dict[str, object] | None:
    """Values of a request that is in one of ``boxes`` and in none of ``others``; None when there is none."""
    for box in boxes:
        values = space.outside(box, others)
        if values is not None:
            return values
    return None
