"""Chains that must be refused, each with the one word for it. The bundle is ``root()`` of trust domain ``td``
unless the entry brings its own; the peer is the client unless it says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from cryptography.hazmat.primitives.serialization import Encoding

from identity.svid import Role, TrustBundle
from tests.unit.identity.pki import (
    EKU,
    HOUR,
    NOW,
    bundles,
    chain,
    der,
    issuing,
    key,
    leaf,
    raw_uri_san,
    root,
    rsa_key,
    rsa_public,
    signing,
    uris,
    usage,
    weakly_signed,
    with_extensions,
)


@dataclass
class Hostile:
    name: str
    why: str
    chain: Callable[[], list[bytes]]
    bundles: Callable[[], Mapping[str, TrustBundle]] = bundles
    role: Role = "client"


def _leaf(why: str, name: str, role: Role = "client", **changes: object) -> Hostile:
    return Hostile(name, why, lambda: chain(leaf(**changes), issuing()), role=role)


def _uri(uri: str, why: str = "not_a_spiffe_id") -> Hostile:
    return _leaf(why, f"URI {uri[:40]!a}", san=uris(uri))


def _raw_uri(uri: bytes, why: str = "not_a_spiffe_id") -> Hostile:
    return _leaf(why, f"URI bytes {uri!a}", san=raw_uri_san(uri))


def _issuing(why: str, name: str, **changes: object) -> Hostile:
    return Hostile(name, why, lambda: chain(leaf(), issuing(**changes)))


def _root(why: str, name: str, **changes: object) -> Hostile:
    return Hostile(name, why, lambda: chain(leaf(), issuing()), lambda: bundles(root(**changes)))


def _bytes(why: str, name: str, change: Callable[[bytes], bytes]) -> Hostile:
    return Hostile(name, why, lambda: [change(der(leaf(serial=5))), der(issuing())])


def _serial(value: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(b"\xa0\x03\x02\x01\x02\x02\x01\x05", b"\xa0\x03\x02\x01\x02\x02\x01" + value, 1)


def _unused_bits(data: bytes) -> bytes:
    """The same signature, said to be a bit shorter: possible when its last bit is zero."""
    serial = 5
    while data[-1] & 1:
        serial += 1
        data = der(leaf(serial=serial))
    at = len(data) - len(x509.load_der_x509_certificate(data).signature) - 1
    return data[:at] + b"\x01" + data[at + 1 :]


def _ladder(steps: int) -> list[bytes]:
    """A leaf under ``steps`` intermediates."""
    names = ["root", *(f"step{n}" for n in range(steps))]
    signers = [signing(name, above) for above, name in pairwise(names)]
    return chain(leaf(issuer=names[-1]), *reversed(signers))


def _maze() -> list[bytes]:
    """Nine authorities of one name that signed one another, and none of them ours."""
    lost = [
        signing("lost", "lost", serial=n + 1, public_key=key(f"lost{n}").public_key(), signer=key(f"lost{n + 1}"))
        for n in range(9)
    ]
    return chain(leaf(issuer="lost", signer=key("lost0")), *lost)


def _forged_root() -> list[bytes]:
    fake = signing("issuing", "root", signer=key("somebody else"))
    return chain(leaf(), fake)


def _weak_leaf(weakness: str) -> Hostile:
    def make() -> list[bytes]:
        signer = rsa_key("issuing")
        below = weakly_signed(leaf(signer=signer), signer, weakness)
        return chain(below, issuing(public_key=signer.public_key()))

    return Hostile(f"leaf signed with {weakness}", "weak_signature", make)


def _weak_issuing(weakness: str) -> Hostile:
    signer = rsa_key("root")

    def make() -> list[bytes]:
        return chain(leaf(), weakly_signed(issuing(signer=signer), signer, weakness))

    return Hostile(
        f"intermediate signed with {weakness}",
        "weak_signature",
        make,
        lambda: bundles(root(public_key=signer.public_key(), signer=signer)),
    )


def _two_domains() -> Mapping[str, TrustBundle]:
    other = signing("other root", "other root")
    return {**bundles(), **bundles(other, trust_domain="other")}


_UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
_NAMES = x509.NameConstraints([x509.DNSName("example.org")], None)
_URI_NAMES = x509.NameConstraints([x509.UniformResourceIdentifier("td")], None)
_POLICY = x509.PolicyConstraints(0, None)
_CA = x509.BasicConstraints(True, None)
_ID = "spiffe://td/ns/a/sa/b"
_SAN = (uris(_ID), False)
_USAGE = (usage("digital_signature"), True)

HOSTILE = [
    # sizes and bytes
    Hostile("nothing presented", "no_certificate", list),
    Hostile("eleven certificates", "chain_too_long", lambda: [der(leaf()), *[der(issuing())] * 10]),
    Hostile(
        "more than 32 kB",
        "chain_too_long",
        lambda: chain(leaf(more=[(x509.UnrecognizedExtension(_UNKNOWN.oid, b"\x04" * 33_000), False)]), issuing()),
    ),
    _bytes("bad_certificate", "no bytes", lambda data: b""),
    _bytes("bad_certificate", "not DER", lambda data: b"GET / HTTP/1.1\r\n"),
    _bytes("bad_certificate", "cut short", lambda data: data[:-1]),
    _bytes("bad_certificate", "a byte too many", lambda data: data + b"\0"),
    _bytes("bad_certificate", "serial number zero", _serial(b"\0")),
    _bytes("bad_certificate", "serial number negative", _serial(b"\x85")),
    _bytes("bad_certificate", "unused bits in the signature", _unused_bits),
    _bytes("untrusted_root", "signature changed", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    Hostile("PEM", "bad_certificate", lambda: [leaf().public_bytes(Encoding.PEM), der(issuing())]),
    Hostile("an intermediate that is no certificate", "bad_certificate", lambda: [der(leaf()), b"\x30\x00"]),
    Hostile(
        "subjectAltName twice",
        "bad_certificate",
        lambda: chain(with_extensions(_SAN, _SAN, _USAGE), issuing()),
    ),
    Hostile(
        "basicConstraints twice",
        "bad_certificate",
        lambda: chain(
            with_extensions(_SAN, _USAGE, (x509.BasicConstraints(False, None), True), (_CA, True)), issuing()
        ),
    ),
    # the name
    _leaf("not_a_spiffe_id", "no subjectAltName", san=None),
    _leaf("not_a_spiffe_id", "no extensions", san=None, basic=None, usage=None, purposes=None),
    _leaf("not_a_spiffe_id", "an ID as DNS name", san=x509.SubjectAlternativeName([x509.DNSName(_ID)])),
    _leaf("not_a_spiffe_id", "an ID as e-mail", san=x509.SubjectAlternativeName([x509.RFC822Name("a@td")])),
    _leaf("not_a_spiffe_id", "an ID as common name", subject=_ID, san=None),
    _leaf("several_uri_sans", "the same URI twice", san=uris(_ID, _ID)),
    _leaf("several_uri_sans", "two IDs", san=uris(_ID, "spiffe://td/admin")),
    _leaf("several_uri_sans", "an ID and a web address", san=uris(_ID, "https://td/ns/a/sa/b")),
    _leaf("several_uri_sans", "a web address and an ID", san=uris("https://td/", _ID)),
    _uri("https://td/ns/a/sa/b"),
    _uri(""),
    _uri("spiffe://td"),
    _uri("spiffe://td/"),
    _uri("SPIFFE://td/a"),
    _uri("spiffe://TD/a"),
    _uri("spiffe://td:443/a"),
    _uri("spiffe://x@td/a"),
    _uri("spiffe://td/a?b"),
    _uri("spiffe://td/a#b"),
    _uri("spiffe://td/a%2fb"),
    _uri("spiffe://td//a"),
    _uri("spiffe://td/a/../b"),
    _uri("spiffe://td/a/"),
    _uri("spiffe://td/a b"),
    _uri("spiffe://td/" + "x" * 2040),
    _uri("spiffe://" + "x" * 256 + "/a"),
    _raw_uri(b"spiffe://td/a\0"),
    _raw_uri(b"spiffe://td/a\0.evil"),
    _raw_uri(b"spiffe://td/a\r\nx: y"),
    _raw_uri(b"spiffe://td/a\n"),
    _raw_uri(b"spiffe://td/\xc3\xa9"),
    _raw_uri(b"spiffe://td/\xff", "bad_certificate"),
    # the path
    _uri("spiffe://elsewhere/a", "trust_domain"),
    Hostile(
        "an empty bundle",
        "untrusted_root",
        lambda: chain(leaf(), issuing()),
        lambda: {"td": TrustBundle("td", ())},
    ),
    Hostile("no intermediate", "untrusted_root", lambda: chain(leaf())),
    Hostile("self-signed", "untrusted_root", lambda: chain(leaf(issuer="leaf"))),
    Hostile(
        "self-signed in the name of the root",
        "untrusted_root",
        lambda: chain(leaf(issuer="root", signer=key())),
    ),
    Hostile("an intermediate of a false root", "untrusted_root", _forged_root),
    Hostile("a false root in the chain", "untrusted_root", lambda: chain(leaf(issuer="x"), signing("x", "x"))),
    Hostile(
        "an ID of td signed by the root of other",
        "untrusted_root",
        lambda: chain(leaf(issuer="other root")),
        _two_domains,
    ),
    Hostile(
        "an ID of other signed by the root of td",
        "untrusted_root",
        lambda: chain(leaf(san=uris("spiffe://other/a")), issuing()),
        _two_domains,
    ),
    Hostile(
        "signed by another workload",
        "bad_certificate",
        lambda: chain(leaf(subject="second", issuer="leaf"), leaf(), issuing()),
    ),
    Hostile("five intermediates", "chain_too_long", lambda: _ladder(5)),
    Hostile("nine intermediates", "chain_too_long", lambda: _ladder(9)),
    Hostile("a maze of names", "chain_too_long", _maze),
    _leaf("expired", "leaf expired", not_after=NOW - HOUR / 60, not_before=NOW - HOUR),
    _leaf("not_yet_valid", "leaf not yet valid", not_before=NOW + HOUR / 60, not_after=NOW + HOUR),
    _issuing("expired", "intermediate expired", not_after=NOW - HOUR),
    _issuing("not_yet_valid", "intermediate not yet valid", not_before=NOW + HOUR),
    _root("expired", "root expired", not_after=NOW - HOUR),
    _root("not_yet_valid", "root not yet valid", not_before=NOW + HOUR),
    _issuing("bad_certificate", "intermediate without basicConstraints", basic=None),
    _issuing("bad_certificate", "intermediate that is no CA", basic=x509.BasicConstraints(False, None)),
    _issuing("key_usage", "intermediate without keyUsage", usage=None),
    _issuing("key_usage", "intermediate without keyCertSign", usage=usage("digital_signature", "crl_sign")),
    _root("key_usage", "root without keyCertSign", usage=usage("crl_sign")),
    _root("bad_certificate", "root that is no CA", basic=None),
    _root("chain_too_long", "root with pathLen 0", basic=x509.BasicConstraints(True, 0)),
    Hostile(
        "an intermediate below one with pathLen 0",
        "chain_too_long",
        lambda: chain(leaf(issuer="sub"), signing("sub", "issuing"), issuing(basic=x509.BasicConstraints(True, 0))),
    ),
    _leaf("bad_certificate", "leaf with an unknown critical extension", more=[(_UNKNOWN, True)]),
    _issuing("bad_certificate", "intermediate with an unknown critical extension", more=[(_UNKNOWN, True)]),
    _root("bad_certificate", "root with an unknown critical extension", more=[(_UNKNOWN, True)]),
    _leaf("bad_certificate", "leaf with name constraints", more=[(_NAMES, True)]),
    _issuing("bad_certificate", "intermediate with name constraints", more=[(_NAMES, True)]),
    _issuing("bad_certificate", "with name constraints that are not critical", more=[(_URI_NAMES, False)]),
    _root("bad_certificate", "root with name constraints", more=[(_URI_NAMES, True)]),
    _issuing("bad_certificate", "intermediate with policy constraints", more=[(_POLICY, True)]),
    _issuing("trust_domain", "intermediate of another trust domain", san=uris("spiffe://other")),
    _issuing("trust_domain", "intermediate with a workload's ID", san=uris("spiffe://td/ca")),
    # the leaf
    _leaf("leaf_is_ca", "leaf with cA", basic=_CA),
    _leaf("leaf_is_ca", "leaf with cA and keyCertSign", basic=_CA, usage=usage("key_cert_sign")),
    Hostile(
        "the root itself",
        "leaf_is_ca",
        lambda: chain(root(san=uris(_ID))),
        lambda: bundles(root(san=uris(_ID))),
    ),
    _leaf("key_usage", "no keyUsage", usage=None),
    _leaf("key_usage", "keyUsage not critical", usage_critical=False),
    _leaf("key_usage", "no digitalSignature", usage=usage("key_encipherment")),
    _leaf("key_usage", "keyCertSign", usage=usage("digital_signature", "key_cert_sign")),
    _leaf("key_usage", "cRLSign", usage=usage("digital_signature", "crl_sign")),
    _leaf("extended_key_usage", "a client with serverAuth only", purposes=[EKU.SERVER_AUTH]),
    _leaf("extended_key_usage", "a server with clientAuth only", role="server", purposes=[EKU.CLIENT_AUTH]),
    _leaf("extended_key_usage", "code signing only", purposes=[EKU.CODE_SIGNING]),
    _leaf("extended_key_usage", "any purpose only", purposes=[EKU.ANY_EXTENDED_KEY_USAGE]),
    _leaf("weak_key", "leaf with RSA 1024", public_key=rsa_public(1024)),
    _leaf("weak_key", "leaf with RSA 2047", public_key=rsa_public(2047)),
    _leaf("weak_key", "leaf with RSA 16384", public_key=rsa_public(16384)),
    _leaf("weak_key", "leaf with P-521", public_key=ec.derive_private_key(5, ec.SECP521R1()).public_key()),
    _leaf("weak_key", "leaf with secp256k1", public_key=ec.derive_private_key(5, ec.SECP256K1()).public_key()),
    _leaf("weak_key", "leaf with Ed448", public_key=ed448.Ed448PrivateKey.generate().public_key()),
    _issuing("weak_key", "intermediate with RSA 1024", public_key=rsa_public(1024)),
    _issuing("weak_key", "intermediate with RSA 16384", public_key=rsa_public(16384)),
    _weak_leaf("sha1"),
    _weak_leaf("md5"),
    _weak_leaf("sha224"),
    _weak_leaf("md2"),
    _weak_issuing("sha1"),
    _weak_issuing("sha224"),
]
