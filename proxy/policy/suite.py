"""Test suites of policies: read, run, told.

    suite: orders
    to: shop/api                     # namespace/name, label app of that name; labels: adds more
    cases:
    - {name: web reads,  from: shop/web, request: GET /orders/1,    expect: allow, by: allow-web}
    - {name: strangers,  from: none,     request: GET /orders/1,    expect: deny, reason: mtls_required}
    - {name: ops only,   from: shop/ops, request: shop.Stock/Reset, headers: {x-team: ops}, claims: {aud: stock},
       sourceIp: 10.0.0.1, expect: allow}

A case can state every fact that a policy can ask for; what the suite states holds for all its cases. The verdict is
that of ``decide``, after what the proxy itself checks before it asks (``suite_facts``): a caller without
certificate meets ``mtls_required`` unless ``mtls: PERMISSIVE`` is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree import ElementTree

from config.nodes import Document, Node, parse_yaml
from config.problems import Problems
from config.resources.authorization import AuthorizationPolicy, Place
from proxy.errors import REASONS
from proxy.policy.analysis import Judge, is_let_in
from proxy.policy.engine import Decision, Default
from proxy.policy.explain import explain, render
from proxy.policy.facts import WorkloadFacts
from proxy.policy.suite_facts import STRICT, BadFact, Question, Stated, request_of, workload_of
from proxy.wire.path import NORMALIZATIONS

MAX_CASES: Final = 100_000

# What a case states, by its name in the file and in ``Stated``.
_TEXTS: Final = {
    "from": "caller",
    "request": "request",
    "method": "method",
    "path": "path",
    "host": "host",
    "protocol": "protocol",
    "sourceIp": "source_ip",
    "remoteIp": "remote_ip",
    "destinationIp": "destination_ip",
    "sni": "sni",
    "route": "route",
}
_FACTS: Final = (*_TEXTS, "port", "headers", "claims")
_ABOUT: Final = ("to", "labels", "mtls", "trustDomain", "pathNormalization")
_CASE: Final = ("name", "expect", "by", "reason", *_FACTS, *_ABOUT)
_SUITE: Final = ("suite", "default", "cases", *_FACTS, *_ABOUT)


@dataclass(frozen=True, slots=True)
class Case:
    """``by``: a policy, with or without namespace and ``#rule``. ``place``: where it stands."""

    name: str
    question: Question
    workload: WorkloadFacts
    allow: bool
    by: str = ""
    reason: str = ""
    place: Place = field(default=Place("", 0, 0), compare=False)


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    cases: tuple[Case, ...]
    default: Default
    file: str


@dataclass(frozen=True, slots=True)
class Result:
    """``decision`` None: the proxy refused before asking. ``wrong``: why the case fails, "" when it passes."""

    case: Case
    decision: Decision | None
    wrong: str


# -- reading ------------------------------------------------------------------------------------------------


def read_suites(text: str, file: str, problems: Problems, *, trust_domain: str, default: Default) -> list[Suite]:
    """The suites of a file, one for each document; what is wrong goes to ``problems``."""
    found = []
    for document in parse_yaml(text, file, problems):
        if document.root is not None:
            found.append(_Reader(document, trust_domain, default).suite(document.root))
    return found


class _Reader:
    def __init__(self, document: Document, trust_domain: str, default: Default) -> None:
        self._problems = document.problems
        self._trust_domain = trust_domain
        self._default: Default = default
        self._common: dict[str, Node] = {}

    def suite(self, root: Node) -> Suite:
        fields = root.fields(_SUITE)
        self._common = {name: node for name, node in fields.items() if name in (*_FACTS, *_ABOUT)}
        name = fields["suite"].string() if "suite" in fields else None
        if "default" in fields:
            word = fields["default"].choice(("deny", "istio", "audit"), "a default")
            self._default = "istio" if word == "istio" else "audit" if word == "audit" else "deny"
        if "cases" not in fields:
            root.report("SW0106", "'cases' is missing", hint="a suite has a list of cases")
        nodes = fields["cases"].sequence() if "cases" in fields else []
        if len(nodes) > MAX_CASES:
            nodes[MAX_CASES].report("SW0110", f"a suite has at most {MAX_CASES} cases", hint="make it two suites")
        cases = [self._case(node) for node in nodes[:MAX_CASES]]
        return Suite(
            name or root.file.rpartition("/")[2].partition(".")[0],
            tuple(case for case in cases if case is not None),
            self._default,
            root.file,
        )

    def _case(self, node: Node) -> Case | None:
        before = self._problems.errors
        own = node.fields(_CASE)
        fields = {**self._common, **own}
        workload = self._workload(node, fields)
        expect = own["expect"].choice(("allow", "deny"), "a verdict") if "expect" in own else None
        if "expect" not in own:
            node.report("SW0106", "'expect' is missing", hint="write expect: allow or expect: deny")
        question = self._question(node, fields, workload) if workload is not None else None
        reason = self._reason(own)
        if self._problems.errors > before or question is None or workload is None:
            return None
        name = own["name"].text if "name" in own else f"line {node.line}"
        by = own["by"].text if "by" in own else ""
        place = Place(node.file, node.line, node.column)
        return Case(name, question, workload, expect == "allow", by, reason, place)

    def _reason(self, own: Mapping[str, Node]) -> str:
        return own["reason"].choice(sorted(REASONS), "a reason") or "" if "reason" in own else ""

    def _workload(self, node: Node, fields: Mapping[str, Node]) -> WorkloadFacts | None:
        if "to" not in fields:
            node.report("SW0106", "'to' is missing", hint="name the workload here or above cases, e.g. to: shop/api")
            return None
        labels = {}
        if "labels" in fields:
            labels = {name: value.string() or "" for name, value in fields["labels"].mapping().items()}
        try:
            return workload_of(fields["to"].string() or "", labels)
        except BadFact as error:
            fields["to"].report("SW0105", str(error))
            return None

    def _question(self, node: Node, fields: Mapping[str, Node], workload: WorkloadFacts) -> Question | None:
        stated: dict[str, Any] = {
            own: fields[name].string() or "" for name, own in _TEXTS.items() if name in fields
        }
        if "port" in fields:
            stated["port"] = self._port(fields["port"])
        if "headers" in fields:
            stated["headers"] = _headers(fields["headers"])
        if "claims" in fields:
            stated["claims"] = _data(fields["claims"])
            fields["claims"].mapping()
        if "request" not in fields and "method" not in fields and "path" not in fields and "protocol" not in fields:
            node.report("SW0106", "'request' is missing", hint="METHOD PATH, package.Service/Method or TCP")
            return None
        mtls = fields["mtls"].choice(("STRICT", "PERMISSIVE"), "a mode") if "mtls" in fields else "STRICT"
        domain = fields["trustDomain"].string() if "trustDomain" in fields else None
        try:
            return request_of(
                Stated(**stated),
                trust_domain=domain or self._trust_domain,
                workload=workload,
                permissive=mtls == "PERMISSIVE",
                normalization=self._normalization(fields),
            )
        except BadFact as error:
            node.report("SW0105", str(error))
            return None

    def _normalization(self, fields: Mapping[str, Node]) -> str:
        known = (STRICT, *NORMALIZATIONS)
        node = fields.get("pathNormalization")
        return (node.choice(known, "a normalization") if node is not None else None) or STRICT

    def _port(self, node: Node) -> int:
        text = node.string() or ""
        if not text.isascii() or not text.isdigit() or int(text) > 65535:
            node.report("SW0105", f"{node.shown} is not a port", hint="a number from 0 to 65535")
            return 0
        return int(text)


def _headers(node: Node) -> dict[str, Any]:
    """A header that is a list was sent several times."""
    found: dict[str, Any] = {}
    for name, value in node.mapping().items():
        if value.kind == "sequence":
            found[name] = tuple(item.string() or "" for item in value.items)
        else:
            found[name] = value.string() or ""
    return found


def _data(node: Node) -> Any:
    """YAML as JSON has it: claims are typed."""
    if node.kind == "mapping":
        return {name: _data(value) for name, value in node.entries.items()}
    if node.kind == "sequence":
        return [_data(item) for item in node.items]
    if node.quoted:
        return node.text
    if node.is_null:
        return None
    if node.text in ("true", "false"):
        return node.text == "true"
    for read in (int, float):
        try:
            return read(node.text)
        except ValueError:
            continue
    return node.text


# -- running ------------------------------------------------------------------------------------------------


def run(policies: Sequence[AuthorizationPolicy], suite: Suite, judge: Judge | None = None) -> list[Result]:
    """Every case, judged. ``judge``: of the same policies and default, to share what it has compiled."""
    judge = judge or Judge(policies, suite.default)
    return [_result(case, judge) for case in suite.cases]


def _result(case: Case, judge: Judge) -> Result:
    if case.question.refused:
        return Result(case, None, _compare(case, False, case.question.refused, ""))
    decision = judge.decide(case.workload, case.question.request)
    by = f"{decision.policy}#{decision.rule}" if decision.policy is not None else ""
    return Result(case, decision, _compare(case, is_let_in(decision), decision.reason, by))


def _compare(case: Case, allowed: bool, reason: str, by: str) -> str:
    told = f"{'allowed' if allowed else 'denied'}{f' by {by}' if by else ''}{f' ({reason})' if reason else ''}"
    if allowed is not case.allow:
        return f"expected {'allow' if case.allow else 'deny'}, but it is {told}"
    if case.by and not _is_by(case.by, by):
        return f"expected by {case.by}, but it is {told}"
    if case.reason and case.reason != reason:
        return f"expected reason {case.reason}, but it is {told}"
    return ""


def _is_by(wanted: str, by: str) -> bool:
    policy, _, rule = wanted.partition("#")
    found, _, index = by.partition("#")
    return policy in (found, found.partition("/")[2]) and rule in ("", index)


# -- telling ------------------------------------------------------------------------------------------------


def failure_lines(result: Result, judge: Judge, *, unicode: bool = True) -> list[str]:
    """What went wrong, and why policy decides so."""
    case = result.case
    lines = [f"{case.place}  {case.name}", f"    {result.wrong}"]
    if result.decision is not None:
        found = explain(judge.compiled(case.workload), case.question.request)
        lines += [f"    {line}".rstrip() for line in render(found, unicode=unicode)]
    return lines


def junit(suites: Iterable[tuple[Suite, Sequence[Result]]]) -> str:
    """The report that CI servers read: one ``testsuite`` for each suite."""
    root = ElementTree.Element("testsuites", name="sidewall policy test")
    for suite, results in suites:
        failed = sum(bool(result.wrong) for result in results)
        element = ElementTree.SubElement(
            root, "testsuite", name=suite.name, tests=str(len(results)), failures=str(failed), errors="0"
        )
        for result in results:
            case = ElementTree.SubElement(
                element, "testcase", name=_clean(result.case.name), classname=suite.name,
                file=result.case.place.file, line=str(result.case.place.line),
            )  # fmt: skip
            if result.wrong:
                ElementTree.SubElement(case, "failure", message=_clean(result.wrong)).text = _clean(result.wrong)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _clean(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
