"""The ``policy`` commands, as printed, and what they exit with."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from proxy.cli.group import Problem, cli
from proxy.observe.flows import Flow

API = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-web, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  rules:
  - from: [{source: {principals: [shop.internal/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET, HEAD], paths: [/orders/*]}}]
  - from: [{source: {principals: [shop.internal/ns/shop/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/orders/17]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: stock, namespace: shop}
spec:
  selector: {matchLabels: {app: stock}}
  rules:
  - from: [{source: {principals: [shop.internal/ns/shop/sa/api]}}]
    to: [{operation: {ports: ["8080"], paths: ["/shop.Stock/*"]}}]
    when: [{key: "request.headers[x-team]", values: [ops]}]
"""
SUITE = """\
suite: orders
to: shop/api
cases:
- {name: web reads,          from: shop/web,  request: GET /orders/1,           expect: allow, by: allow-web}
- {name: web does not write, from: shop/web,  request: DELETE /orders/1,        expect: deny}
- {name: strangers,          from: none,      request: GET /orders/1,           expect: deny, reason: mtls_required}
- {name: traversal,          from: shop/web,  request: GET /orders/../admin,    expect: deny}
- {name: grpc, from: shop/api, to: shop/stock, request: shop.Stock/Reserve, headers: {x-team: ops}, expect: allow}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/api.yaml").write_text(API)
    (tmp_path / "policy/api.test.yaml").write_text(SUITE)
    (tmp_path / "new.yaml").write_text(API.replace("GET, HEAD", "GET, HEAD, DELETE"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(line: str) -> Result:
    return CliRunner().invoke(cli, ["policy", *line.split()], prog_name="sidewall")


def told(line: str, code: int = 0) -> str:
    result = invoke(line)
    assert result.exit_code == code, result.output
    return result.stdout


def refusal(line: str) -> int:
    """The exit code of a command that refuses, as the program gives it."""
    result = CliRunner().invoke(cli, ["policy", *line.split()], prog_name="sidewall", standalone_mode=False)
    assert isinstance(result.exception, Problem), result.output
    return result.exception.code


# -- check --------------------------------------------------------------------------------------------------

CHECKED = """\
policy/api.yaml:9:5: warning SW0304: this rule changes nothing: shop/allow-web#0 allows all that it matches
   |
 9 |   - from: [{source: {principals: [shop.internal/ns/shop/sa/web]}}]
   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ remove it, or narrow the other
   = AuthorizationPolicy shop/allow-web, spec.rules[1]

policy/api.yaml:12:1: warning SW0306: this selects no workload there is: workloads with app=stock in namespace shop
    |
 12 | apiVersion: security.istio.io/v1
    | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ compare with the labels of the workload, and with its namespace
    = AuthorizationPolicy shop/stock, spec

1 file, 2 documents: 2 warnings          sidewall explain SW0304 for more
"""


def test_check_shows_place_line_and_remedy() -> None:
    assert told("check policy --workload shop/api --trust-domain shop.internal") == CHECKED


def test_check_fails_on_what_it_is_told_to() -> None:
    told("check policy --fail-on warning", 1)
    told("check policy --fail-on error", 0)


def test_check_as_json_and_as_annotations() -> None:
    (problem,) = json.loads(told("check policy -o json"))
    assert (problem["code"], problem["line"], problem["column"], problem["path"]) == ("SW0304", 9, 5, "spec.rules[1]")
    assert told("check policy -o github").startswith("::warning file=policy/api.yaml,line=9,col=5")


def test_check_of_a_wrong_file_tells_everything_and_exits_1(folder: Path) -> None:
    (folder / "bad.yaml").write_text(API.replace("spec:", "spce:"))
    found = json.loads(told("check bad.yaml -o json", 1))
    assert [problem["code"] for problem in found] == ["SW0101", "SW0101"]


def test_check_of_nothing_wrong(folder: Path) -> None:
    (folder / "good.yaml").write_text(API.partition("---\n")[2])
    assert told("check good.yaml") == "nothing to say about 1 policies\n"


# -- test ---------------------------------------------------------------------------------------------------



def test_a_suite_that_passes() -> None:
    assert told("test policy") == "policy/api.test.yaml orders  .....\n5 passed\n"


def test_coverage_and_mutation_name_what_no_case_would_miss() -> None:
    text = told("test policy --coverage --mutate", 1)
    assert text.startswith("policy/api.test.yaml orders  .....\nrules that a case touches: 2 of 3\n")
    assert "  policy/api.yaml:9  shop/allow-web rule 1 is touched by no case\n" in text
    assert "  policy/api.yaml:8  shop/allow-web rule 0: no case would miss  to.operation.methods value HEAD\n" in text
    assert "  policy/api.yaml:9  shop/allow-web rule 1: no request would miss  rule 1\n" in text
    assert "value GET" not in text
    data = json.loads(told("test policy --coverage --mutate -o json", 1))
    assert [rule["cases"] for rule in data["coverage"]] == [1, 0, 1]
    assert data["mutation"][0]["killed"] < data["mutation"][0]["tried"]


def test_a_failing_case_is_explained_and_reported(folder: Path) -> None:
    suite = SUITE.replace("headers: {x-team: ops}, ", "")
    (folder / "policy/api.test.yaml").write_text(suite)
    text = told("test policy --junit report.xml", 1)
    assert "orders  ....F\n" in text
    assert "policy/api.test.yaml:8  grpc\n    expected allow, but it is denied (no_allow_policy_matched)\n" in text
    assert "to allow it   call with request.headers[x-team]: ops" in text
    assert text.endswith("4 passed, 1 failed\n")
    root = ElementTree.parse("report.xml").getroot()
    assert root.find("testsuite").attrib == {"name": "orders", "tests": "5", "failures": "1", "errors": "0"}  # type: ignore[union-attr]
    assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == ["grpc"]


def test_a_wrong_suite_exits_78_and_none_at_all_2(folder: Path) -> None:
    (folder / "policy/api.test.yaml").write_text(SUITE.replace("expect: deny}", "expekt: deny}"))
    result = invoke("test policy")
    assert result.exit_code == 78
    assert "did you mean 'expect'?" in result.stderr
    (folder / "policy/api.test.yaml").unlink()
    assert refusal("test policy") == 2


# -- diff ---------------------------------------------------------------------------------------------------

DIFF = """\
newly allowed: 1 class of requests
  shop/allow-web rule 0   new.yaml:7   by methods
      e.g.  shop.internal/ns/shop/sa/web  DELETE /orders/
            to a workload of namespace shop with app=api
      old   denied: no ALLOW policy matched (nearest shop/allow-web#0:methods)
      new   allowed by shop/allow-web#0
"""


def test_diff_gives_an_example_for_each_class() -> None:
    assert told("diff policy new.yaml") == DIFF
    assert told("diff new.yaml policy").startswith("newly denied: 1 class of requests\n")


def test_diff_of_nothing_says_so_and_fails_as_it_is_told_to() -> None:
    assert told("diff policy policy --fail-on any") == "no request changes its verdict\n"
    told("diff policy new.yaml --fail-on allowed", 1)
    told("diff policy new.yaml --fail-on any", 1)
    told("diff policy new.yaml --fail-on denied", 0)


def test_paths_are_those_of_the_proxys_normalization(folder: Path) -> None:
    (folder / "odd.yaml").write_text(API.replace("[/orders/17]", "[/x//y]"))
    assert told("check odd.yaml --path-normalization NONE --fail-on warning").startswith("nothing to say")
    assert "SW0303" in told("check odd.yaml")
    told("explain -f odd.yaml --from web --to api --path-normalization BASE GET /x//y")
    told("explain -f odd.yaml --from web --to api GET /x//y", 1)
    told("who-can -f odd.yaml --to api --path-normalization BASE GET /x//y")


def test_diff_of_one_workload_and_as_json() -> None:
    data = json.loads(told("diff policy new.yaml --to shop/api -o json"))
    assert (data["changed"], data["unknown"], data["newlyDenied"]) == (True, "", [])
    assert data["newlyAllowed"][0]["example"]["request"]["method"] == "DELETE"
    assert told("diff policy new.yaml --to shop/stock") == "no request changes its verdict\n"


# -- questions ----------------------------------------------------------------------------------------------

EXPLAINED = """\
DENY   1 ALLOW policy selects shop/api, it does not match

  AuthorizationPolicy shop/allow-web                policy/api.yaml:1
    rule 0   from.source.principals   √  shop.internal/ns/shop/sa/web
             to.operation.methods     ×  DELETE is not in GET, HEAD        <- nearest miss
             to.operation.paths       √  /orders/*
    rule 1   from.source.principals   √  shop.internal/ns/shop/sa/web
             to.operation.methods     ×  DELETE is not in GET
             to.operation.paths       √  /orders/17

to allow it   policy/api.yaml:8   methods: [GET, HEAD, DELETE]
"""


def test_explain_marks_each_clause_and_offers_the_smallest_edit() -> None:
    assert told("explain --from web --to api DELETE /orders/17", 1) == EXPLAINED
    assert told("explain --from web --to api GET /orders/17").startswith("ALLOW  rule 0 of ALLOW policy")
    data = json.loads(told("explain --from web --to api DELETE /orders/17 -o json", 1))
    assert data["edits"] == [
        {
            "policy": "shop/allow-web",
            "rule": 0,
            "place": "policy/api.yaml:8",
            "edit": "methods: [GET, HEAD, DELETE]",
        }
    ]


def test_explain_of_what_no_policy_is_asked_about() -> None:
    assert "mtls_required" in told("explain --from none --to api GET /orders/17", 1)
    assert "no ALLOW policy" not in told("explain --from web --to api GET /a/%2e%2e/b", 1)


def test_explain_states_headers_and_claims() -> None:
    line = "explain --from api --to stock --header x-team=ops shop.Stock/Reserve"
    assert told(line).startswith("ALLOW  rule 0 of ALLOW policy shop/stock")
    told(line.replace("ops", "web"), 1)
    assert refusal("explain --from api --to stock --claims nonsense shop.Stock/Reserve") == 2


def test_who_can_names_callers_and_what_else_they_need() -> None:
    assert told("who-can shop.Stock/Reserve --to stock") == (
        "shop.internal/ns/shop/sa/api   shop/stock#0   policy/api.yaml:18\n"
        "    if ports: 8080\n"
        "    if request.headers[x-team]: ops\n"
    )
    assert told("who-can DELETE /orders/17 --to api", 1) == "nobody\n"
    items = json.loads(told("who-can GET /orders/17 --to api -o json"))["items"]
    assert [item["rule"] for item in items] == ["shop/allow-web#0", "shop/allow-web#1"]


def test_graph_and_blast_radius() -> None:
    assert told("graph") == (
        "shop/api  ->  shop/stock   shop/stock#0\nshop/web  ->  shop/api     shop/allow-web#0\n"
    )
    assert told("graph --from web") == (
        "shop/web reaches 2, 1 of them directly\n"
        "  1  shop/api    directly   shop/allow-web#0\n"
        "  2  shop/stock  via shop/api   shop/stock#0\n"
    )
    assert '  "shop/web" -> "shop/api" [label="shop/allow-web#0"];' in told("graph -o dot")
    root = ElementTree.fromstring(told("graph --from web -o svg"))
    assert len(root.findall("{*}g")) == 3
    assert json.loads(told("graph --from web -o json"))["items"][1]["distance"] == 2
    assert "did you mean 'shop/web'" in invoke("graph --from shop/wep").stderr


# -- the ledger ---------------------------------------------------------------------------------------------

WEB = "shop.internal/ns/shop/sa/web"


@pytest.fixture
def ledger(folder: Path) -> Path:
    flows = [
        Flow("shop/api", WEB, "http", "GET", "api", "/orders/0", True, 8080, count=9, trace_id="4bf9", last=1.7e9),
        Flow("shop/api", WEB, "http", "DELETE", "api", "/orders/0", True, 8080, verdict="denied", count=2, last=1.7e9),
    ]
    (folder / "flows").mkdir()
    (folder / "flows/flows-0000000001.jsonl").write_bytes(b"".join(flow.line() for flow in flows) + b"junk\n")
    return folder / "flows"


def test_replay_tells_what_changes_and_what_was_not_seen(ledger: Path) -> None:
    result = invoke("replay --old policy -f new.yaml --ledger flows --fail-on allowed")
    assert result.exit_code == 1
    assert result.stdout == (
        "newly allowed: 2 calls\n"
        f"  2  {WEB}  shop/api  DELETE /orders/0\n"
        "      old   denied: no ALLOW policy matched (nearest shop/allow-web#0:methods)\n"
        "      new   allowed by shop/allow-web#0\n"
        "\n"
        "judged: 11 calls in 2 records\n"
        "of 11 calls only the shape of the path was recorded\n"
        "not seen: a call that rule 1 of shop/allow-web decides   new.yaml:9\n"
        "not seen: a call that rule 0 of shop/stock decides   new.yaml:18\n"
    )
    assert "left out: flows-0000000001.jsonl:3" in result.stderr
    assert invoke("replay --old policy -f new.yaml --ledger flows --fail-on denied").exit_code == 0


def test_what_is_learned_passes_check_and_replay(ledger: Path, folder: Path) -> None:
    (folder / "learned.yaml").write_text(told("learn --to shop/api --ledger flows"))
    assert "trace 4bf9" in (folder / "learned.yaml").read_text()
    assert told("check learned.yaml --fail-on info") == "nothing to say about 1 policies\n"
    data = json.loads(told("replay --old policy -f learned.yaml --ledger flows -o json"))
    assert (data["calls"], data["newlyDenied"], data["newlyAllowed"]) == (11, [], [])


def test_learning_needs_something_to_learn_from(ledger: Path) -> None:
    assert "nobody was seen" in invoke("learn --to shop/api --ledger flows --since 1h").stderr
    assert refusal("learn --to shop/api --ledger flows --since 1h") == 1
    assert refusal("learn --to shop/api --ledger flows --since soon") == 2
    assert refusal("learn --ledger flows") == 2
    assert refusal("learn --to shop/api --ledger nowhere") == 69
