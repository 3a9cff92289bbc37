"""Every PeerAuthentication and RequestAuthentication of Istio's own public tests loads, or is refused with a reason.

SIDEWALL_ISTIO_TESTS: as in ``test_istio_documents``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from config.nodes import Document, parse_yaml
from config.problems import Problem, Problems
from config.resources import peer_authentication, request_authentication
from tests.integration.test_istio_documents import filled, folder

PARSERS: dict[str, Callable[[Document, str], Any]] = {
    peer_authentication.KIND: peer_authentication.parse_peer_authentication,
    request_authentication.KIND: request_authentication.parse_request_authentication,
}
# What Sidewall does not do (SW0120), and where it is stricter on purpose.
_STRICTER = {
    "exclude each other",  # jwks beside jwksUri: Istio takes one and says nothing
    "has no value",  # an absent field means something else than an empty one
    "where are the keys",  # an issuer without keys that no discovery could find
}


def judged(kind: str, text: str) -> tuple[Any, list[Problem]]:
    problems = Problems()
    (document,) = parse_yaml(text, "istio.yaml", problems)
    found = PARSERS[kind](document, "foo")
    return found, [problem for problem in problems if problem.severity == "error"]


@pytest.mark.parametrize("kind", PARSERS)
def test_istio_s_documents_load_or_are_refused_with_a_reason(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    told: Counter[str] = Counter()
    unexpected = []
    for path in sorted(folder().rglob("*.y*ml")):
        text = path.read_text(encoding="utf-8")
        for number, piece in enumerate(re.split(r"(?m)^---.*$", filled(text)) if f"kind: {kind}" in text else []):
            if not re.search(rf"(?m)^kind: {kind}\s*$", piece):
                continue
            is_bad = re.search(r"(?m)^_err:", piece) is not None
            found, errors = judged(kind, re.sub(r"(?m)^_err:.*$", "", piece))
            is_meant = all(p.code == "SW0120" or any(word in p.message for word in _STRICTER) for p in errors)
            told["loaded" if found else "refused, as Istio does" if is_bad else "refused, stricter"] += 1
            if found is not None if is_bad else not is_meant:
                place = f"{path.relative_to(folder())}[{number}]"
                unexpected.append(f"{place}: {[f'{p.code} {p.message}' for p in errors] or 'loaded'}")
    with capsys.disabled():
        print(f"\n{told.total()} documents of Istio ({kind}): {dict(told)}\n" + "\n".join(unexpected))
    assert told["loaded"]
    assert not unexpected
