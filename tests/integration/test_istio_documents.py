"""Every AuthorizationPolicy document of Istio's own public tests loads, or is refused with a code and a reason.

SIDEWALL_ISTIO_TESTS names a folder with Istio's sources, or a part of them such as pilot/pkg/security/authz. Only YAML
is read. Templates (``{{ .Namespace }}``) are filled with a word."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.nodes import parse_yaml
from config.problems import Problem, Problems
from config.resources.authorization import KIND, AuthorizationPolicy, parse_authorization_policy
from proxy.policy.engine import WorkloadFacts, compile_policies, decide
from proxy.policy.facts import AccessRequest

_ACTION = re.compile(r"\{\{-?\s*(if|else|end|range|with|define|block|template)\b[^}]*\}\}")
_VALUE = re.compile(r"\{\{[^}]*\}\}")
# What Sidewall does not do, each refused by name.
_REFUSED = {"SW0120"}


def folder() -> Path:
    named = os.environ.get("SIDEWALL_ISTIO_TESTS", "")
    if not named:
        pytest.skip("SIDEWALL_ISTIO_TESTS does not name a folder with Istio's tests")
    return Path(named)


def documents() -> Iterator[tuple[str, str]]:
    """Where each stands, and its text."""
    for path in sorted(folder().rglob("*.y*ml")):
        text = path.read_text(encoding="utf-8")
        if f"kind: {KIND}" in text:
            for number, piece in enumerate(re.split(r"(?m)^---.*$", filled(text))):
                if re.search(rf"(?m)^kind: {KIND}\s*$", piece):
                    yield f"{path.name}[{number}]", piece


def filled(text: str) -> str:
    return _VALUE.sub("x", _ACTION.sub("", text))


def judged(text: str) -> tuple[AuthorizationPolicy | None, list[Problem]]:
    problems = Problems()
    (document,) = parse_yaml(text, "istio.yaml", problems)
    policy = parse_authorization_policy(document, "foo")
    return policy, [problem for problem in problems if problem.severity == "error"]


def test_istio_s_documents_load_or_are_refused_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    told: Counter[str] = Counter()
    unexpected = []
    for place, text in documents():
        # Tests of Istio's own validation say beside a document what is wrong with it.
        is_bad = re.search(r"(?m)^_err:", text) is not None
        policy, errors = judged(re.sub(r"(?m)^_err:.*$", "", text))
        codes = {problem.code for problem in errors}
        if policy is not None:
            told["loaded"] += 1
            try_out(policy)
        elif codes <= _REFUSED:
            told["refused: CUSTOM or Envoy's own filters"] += 1
        else:
            told["refused, as Istio does" if is_bad else "refused otherwise"] += 1
        if is_bad if policy is not None else not (is_bad or codes <= _REFUSED):
            unexpected.append(f"{place}: {[f'{problem.code} {problem.message}' for problem in errors] or 'loaded'}")
    with capsys.disabled():
        print(f"\n{told.total()} documents of Istio: {dict(told)}\n" + "\n".join(unexpected))
    assert told["loaded"]
    assert not unexpected


def try_out(policy: AuthorizationPolicy) -> None:
    compiled = compile_policies([policy], WorkloadFacts(policy.namespace, dict(policy.selector)))
    for protocol in ("http", "tcp"):
        request = AccessRequest(protocol=protocol, principal=None, namespace=None, port=80, method="GET", path="/")
        assert decide(compiled, request).reason != "authorization_failed"
