"""The string that makes a machine a member: it comes back as it was made, and nothing else is taken for one."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.attest.join import MAX_STRING, PREFIX, JoinString, JoinStringError, decode, pin_of

SECRET = "s3cr3t-" + "x" * 36
PIN = "sha256:" + "ab" * 32
GOOD = JoinString((("ca.shop.internal", 15012),), "shop.internal", PIN, SECRET)
DOCUMENT = {"u": "https://ca.shop.internal:15012", "d": "shop.internal", "f": PIN, "t": SECRET}


def text_of(document: object) -> str:
    return PREFIX + urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()


def changed(**changes: Any) -> str:
    return text_of({name: value for name, value in (DOCUMENT | changes).items() if value is not ...})


def test_it_comes_back_as_it_was_made() -> None:
    assert decode(GOOD.encode()) == GOOD
    assert decode(f"  {GOOD.encode()}\n") == GOOD
    assert decode(changed()) == GOOD


@given(
    st.lists(
        st.tuples(st.sampled_from(["ca", "ca-1.shop.internal", "10.0.0.1", "fd00::1", "::1"]), st.integers(1, 65535)),
        min_size=1,
        max_size=16,
    )
)
def test_addresses_come_back_in_their_order(addresses: list[tuple[str, int]]) -> None:
    made = JoinString(tuple(addresses), "td", PIN, SECRET)
    assert decode(made.encode()) == made


def test_an_address_without_a_port_has_the_usual_one() -> None:
    assert decode(changed(u="https://ca/")).addresses == (("ca", 15012),)


def test_the_secret_is_never_shown() -> None:
    assert SECRET not in repr(GOOD)
    with pytest.raises(JoinStringError) as refused:
        decode(changed(t=SECRET + "!"))
    assert SECRET not in str(refused.value)
    assert refused.value.__context__ is None or SECRET not in repr(refused.value.__context__)


def test_only_the_certificate_of_the_pin_is_admitted() -> None:
    made = JoinString(GOOD.addresses, "td", pin_of(b"certificate"), SECRET)
    assert made.admits(b"certificate")
    assert not made.admits(b"certificatf")
    assert not made.admits(b"")


BAD = {
    "empty": ("", "begin"),
    "another prefix": ("swt2_" + GOOD.encode()[5:], "begin"),
    "the prefix in capitals": (GOOD.encode().replace("swt1_", "SWT1_"), "begin"),
    "the secret alone": (SECRET, "begin"),
    "nothing behind the prefix": (PREFIX, "cut off"),
    "cut off": (GOOD.encode()[:-30], "cut off"),
    "a blank inside": (GOOD.encode()[:40] + " " + GOOD.encode()[40:], "characters"),
    "a line feed inside": (GOOD.encode()[:40] + "\n" + GOOD.encode()[40:], "characters"),
    "padding": (GOOD.encode() + "==", "characters"),
    "letters of another alphabet": (GOOD.encode() + "é", "characters"),
    "too long": (PREFIX + "A" * MAX_STRING, "longer"),
    "no JSON": (PREFIX + "AAAA", "damaged"),
    "brackets": (PREFIX + urlsafe_b64encode(b"[" * 6000).decode(), "damaged"),
    "a list": (text_of([]), "damaged"),
    "a key twice": (
        PREFIX + urlsafe_b64encode(b'{"u":"https://a","u":"https://b"}').rstrip(b"=").decode(),
        "damaged",
    ),
    "no address": (changed(u=...), "missing"),
    "no trust domain": (changed(d=...), "missing"),
    "no fingerprint": (changed(f=...), "missing"),
    "no secret": (changed(t=...), "missing"),
    "something more": (changed(x=1), "missing, or it is from a newer version"),
    "an empty list of addresses": (changed(u=[]), "no address"),
    "too many addresses": (changed(u=["https://a"] * 17), "more than 16"),
    "an address without https": (changed(u="http://ca:1"), "https://host:port"),
    "an address without a scheme": (changed(u="ca:15012"), "https://host:port"),
    "an address that is a number": (changed(u=1), "https://host:port"),
    "an address without a host": (changed(u="https://:15012"), "https://host:port"),
    "an address with a user": (changed(u="https://ca@evil.example"), "https://host:port"),
    "an address with an empty user": (changed(u="https://@evil.example"), "https://host:port"),
    "an address with a path": (changed(u="https://ca/x"), "https://host:port"),
    "an address with a query": (changed(u="https://ca?x"), "https://host:port"),
    "an address with a fragment": (changed(u="https://ca#x"), "https://host:port"),
    "an address with a line feed": (changed(u="https://ca\n.evil.example"), "https://host:port"),
    "an address with a blank": (changed(u="https://ca .evil"), "https://host:port"),
    "an address with a backslash": (changed(u="https://ca\\@evil"), "https://host:port"),
    "an address outside ASCII": (changed(u="https://cа"), "https://host:port"),
    "port 0": (changed(u="https://ca:0"), "https://host:port"),
    "port 65536": (changed(u="https://ca:65536"), "https://host:port"),
    "a port that is a word": (changed(u="https://ca:x"), "https://host:port"),
    "an open bracket": (changed(u="https://[::1"), "https://host:port"),
    "a trust domain in capitals": (changed(d="Shop"), "trust domain"),
    "an empty trust domain": (changed(d=""), "trust domain"),
    "a trust domain that is an ID": (changed(d="spiffe://shop"), "trust domain"),
    "a fingerprint by SHA-1": (changed(f="sha1:" + "ab" * 20), "fingerprint"),
    "a fingerprint in capitals": (changed(f=PIN.replace("ab", "AB")), "fingerprint"),
    "a short fingerprint": (changed(f=PIN[:-1]), "fingerprint"),
    "a fingerprint with a line feed": (changed(f=PIN + "\n"), "fingerprint"),
    "an empty secret": (changed(t=""), "secret"),
    "a short secret": (changed(t="x" * 21), "secret"),
    "a secret that is a number": (changed(t=1), "secret"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_join_string_is_refused(name: str) -> None:
    text, word = BAD[name]
    with pytest.raises(JoinStringError, match="not a join string") as refused:
        decode(text)
    assert word in str(refused.value)


def test_what_would_be_refused_is_not_made() -> None:
    with pytest.raises(JoinStringError):
        JoinString((), "td", PIN, SECRET).encode()
    with pytest.raises(JoinStringError):
        JoinString((("ca/x", 1),), "td", PIN, SECRET).encode()
