"""Who can call, against sampled requests: nobody who may is left out, and every example really may."""

from __future__ import annotations

from typing import Any

from hypothesis import given, reject, settings
from hypothesis import strategies as st

from proxy.policy.analysis import Judge, TooComplex, is_let_in
from proxy.policy.reach import Node, Reach, who_can
from tests.properties.test_policy_analysis import ASKED
from tests.properties.test_policy_properties import ANALYSED_RULES, API, documents_of, facts_of, specs
from tests.unit.policy.documents import read_data

DOCUMENTS = documents_of(specs(ANALYSED_RULES))
DEFAULTS = st.sampled_from(["deny", "istio"])


@settings(max_examples=40, deadline=None)
@given(DOCUMENTS, st.lists(st.sampled_from(ASKED), min_size=3, max_size=8), DEFAULTS)
def test_who_can_leaves_nobody_out_and_shows_only_who_may(documents: Any, raws: Any, default: Any) -> None:
    policies = read_data(documents)
    judge = Judge(policies, default)
    for raw in raws:
        request = facts_of(raw)
        try:
            found = who_can(policies, API, request, default=default)
        except TooComplex:
            reject()
        for caller in found:
            example = caller.example.request
            assert is_let_in(judge.decide(API, example))
            assert (example.method, example.path) == (request.method, request.path)
        if is_let_in(judge.decide(API, request)):
            assert found


@settings(max_examples=20, deadline=None)
@given(DOCUMENTS, st.lists(st.sampled_from(ASKED), min_size=5, max_size=20), DEFAULTS)
def test_an_edge_is_there_when_any_request_is_let_in(documents: Any, raws: Any, default: Any) -> None:
    policies = read_data(documents)
    judge = Judge(policies, default)
    callers = {raw["principal"]: Node(str(raw["principal"]), raw["principal"], None) for raw in raws}
    api = Node("shop/api", "td/ns/shop/sa/api", API)
    reach = Reach(policies, [*callers.values(), api], default=default)
    try:
        edges = {node.principal: reach.edges_of(node) for node in callers.values()}
    except TooComplex:
        reject()
    for some in edges.values():
        for edge in some:
            assert edge.example.request.principal == edge.caller.principal
            assert is_let_in(judge(edge.example))
    for raw in raws:
        if is_let_in(judge.decide(API, facts_of(raw))):
            assert edges[raw["principal"]]
