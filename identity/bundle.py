"""Trust bundles as documents: the JWKS form in which trust domains publish their authorities.

SPIFFE Trust Domain and Bundle 4: ``keys`` with ``use`` "x509-svid" (one certificate in ``x5c``) or "jwt-svid" (a
``kid``), ``spiffe_sequence`` and ``spiffe_refresh_hint``. Keys of another use are ignored, as are members we do not
know. A document without a ``keys`` member, or one of whose keys is malformed, is refused whole: half a bundle would
refuse peers for no reason that anybody could see. An empty ``keys`` means that nothing is trusted.

Which trust domain a document is about does not stand in it: whoever fetched it says so, and it vouches for that one.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from identity.spiffe import check_trust_domain
from identity.svid import SvidError, TrustBundle, check_authority, load_certificate

JwtKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

MAX_DOCUMENT: Final = 1024 * 1024  # bytes
MAX_KEYS: Final = 1000
DEFAULT_REFRESH: Final = 300.0  # seconds, where a document gives no hint
_X509: Final = "x509-svid"
_JWT: Final = "jwt-svid"
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_LEAST_RSA, _MOST_RSA = 2048, 8192
_MAX_KID: Final = 256  # characters
_MAX_NUMBER: Final = 2**53  # what every reader of JSON can hold


class BundleError(ValueError):
    """A document that cannot be used; the text says which key and why."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The authorities of one trust domain. ``roots``: X.509; ``jwt_keys``: by ``kid``; ``sequence``: moves with each
    change, 0 where none is given; ``refresh_hint``: seconds."""

    trust_domain: str
    roots: tuple[x509.Certificate, ...] = field(default=(), repr=False)
    jwt_keys: Mapping[str, JwtKey] = field(default_factory=dict, repr=False)
    sequence: int = 0
    refresh_hint: float = DEFAULT_REFRESH

    @property
    def trust_bundle(self) -> TrustBundle:
        """The X.509 part, by which peers are judged."""
        return TrustBundle(self.trust_domain, self.roots)

    def document(self) -> bytes:
        """The whole as JWKS."""
        keys = [_x509_jwk(root) for root in self.roots]
        return self._rendered(keys + [_jwt_jwk(kid, key) for kid, key in self.jwt_keys.items()])

    def jwt_document(self) -> bytes:
        """The JWT authorities alone, as the Workload API's FetchJWTBundles gives them."""
        return self._rendered([_jwt_jwk(kid, key) for kid, key in self.jwt_keys.items()])

    def _rendered(self, keys: list[dict[str, Any]]) -> bytes:
        whole: dict[str, Any] = {"keys": keys}
        if self.sequence:
            whole["spiffe_sequence"] = self.sequence
        whole["spiffe_refresh_hint"] = max(int(self.refresh_hint), 1)
        return json.dumps(whole, separators=(",", ":")).encode()


def parse(document: bytes | str, trust_domain: str) -> Bundle:
    """The bundle that ``document`` holds, for ``trust_domain``. Raises BundleError, SpiffeIdError for the name."""
    check_trust_domain(trust_domain)
    whole = _object(document)
    keys = whole.get("keys")
    if not isinstance(keys, list):
        raise BundleError("the document has no list of keys")
    if len(keys) > MAX_KEYS:
        raise BundleError(f"more than {MAX_KEYS} keys")
    roots: list[x509.Certificate] = []
    jwt_keys: dict[str, JwtKey] = {}
    for number, key in enumerate(keys):
        try:
            _read_key(key, roots, jwt_keys)
        except ValueError as error:
            raise BundleError(f"keys[{number}]: {error}") from None
    return Bundle(trust_domain, tuple(roots), jwt_keys, _sequence(whole), _refresh_hint(whole))


def accept(held: Bundle | None, document: bytes, trust_domain: str) -> Bundle:
    """The bundle of a fetched document, to be held in place of ``held`` (C-16). Raises BundleError for one that would
    go back, that changes without a new number, or that cannot be read: ``held`` then stays."""
    offered = parse(document, trust_domain)
    if held is None:
        return offered
    if offered.sequence < held.sequence:
        raise BundleError(f"the bundle of {trust_domain} would go back from {held.sequence} to {offered.sequence}")
    if offered.sequence and offered.sequence == held.sequence and not same(offered, held):
        raise BundleError(f"the bundle of {trust_domain} has changed, but is still number {held.sequence}")
    return offered


def same(one: Bundle, other: Bundle) -> bool:
    """Whether both trust the same keys of the same trust domain."""
    return (
        one.trust_bundle.digest == other.trust_bundle.digest
        and one.jwt_keys.keys() == other.jwt_keys.keys()
        and all(key == other.jwt_keys[kid] for kid, key in one.jwt_keys.items())
    )


# -- reading ----------------------------------------------------------------------------------------------------


def _object(document: bytes | str) -> dict[str, Any]:
    if len(document) > MAX_DOCUMENT:
        raise BundleError(f"the document is longer than {MAX_DOCUMENT} bytes")
    try:
        whole = json.loads(document)
    except (ValueError, RecursionError):
        raise BundleError("the document is not JSON") from None
    if not isinstance(whole, dict):
        raise BundleError("the document is not an object")
    return whole


def _read_key(key: object, roots: list[x509.Certificate], jwt_keys: dict[str, JwtKey]) -> None:
    """Raises ValueError."""
    if not isinstance(key, dict):
        raise ValueError("not an object")  # noqa: TRY004 (a kind of malformed document)
    use = key.get("use")
    if use == _X509:
        roots.append(_certificate(key))
    elif use == _JWT:
        kid = key.get("kid")
        if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID:
            raise ValueError("a jwt-svid key needs a kid")
        if kid in jwt_keys:
            raise ValueError(f"kid {kid!a} is there twice")
        jwt_keys[kid] = _public_key(key)


def _certificate(key: Mapping[str, Any]) -> x509.Certificate:
    chain = key.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise ValueError("an x509-svid key needs exactly one certificate in x5c")
    try:
        found = load_certificate(base64.b64decode(chain[0], validate=True))
        check_authority(found)
    except (SvidError, binascii.Error) as error:
        raise ValueError(f"x5c: {error}") from None
    return found


def _public_key(key: Mapping[str, Any]) -> JwtKey:
    if "d" in key or key.get("kty") not in ("EC", "RSA"):
        raise ValueError("not a public key of type EC or RSA")
    algorithm = "ES256" if key["kty"] == "EC" else "RS256"
    try:
        reader = jwt.get_algorithm_by_name(algorithm)
        found = reader.from_jwk(dict(key))
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        raise ValueError("not a well-formed key") from None
    return check_jwt_key(found)


def check_jwt_key(key: object) -> JwtKey:
    """A key that may sign JWT-SVIDs. Raises ValueError."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise ValueError(f"the curve {key.curve.name} is not among P-256, P-384 and P-521")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        if not _LEAST_RSA <= key.key_size <= _MOST_RSA:
            raise ValueError(f"an RSA key of {key.key_size} bits is not between {_LEAST_RSA} and {_MOST_RSA}")
        return key
    raise ValueError("not a public key of type EC or RSA")


def _sequence(whole: Mapping[str, Any]) -> int:
    found = whole.get("spiffe_sequence", 0)
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _MAX_NUMBER:
        raise BundleError("spiffe_sequence is not a number")
    return found


def _refresh_hint(whole: Mapping[str, Any]) -> float:
    found = whole.get("spiffe_refresh_hint", DEFAULT_REFRESH)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= _MAX_NUMBER:
        raise BundleError("spiffe_refresh_hint is not a number")
    return float(found) or DEFAULT_REFRESH


# -- writing ----------------------------------------------------------------------------------------------------


def _x509_jwk(root: x509.Certificate) -> dict[str, Any]:
    der = root.public_bytes(Encoding.DER)
    return {**_jwk(root.public_key()), "use": _X509, "x5c": [base64.b64encode(der).decode("ascii")]}


def _jwt_jwk(kid: str, key: JwtKey) -> dict[str, Any]:
    return {**_jwk(key), "use": _JWT, "kid": kid}


def _jwk(key: object) -> dict[str, Any]:
    """The members of the public key itself; a kind that JWK readers of SPIFFE do not know stands in x5c only."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return _members("ES256", key, ("kty", "crv", "x", "y"))
    if isinstance(key, rsa.RSAPublicKey):
        return _members("RS256", key, ("kty", "n", "e"))
    return {"kty": "OKP"}


def _members(algorithm: str, key: JwtKey, names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {name: found[name] for name in names}
