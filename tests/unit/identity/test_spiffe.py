"""SPIFFE IDs: explicit strings, each with what must be said about it (SPIFFE-ID 2, S-2.3)."""

from __future__ import annotations

import pytest

from identity.spiffe import SPIFFE_ID_REASONS, SpiffeId, SpiffeIdError, check_trust_domain

GOOD = [
    # string, trust domain, path
    ("spiffe://td", "td", ""),
    ("spiffe://a", "a", ""),
    ("spiffe://example.org", "example.org", ""),
    ("spiffe://example.org/a", "example.org", "/a"),
    ("spiffe://example.org/a/b/c", "example.org", "/a/b/c"),
    ("spiffe://cluster.local/ns/default/sa/web", "cluster.local", "/ns/default/sa/web"),
    ("spiffe://td/host/node-1", "td", "/host/node-1"),
    ("spiffe://td/A/b.C_d-e", "td", "/A/b.C_d-e"),
    ("spiffe://td/...", "td", "/..."),
    ("spiffe://td/.a", "td", "/.a"),
    ("spiffe://td/a.", "td", "/a."),
    ("spiffe://td/..a", "td", "/..a"),
    ("spiffe://td/a..", "td", "/a.."),
    ("spiffe://td/-", "td", "/-"),
    ("spiffe://td/_", "td", "/_"),
    ("spiffe://td/0", "td", "/0"),
    ("spiffe://1.2.3.4/a", "1.2.3.4", "/a"),
    ("spiffe://a_b-c.d/x", "a_b-c.d", "/x"),
    ("spiffe://-/x", "-", "/x"),
    ("spiffe://_/x", "_", "/x"),
    ("spiffe://./x", ".", "/x"),
    ("spiffe://../x", "..", "/x"),
    ("spiffe://td/spiffe", "td", "/spiffe"),
    ("spiffe://xn--bcher-kva.example/a", "xn--bcher-kva.example", "/a"),
    ("spiffe://" + "a" * 255, "a" * 255, ""),
    ("spiffe://" + "a" * 255 + "/b", "a" * 255, "/b"),
    ("spiffe://td/" + "x" * (2048 - 12), "td", "/" + "x" * (2048 - 12)),
    ("spiffe://td/" + "/".join("a" * 1018), "td", "/" + "/".join("a" * 1018)),
]

BAD = [
    # string, reason
    ("", "empty"),
    (" ", "space"),
    ("td", "scheme"),
    ("spiffe", "scheme"),
    ("spiffe:", "scheme"),
    ("spiffe:/", "scheme"),
    ("spiffe:/td/a", "scheme"),
    ("spiffe:td", "scheme"),
    ("/td/a", "scheme"),
    ("//td/a", "scheme"),
    ("://td/a", "scheme"),
    ("http://td/a", "scheme"),
    ("https://td/a", "scheme"),
    ("SPIFFE://td/a", "scheme"),
    ("Spiffe://td/a", "scheme"),
    ("spiffE://td/a", "scheme"),
    ("spiffes://td/a", "scheme"),
    ("xspiffe://td/a", "scheme"),
    (" spiffe://td/a", "space"),
    ("spiffe ://td/a", "space"),
    ("\tspiffe://td/a", "control_character"),
    ("\x00spiffe://td/a", "control_character"),
    ("\ufeffspiffe://td/a", "not_ascii"),
    ("spiffe://", "trust_domain_missing"),
    ("spiffe:///", "trust_domain_missing"),
    ("spiffe:///a", "trust_domain_missing"),
    ("spiffe:////a", "trust_domain_missing"),
    ("spiffe://" + "a" * 256, "trust_domain_too_long"),
    ("spiffe://" + "a" * 256 + "/b", "trust_domain_too_long"),
    ("spiffe://TD/a", "trust_domain_character"),
    ("spiffe://tD/a", "trust_domain_character"),
    ("spiffe://Example.org/a", "trust_domain_character"),
    ("spiffe://t~d/a", "trust_domain_character"),
    ("spiffe://t!d/a", "trust_domain_character"),
    ("spiffe://t$d/a", "trust_domain_character"),
    ("spiffe://t&d/a", "trust_domain_character"),
    ("spiffe://t'd/a", "trust_domain_character"),
    ("spiffe://t(d)/a", "trust_domain_character"),
    ("spiffe://t*/a", "trust_domain_character"),
    ("spiffe://t+d/a", "trust_domain_character"),
    ("spiffe://t,d/a", "trust_domain_character"),
    ("spiffe://t;d/a", "trust_domain_character"),
    ("spiffe://t=d/a", "trust_domain_character"),
    ("spiffe://[::1]/a", "trust_domain_character"),
    ("spiffe://t\\d/a", "trust_domain_character"),
    ('spiffe://t"d/a', "trust_domain_character"),
    ("spiffe://t|d/a", "trust_domain_character"),
    ("spiffe://t^d/a", "trust_domain_character"),
    ("spiffe://t`d/a", "trust_domain_character"),
    ("spiffe://t{d}/a", "trust_domain_character"),
    ("spiffe://t<d>/a", "trust_domain_character"),
    ("spiffe://td:/a", "port"),
    ("spiffe://td:80/a", "port"),
    ("spiffe://td:443", "port"),
    ("spiffe://td:x/a", "trust_domain_character"),
    ("spiffe://td:8:0/a", "trust_domain_character"),
    ("spiffe://user@td/a", "userinfo"),
    ("spiffe://user:pw@td/a", "userinfo"),
    ("spiffe://@td/a", "userinfo"),
    ("spiffe://td@/a", "userinfo"),
    ("spiffe://td?", "query"),
    ("spiffe://td?a=b", "query"),
    ("spiffe://td/a?b", "query"),
    ("spiffe://td/a?", "query"),
    ("spiffe://td#", "fragment"),
    ("spiffe://td/a#b", "fragment"),
    ("spiffe://td/a#", "fragment"),
    ("spiffe://t%64/a", "percent_encoding"),
    ("spiffe://td/%61", "percent_encoding"),
    ("spiffe://td/a%2fb", "percent_encoding"),
    ("spiffe://td/a%2Fb", "percent_encoding"),
    ("spiffe://td/%2e%2e/b", "percent_encoding"),
    ("spiffe://td/a%00", "percent_encoding"),
    ("spiffe://td/%", "percent_encoding"),
    ("spiffe://td/", "trailing_slash"),
    ("spiffe://td/a/", "trailing_slash"),
    ("spiffe://td/a/b/", "trailing_slash"),
    ("spiffe://td//", "empty_segment"),
    ("spiffe://td//a", "empty_segment"),
    ("spiffe://td/a//b", "empty_segment"),
    ("spiffe://td/a//", "empty_segment"),
    ("spiffe://td/.", "dot_segment"),
    ("spiffe://td/..", "dot_segment"),
    ("spiffe://td/./a", "dot_segment"),
    ("spiffe://td/a/.", "dot_segment"),
    ("spiffe://td/a/../b", "dot_segment"),
    ("spiffe://td/ns/a/../b/sa/c", "dot_segment"),
    ("spiffe://td/../td2/a", "dot_segment"),
    ("spiffe://td/a b", "space"),
    ("spiffe://td/a ", "space"),
    ("spiffe://t d/a", "space"),
    ("spiffe://td/a\n", "control_character"),
    ("spiffe://td/a\r\n", "control_character"),
    ("spiffe://td\n", "control_character"),
    ("spiffe://td/a\x00", "control_character"),
    ("spiffe://td/a\x00.evil", "control_character"),
    ("spiffe://td\x00/a", "control_character"),
    ("spiffe://td/\x01", "control_character"),
    ("spiffe://td/a\t", "control_character"),
    ("spiffe://td/a\x0b", "control_character"),
    ("spiffe://td/a\x7f", "control_character"),
    ("spiffe://td/\x85", "not_ascii"),
    ("spiffe://td/\xa0", "not_ascii"),
    ("spiffe://td/\xff", "not_ascii"),
    ("spiffe://td/é", "not_ascii"),
    ("spiffe://täd/a", "not_ascii"),
    ("spiffe://td/\u0661", "not_ascii"),  # a digit for str.isdigit
    ("spiffe://td/\u212a", "not_ascii"),  # the Kelvin sign: "k" for re.IGNORECASE
    ("spiffe://td/\u2028", "not_ascii"),
    ("spiffe://td/\ud800", "not_ascii"),
    ("spiffe://td/a:b", "path_character"),
    ("spiffe://td/a@b", "path_character"),
    ("spiffe://td/a~b", "path_character"),
    ("spiffe://td/a!b", "path_character"),
    ("spiffe://td/a*b", "path_character"),
    ("spiffe://td/*", "path_character"),
    ("spiffe://td/a+b", "path_character"),
    ("spiffe://td/a,b", "path_character"),
    ("spiffe://td/a;b", "path_character"),
    ("spiffe://td/a=b", "path_character"),
    ("spiffe://td/a\\b", "path_character"),
    ('spiffe://td/a"b', "path_character"),
    ("spiffe://td/{a}", "path_character"),
    ("spiffe://td/a|b", "path_character"),
    ("spiffe://td/a,spiffe://td/b", "empty_segment"),
    ("spiffe://td/" + "x" * (2049 - 12), "too_long"),
    ("spiffe://td/" + "é" * 2048, "too_long"),
    ("x" * 100_000, "too_long"),
]


def test_the_table_is_long_enough_and_uses_every_reason() -> None:
    assert len(GOOD) + len(BAD) >= 100
    assert {reason for _, reason in BAD} == SPIFFE_ID_REASONS


@pytest.mark.parametrize(("text", "trust_domain", "path"), GOOD)
def test_a_spiffe_id_is_read_and_written_back_unchanged(text: str, trust_domain: str, path: str) -> None:
    spiffe_id = SpiffeId.parse(text)
    assert (spiffe_id.trust_domain, spiffe_id.path) == (trust_domain, path)
    assert str(spiffe_id) == text
    assert spiffe_id.principal == text.removeprefix("spiffe://")


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_anything_else_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(SpiffeIdError) as caught:
        SpiffeId.parse(text)
    assert caught.value.reason == reason


def test_a_refusal_can_stand_in_a_log_line() -> None:
    with pytest.raises(SpiffeIdError) as caught:
        SpiffeId.parse("spiffe://td/\r\nset-cookie: \x1b[31m é" + "x" * 1000)
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1100


@pytest.mark.parametrize(
    ("text", "namespace", "account"),
    [
        ("spiffe://td/ns/a/sa/b", "a", "b"),
        ("spiffe://td/ns/sa/sa/ns", "sa", "ns"),
        ("spiffe://td", None, None),
        ("spiffe://td/ns/a", None, None),
        ("spiffe://td/ns/a/sa", None, None),
        ("spiffe://td/ns/a/sa/b/c", None, None),
        ("spiffe://td/x/ns/a/sa/b", None, None),
        ("spiffe://td/sa/b/ns/a", None, None),
        ("spiffe://td/NS/a/sa/b", None, None),
        ("spiffe://td/ns/a/SA/b", None, None),
    ],
)
def test_namespace_and_service_account_come_from_the_exact_form(
    text: str, namespace: str | None, account: str | None
) -> None:
    spiffe_id = SpiffeId.parse(text)
    assert (spiffe_id.namespace, spiffe_id.service_account) == (namespace, account)


def test_an_id_can_be_composed_and_is_checked_then() -> None:
    assert SpiffeId.of("td", "/a") == SpiffeId.parse("spiffe://td/a")
    assert SpiffeId.of("td") == SpiffeId.parse("spiffe://td")


@pytest.mark.parametrize(
    ("trust_domain", "path"), [("td", "a"), ("td/a", "/b"), ("td/a", ""), ("", "/a"), ("td", "/b/")]
)
def test_a_part_cannot_run_over_into_the_other(trust_domain: str, path: str) -> None:
    with pytest.raises(SpiffeIdError):
        SpiffeId.of(trust_domain, path)


def test_ids_differ_by_case_of_the_path_and_by_trust_domain() -> None:
    assert SpiffeId.parse("spiffe://td/a") != SpiffeId.parse("spiffe://td/A")
    assert SpiffeId.parse("spiffe://td/a") != SpiffeId.parse("spiffe://te/a")
    assert len({SpiffeId.parse("spiffe://td/a"), SpiffeId.parse("spiffe://td/a")}) == 1


def test_the_scheme_is_folded_only_on_request() -> None:
    assert str(SpiffeId.parse("SPIFFE://td/A", any_case_scheme=True)) == "spiffe://td/A"
    with pytest.raises(SpiffeIdError):
        SpiffeId.parse("SPIFFE://TD/A", any_case_scheme=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "trust_domain_missing"),
        ("TD", "trust_domain_character"),
        ("a/b", "trust_domain_character"),
        ("td\n", "control_character"),
        ("a b", "space"),
        ("ä", "not_ascii"),
        ("td:1", "port"),
        ("a" * 256, "trust_domain_too_long"),
    ],
)
def test_a_trust_domain_name_is_checked_alone(name: str, reason: str) -> None:
    with pytest.raises(SpiffeIdError) as caught:
        check_trust_domain(name)
    assert caught.value.reason == reason
    assert check_trust_domain("a-b.c_d") == "a-b.c_d"
