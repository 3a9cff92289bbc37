"""What a certificate request is good for: its public key, and the proof that the sender has the private one (C-4).

Names, extensions and everything else in it are never looked at, so nothing in it can ask for anything.
"""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from identity.ca_api import MAX_CSR
from identity.rpc import Status
from identity.x509_rules import PublicKey, SvidError, check_public_key
from proxy.ca.work import Refused

_DIGESTS: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_ED25519: Final = "1.3.101.112"


def proven_key(der: bytes) -> PublicKey:
    """The public key of a request in DER, cheap checks first. Raises Refused INVALID_ARGUMENT."""
    if not 0 < len(der) <= MAX_CSR:
        raise _refused(f"a request has 1 to {MAX_CSR} bytes, not {len(der)}")
    try:
        request = x509.load_der_x509_csr(der)
        key = check_public_key(request.public_key())
        _check_algorithm(request)
        proven = request.is_signature_valid
    except SvidError as error:
        raise _refused(error.detail or error.why) from None
    except Refused:
        raise
    except Exception:  # bytes from the network: the parser is lazy, and raises many things at many places
        raise _refused("it is not a certificate request in DER") from None
    if not proven:
        raise _refused("it is not signed by the key in it")
    return key


def _check_algorithm(request: x509.CertificateSigningRequest) -> None:
    if request.signature_algorithm_oid.dotted_string == _ED25519:
        return
    try:
        digest = request.signature_hash_algorithm
    except UnsupportedAlgorithm:
        digest = None
    if not isinstance(digest, _DIGESTS):
        raise _refused("its signature algorithm is not one of SHA-256, SHA-384, SHA-512 and Ed25519")


def _refused(why: str) -> Refused:
    return Refused(f"the certificate request is refused: {why}", Status.INVALID_ARGUMENT)
