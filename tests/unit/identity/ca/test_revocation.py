"""Revocations: what is on the list, and that nobody but an authority of the trust domain can sign one."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from identity.authority import new_key
from identity.ca import revocation
from identity.ca.model import NoSuchThing, NotAllowed
from identity.ca.revocation import RevocationListError, Revocations, verify
from identity.ca.service import CaService
from tests.support.ca import AGENT, DAY, HOUR, NOW, issue, kinds, new_ca, spiffe_id

AT = NOW.timestamp()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[CaService]:
    """Another authority of the same name, with keys of its own."""
    with new_ca(tmp_path / "other") as made:
        yield made


def read(ca: CaService, token: str, now: Any = NOW) -> Revocations:
    return verify(token, ca.bundle().trust_bundle, now=now)


# -- the list -----------------------------------------------------------------------------------------------


def test_an_identity_is_revoked_until_all_it_holds_is_over(ca: CaService) -> None:
    made = issue(ca, ttl=600.0)
    found = ca.revoke(spiffe_id(), "stolen", now=NOW)
    assert found.expires_at == AT + DAY.total_seconds()
    told = ca.revocations(NOW)
    assert told.reason_for(str(spiffe_id()), [made.serial], [made.authority_id], AT) == "id revoked: stolen"
    assert told.reason_for("spiffe://td/other", [made.serial], [made.authority_id], AT) is None
    assert told.reason_for(str(spiffe_id()), [], [], found.expires_at) is None


def in_pairs(serial: str) -> str:
    return ":".join(serial.zfill(32)[n : n + 2] for n in range(0, 32, 2))


@pytest.mark.parametrize("written", [str, str.upper, "0{}".format, in_pairs])
def test_a_certificate_is_revoked_by_its_serial_however_it_is_written(
    ca: CaService, written: Callable[[str], str]
) -> None:
    made = issue(ca)
    found = ca.revoke(written(made.serial), "lost", now=NOW)
    assert (found.kind, found.what, found.expires_at) == ("serial", made.serial, made.not_after)
    assert ca.revocations(NOW).reason_for("x", [made.serial], [], AT) == "serial revoked: lost"


@pytest.mark.parametrize("what", ["", "abc", "0", "nonsense", "f" * 500])
def test_a_serial_that_nobody_has_cannot_be_revoked(ca: CaService, what: str) -> None:
    with pytest.raises(NoSuchThing, match="no certificate with serial"):
        ca.revoke(what, "", now=NOW)


def test_an_expired_certificate_needs_no_revocation(ca: CaService) -> None:
    serial = issue(ca).serial
    with pytest.raises(NoSuchThing):
        ca.revoke(serial, "", now=NOW + 2 * HOUR)


@pytest.mark.parametrize("what", ["spiffe://other/a", "spiffe://td"])
def test_foreign_identities_are_not_ours_to_revoke(ca: CaService, what: str) -> None:
    with pytest.raises(NotAllowed):
        ca.revoke(what, "", now=NOW)


def test_a_revocation_can_be_taken_back(ca: CaService) -> None:
    ca.revoke(spiffe_id(), "by mistake", now=NOW)
    before = ca.revocations(NOW).sequence
    ca.unrevoke(spiffe_id(), now=NOW)
    assert ca.revocations(NOW).entries == ()
    assert ca.revocations(NOW).sequence > before
    assert issue(ca).serial
    with pytest.raises(NoSuchThing):
        ca.unrevoke(spiffe_id(), now=NOW)
    assert [kind for kind in kinds(ca) if "revoked" in kind] == ["revoked", "unrevoked"]


def test_revoked_twice_it_stands_on_the_list_once_with_the_last_reason(ca: CaService) -> None:
    ca.revoke(spiffe_id(), "first", now=NOW)
    ca.revoke(spiffe_id(), "second", now=NOW)
    assert [entry.reason for entry in ca.revocations(NOW).entries] == ["second"]


def test_a_revoked_exclusive_identity_is_free_for_its_rightful_machine(ca: CaService) -> None:
    stolen = issue(ca, "/host/1", exclusive=True)
    ca.revoke(stolen.serial, "stolen", now=NOW)
    assert issue(ca, "/host/1", exclusive=True).serial


# -- the signed form ----------------------------------------------------------------------------------------


def test_the_signed_list_says_what_the_list_says(ca: CaService) -> None:
    ca.revoke(spiffe_id(), "stolen", now=NOW)
    ca.revoke(issue(ca, "/b").serial, "lost", now=NOW)
    told, plain = read(ca, ca.signed_revocations(NOW)), ca.revocations(NOW)
    assert (told.entries, told.sequence, told.trust_domain) == (plain.entries, plain.sequence, "td")
    assert told.expires_at == AT + 900.0


def test_every_change_of_the_list_has_a_higher_sequence(ca: CaService) -> None:
    sequences = [read(ca, ca.signed_revocations(NOW)).sequence]
    for path in ("/a", "/b"):
        ca.revoke(spiffe_id(path), "", now=NOW)
        sequences.append(read(ca, ca.signed_revocations(NOW)).sequence)
    assert sequences == sorted(set(sequences))


def test_after_a_rotation_the_list_is_signed_by_the_new_authority(ca: CaService) -> None:
    before = jwt.get_unverified_header(ca.signed_revocations(NOW))["x5c"]
    ca.prepare_authority("x509-issuing", now=NOW)
    ca.activate_authority("x509-issuing", force=True, now=NOW)
    token = ca.signed_revocations(NOW)
    assert jwt.get_unverified_header(token)["x5c"] != before
    read(ca, token)


@pytest.mark.parametrize("seconds", [-61, 961])
def test_a_list_that_is_too_old_or_of_the_future_is_refused(ca: CaService, seconds: int) -> None:
    token = ca.signed_revocations(NOW + HOUR)
    with pytest.raises(RevocationListError, match="too old, or of the future"):
        read(ca, token, NOW + HOUR + timedelta(seconds=seconds))


def test_a_list_of_another_authority_of_the_same_name_is_refused(ca: CaService, other: CaService) -> None:
    with pytest.raises(RevocationListError, match="no authority of td"):
        read(ca, other.signed_revocations(NOW))


def forged(ca: CaService, key: Any, x5c: list[bytes], **header: Any) -> str:
    claims = {"iss": "spiffe://td", "iat": int(AT), "exp": int(AT) + 60, "seq": 9, "entries": [], "tainted": []}
    told = {"typ": revocation.TYPE, "x5c": [base64.b64encode(der).decode() for der in x5c], **header}
    return jwt.encode(claims, key, algorithm="ES256", headers=told)


def der(certificate: Any) -> bytes:
    return bytes(certificate.public_bytes(Encoding.DER))


def test_a_workload_cannot_sign_a_list_with_its_certificate(ca: CaService) -> None:
    key = new_key()
    leaf = issue(ca, key=key)
    with pytest.raises(RevocationListError, match="its signer is no authority"):
        read(ca, forged(ca, key, [der(cert) for cert in leaf.chain]))


def test_the_authoritys_certificate_without_its_key_is_of_no_use(ca: CaService) -> None:
    issuing = issue(ca).chain[1]
    with pytest.raises(RevocationListError):
        read(ca, forged(ca, new_key(), [der(issuing)]))


def test_another_token_of_the_authority_is_not_a_list(ca: CaService) -> None:
    token = ca.issue_jwt(spiffe_id(), ["db"], caller=AGENT, now=NOW)
    with pytest.raises(RevocationListError, match="another kind of token"):
        read(ca, token)


def changed(token: str, part: int, change: Callable[[dict[str, Any]], None]) -> str:
    parts = token.split(".")
    found = json.loads(base64.urlsafe_b64decode(parts[part] + "=="))
    change(found)
    parts[part] = base64.urlsafe_b64encode(json.dumps(found).encode()).rstrip(b"=").decode()
    return ".".join(parts)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (1, lambda claims: claims.update(entries=[])),
        (1, lambda claims: claims.update(seq=10**6)),
        (1, lambda claims: claims.update(exp=10**12)),
        (0, lambda header: header.update(alg="none")),
        (0, lambda header: header.update(alg="HS256")),
        (0, lambda header: header.update(x5c=[])),
        (0, lambda header: header.update(x5c="nonsense")),
        (0, lambda header: header.pop("typ")),
    ],
)
def test_a_changed_list_is_refused(ca: CaService, part: int, change: Callable[[dict[str, Any]], None]) -> None:
    ca.revoke(spiffe_id(), "stolen", now=NOW)
    with pytest.raises(RevocationListError):
        read(ca, changed(ca.signed_revocations(NOW), part, change))


@pytest.mark.parametrize("token", ["", ".", "a.b.c", "{}", "x" * 2_000_000, "\ud800.a.b"])
def test_what_is_no_list_at_all_is_refused(ca: CaService, token: str) -> None:
    with pytest.raises(RevocationListError):
        read(ca, token)
