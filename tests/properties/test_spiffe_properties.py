"""SPIFFE ID strings against an oracle that walks them character by character."""

from __future__ import annotations

import string

from hypothesis import given, settings
from hypothesis import strategies as st

from identity.spiffe import SPIFFE_ID_REASONS, SpiffeId, SpiffeIdError

TRUST_DOMAIN = set(string.ascii_lowercase + string.digits + "._-")
PATH = set(string.ascii_letters + string.digits + "._-")


REFUSED = dict.fromkeys(SPIFFE_ID_REASONS)


def oracle(text: str) -> tuple[str, str] | None:
    """(trust domain, path), or None. Written without regular expressions, split or partition."""
    if len(text) > 2048 or text[:9] != "spiffe://":
        return None
    at, name = 9, ""
    while at < len(text) and text[at] != "/":
        if text[at] not in TRUST_DOMAIN:
            return None
        name += text[at]
        at += 1
    if not 1 <= len(name) <= 255:
        return None
    return (name, text[at:]) if _oracle_path(text[at:]) else None


def _oracle_path(path: str) -> bool:
    segment: str | None = None
    for c in path + ("/" if path else ""):
        if c == "/":
            if segment in {"", ".", ".."}:
                return False
            segment = ""
        elif segment is None or c not in PATH:
            return False
        else:
            segment += c
    return True


def parse(text: str) -> tuple[str, str] | None:
    try:
        spiffe_id = SpiffeId.parse(text)
    except SpiffeIdError as error:
        return REFUSED[error.reason]  # a word outside the list is a KeyError
    return spiffe_id.trust_domain, spiffe_id.path


good_ids = st.builds(
    lambda name, segments: "spiffe://" + name + "".join("/" + segment for segment in segments),
    st.text(sorted(TRUST_DOMAIN), min_size=1, max_size=12),
    st.lists(st.text(sorted(PATH), min_size=1, max_size=6), max_size=5),
)
odd = st.sampled_from(
    [*"/.:@%?#~ *+\\\"'\x00\r\n\t\x0b\x7f\x85é\u212aKSA", "", "//", "/./", "/../", "%2f", "spiffe://"]
)


@st.composite
def damaged_ids(draw: st.DrawFn) -> str:
    text = draw(good_ids)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(odd) + text[at + draw(st.integers(0, 2)) :]
    return text


@settings(max_examples=200, deadline=None)
@given(st.one_of(good_ids, damaged_ids(), st.text(max_size=40), st.text(max_size=40).map("spiffe://{}".format)))
def test_the_parser_agrees_with_the_oracle(text: str) -> None:
    assert parse(text) == oracle(text)


@settings(max_examples=100, deadline=None)
@given(st.integers(1990, 2100), st.integers(250, 260))
def test_both_length_limits_are_the_oracles(total: int, name: int) -> None:
    text = "spiffe://" + "a" * name + "/"
    text += "b" * (total - len(text))
    assert parse(text) == oracle(text)


@settings(max_examples=200, deadline=None)
@given(damaged_ids())
def test_what_is_read_is_written_back_byte_for_byte(text: str) -> None:
    if (parts := parse(text)) is not None:
        assert str(SpiffeId(*parts)) == text
        assert SpiffeId.parse(str(SpiffeId(*parts))) == SpiffeId(*parts)
