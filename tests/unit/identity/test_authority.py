"""The mini-CA: profiles, refusals, and the check that does not trust the builder."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from identity import authority
from identity.authority import (
    BACKDATE,
    MAX_TTL,
    MIN_TTL,
    Authority,
    IssueError,
    build_svid,
    check_issued,
    create_issuing,
    create_root,
    issue,
    sign,
    sign_svid,
)
from identity.spiffe import SpiffeId, SpiffeIdError
from identity.svid import TrustBundle, check_own_svid, check_peer_chain
from tests.unit.identity import pki
from tests.unit.identity.pki import HOUR, NOW, key

WEB = SpiffeId("td", "/ns/a/sa/web")


def rng() -> random.Random:
    return random.Random(1)


ROOT = create_root("td", key("ca root"), now=NOW, rng=rng())
ISSUING = create_issuing(ROOT, key("ca root"), "td", key("ca issuing").public_key(), now=NOW, rng=random.Random(2))
CA = Authority("td", (ISSUING,), key("ca issuing"))
BUNDLE = TrustBundle("td", (ROOT,))


def value(cert: x509.Certificate, kind: type[x509.ExtensionType]) -> tuple[object, bool]:
    extension = cert.extensions.get_extension_for_class(kind)
    return extension.value, extension.critical


def test_a_root_lives_ten_years_and_allows_one_authority_below() -> None:
    assert value(ROOT, x509.BasicConstraints) == (x509.BasicConstraints(True, 1), True)
    assert value(ROOT, x509.KeyUsage) == (pki.usage("key_cert_sign", "crl_sign"), True)
    assert value(ROOT, x509.SubjectAlternativeName) == (pki.uris("spiffe://td"), False)
    assert ROOT.not_valid_after_utc == NOW + timedelta(days=3650)
    assert ROOT.not_valid_before_utc == NOW - BACKDATE
    assert ROOT.subject == ROOT.issuer


def test_an_issuing_authority_lives_a_year_and_allows_none_below() -> None:
    assert value(ISSUING, x509.BasicConstraints) == (x509.BasicConstraints(True, 0), True)
    assert ISSUING.not_valid_after_utc == NOW + timedelta(days=365)
    assert ISSUING.issuer == ROOT.subject
    assert ISSUING.subject != ROOT.subject


def test_an_issuing_authority_never_outlives_its_root() -> None:
    short = create_root("td", key("ca root"), now=NOW, rng=rng(), life=timedelta(days=30))
    below = create_issuing(short, key("ca root"), "td", key("x").public_key(), now=NOW, rng=rng())
    assert below.not_valid_after_utc == short.not_valid_after_utc


def test_an_issuing_authority_has_its_own_key() -> None:
    with pytest.raises(IssueError, match="root's key"):
        create_issuing(ROOT, key("ca root"), "td", key("ca root").public_key(), now=NOW, rng=rng())


def test_an_issuing_authority_under_the_wrong_key_is_noticed() -> None:
    with pytest.raises(IssueError, match="own check"):
        create_issuing(ROOT, key("not the root"), "td", key("x").public_key(), now=NOW, rng=rng())


def test_a_bad_trust_domain_gets_no_root() -> None:
    with pytest.raises(SpiffeIdError):
        create_root("TD", key("ca root"), now=NOW, rng=rng())


def test_a_p384_root_signs_with_sha384() -> None:
    root = create_root("td", authority.new_key("P-384"), now=NOW, rng=rng())
    assert root.signature_hash_algorithm is not None
    assert root.signature_hash_algorithm.name == "sha384"


def test_an_svid_has_the_profile() -> None:
    leaf, *above = sign_svid(CA, WEB, key("web").public_key(), now=NOW, rng=rng())
    assert above == [ISSUING]
    assert value(leaf, x509.BasicConstraints) == (x509.BasicConstraints(False, None), True)
    assert value(leaf, x509.KeyUsage) == (pki.usage("digital_signature"), True)
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert value(leaf, x509.ExtendedKeyUsage) == (x509.ExtendedKeyUsage(both), False)
    assert value(leaf, x509.SubjectAlternativeName) == (pki.uris("spiffe://td/ns/a/sa/web"), False)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key("web").public_key())
    assert value(leaf, x509.SubjectKeyIdentifier) == (identifier, False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key("ca issuing").public_key())
    assert value(leaf, x509.AuthorityKeyIdentifier) == (signer, False)
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (NOW - BACKDATE, NOW + HOUR)
    assert 64 <= leaf.serial_number.bit_length() <= 128


def test_an_svid_is_accepted_by_a_peer_in_both_roles() -> None:
    certs = pki.chain(*sign_svid(CA, WEB, key("web").public_key(), now=NOW, rng=rng()))
    for role in ("client", "server"):
        assert check_peer_chain(certs, {"td": BUNDLE}, now=NOW, role=role).id == WEB


def test_dns_names_stand_beside_the_id() -> None:
    leaf = sign_svid(CA, WEB, key("web").public_key(), now=NOW, rng=rng(), dns_names=["web.a.svc", "web"])[0]
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["web.a.svc", "web"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(WEB)]


def test_each_serial_number_is_new() -> None:
    source = rng()
    serials = {sign_svid(CA, WEB, key("web").public_key(), now=NOW, rng=source)[0].serial_number for _ in range(20)}
    assert len(serials) == 20


def test_a_serial_number_is_never_short() -> None:
    class Poor(random.Random):
        left = [0, 1, 2**62, 2**63]

        def getrandbits(self, k: int, /) -> int:
            return self.left.pop(0)

    leaf = sign_svid(CA, WEB, key("web").public_key(), now=NOW, rng=Poor())[0]
    assert leaf.serial_number == 2**63


def test_an_svid_never_outlives_its_authority() -> None:
    late = ISSUING.not_valid_after_utc - timedelta(minutes=10)
    leaf = sign_svid(CA, WEB, key("web").public_key(), now=late, rng=rng())[0]
    assert leaf.not_valid_after_utc == ISSUING.not_valid_after_utc


def test_an_expired_authority_signs_nothing() -> None:
    with pytest.raises(IssueError):
        sign_svid(CA, WEB, key("web").public_key(), now=ISSUING.not_valid_after_utc + timedelta(hours=1), rng=rng())


def test_fractions_of_seconds_never_lengthen_a_life() -> None:
    odd = NOW + timedelta(microseconds=999_999)
    leaf = sign_svid(CA, WEB, key("web").public_key(), now=odd, rng=rng())[0]
    assert leaf.not_valid_after_utc == NOW + HOUR


@pytest.mark.parametrize("ttl", [MIN_TTL, MAX_TTL])
def test_both_ends_of_the_allowed_life_are_allowed(ttl: timedelta) -> None:
    assert sign_svid(CA, WEB, key("web").public_key(), now=NOW, rng=rng(), ttl=ttl)


second = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ttl": MIN_TTL - second}, "not between"),
        ({"ttl": MAX_TTL + second}, "not between"),
        ({"ttl": -HOUR}, "not between"),
        ({"spiffe_id": SpiffeId("other", "/a")}, "not of the trust domain"),
        ({"spiffe_id": SpiffeId("td", "")}, "not given to workloads"),
        ({"public_key": key("ca issuing").public_key()}, "authority's own"),
        ({"public_key": pki.rsa_public(1024)}, "weak_key"),
        ({"public_key": ec.derive_private_key(3, ec.SECP521R1()).public_key()}, "weak_key"),
        ({"dns_names": ["x"] * 33}, "more than 32"),
        ({"spiffe_id": SpiffeId("td", "/a b")}, "own check: not_a_spiffe_id"),
        ({"spiffe_id": SpiffeId("td", "/a/../b")}, "own check: not_a_spiffe_id"),
    ],
)
def test_an_unacceptable_request_is_refused(changes: dict[str, object], problem: str) -> None:
    request = {"spiffe_id": WEB, "public_key": key("web").public_key(), "ttl": HOUR, **changes}
    with pytest.raises(IssueError, match=problem):
        sign_svid(CA, now=NOW, rng=rng(), **request)  # type: ignore[arg-type]


def _built(**changes: object) -> x509.CertificateBuilder:
    request = {"spiffe_id": WEB, "public_key": key("web").public_key(), **changes}
    return build_svid(CA, now=NOW, rng=rng(), **request)  # type: ignore[arg-type]


def _check(leaf: x509.Certificate) -> None:
    check_issued(leaf, CA, WEB, key("web").public_key(), now=NOW, ttl=HOUR)


def test_the_check_takes_what_was_asked_for() -> None:
    _check(sign(_built(), CA.key))


@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        (lambda: sign(_built(spiffe_id=SpiffeId("td", "/admin")), CA.key), "it is for spiffe://td/admin"),
        (lambda: sign(_built(public_key=key("mallory").public_key()), CA.key), "another public key"),
        (lambda: sign(_built(ttl=2 * HOUR), CA.key), "it lives until"),
        (lambda: sign(_built(), key("mallory")), "untrusted_root"),
        (lambda: pki.leaf(), "untrusted_root"),
        (lambda: ISSUING, "not_a_spiffe_id"),
        (
            lambda: pki.Spec(subject="web", serial=7, san=pki.uris(str(WEB)), signer=CA.key).build(
                issuer_name=ISSUING.subject
            ),
            "serial number",
        ),
    ],
)
def test_the_check_finds_what_building_or_signing_did_wrong(leaf: object, problem: str) -> None:
    with pytest.raises(IssueError, match=problem):
        _check(leaf())  # type: ignore[operator]


def test_a_key_and_its_svid_are_made_together() -> None:
    one = issue(CA, BUNDLE, WEB, now=NOW, rng=rng())
    two = issue(CA, BUNDLE, WEB, now=NOW, rng=rng())
    check_own_svid(one, BUNDLE, now=NOW)
    assert one.key.private_numbers() != two.key.private_numbers()  # type: ignore[union-attr]


def test_an_svid_that_the_bundle_does_not_vouch_for_is_not_handed_out() -> None:
    with pytest.raises(IssueError, match="no peer would accept"):
        issue(CA, TrustBundle("td", (pki.root(),)), WEB, now=NOW, rng=rng())


def test_an_authority_shows_no_key() -> None:
    assert "key" not in repr(replace(CA)).lower()
