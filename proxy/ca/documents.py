"""Forms in which certificates, bundles and tokens travel, made and read in one place."""

from __future__ import annotations

import base64
import json
from typing import Final

from cryptography import x509

from identity.bundle import Bundle
from identity.ca.bundles import OwnBundle
from identity.svid import MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES
from identity.workload_source import split_certificates

EMPTY_DOCUMENT: Final = b'{"keys":[]}'  # kept for a trust domain that is followed and was not reached yet


def own_document(bundle: OwnBundle) -> bytes:
    """Our bundle as JWKS."""
    whole = Bundle(bundle.trust_domain, bundle.roots, bundle.jwt_keys, bundle.sequence, bundle.refresh_hint)
    return whole.document()


def certificates_of(chain: bytes) -> list[x509.Certificate]:
    """Concatenated DER certificates, leaf first. Raises ValueError, SvidError."""
    if not 0 < len(chain) <= MAX_CHAIN_BYTES:
        raise ValueError("no chain of certificates")
    found = list(split_certificates(chain))
    if len(found) > MAX_CHAIN_CERTIFICATES:
        raise ValueError("too many certificates")
    return found


def jwt_end(token: str) -> float:
    """``exp`` of a token that we have just made."""
    payload = token.split(".")[1]
    return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
