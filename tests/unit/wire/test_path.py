from __future__ import annotations

import pytest

from proxy.errors import MalformedRequest
from proxy.wire.path import canonical_path


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        (b"/", b"/"),
        (b"/a/b", b"/a/b"),
        (b"/a/", b"/a/"),
        (b"/%61dmin", b"/admin"),
        (b"/%7Euser/%2d%5F", b"/~user/-_"),
        (b"/a%2Etxt", b"/a.txt"),
        (b"/%e2%82%ac", b"/%E2%82%AC"),
        (b"/a%20b%3fc", b"/a%20b%3Fc"),
        (b"/a/./b", b"/a/b"),
        (b"/a/../b", b"/b"),
        (b"/a/..", b"/"),
        (b"/a/b/..", b"/a/"),
        (b"/a/.", b"/a/"),
        (b"/../../a", b"/a"),
        (b"/..", b"/"),
        (b"//a///b", b"/a/b"),
        (b"/a//../b", b"/a/b"),
        (b"//", b"/"),
        (b"/.a/..b/...", b"/.a/..b/..."),
        (b"/a;v=1/b", b"/a;v=1/b"),
        (b"/a..;/b", b"/a..;/b"),
        (b"/{x}|^`[y]", b"/{x}|^`[y]"),
    ],
)
@pytest.mark.parametrize("escaped_slash", ["reject", "keep"])
def test_a_path_has_one_canonical_form(raw: bytes, canonical: bytes, escaped_slash: str) -> None:
    assert canonical_path(raw, escaped_slash=escaped_slash) == canonical
    assert canonical_path(canonical, escaped_slash=escaped_slash) == canonical


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"a",
        b"*",
        b"/a b",
        b"/a\tb",
        b"/a\x00",
        b"/a\x7f",
        b"/a\xc3",
        b"/a#b",
        b"/a?b",
        b'/a"b',
        b"/<a>",
        b"/a\\b",
        b"/a%00b",
        b"/%",
        b"/%2",
        b"/%zz",
        b"/a%2%35",
        b"/%2e",
        b"/%2E%2e/a",
        b"/a/.%2e",
        b"/a/%2e./b",
        b"/..;/a",
        b"/a/..;x=1/b",
        b"/.;/a",
        b"/..%3B/a",
        b"/..%3b/a",
    ],
)
@pytest.mark.parametrize("escaped_slash", ["reject", "keep"])
def test_what_has_no_single_reading_is_refused_either_way(raw: bytes, escaped_slash: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        canonical_path(raw, escaped_slash=escaped_slash)
    assert caught.value.reason == "bad_path"


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b"/a%2fb", b"/a%2Fb"),
        (b"/a%2Fb", b"/a%2Fb"),
        (b"/a%5cb", b"/a%5Cb"),
        (b"/a%252fb", b"/a%252fb"),
        (b"/a%25252Fb", b"/a%25252Fb"),
        (b"/a%255C", b"/a%255C"),
        (b"/a%25%32%46", b"/a%252F"),
        (b"/a%252e%252e/b", b"/a%252e%252e/b"),
        (b"/a%2500", b"/a%2500"),
        (b"/a/../b%2Fc", b"/b%2Fc"),
    ],
)
def test_an_escaped_slash_is_refused_or_kept_as_data(raw: bytes, kept: bytes) -> None:
    assert canonical_path(raw, escaped_slash="keep") == kept
    with pytest.raises(MalformedRequest):
        canonical_path(raw, escaped_slash="reject")


@pytest.mark.parametrize(
    "raw", [b"/..%2Fadmin", b"/a%2f..", b"/a%2F..%2Fb", b"/a%5c..", b"/.%2Fa", b"/..%252fa", b"/a%2F..;x"]
)
def test_a_kept_slash_may_not_stand_beside_dots(raw: bytes) -> None:
    with pytest.raises(MalformedRequest):
        canonical_path(raw, escaped_slash="keep")


def test_an_escaped_percent_sign_of_its_own_is_no_danger() -> None:
    assert canonical_path(b"/100%25", escaped_slash="reject") == b"/100%25"
    assert canonical_path(b"/a%2541", escaped_slash="reject") == b"/a%2541"
