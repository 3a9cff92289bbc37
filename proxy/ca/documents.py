"""Forms in which certificates, bundles and tokens travel, made and read in one place."""

from __future__ import annotations

import base64
import json
from typing import Final

from cryptography import x509

from identity.bundle import Bundle
from identity.ca.bundles import OwnBundle
from identity.svid import MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES
from identity.x509_rules import load_certificate

EMPTY_DOCUMENT: Final = b'{"keys":[]}'  # kept for a trust domain that is followed and was not reached yet


def own_document(bundle: OwnBundle) -> bytes:
    """Our bundle as JWKS."""
    whole = Bundle(bundle.trust_domain, bundle.roots, bundle.jwt_keys, bundle.sequence, bundle.refresh_hint)
    return whole.document()


def certificates_of(chain: bytes) -> list[x509.Certificate]:
    """Concatenated DER certificates, leaf first. Raises ValueError, SvidError."""
    if not 0 < len(chain) <= MAX_CHAIN_BYTES:
        raise ValueError("no chain of certificates")
    found = []
    while chain:
        size = _length(chain)
        found.append(load_certificate(chain[:size]))
        chain = chain[size:]
        if len(found) > MAX_CHAIN_CERTIFICATES:
            raise ValueError("too many certificates")
    return found


def _length(der: bytes) -> int:
    """Of the SEQUENCE that ``der`` begins with, its head included (X.690 8.1.3)."""
    if len(der) < 4 or der[0] != 0x30 or der[1] not in (0x81, 0x82):
        raise ValueError("not a certificate in DER")
    count = der[1] & 0x7F
    return 2 + count + int.from_bytes(der[2 : 2 + count], "big")


def jwt_end(token: str) -> float:
    """``exp`` of a token that we have just made."""
    payload = token.split(".")[1]
    return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
