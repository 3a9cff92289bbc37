from __future__ import annotations

import pytest

from proxy.policy.match import (
    EXACT,
    PREFIX,
    SUFFIX,
    Blocks,
    Globs,
    Names,
    Paths,
    PatternIndex,
    Ports,
    Several,
    Strings,
    Template,
    Tokens,
    parse_port,
)


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


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        ("/x/{*}", "/x/a", True),
        ("/x/{*}", "/x/", False),
        ("/x/{*}", "/x/a/", False),
        ("/x/{*}", "/x/a/b", False),
        ("/x/{*}", "/x/a%2Fb", True),
        ("/x/{*}", "/x/*", True),
        ("/x/{*}", "/x/\xe9", False),
        ("/x/{*}", "/x/a\n", False),
        ("/{*}/y", "/x/y", True),
        ("/{*}/y", "//y", False),
        ("/{*}/", "/x/", True),
        ("/{*}/", "/x", False),
        ("/x/{**}", "/x/", True),
        ("/x/{**}", "/x", False),
        ("/x/{**}", "/x/a/b", True),
        ("/x/{**}", "/x/a b", False),
        ("/x/{**}/y", "/x/y", False),
        ("/x/{**}/y", "/x//y", True),
        ("/x/{**}/y", "/x/y/y", True),
        ("/x/{**}/y", "/x/a/b/y", True),
        ("/x/{**}/y/z", "/x/a/y/z", True),
        ("/x/{**}/y/z", "/x/y/z", False),
        ("/{*}/{*}/{**}", "/a/b/", True),
        ("/{*}/{*}/{**}", "/a/b", False),
        ("/{*}/{*}/{**}", "/a//b", False),
        ("/{**}", "/", True),
        ("/{**}", "/a", True),
        ("/{**}", "", False),
    ],
)
def test_a_template_takes_whole_segments(template: str, text: str, expected: bool) -> None:
    assert Template(template).matches(text) is expected
    assert Paths([template, "/other*"]).matches(text) is expected
    assert not expected or text.startswith(Template(template).beginning)


@pytest.mark.parametrize("template", ["/{id}", "/{**}/{*}", "/{**}/{**}", "/a{**}", "/{*}{*}", "/{*}/{**", "/}{*}"])
def test_what_is_no_template_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Template(template)


def test_a_plain_path_beside_a_template_keeps_its_stars() -> None:
    both = Paths(["/a*", "/b/{*}"])
    assert [both.matches(text) for text in ("/ax/y", "/b/c", "/b/c/d")] == [True, True, False]
    assert set(both.keys() or ()) == {(PREFIX, "/a"), (PREFIX, "/b/")}


@pytest.mark.parametrize(
    ("block", "address", "expected"),
    [
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.9.9.9/8", "10.0.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("0.0.0.0/0", "1.2.3.4", True),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "1.2.3.4", False),
        ("::/0", "::ffff:1.2.3.4", False),
        ("1.2.3.4", "::ffff:1.2.3.4", True),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("::ffff:1.2.3.0/120", "1.2.3.4", True),
        ("::ffff:0:0/95", "1.2.3.4", False),
        ("2001:db8::/32", "2001:0db8:0:0::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
    ],
)
def test_an_address_is_in_a_block_of_its_own_version(block: str, address: str, expected: bool) -> None:
    assert Blocks([block, "192.0.2.1"]).matches(address) is expected


@pytest.mark.parametrize("text", ["", "x", "1.2.3", "1.2.3.4.5", "1.2.3.4/33", "::g"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Blocks([text])
    with pytest.raises(ValueError):
        Blocks(["::/0"]).matches(text)


def test_one_of_several_values_suffices_and_only_texts_count() -> None:
    several = Several(Strings(["a", "b*"], presence_is_filled=True))
    assert [several.matches(value) for value in ("a", ["x", "a"], ("bb",))] == [True] * 3
    assert [several.matches(value) for value in ("x", [], [["a"]], {"a": "a"}, 7, True, None)] == [False] * 7


def test_a_token_is_compared_by_issuer_and_subject_apart() -> None:
    assert Tokens(["https://i/s"]).matches(("https://i", "s"))
    assert not Tokens(["https://i/s"]).matches(("https:/", "i/s"))
    assert Tokens(["i"]).matches(("i", ""))
    assert not Tokens(["i"]).matches(("", "i"))
    assert Tokens(["x*y/s*t"]).matches(("x*y", "s*t"))


def test_names_have_no_wildcards() -> None:
    assert Names(["a*"]).matches("a*")
    assert not Names(["a*"]).matches("ab")
    assert Names(["a"]).keys() == [(EXACT, "a")]
