"""The table from failure to answer is total, and answers say no more than they should."""

from __future__ import annotations

import json

import pytest

from proxy.answer import ANSWERS, answer_to, render_grpc, render_http
from proxy.errors import MALFORMED, REASONS, MalformedRequest, SidewallError


def test_every_reason_has_exactly_one_answer() -> None:
    assert set(ANSWERS) == set(REASONS)


@pytest.mark.parametrize("word", sorted(MALFORMED))
def test_malformed_requests_are_the_callers_fault_and_close_the_connection(word: str) -> None:
    answer = ANSWERS[word]
    assert answer.flag == "DPE"
    assert answer.close
    assert not answer.retry
    assert 400 <= answer.status < 600


def test_an_unknown_word_is_answered_as_our_own_bug() -> None:
    assert answer_to(SidewallError(reason="never heard of")).flag == "BUG"


@pytest.mark.parametrize("word", sorted(REASONS))
def test_a_grpc_code_is_never_ok_for_a_failure(word: str) -> None:
    assert 1 <= ANSWERS[word].grpc <= 16


def test_a_denial_says_its_reason_and_decision_and_nothing_else() -> None:
    headers, body = render_http(ANSWERS["no_allow_policy_matched"], "no_allow_policy_matched", "ABC", b"ff")
    assert json.loads(body) == {
        "title": "access denied",
        "status": 403,
        "reason": "no_allow_policy_matched",
        "decision": "ABC",
        "trace_id": "ff",
    }
    assert (b"x-sidewall-reason", b"no_allow_policy_matched") in headers
    assert (b"x-sidewall-decision", b"ABC") in headers


def test_a_grpc_denial_is_trailers_only_with_status_seven() -> None:
    headers = dict(render_grpc(ANSWERS["deny_policy_matched"], "deny_policy_matched"))
    assert headers[b"content-type"] == b"application/grpc"
    assert headers[b"grpc-status"] == b"7"


def test_detail_for_operators_never_reaches_the_caller() -> None:
    error = MalformedRequest("secret words of the parser", reason="bad_host")
    _, body = render_http(answer_to(error), error.reason)
    assert b"secret" not in body


@pytest.mark.parametrize("word", ["upstream_connect_failed", "no_healthy_endpoint", "overflow_requests"])
def test_what_may_be_tried_again_says_when(word: str) -> None:
    headers, _ = render_http(ANSWERS[word], word)
    assert (b"retry-after", b"1") in headers
