from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from config.documents import parse_documents
from config.problems import ConfigError, Problem, Problems, render, suggest
from tests.unit.config.loading import problems_of

GOLDEN = Path(__file__).parents[2] / "golden"

POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-web, namespace: shop}
spec:
  selector:
    matchLabels: {app: api}
  action: ALOW
  rules:
  - from:
    - source:
        principal: ["shop.internal/ns/shop/sa/web"]
    to:
    - operation: {methods: [GET], ports: [80]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolice
metadata: {name: other}
"""

CONFIG = """\
version: 1
workload: shop/api
identity: {ca: "https://ca.shop.internal:15012"}
inbound:
  - {listen: 8443, app: 8080, mtls: PERMISIVE}
  - name: https
    lisen: 0.0.0.0:9443
    listen: 9443
    app: 10.0.0.7:8080
    timeouts: {request: 60, idel: 5m}
outbound:
  - {listen: 9001, to: stok}
upstreams:
  stock: {endpoints: ["10.20.0.9:8443"], protcol: h2}
policy: {default: alow}
telemetry: {tracing: {sample: 1.5}}
workers: ${WORKERS}
"""


def golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("SIDEWALL_GOLDEN") == "write":
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


def a_problem(**facts: object) -> Problem:
    given: dict[str, object] = {"code": "SW0101", "message": "no", "file": "f.yaml", "line": 3, "column": 5}
    return Problem(**{**given, "end_column": 7, "snippet": "    ab: 1", **facts})  # type: ignore[arg-type]


def test_mistakes_of_a_policy_look_as_in_the_golden_text() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_documents(POLICY, file="policy/api.yaml")
    error = caught.value
    golden("problems_policy.txt", render(error.problems, files=error.files, documents=error.documents))


def test_mistakes_of_a_configuration_look_as_in_the_golden_text() -> None:
    golden("problems_config.txt", render(problems_of(CONFIG), files=1))


def test_the_github_form_looks_as_in_the_golden_text() -> None:
    golden("problems_github.txt", render(problems_of(CONFIG), "github"))


def test_the_json_form_has_the_keys_of_the_contract() -> None:
    (found,) = json.loads(render([a_problem(path="a.b", hint="h")], "json"))
    assert found == {
        "code": "SW0101",
        "severity": "error",
        "file": "f.yaml",
        "line": 3,
        "column": 5,
        "endColumn": 7,
        "path": "a.b",
        "message": "no",
        "hint": "h",
    }


def test_the_caret_stands_under_what_is_meant() -> None:
    lines = render([a_problem()]).split("\n")
    assert lines[:4] == ["f.yaml:3:5: error SW0101: no", "   |", " 3 |     ab: 1", "   |     ^^"]


def test_the_caret_counts_wide_characters_twice() -> None:
    lines = render([a_problem(snippet="漢字ab", column=3, end_column=5)]).split("\n")
    assert lines[3] == "   |     ^^"


def test_nothing_of_a_file_can_drive_the_terminal() -> None:
    text = render([a_problem(snippet="\x1b[31m\u202eab", message="\x1b]0;x\x07", path="\x1b", hint="\x9b")])
    assert not any(c < " " or "\x7f" <= c <= "\x9f" or c == "\u202e" for c in text.replace("\n", ""))


def test_of_a_long_line_the_part_around_the_caret_is_shown() -> None:
    snippet = "x" * 5000 + "HERE" + "y" * 5000
    text = render([a_problem(snippet=snippet, column=5001, end_column=5005)])
    shown, caret = text.split("\n")[2:4]
    assert len(shown) < 200
    assert shown[caret.index("^") : caret.rindex("^") + 1] == "HERE"


def test_a_caret_past_the_end_of_the_line_is_one_mark() -> None:
    assert render([a_problem(snippet="ab", column=9, end_column=30)]).count("^") == 1


def test_problems_without_a_place_are_named_by_their_origin() -> None:
    text = render([Problem("SW0114", "there is no setting 'X'", "warning", file="env SIDEWALL_X", hint="h")])
    assert text.split("\n")[:2] == ["env SIDEWALL_X: warning SW0114: there is no setting 'X'", "   = h"]


def test_the_last_line_counts() -> None:
    found = [a_problem(), a_problem(severity="warning"), a_problem(severity="warning")]
    last = render(found, files=2, documents=6).split("\n")[-1]
    assert last == "2 files, 6 documents: 1 error, 2 warnings          sidewall explain SW0101 for more"


def test_no_problems_are_no_text() -> None:
    assert render([]) == ""


def test_workflow_commands_are_escaped() -> None:
    text = render([a_problem(file="a,b:c", message="100%\n::error::x")], "github")
    assert text == "::error file=a%2Cb%3Ac,line=3,col=5,endColumn=7,title=SW0101::100%25%0A::error::x"


def test_warnings_alone_are_not_raised() -> None:
    problems = Problems()
    problems.add(a_problem(severity="warning"))
    problems.raise_errors()
    problems.add(a_problem(line=1))
    with pytest.raises(ConfigError) as caught:
        problems.raise_errors()
    assert [problem.line for problem in caught.value.problems] == [1, 3]


def test_a_suggestion_ignores_case_and_needs_some_likeness() -> None:
    assert suggest("METHODS", ["methods", "paths"]) == "did you mean 'methods'?"
    assert suggest("qqq", ["methods", "paths"]) == ""
