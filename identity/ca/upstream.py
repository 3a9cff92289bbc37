"""A root whose key is elsewhere: kept offline, or the company's. We make a request, somebody signs it there, and we
take the answer only after checking it like a stranger's (key, names, constraints, path, life).

    here:   csr()                        -> PEM request; its key never leaves this folder
    there:  sign_request(csr, root, key) -> PEM: issuing certificate and root, for an offline root of ours
    here:   import_issuing(chain)        -> prepared, or active when there is none

A chain under a root that is not in the bundle brings its root along: both are prepared, the root is published, and
activating the root activates the issuing authority with it.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import delete, select

from identity import authority
from identity.ca import authorities, making, schema, slots
from identity.ca.keys import KeyFolder, authority_id
from identity.ca.model import AuthorityState, CallerFacts, NoSuchThing, NotAllowed, RotationReport
from identity.ca.store import Reading, Store, Writing
from identity.files import certificates_pem, parse_certificates
from identity.spiffe import SpiffeId
from identity.svid import SvidError
from identity.x509_rules import PrivateKey, build_path, check_authority, check_public_key

_MAX_CSR = 8 * 1024  # bytes (C-4)


def csr(store: Store, keys: KeyFolder, trust_domain: str, now: datetime, caller: CallerFacts) -> bytes:
    with store.read() as tx:
        row = _requested(tx)
    if row is not None:
        return bytes(row.chain.encode())
    key = authority.new_key()
    new_id = authority_id(key.public_key())
    pem = _build_csr(trust_domain, key)
    keys.put(new_id, key)
    with store.write(now) as writing:
        authorities.put(
            writing,
            new_id,
            "x509-issuing",
            "requested",
            key.public_key(),
            pem.decode(),
            not_before=writing.at,
            not_after=writing.at,
            published_sequence=0,
        )
        writing.record("authority_requested", "", caller, authority=new_id)
    return pem


def _requested(tx: Reading) -> Any:
    table = schema.authorities
    return tx.one(select(table).where(table.c.state == "requested"))


def _build_csr(trust_domain: str, key: PrivateKey) -> bytes:
    """What we hope to get, for whoever signs: the signer's own profile decides."""
    uri = x509.UniformResourceIdentifier(str(SpiffeId.of(trust_domain)))
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Sidewall issuing CA {trust_domain}"[:64])])
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def sign_request(
    csr_pem: bytes,
    root: x509.Certificate,
    root_key: PrivateKey,
    trust_domain: str,
    *,
    now: datetime,
    life: timedelta = authority.ISSUING_LIFE,
    rng: random.Random | None = None,
) -> bytes:
    """Where the offline root is: PEM of the issuing certificate and the root. Of the request, only the public key
    is used, after its proof of possession. Raises NotAllowed, IssueError."""
    if len(csr_pem) > _MAX_CSR:
        raise NotAllowed("the request is longer than 8 kB")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = check_public_key(request.public_key())
        is_proven = request.is_signature_valid
    except Exception as error:  # the parser raises ValueError and a few of its own
        raise NotAllowed(f"the request cannot be used: {str(error)[:200]}") from None
    if not is_proven:
        raise NotAllowed("the request is not signed with its own key")
    rng = rng or random.SystemRandom()
    cert = authority.create_issuing(root, root_key, trust_domain, key, now=now, rng=rng, life=life)
    return certificates_pem([cert, root])


# -- the answer ---------------------------------------------------------------------------------------------


def import_issuing(
    store: Store, trust_domain: str, chain_pem: bytes, now: datetime, caller: CallerFacts
) -> RotationReport:
    chain = _parse(chain_pem)
    with store.write(now) as tx:
        row = _requested(tx)
        if row is None or authority_id(check_public_key(chain[0].public_key())) != row.id:
            raise NoSuchThing("the first certificate is not for the key of our request: start with `sidewall ca csr`")
        _check_chain(chain, trust_domain, now)
        tx.changes(delete(schema.authorities).where(schema.authorities.c.id == row.id))
        state = _put_chain(tx, chain)
        facts = {"authority": row.id, "state": state, "root": authority_id(_key(chain[-1]))}
        tx.record("authority_imported", "", caller, **facts)
    next_step = "activate, when every node trusts it" if state == "prepared" else "nothing: it signs from now on"
    return RotationReport("x509-issuing", "import", row.id, True, next_step=next_step)


def _parse(chain_pem: bytes) -> list[x509.Certificate]:
    try:
        chain = list(parse_certificates("the imported chain", chain_pem))
    except Exception as error:
        raise NotAllowed(str(error)) from None
    if not 2 <= len(chain) <= 5:
        raise NotAllowed("expected 2 to 5 certificates: the issuing one, intermediates, and the root last")
    return chain


def _key(cert: x509.Certificate) -> Any:
    return check_public_key(cert.public_key())


def _check_chain(chain: list[x509.Certificate], trust_domain: str, now: datetime) -> None:
    """By the rules with which peers will judge it. Raises NotAllowed."""
    try:
        for cert in chain:
            check_authority(cert)
        path = build_path(chain[0], chain[1:-1], chain[-1:], trust_domain=trust_domain, now=now)
    except SvidError as error:
        raise NotAllowed(f"the chain cannot be used: {error}") from None
    if list(path.certificates) != chain:
        raise NotAllowed("expected each certificate to be signed by the next, and no others")
    _check_name(chain[0], trust_domain)
    _check_room(chain)
    end = min(cert.not_valid_after_utc for cert in chain)
    if end < now + authority.MAX_TTL:
        raise NotAllowed(f"the chain ends at {end:%Y-%m-%dT%H:%M:%SZ}: too soon to be of use")


def _check_name(own: x509.Certificate, trust_domain: str) -> None:
    """If it names a SPIFFE ID at all, then that of our trust domain without a path (X509-SVID 2, 4.3)."""
    try:
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    if found not in ([], [str(SpiffeId.of(trust_domain))]):
        raise NotAllowed(f"the chain cannot be used: our certificate is made out for {found[0][:200]!a}")


def _check_room(chain: list[x509.Certificate]) -> None:
    """Each pathLen must leave room for the authorities below it (RFC 5280 4.2.1.9)."""
    for below, cert in enumerate(chain):
        length = cert.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        if length is not None and length < below:
            raise NotAllowed(
                f"the chain cannot be used: a pathLen of {length} leaves no room for {below} authorities below"
            )


def _put_chain(tx: Writing, chain: list[x509.Certificate]) -> AuthorityState:
    found = authorities.slots(tx)
    root = making.of_root(chain[-1])
    known = next((slot for slot in found if slot.id == root.id), None)
    has_root = slots.in_state(found, "x509-root", "active") is not None
    if known is None:
        making.put(tx, root, "prepared" if has_root else "active")
    waits = slots.in_state(found, "x509-issuing", "active") is not None or (known is None and has_root)
    state: AuthorityState = "prepared" if waits else "active"
    sequence = known.published_sequence if known else tx.head.bundle_sequence
    making.put(tx, making.of_issuing(chain[:-1], root.id, sequence), state)
    return state
