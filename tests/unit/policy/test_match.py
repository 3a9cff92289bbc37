from __future__ import annotations

import pytest

from proxy.policy.match import EXACT, PREFIX, SUFFIX, Globs, PatternIndex, Ports, Strings, parse_port


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a", "a", True),
        ("a", "A", False),
        ("a*", "a", True),
        ("a*", "ab", True),
        ("a*", "ba", False),
        ("*a", "a", True),
        ("*a", "ba", True),
        ("*a", "ab", False),
        ("*a*", "a*", True),
        ("*a*", "ba*", True),
        ("*a*", "bab", False),
        ("a*b", "a*b", True),
        ("a*b", "axb", False),
        ("**", "x*", True),
        ("**", "x", False),
        ("*", "x", True),
    ],
)
def test_a_string_is_exact_prefix_suffix_or_presence(pattern: str, text: str, expected: bool) -> None:
    assert Strings([pattern], presence_is_filled=True).matches(text) is expected
    assert Strings([pattern, "other"], presence_is_filled=False).matches(text) is expected


def test_presence_means_filled_or_merely_there() -> None:
    assert not Strings(["*"], presence_is_filled=True).matches("")
    assert Strings(["*"], presence_is_filled=False).matches("")


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a", "a", True),
        ("a", "ab", False),
        ("*", "", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "abc", True),
        ("a*b*c", "acb", False),
        ("a*bc*c", "abc", False),
        ("a*bc*c", "abcc", True),
        ("*b*", "abc", True),
        ("*ab*ab*", "ab", False),
        ("*ab*ab*", "abab", True),
        ("**a**", "xay", True),
    ],
)
def test_a_namespace_may_have_stars_anywhere(pattern: str, text: str, expected: bool) -> None:
    assert Globs([pattern]).matches(text) is expected


def test_a_hostile_namespace_pattern_takes_no_time() -> None:
    assert not Globs(["*a" * 2000 + "*b"]).matches("a" * 4000)


def test_ports_are_numbers() -> None:
    assert Ports(["080", "0"]).matches(80)
    assert Ports(["080", "0"]).matches(0)
    assert not Ports(["080"]).matches(8080)
    assert parse_port("65535") == 65535


def test_an_index_finds_by_text_beginning_and_end() -> None:
    index: PatternIndex[str] = PatternIndex()
    for key in [(EXACT, "ab"), (PREFIX, "a"), (PREFIX, ""), (SUFFIX, "b"), (SUFFIX, "xab"), (PREFIX, "abc")]:
        index.put(key, f"{key[0]} {key[1]}".strip())
    assert sorted(index.find("ab")) == ["exact ab", "prefix", "prefix a", "suffix b"]
    assert sorted(index.find("abcxab")) == ["prefix", "prefix a", "prefix abc", "suffix b", "suffix xab"]
    assert index.find("") == ["prefix"]


@pytest.mark.parametrize("pattern", ["x", "x*", "*x", "*", "*x*"])
@pytest.mark.parametrize("filled", [True, False])
def test_what_matches_is_found_under_a_key(pattern: str, filled: bool) -> None:
    strings = Strings([pattern], presence_is_filled=filled)
    index: PatternIndex[int] = PatternIndex()
    for key in strings.keys() or []:
        index.put(key, 1)
    for text in ["", "x", "xx", "ax", "xa", "ax*", "*"]:
        assert not strings.matches(text) or index.find(text)
