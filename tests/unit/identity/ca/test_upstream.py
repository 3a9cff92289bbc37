"""A root whose key is elsewhere: offline, or the company's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from identity import authority
from identity.authority import new_key
from identity.ca.keys import KeyFolder, authority_id
from identity.ca.model import NoSuchThing, NotAllowed, StoreUnavailable
from identity.ca.service import CaService
from identity.ca.upstream import sign_request
from identity.files import certificates_pem
from identity.svid import X509Svid, check_own_svid
from tests.support.ca import DAY, HOUR, NOW, SHORT, issue, kinds, new_ca, of_kind, spiffe_id

RNG = random.Random(1)


@pytest.fixture
def company(folder: Path) -> Iterator[CaService]:
    with new_ca(folder, root="company") as ca:
        yield ca


@pytest.fixture
def offline(folder: Path) -> Iterator[CaService]:
    with new_ca(folder, root="offline") as ca:
        yield ca


class Pki:
    """The company's: a root, and an intermediate between it and us."""

    def __init__(self, name: str = "Company", *, pathlen: int | None = None) -> None:
        self.root_key, self.key = new_key(), new_key()
        self.root = self.certificate(f"{name} Root", self.root_key, None, self.root_key, pathlen)
        self.middle = self.certificate(f"{name} Services", self.key, self.root, self.root_key)

    @staticmethod
    def certificate(
        name: str, key: Any, issuer: x509.Certificate | None, issuer_key: Any, pathlen: int | None = None,
        *, is_ca: bool = True, end: datetime = NOW + 365 * DAY, uri: str = "",
    ) -> x509.Certificate:  # fmt: skip
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
        public = key.public_key() if hasattr(key, "public_key") else key
        builder = (
            x509.CertificateBuilder(issuer.subject if issuer else subject, subject, public, RNG.getrandbits(120))
            .not_valid_before(NOW - DAY)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(is_ca, pathlen if is_ca else None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
            )
        )
        if uri:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())

    def answer(self, csr: bytes, **more: Any) -> list[x509.Certificate]:
        key = x509.load_pem_x509_csr(csr).public_key()
        ours = self.certificate("Mesh CA", key, self.middle, self.key, **{"pathlen": 0, **more})
        return [ours, self.middle, self.root]


def take(ca: CaService, chain: list[x509.Certificate], now: datetime = NOW) -> Any:
    return ca.import_issuing(certificates_pem(chain), now=now)


def accepted(ca: CaService, now: datetime = NOW) -> str:
    key = new_key()
    made = issue(ca, "/w/1", key, now=now)
    check_own_svid(X509Svid(spiffe_id("/w/1"), made.chain, key), ca.bundle().trust_bundle, now=now)
    return made.authority_id


# -- the company's root -------------------------------------------------------------------------------------


def test_before_the_import_nothing_is_issued_and_status_says_why(company: CaService) -> None:
    assert company.bundle().roots == ()
    assert "no active x509-root" in company.status(NOW).problems[0]
    with pytest.raises(StoreUnavailable, match="ca csr"):
        issue(company)


def test_the_company_signs_our_request_and_from_then_on_we_issue(company: CaService) -> None:
    pki = Pki()
    assert take(company, pki.answer(company.csr(now=NOW))).next_step == "nothing: it signs from now on"
    assert company.bundle().roots == (pki.root,)
    accepted(company)
    assert len(issue(company).chain) == 3  # leaf, ours, the intermediate; the root stays at home
    assert company.status(NOW).problems == ()
    assert [kind for kind in kinds(company) if kind.startswith("authority")] == [
        "authority_requested",
        "authority_imported",
    ]


def test_a_request_that_was_not_answered_is_given_again(company: CaService) -> None:
    assert company.csr(now=NOW) == company.csr(now=NOW + HOUR)


def test_the_key_of_a_request_never_leaves_the_folder(company: CaService, folder: Path) -> None:
    csr = x509.load_pem_x509_csr(company.csr(now=NOW))
    assert csr.is_signature_valid
    assert authority_id(csr.public_key()) in KeyFolder(folder).ids()  # type: ignore[arg-type]


def test_the_next_answer_waits_as_prepared_until_it_is_due(company: CaService) -> None:
    pki = Pki()
    take(company, pki.answer(company.csr(now=NOW)))
    first = accepted(company)
    report = take(company, pki.answer(company.csr(now=NOW)))
    assert report.next_step.startswith("activate")
    assert accepted(company) == first
    company.activate_authority("x509-issuing", now=NOW + HOUR)
    assert accepted(company) == report.authority_id


def test_a_new_root_of_the_company_is_published_before_anything_is_signed_under_it(company: CaService) -> None:
    take(company, Pki().answer(company.csr(now=NOW)))
    first, new = accepted(company), Pki("Company 2")
    report = take(company, new.answer(company.csr(now=NOW)))
    assert new.root in company.bundle().roots
    assert accepted(company) == first
    company.tick(NOW + HOUR)
    assert accepted(company) == first
    company.activate_authority("x509-root", now=NOW + HOUR)
    assert accepted(company, NOW + HOUR) == report.authority_id


def test_the_whole_chains_expiry_is_what_is_watched(company: CaService) -> None:
    pki = Pki()
    pki.middle = pki.certificate("Company Services", pki.key, pki.root, pki.root_key, end=NOW + 10 * DAY)
    take(company, pki.answer(company.csr(now=NOW)))
    (view,) = [view for view in company.authorities() if view.kind == "x509-issuing"]
    assert view.not_after == (NOW + 10 * DAY).timestamp()
    assert any("x509-issuing authority ends at 2030-06-11" in text for text in company.status(NOW + 9 * DAY).problems)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda pki, csr: pki.answer(csr)[:1], "expected 2 to 5 certificates"),
        (lambda pki, csr: [*pki.answer(csr)[:2], Pki("Other").root], "the chain cannot be used"),
        (lambda pki, csr: [pki.answer(csr)[i] for i in (0, 2)], "the chain cannot be used"),
        (lambda pki, csr: pki.answer(csr, is_ca=False), "the chain cannot be used"),
        (lambda pki, csr: pki.answer(csr, end=NOW - HOUR), "the chain cannot be used"),
        (lambda pki, csr: pki.answer(csr, end=NOW + HOUR), "too soon to be of use"),
        (lambda pki, csr: pki.answer(csr, uri="spiffe://other"), "the chain cannot be used"),
        (lambda pki, csr: Pki(pathlen=0).answer(csr), "the chain cannot be used"),
        (lambda pki, csr: [*pki.answer(csr)[:2], Pki("Other").root, pki.root], "."),
    ],
    ids=["alone", "foreign root", "gap", "no CA", "over", "soon over", "foreign name", "no room", "too many"],
)
def test_an_answer_that_peers_would_not_accept_is_refused(
    company: CaService, change: Callable[[Pki, bytes], list[x509.Certificate]], words: str
) -> None:
    csr = company.csr(now=NOW)
    before = company.authorities(), company.journal_head()
    with pytest.raises(NotAllowed, match=words):
        take(company, change(Pki(), csr))
    assert (company.authorities(), company.journal_head()) == before


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_chain_is_refused(company: CaService, pem: bytes) -> None:
    company.csr(now=NOW)
    with pytest.raises(NotAllowed):
        company.import_issuing(pem, now=NOW)


def test_an_answer_to_somebody_elses_request_is_refused(company: CaService) -> None:
    pki = Pki()
    foreign = pki.certificate("Mesh CA", new_key(), pki.middle, pki.key, 0)
    with pytest.raises(NoSuchThing, match="ca csr"):
        take(company, [foreign, pki.middle, pki.root])
    company.csr(now=NOW)
    with pytest.raises(NoSuchThing, match="not for the key of our request"):
        take(company, [foreign, pki.middle, pki.root])


# -- our own root, offline ----------------------------------------------------------------------------------


def test_an_offline_roots_key_is_beside_and_not_among_the_keys(offline: CaService, folder: Path) -> None:
    (root,) = of_kind(offline, "x509-root", "active")
    assert root not in KeyFolder(folder).ids()
    assert (folder / "offline-root.key").stat().st_mode & 0o777 == 0o600
    key = load_pem_private_key((folder / "offline-root.key").read_bytes(), None)
    assert authority_id(key.public_key()) == root  # type: ignore[arg-type]
    accepted(offline)


def test_the_next_issuing_authority_is_signed_where_the_root_is(offline: CaService, folder: Path) -> None:
    root = x509.load_pem_x509_certificate((folder / "offline-root.crt").read_bytes())
    key: Any = load_pem_private_key((folder / "offline-root.key").read_bytes(), None)
    pem = sign_request(offline.csr(now=NOW), root, key, "td", now=NOW, rng=RNG)
    report = offline.import_issuing(pem, now=NOW)
    assert of_kind(offline, "x509-issuing", "prepared") == [report.authority_id]
    offline.activate_authority("x509-issuing", now=NOW + HOUR)
    assert accepted(offline, NOW + HOUR) == report.authority_id


def test_without_the_roots_key_rotation_does_what_it_can_and_status_says_what_is_missing(folder: Path) -> None:
    with new_ca(folder, root="offline", settings=SHORT) as ca:
        late = NOW + HOUR * 11 / 12
        done = ca.tick(NOW + HOUR / 2) + ca.tick(late)
        assert [what.split()[:2] for what in done] == [["prepared", "jwt"], ["activated", "jwt"]]
        (problem,) = ca.status(late).problems
        assert "x509-issuing authority ends at" in problem
        assert "an offline root needs `ca csr`" in problem
        with pytest.raises(StoreUnavailable, match="ca csr"):
            ca.prepare_authority("x509-issuing", now=late)


def csr_of(key: Any, signer: Any = None) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "evil")])
    builder = x509.CertificateSigningRequestBuilder(subject)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://evil/root")])
    builder = builder.add_extension(x509.BasicConstraints(True, 9), True).add_extension(names, False)
    return builder.sign(signer or key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_of_a_request_only_the_public_key_is_used() -> None:
    root_key, key = new_key(), new_key()
    root = authority.create_root("td", root_key, now=NOW, rng=RNG)
    made = x509.load_pem_x509_certificates(sign_request(csr_of(key), root, root_key, "td", now=NOW, rng=RNG))[0]
    assert made.public_key() == key.public_key()
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["spiffe://td"]
    assert "evil" not in made.subject.rfc4514_string()


def test_a_request_that_is_not_proven_or_no_request_is_refused() -> None:
    root_key, key = new_key(), new_key()
    root = authority.create_root("td", root_key, now=NOW, rng=RNG)
    good = csr_of(key)
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(Encoding.DER))
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    for wrong in (forged, b"", b"nonsense", good + b"\n" * 9000):
        with pytest.raises(NotAllowed):
            sign_request(wrong, root, root_key, "td", now=NOW, rng=RNG)
