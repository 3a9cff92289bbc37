"""Who gets which certificate, and who gets none (C-4, C-5, C-13)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from identity.authority import BACKDATE, new_key
from identity.ca.issuing import X509Request
from identity.ca.keys import KeyFolder, key_hash
from identity.ca.model import CallerFacts, CaSettings, Issued, NotAllowed, StoreUnavailable
from identity.ca.service import CaService
from identity.spiffe import SpiffeId
from identity.svid import X509Svid, check_own_svid
from tests.support.ca import AGENT, DAY, HOUR, NOW, entry, issue, kinds, new_ca, of_kind, spiffe_id

WEB, DB = "/ns/a/sa/web", "/ns/a/sa/db"


def last(ca: CaService) -> Any:
    return ca.log()[-1]


def refusal(ca: CaService, act: Callable[[], object]) -> str:
    """The text of the refusal; asserts that it is journaled and that nothing was issued."""
    before = len(ca.issued(now=NOW))
    with pytest.raises(NotAllowed) as caught:
        act()
    assert last(ca).kind == "denied"
    assert last(ca).facts["reason"] == str(caught.value)
    assert len(ca.issued(now=NOW)) == before
    return str(caught.value)


# -- the certificate ----------------------------------------------------------------------------------------


def test_a_peer_accepts_what_was_issued(ca: CaService) -> None:
    key = new_key()
    made = issue(ca, key=key)
    check_own_svid(X509Svid(spiffe_id(), made.chain, key), ca.bundle().trust_bundle, now=NOW)


def test_the_profile_is_that_of_the_specification(ca: CaService) -> None:
    cert = issue(ca).chain[0]
    extensions = cert.extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    purposes = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert purposes == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [str(spiffe_id())]
    assert cert.serial_number.bit_length() >= 64
    assert cert.not_valid_before_utc == NOW - BACKDATE
    assert cert.not_valid_after_utc == NOW + HOUR


def test_dns_names_stand_beside_the_id_and_in_the_journal(ca: CaService) -> None:
    names = (
        issue(ca, dns_names=["web.a.svc"]).chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName)
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["web.a.svc"]
    assert last(ca).facts["dns_names"] == ["web.a.svc"]


def test_the_journal_says_who_got_what_until_when(ca: CaService) -> None:
    key = new_key()
    made = issue(ca, key=key, ttl=600.0)
    record = last(ca)
    assert (record.kind, record.subject) == ("x509-svid", str(spiffe_id()))
    assert record.caller == {"kind": "agent", "id": AGENT.id, "address": AGENT.address, "detail": AGENT.detail}
    assert record.facts == {
        "serial": made.serial,
        "key_hash": key_hash(key.public_key()),
        "not_after": made.not_after,
        "authority": made.authority_id,
        "ttl": 600.0,
    }
    assert made.authority_id == of_kind(ca, "x509-issuing", "active")[0]


# -- life ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [0.0, 59.0, 86401.0, -1.0, 1e12, float("nan"), float("inf")])
def test_a_life_out_of_bounds_is_refused(ca: CaService, ttl: float) -> None:
    assert "a life of" in refusal(ca, lambda: issue(ca, ttl=ttl))


@pytest.mark.parametrize("ttl", [60.0, 86400.0])
def test_the_bounds_of_a_life_themselves_are_good(ca: CaService, ttl: float) -> None:
    assert issue(ca, ttl=ttl).not_after == NOW.timestamp() + ttl


def test_no_certificate_outlives_the_authority_that_signed_it(folder: Path) -> None:
    settings = CaSettings(issuing_life=2 * DAY.total_seconds())
    with new_ca(folder, settings=settings) as ca:
        late = NOW + 2 * DAY - HOUR
        made = issue(ca, ttl=86400.0, now=late)
        assert made.not_after == (NOW + 2 * DAY).timestamp()


def test_an_expired_authority_issues_nothing(folder: Path) -> None:
    settings = CaSettings(issuing_life=2 * DAY.total_seconds())
    with new_ca(folder, settings=settings) as ca, pytest.raises(NotAllowed, match="the authority ends"):
        issue(ca, now=NOW + 2 * DAY + HOUR)


# -- keys (C-4) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["x509-root", "x509-issuing", "jwt"])
def test_an_authoritys_own_key_is_refused(ca: CaService, folder: Path, kind: str) -> None:
    key = KeyFolder(folder).get(of_kind(ca, kind, "active")[0])
    assert "authority's own" in refusal(ca, lambda: issue(ca, key=key))


def test_the_current_key_of_another_identity_is_refused(ca: CaService) -> None:
    key = new_key()
    issue(ca, WEB, key)
    assert "another identity holds" in refusal(ca, lambda: issue(ca, DB, key))


def test_a_key_is_free_again_when_its_certificates_are_over(ca: CaService) -> None:
    key = new_key()
    issue(ca, WEB, key)
    assert issue(ca, DB, key, now=NOW + 2 * HOUR).serial


def test_the_same_identity_may_ask_again_with_its_key(ca: CaService) -> None:
    key = new_key()
    assert issue(ca, WEB, key).serial != issue(ca, WEB, key).serial


def test_a_weak_key_is_refused(ca: CaService) -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    assert "1024" in refusal(ca, lambda: issue(ca, key=weak))


def test_a_key_whose_certificate_was_revoked_gets_no_other(ca: CaService) -> None:
    key = new_key()
    ca.revoke(issue(ca, key=key).serial, "stolen", now=NOW)
    assert "of this key was revoked" in refusal(ca, lambda: issue(ca, key=key))
    assert issue(ca).serial  # a new key is welcome


# -- identities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [SpiffeId("other", "/a"), SpiffeId("td", "")])
def test_only_workloads_of_our_own_trust_domain_are_served(ca: CaService, wanted: SpiffeId) -> None:
    key = new_key().public_key()
    refusal(ca, lambda: ca.issue_x509(wanted, key, caller=AGENT, now=NOW))


def test_a_revoked_identity_gets_nothing_until_the_revocation_is_over(ca: CaService) -> None:
    until = ca.revoke(spiffe_id(WEB), "stolen", now=NOW).expires_at
    assert "is revoked" in refusal(ca, lambda: issue(ca, WEB))
    assert issue(ca, WEB, now=NOW + timedelta(seconds=until - NOW.timestamp() + 1)).serial


def test_a_revoked_caller_gets_nothing_for_others(ca: CaService) -> None:
    ca.revoke(AGENT.id, "stolen", now=NOW)
    assert "host/1 is revoked" in refusal(ca, lambda: issue(ca, WEB))


def test_an_entry_must_still_say_so_when_the_certificate_is_written_down(ca: CaService) -> None:
    made = ca.create_entry(entry(WEB, expiresAt=int(NOW.timestamp()) + 60), now=NOW)
    assert issue(ca, WEB, entry_id=made["id"]).serial
    assert "has expired" in refusal(ca, lambda: issue(ca, WEB, entry_id=made["id"], now=NOW + HOUR))
    assert f"is for {spiffe_id(WEB)}" in refusal(ca, lambda: issue(ca, DB, entry_id=made["id"]))
    ca.delete_entry(made["id"], now=NOW)
    assert "does not exist any more" in refusal(ca, lambda: issue(ca, WEB, entry_id=made["id"]))


def test_an_exclusive_identity_is_held_with_one_key(ca: CaService) -> None:
    key, thief = new_key(), new_key()
    issue(ca, "/host/1", key, exclusive=True)
    assert "held with another key" in refusal(ca, lambda: issue(ca, "/host/1", thief, exclusive=True))
    assert issue(ca, "/host/1", key, exclusive=True).serial


def test_who_holds_an_exclusive_identity_may_replace_its_key(ca: CaService) -> None:
    old, new, late = new_key(), new_key(), new_key()
    issue(ca, "/host/1", old, exclusive=True)
    issue(ca, "/host/1", new, exclusive=True, replaces=key_hash(old.public_key()))
    again = {"exclusive": True, "replaces": key_hash(old.public_key())}
    assert "held with another key" in refusal(ca, lambda: issue(ca, "/host/1", late, **again))


# -- several at once ----------------------------------------------------------------------------------------


def request(path: str, key: Any, **more: Any) -> X509Request:
    return X509Request(spiffe_id(path), key.public_key(), None, (), "", AGENT, **more)


def test_of_many_each_has_its_own_outcome(ca: CaService) -> None:
    key = new_key()
    outcomes = ca.issue_many([request(WEB, key), request(DB, key), request(DB, new_key())], NOW)
    assert [type(outcome) for outcome in outcomes] == [Issued, NotAllowed, Issued]
    assert kinds(ca)[-3:] == ["x509-svid", "denied", "x509-svid"]


def test_two_keys_for_an_exclusive_identity_in_one_transaction_have_one_winner(ca: CaService) -> None:
    asked = [request("/host/1", new_key(), exclusive=True) for _ in range(3)]
    assert [type(outcome) for outcome in ca.issue_many(asked, NOW)] == [Issued, NotAllowed, NotAllowed]


def test_threads_that_ask_at_once_all_get_theirs_and_the_chain_is_whole(ca: CaService) -> None:
    serials: list[str] = []

    def ask(number: int) -> None:
        for _ in range(3):
            serials.append(issue(ca, f"/w/{number}").serial)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    journaled = {record.facts["serial"] for record in ca.log() if record.kind == "x509-svid"}
    assert len(serials) == 24
    assert journaled == set(serials)
    assert ca.verify_journal().ok


# -- JWT-SVID -----------------------------------------------------------------------------------------------


def test_a_jwt_svid_verifies_with_the_key_in_the_bundle(ca: CaService) -> None:
    token = ca.issue_jwt(spiffe_id(), ["db", "cache"], caller=AGENT, now=NOW)
    header = jwt.get_unverified_header(token)
    key = ca.bundle().jwt_keys[header["kid"]]
    unchecked: Any = {"verify_exp": False, "verify_iat": False}
    claims = jwt.decode(token, key, algorithms=["ES256"], audience="db", options=unchecked)
    assert claims == {
        "sub": str(spiffe_id()),
        "aud": ["db", "cache"],
        "iat": int(NOW.timestamp()),
        "exp": int(NOW.timestamp()) + 300,
    }
    assert (last(ca).kind, last(ca).facts["audiences"]) == ("jwt-svid", ["db", "cache"])
    assert token not in str(ca.log())


@pytest.mark.parametrize(
    ("audiences", "ttl"), [([], None), ([""], None), (["a"] * 33, None), (["a"], 0.5), (["a"], 3601.0), (["a"], -1.0)]
)
def test_a_jwt_svid_out_of_bounds_is_refused(ca: CaService, audiences: list[str], ttl: float | None) -> None:
    refusal(ca, lambda: ca.issue_jwt(spiffe_id(), audiences, ttl=ttl, caller=AGENT, now=NOW))


def test_a_revoked_identity_gets_no_jwt_svid(ca: CaService) -> None:
    ca.revoke(spiffe_id(), "stolen", now=NOW)
    refusal(ca, lambda: ca.issue_jwt(spiffe_id(), ["db"], caller=AGENT, now=NOW))


def test_a_jwt_svid_does_not_outlive_its_key(brief: CaService) -> None:
    late = NOW + HOUR - timedelta(seconds=20)
    token = brief.issue_jwt(spiffe_id(), ["db"], caller=AGENT, now=late)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] == (NOW + HOUR).timestamp()


def test_a_jwt_key_that_has_ended_signs_nothing(brief: CaService) -> None:
    with pytest.raises(StoreUnavailable, match="no JWT key that signs now"):
        brief.issue_jwt(spiffe_id(), ["db"], caller=AGENT, now=NOW + HOUR)


# -- an authority that is not there -------------------------------------------------------------------------


def test_without_an_issuing_authority_nothing_is_issued(folder: Path) -> None:
    with new_ca(folder, root="company") as ca:
        with pytest.raises(StoreUnavailable, match="ca csr"):
            issue(ca)
        with pytest.raises(StoreUnavailable, match="ca csr"):
            ca.signed_revocations(NOW)


def test_a_refusal_from_outside_is_journaled(ca: CaService) -> None:
    ca.record_denial("spiffe://td/x", "no entry fits", caller=CallerFacts("agent", "a", "b"), now=NOW)
    assert (last(ca).kind, last(ca).facts) == ("denied", {"reason": "no entry fits"})
