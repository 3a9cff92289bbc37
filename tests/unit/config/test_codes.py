"""Every code has a page, and every page's code can be provoked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.codes import FAMILIES, PAGES, NoSuchCode, explain
from config.documents import parse_documents
from config.problems import ConfigError
from tests.unit.config.loading import problems_of

ROOT = Path(__file__).parents[3]
HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: "
UPSTREAM = "outbound: [{to: a}]\nupstreams: {a: {dns: a:1, expect: a/a}}\n"

CONFIGS = {
    "SW0100": "app: [1",
    "SW0101": "aap: 1",
    "SW0102": "app: 1\napp: 2",
    "SW0103": "inbound: {app: 1}",
    "SW0104": "app: 1\npolicy: {default: maybe}",
    "SW0105": "app: x",
    "SW0106": "inbound: [{listen: 1}]",
    "SW0108": "app:\t1\n\tb: 2",
    "SW0109": "app: !!int 1",
    "SW0110": "[" * 100,
    "SW0111": "app: ${NOPE}",
    "SW0112": "app: 1\n---\nkind: X",
    "SW0113": "app: 1\npolicy: ./nope",
    "SW0114": "app: 1",
    "SW0120": "app: 1\nsecrets: {a: {}}",
    "SW0121": "app: 1\nworkers: 65",
    "SW0201": UPSTREAM.replace("to: a", "to: b"),
    "SW0202": "inbound: [{app: 1}, {app: 2}]",
    "SW0203": "app: 10.0.0.1:1",
    "SW0204": UPSTREAM.replace(", expect: a/a", ""),
    "SW0206": "app: 1\ninbound: [{app: 1}]",
    "SW0207": "app: 1\nupstreams: {a: {dns: a:1, expect: a/a}}",
    "SW0208": "workers: 1",
}
POLICIES = {
    "SW0107": HEAD + "{rules: [{to: [{operation: {ports: [80]}}]}]}",
    "SW0301": HEAD + '{rules: [{from: [{source: {principals: ["spiffe://a/b"]}}]}]}',
    "SW0302": HEAD + "{selector: {matchLabels: {}}, rules: [{}]}",
}


@pytest.mark.parametrize("code", CONFIGS)
def test_a_configuration_provokes(code: str) -> None:
    found = problems_of(CONFIGS[code], env={"SIDEWALL_NONSENSE": "1"} if code == "SW0114" else None)
    assert code in {problem.code for problem in found}


@pytest.mark.parametrize("code", POLICIES)
def test_a_policy_provokes(code: str) -> None:
    text = POLICIES[code] + "\n---\nbroken"  # so that warnings are raised along with it
    with pytest.raises(ConfigError) as caught:
        parse_documents(text)
    assert code in {problem.code for problem in caught.value.problems}


def test_every_code_that_is_used_has_a_page_and_no_page_is_without_use() -> None:
    sources = [path for package in ("config", "proxy", "identity") for path in (ROOT / package).rglob("*.py")]
    used = {
        code for path in sources if path.name != "codes.py" for code in re.findall(r"\bSW0\d{3}\b", path.read_text())
    }
    assert used == set(PAGES)


# Found by looking at rules beside each other: tests/unit/policy/test_lint.py provokes them.
LINTED = {f"SW03{number:02}" for number in range(3, 11)}


def test_every_page_is_provoked_above() -> None:
    assert CONFIGS.keys() | POLICIES.keys() | LINTED == PAGES.keys()


@pytest.mark.parametrize("code", PAGES)
def test_a_page_fits_a_terminal_of_eighty_columns(code: str) -> None:
    text = explain(code)
    assert text.startswith(f"{code}: ")
    assert max(map(len, text.split("\n"))) <= 80
    assert code[:4] in FAMILIES


@pytest.mark.parametrize("code", [code for code, page in PAGES.items() if page.wrong and "{...}" not in page.wrong])
def test_the_wrong_example_of_a_page_is_wrong_and_the_right_one_is_not(code: str) -> None:
    page = PAGES[code]
    if code in CONFIGS and not page.wrong.startswith(("SIDEWALL_", "apiVersion", "action", "methods")):
        assert code in {problem.code for problem in problems_of(page.wrong)}
        assert code not in {problem.code for problem in problems_of(page.right, env={"NAMESPACE": "shop"})}
    else:
        assert page.right != page.wrong


def test_an_unknown_code_is_answered_with_the_nearest() -> None:
    with pytest.raises(NoSuchCode, match="did you mean"):
        explain("SW01O1")
    assert explain("sw0101") == explain("SW0101")
