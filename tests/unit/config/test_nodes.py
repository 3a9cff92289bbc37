from __future__ import annotations

import pytest
import yaml

from config import nodes
from config.nodes import Node, parse_yaml
from config.problems import Problem, Problems


def parse(text: str) -> tuple[list[Node], list[Problem]]:
    problems = Problems()
    documents = parse_yaml(text, "f.yaml", problems)
    return [document.root for document in documents if document.root is not None], list(problems)


def only(text: str) -> Node:
    (root,), problems = parse(text)
    assert problems == []
    return root


def the_problem(text: str) -> Problem:
    _, (problem,) = parse(text)
    return problem


@pytest.fixture(params=["libyaml", "pure"], autouse=True)
def both_parsers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pure":
        monkeypatch.setattr(nodes, "_Loader", yaml.SafeLoader)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML without libyaml")


def test_a_value_keeps_its_text_its_place_and_its_path() -> None:
    root = only("a: 08\nlist:\n- {b: no}\n- é: '1:20'\n")
    assert root.entries["a"].text == "08"
    second = root.entries["list"].items[1].entries["é"]
    assert (second.text, second.quoted, second.path) == ("1:20", True, "list[1].é")
    assert (second.line, second.column, second.end_column) == (4, 6, 12)
    assert second.key is not None
    assert (second.key.line, second.key.column, second.key.end_column) == (4, 3, 4)


def test_a_plain_scalar_is_not_quoted() -> None:
    assert not only("a: no").entries["a"].quoted


def test_documents_are_counted_by_their_own_lines() -> None:
    (first, second), problems = parse("# head\na: 1\n---\n# more\nb: 2\n---\n")
    assert problems == []
    assert (first.line, second.line) == (2, 5)


def test_a_comment_before_the_first_separator_is_no_document() -> None:
    (root,), problems = parse("# only words\n---\na: 1\n")
    assert (root.line, problems) == (3, [])


def test_a_broken_document_does_not_hide_the_others() -> None:
    roots, problems = parse("a: 'open\n---\nb: 2\n---\nc: [\n---\nd: 4\n")
    assert [list(root.entries) for root in roots] == [["b"], ["d"]]
    assert [(problem.code, problem.line) for problem in problems] == [("SW0100", 1), ("SW0100", 5)]


def test_a_second_key_is_an_error_and_the_first_counts() -> None:
    (root,), (problem,) = parse("a: 1\nb: 2\na: 3\n")
    assert root.entries["a"].text == "1"
    assert (problem.code, problem.line, problem.column) == ("SW0102", 3, 1)


def test_keys_that_look_alike_in_yaml_are_different_texts() -> None:
    assert list(only("1: a\n'01': b\n").entries) == ["1", "01"]


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!int", "!Ref"])
def test_a_tag_is_an_error(tag: str) -> None:
    problem = the_problem(f"a: {tag} x\n")
    assert (problem.code, problem.line, problem.column) == ("SW0109", 1, 4)


def test_a_merge_key_is_an_error() -> None:
    assert the_problem("a: {<<: {b: 1}}\n").code == "SW0109"


def test_a_byte_order_mark_is_an_error() -> None:
    problem = the_problem("\ufeffa: 1\n")
    assert (problem.code, problem.line, problem.column) == ("SW0108", 1, 1)
    assert "byte order mark" in problem.message


def test_a_tab_that_indents_is_named() -> None:
    problem = the_problem("a:\n\tb: 1\n")
    assert (problem.code, problem.line, problem.hint) == ("SW0108", 2, "use spaces")


@pytest.mark.parametrize("odd", ["\x07", "\x1b", "\u2028", "\x85", "\r", "\ud800"])
def test_characters_that_hide_something_are_errors_with_their_place(odd: str) -> None:
    problem = the_problem(f"a: 1\nbc: x{odd}y\n")
    assert (problem.code, problem.line, problem.column) == ("SW0108", 2, 6)


def test_windows_line_ends_are_read() -> None:
    assert only("a: 1\r\nb: 2\r\n").entries["b"].line == 2


def test_an_address_with_a_bare_colon_in_braces_is_explained() -> None:
    problem = the_problem("inbound: [{listen: :8443, app: 8080}]\n")
    assert (problem.code, problem.hint) == ("SW0100", "write 8443")


def test_a_second_colon_asks_for_quotes() -> None:
    assert the_problem("a: b: c\n").hint == "put the value in quotes"


def test_a_value_that_begins_with_an_at_sign_asks_for_quotes() -> None:
    assert "quotes" in the_problem("a: @b\n").hint


def test_an_alias_stands_for_what_it_names() -> None:
    root = only("a: &x [1, 2]\nb: *x\n")
    assert [item.text for item in root.entries["b"].sequence()] == ["1", "2"]


def test_a_value_that_contains_itself_is_an_error() -> None:
    assert the_problem("a: &x [*x]\n").code == "SW0109"


def test_aliases_count_with_all_they_stand_for() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n"
    assert the_problem(bomb).code == "SW0110"


def test_depth_is_bounded() -> None:
    assert the_problem("[" * 500).code == "SW0110"


def test_the_length_of_a_file_is_bounded() -> None:
    problem = the_problem("a: " + "x" * nodes.MAX_TEXT)
    assert (problem.code, problem.line) == ("SW0110", 0)


def test_a_key_must_be_a_single_value() -> None:
    assert the_problem("? [a]\n: 1\n").code == "SW0103"


def test_unknown_fields_are_errors_with_a_suggestion() -> None:
    (root,), _ = parse("principal: x\nzzz: 1\nlater: 1\n")
    root.fields(("principals", "paths"), {"later": "because"})
    found = [(p.code, p.line, p.hint) for p in root.document.problems]
    assert found == [("SW0101", 1, "did you mean 'principals'?"), ("SW0101", 2, ""), ("SW0120", 3, "because")]


def test_a_field_without_a_value_is_as_if_it_were_not_there() -> None:
    assert only("a:\nb: null\nc: ~\nd: ''\n").fields("abcd").keys() == {"d"}


def test_the_wrong_shape_is_said_in_words() -> None:
    (root,), _ = parse("a: [1]\nb: 1\nc: {d: 1}\n")
    root.entries["a"].mapping()
    root.entries["b"].sequence()
    root.entries["c"].string()
    messages = [(p.code, p.line, p.message) for p in root.document.problems]
    assert messages == [
        ("SW0103", 1, "a mapping (key: value) is expected here, not a list"),
        ("SW0103", 2, "a list is expected here, not a single value"),
        ("SW0103", 3, "a single value is expected here, not a mapping (key: value)"),
    ]


def test_only_true_and_false_are_booleans() -> None:
    root = only("a: true\nb: yes\nc: False\n")
    assert [root.entries[name].boolean() for name in "abc"] == [True, None, False]
    assert [p.code for p in root.document.problems] == ["SW0105"]


@pytest.mark.parametrize(
    ("text", "other"), [("80", True), ("1e3", True), ("no", True), ("'80'", False), ("GET", False)]
)
def test_a_text_that_kubernetes_would_read_as_something_else_is_recognised(text: str, other: bool) -> None:
    assert only(f"a: {text}").entries["a"].looks_like_other_type is other


def test_an_empty_text_has_no_documents() -> None:
    assert parse("") == ([], [])
    assert parse("# nothing\n---\n...\n") == ([], [])
