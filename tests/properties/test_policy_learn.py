"""A learned policy allows every witness, and loses one when any value of it is taken away."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from config.resources.authorization import AuthorizationPolicy, Entry, Rule
from proxy.policy.engine import compile_policies, decide
from proxy.policy.flows import FlowRecord, request_of_flow
from proxy.policy.learn import PathStyle, learn

SEGMENTS = st.sampled_from(
    [*("a", "b", "orders", "0", "17", "x", "x0", "x@x", "0a0a0a0a", "a*", "*b", "a*b", "{a}", "%20", "^", ""), "z" * 70]
)
PATHS = st.one_of(
    st.sampled_from(["/", "*"]), st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda some: "/" + "/".join(some))
)
CALLERS = st.sampled_from(["td/ns/a/sa/x", "td/ns/a/sa/y", "td/spire/agent", "1.2/ns/n/sa/s", None])
HTTP = st.builds(
    FlowRecord,
    st.just("shop/api"),
    CALLERS,
    st.just("http"),
    st.sampled_from(["GET", "PUT", "POST", "OPTIONS"]),
    st.just("api"),
    PATHS,
    st.booleans(),
    st.sampled_from([80, 81]),
)
TCP = st.builds(FlowRecord, st.just("shop/api"), CALLERS, st.just("tcp"), port=st.sampled_from([80, 81]))
FLOWS = st.lists(st.one_of(HTTP, HTTP, HTTP, TCP), min_size=1, max_size=14)
STYLES = st.sampled_from(["exact", "template", "prefix"])


def without_one_value(policy: AuthorizationPolicy) -> Iterator[AuthorizationPolicy]:
    """Every way to take one value away. A clause goes with its last value, its entry with it (what is left would
    allow more), and a rule with its last entry."""
    for number, rule in enumerate(policy.rules):
        for lesser in lesser_rules(rule):
            rules = (*policy.rules[:number], *lesser, *policy.rules[number + 1 :])
            yield dataclasses.replace(policy, rules=rules)


def lesser_rules(rule: Rule) -> Iterator[tuple[Rule, ...]]:
    for sources in lesser_entries(rule.sources):
        yield (dataclasses.replace(rule, sources=sources),) if sources else ()
    for operations in lesser_entries(rule.operations):
        yield (dataclasses.replace(rule, operations=operations),) if operations else ()


def lesser_entries(entries: tuple[Entry, ...]) -> Iterator[tuple[Entry, ...]]:
    for number, entry in enumerate(entries):
        for which, clause in enumerate(entry.clauses):
            for value in clause.values:
                values = tuple(other for other in clause.values if other != value)
                clauses = (*entry.clauses[:which], dataclasses.replace(clause, values=values), *entry.clauses[which + 1 :])
                kept = (dataclasses.replace(entry, clauses=clauses),) if values else ()
                yield (*entries[:number], *kept, *entries[number + 1 :])


@settings(max_examples=100, deadline=None)
@given(FLOWS, STYLES)
def test_a_learned_policy_allows_all_witnesses_and_is_irreducible(flows: list[Any], style: PathStyle) -> None:
    found = learn(flows, to="shop/api", paths=style)
    compiled = compile_policies([found.policy], found.workload)
    assert all(decide(compiled, request_of_flow(flow)).allowed for flow in flows)
    assert {flow.key for flow in found.witnesses} <= {flow.key for flow in flows}
    for lesser in without_one_value(found.policy):
        after = compile_policies([lesser], found.workload)
        assert not all(decide(after, request_of_flow(flow)).allowed for flow in found.witnesses)


@settings(max_examples=100, deadline=None)
@given(FLOWS)
def test_an_exactly_learned_policy_allows_nothing_that_was_not_seen(flows: list[Any]) -> None:
    flows = [flow for flow in flows if not set("*{^") & set(flow.path) and not flow.template and flow.protocol == "http"]
    if not flows:
        return
    found = learn(flows, to="shop/api", paths="exact")
    compiled = compile_policies([found.policy], found.workload)
    for one in flows:
        for other in flows:
            mixed = dataclasses.replace(one, method=other.method, caller=other.caller)
            seen = any((f.caller, f.method, f.path) == (mixed.caller, mixed.method, mixed.path) for f in flows)
            if len({flow.port for flow in flows}) == 1:
                assert decide(compiled, request_of_flow(mixed)).allowed is seen
