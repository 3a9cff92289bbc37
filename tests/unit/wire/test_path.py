from __future__ import annotations

import pytest

from proxy.errors import MalformedRequest
from proxy.wire.path import NORMALIZATIONS, canonical_path, istio_target


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


# -- as Istio does (AUTHZ 8); tests/integration/test_envoy_paths.py asks Envoy ------------------------------------


@pytest.mark.parametrize(
    ("raw", "none", "base", "merged", "decoded"),
    [
        (b"/a", b"/a", b"/a", b"/a", b"/a"),
        (b"/a#b?c", b"/a", b"/a", b"/a", b"/a"),
        (b"/a?b#c", b"/a?b", b"/a?b", b"/a?b", b"/a?b"),
        (b"/a//b/../c", b"/a//b/../c", b"/a//c", b"/a/c", b"/a/c"),
        (b"/a//../b", b"/a//../b", b"/a/b", b"/a/b", b"/a/b"),
        (b"/../a", b"/../a", b"/a", b"/a", b"/a"),
        (b"/a/.", b"/a/.", b"/a/", b"/a/", b"/a/"),
        (b"/a/b/..", b"/a/b/..", b"/a/", b"/a/", b"/a/"),
        (b"/a/%2e%2e/b", b"/a/%2e%2e/b", b"/b", b"/b", b"/b"),
        (b"/%61%2d%5f%7E", b"/%61%2d%5f%7E", b"/a-_~", b"/a-_~", b"/a-_~"),
        (b"/%2561", b"/%2561", b"/%2561", b"/%2561", b"/%2561"),
        (b"/a%2fb%2Fc", b"/a%2fb%2Fc", b"/a%2fb%2Fc", b"/a%2fb%2Fc", b"/a/b/c"),
        (b"/a\\b", b"/a\\b", b"/a/b", b"/a/b", b"/a/b"),
        (b"/a%5cb", b"/a%5cb", b"/a%5cb", b"/a%5cb", b"/a/b"),
        (b"/a/..%2fb", b"/a/..%2fb", b"/a/..%2fb", b"/a/..%2fb", b"/b"),
        (b"/a/..;x/b", b"/a/..;x/b", b"/b", b"/b", b"/b"),
        (b"/a;x/b", b"/a;x/b", b"/a;x/b", b"/a;x/b", b"/a;x/b"),
        (b'/a"<>^`{|}', b'/a"<>^`{|}', b"/a%22%3C%3E%5E%60%7B%7C%7D", b"/a%22%3C%3E%5E%60%7B%7C%7D", b"/a%22%3C%3E%5E%60%7B%7C%7D"),
        (b"/%2/", b"/%2/", b"/%2/", b"/%2/", b"/%2/"),
        (b"/%2%41", b"/%2%41", b"/%252A", b"/%252A", b"/%252A"),
        (b"/a?b//c/../%2f", b"/a?b//c/../%2f", b"/a?b//c/../%2f", b"/a?b//c/../%2f", b"/a?b//c/../%2f"),
    ],
)
def test_a_path_is_mended_as_istio_s_setting_says(raw: bytes, none: bytes, base: bytes, merged: bytes, decoded: bytes) -> None:
    for name, target in zip(NORMALIZATIONS, (none, base, merged, decoded), strict=True):
        assert istio_target(raw, name) == (target.partition(b"?")[0], target), name


@pytest.mark.parametrize("raw", [b"", b"a", b"*", b"/a b", b"/\x80", b"/\x7f", b"/a\n", b"/\0"])
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_what_is_no_path_is_refused_under_every_setting(raw: bytes, name: str) -> None:
    with pytest.raises(MalformedRequest):
        istio_target(raw, name)


@pytest.mark.parametrize("raw", [b"/%00", b"/%2e%2e;x/a", b"/a\\..;/b", b"/..%3bx/a"])
def test_what_cannot_be_mended_is_refused(raw: bytes) -> None:
    assert istio_target(raw, "NONE")
    for name in NORMALIZATIONS[1:]:
        with pytest.raises(MalformedRequest):
            istio_target(raw, name)
