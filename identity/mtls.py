"""Mutual TLS with X509-SVIDs: pyOpenSSL contexts out of one ``X509Context``, and who stands at the other end.

A peer is judged twice. During the handshake OpenSSL builds the path and our verify callback looks at the
leaf, so that a refused peer gets an alert instead of a connection. OpenSSL's store is one for all trust
domains, though, and cannot say "this authority vouches for that trust domain only". So after **every**
handshake ``peer_identity`` judges the presented chain again, from its DER and by ``svid.check_peer_chain``;
that verdict, remembered per chain, is the one that counts (S-2).

Nothing is resumed (S-3). A resumed session would carry an identity past the end of its certificate, as SPIRE
1.14.3, nginx (CVE-2025-23419) and Envoy (CVE-2022-21654) had to learn. The session cache is off and
``OP_NO_TICKET`` is set; there is no early data and no renegotiation. In TLS 1.3 OpenSSL before 4.1
nevertheless sends two tickets of 79 bytes that only name an entry of the session cache, which does not
exist: they cannot be redeemed (tested). OpenSSL 4.1 omits them for exactly these two settings. Older ones
omit them after ``SSL_CTX_set_num_tickets(0)``, which pyOpenSSL does not offer; ``NO_TICKETS_CONF`` in the
file that ``OPENSSL_CONF`` names when the process starts does the same, and does no harm with newer ones.

The groups are left as OpenSSL has them: X25519MLKEM768 first, so that two of us always agree on a
post-quantum hybrid (draft-ietf-tls-ecdhe-mlkem; tested), and X25519 or P-256 with everybody else.

This module and the users of its contexts in ``proxy/net`` are the only ones that import OpenSSL.
"""

from __future__ import annotations

import hashlib
import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, NamedTuple
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from OpenSSL import SSL, crypto

from identity.svid import (
    PeerIdentity,
    Role,
    SvidError,
    TrustBundle,
    X509Context,
    check_leaf,
    check_peer_chain,
    load_certificate,
)
from identity.x509_rules import MAX_DEPTH, trust_domains_of

NO_TICKETS_CONF: Final = """\
openssl_conf = openssl_init
[openssl_init]
ssl_conf = ssl_conf
[ssl_conf]
system_default = system_default
[system_default]
NumTickets = 0
"""

# TLS 1.2 only with forward secrecy and AEAD (S-1, RFC 9325 4.2).
_TLS12_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
# AES-128 first: its handshake hash is SHA-256, which common CPUs have in hardware.
_TLS13_SUITES: Final = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
_MINIMUM: Final = {"1.2": SSL.TLS1_2_VERSION, "1.3": SSL.TLS1_3_VERSION}
_MAX_LEAVES: Final = 4096  # leafs whose rules were found kept; about 100 bytes each

_CODES = SSL.X509VerificationCodes
# What OpenSSL found before the leaf was ours to judge. Everything else is "bad_certificate".
_WORDS: Final = {
    _CODES.ERR_CERT_HAS_EXPIRED: "expired",
    _CODES.ERR_CERT_NOT_YET_VALID: "not_yet_valid",
    _CODES.ERR_CERT_CHAIN_TOO_LONG: "chain_too_long",
    _CODES.ERR_PATH_LENGTH_EXCEEDED: "chain_too_long",
    _CODES.ERR_KEYUSAGE_NO_CERTSIGN: "key_usage",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: "untrusted_root",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "untrusted_root",
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "untrusted_root",
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "untrusted_root",
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: "untrusted_root",
    _CODES.ERR_CERT_SIGNATURE_FAILURE: "untrusted_root",
    _CODES.ERR_CERT_UNTRUSTED: "untrusted_root",
    # X509_V_ERR_EE_KEY_TOO_SMALL, _CA_KEY_TOO_SMALL, _CA_MD_TOO_WEAK: x509_vfy.h; pyOpenSSL has no names
    66: "weak_key",
    67: "weak_key",
    68: "weak_signature",
}
# What a failed handshake says in OpenSSL's reason texts (lower case), first hit counts.
_TEXTS: Final = (
    ("peer did not return a certificate", "no_certificate"),
    ("no application protocol", "alpn"),
    ("unexpected eof", "closed"),
    ("alert", "closed"),  # the peer refused us: the text says why
)


class NoCommonProtocol(SSL.Error):
    """The client offered application protocols, and we speak none of them (RFC 7301 3.2). pyOpenSSL turns
    an exception in the callback into the alert no_application_protocol and raises it from do_handshake."""


class TlsFacts(NamedTuple):
    """What was negotiated. ``alpn`` is empty when the client offered nothing: HTTP/1.1 then (S-5)."""

    version: str  # "TLSv1.3"
    cipher: str  # "TLS_AES_128_GCM_SHA256"
    group: str  # "X25519MLKEM768"
    alpn: bytes


def server_context(
    context: X509Context,
    *,
    alpn: Sequence[bytes],
    minimum: Literal["1.3", "1.2"] = "1.3",
    strangers: bool = False,
) -> SSL.Context:
    """A context for accepting: a client certificate is required. ``alpn`` in order of our preference; a
    client that offers none gets none, one that offers only others an alert. ``strangers``: a certificate is
    asked for, and who shows none comes in all the same, without an identity (attestation to the authority).

    Raises SSL.Error when OpenSSL does not take the SVID."""
    made = SSL.Context(SSL.TLS_SERVER_METHOD)
    made.set_options(SSL.OP_CIPHER_SERVER_PREFERENCE)
    _fill(made, context.bundles, "client", minimum)
    _use_svid(made, context)
    if strangers:
        made.set_verify(SSL.VERIFY_PEER, made.get_app_data())
    if alpn:
        made.set_alpn_select_callback(_alpn_choice(tuple(alpn)))
    return made


def client_context(
    context: X509Context, *, alpn: Sequence[bytes], minimum: Literal["1.3", "1.2"] = "1.3"
) -> SSL.Context:
    """A context for dialling. It checks no host name: the SPIFFE ID is the name, and comparing it with what
    was configured (S-7) is for the caller of ``peer_identity``. Raises SSL.Error."""
    made = SSL.Context(SSL.TLS_CLIENT_METHOD)
    _fill(made, context.bundles, "server", minimum)
    _use_svid(made, context)
    if alpn:
        made.set_alpn_protos(list(alpn))
    return made


def stranger_context(bundles: Mapping[str, TrustBundle], *, alpn: Sequence[bytes]) -> SSL.Context:
    """A context for dialling by someone who has no SVID yet: the server is judged as always, by ``bundles``."""
    made = SSL.Context(SSL.TLS_CLIENT_METHOD)
    _fill(made, bundles, "server", "1.3")
    made.set_alpn_protos(list(alpn))
    return made


def peer_identity(
    conn: SSL.Connection,
    context: X509Context | Mapping[str, TrustBundle],
    *,
    now: datetime,
    role: Role | None = None,
) -> PeerIdentity:
    """Judge the peer of a finished handshake from the DER that it presented. To be called every time.

    ``context`` (or only its bundles) may be newer than the one the handshake began with; the newer bundle then
    decides. ``role`` is the peer's part and known from our own contexts; a wrong one raises ValueError. Raises
    SvidError."""
    expected = _verifier(conn).peer_role
    if role is not None and role != expected:
        raise ValueError(f"the peer of this connection is the {expected}")
    bundles = context.bundles if isinstance(context, X509Context) else context
    return check_peer_chain(presented_chain(conn), bundles, now=now, role=expected)


def presented_chain(conn: SSL.Connection) -> list[bytes]:
    """The certificates the peer sent, as DER, leaf first; empty when there are none."""
    leaf = conn.get_peer_certificate()
    if leaf is None:
        return []
    # A client gets the leaf as part of the chain, a server does not (SSL_get_peer_cert_chain(3)).
    ders = [_der(cert) for cert in conn.get_peer_cert_chain() or ()]
    leaf_der = _der(leaf)
    return ders if ders[:1] == [leaf_der] else [leaf_der, *ders]


def _der(cert: crypto.X509) -> bytes:
    """Without a detour over ``cryptography``, which would parse what is mostly known already."""
    return crypto.dump_certificate(crypto.FILETYPE_ASN1, cert)


def tls_facts(conn: SSL.Connection) -> TlsFacts:
    """Version, cipher, group and application protocol of a finished handshake."""
    return TlsFacts(
        conn.get_protocol_version_name(),
        conn.get_cipher_name() or "",
        conn.get_group_name() or "",
        conn.get_alpn_proto_negotiated(),
    )


def handshake_failure(conn: SSL.Connection, error: Exception) -> SvidError:
    """The word for a handshake that ended with ``error``: our own refusal if there was one."""
    refusal = _verifier(conn).refusals.get(conn)
    if refusal is not None:
        return refusal
    if isinstance(error, NoCommonProtocol):
        return SvidError("alpn", "no common application protocol")
    if isinstance(error, (SSL.SysCallError, SSL.ZeroReturnError, OSError)):
        return SvidError("closed", str(error))
    reasons = error.args[0] if error.args and isinstance(error.args[0], list) else []
    text = "; ".join(str(entry[-1]) for entry in reasons)
    words = (word for part, word in _TEXTS if part in text.lower())
    return SvidError(next(words, "protocol"), text)


def openssl_version() -> str:
    """The library that does the cryptography, for versions and metrics."""
    return SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode("ascii", "replace")


# -- contexts -----------------------------------------------------------------------------------------------


def _fill(made: SSL.Context, bundles: Mapping[str, TrustBundle], peer_role: Role, minimum: str) -> None:
    made.set_min_proto_version(_MINIMUM[minimum])
    made.set_cipher_list(_TLS12_CIPHERS)
    made.set_tls13_ciphersuites(_TLS13_SUITES)
    made.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    made.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    made.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 34 kB less for each idle connection (F-14)
    _trust(made, bundles)
    verifier = _Verifier(bundles, peer_role)
    made.set_app_data(verifier)
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verifier)
    made.set_verify_depth(MAX_DEPTH - 1)  # OpenSSL counts the intermediates only


def _use_svid(made: SSL.Context, context: X509Context) -> None:
    leaf, *intermediates = context.svid.chain
    made.use_certificate(leaf)
    for cert in intermediates:
        made.add_extra_chain_cert(cert)
    made.use_privatekey(context.svid.key)
    made.check_privatekey()
    for cert in _vouched_intermediates(context):
        _store(made).add_cert(crypto.X509.from_cryptography(cert))


def _trust(made: SSL.Context, bundles: Mapping[str, TrustBundle]) -> None:
    store = _store(made)
    # An authority of a bundle is an anchor whether or not it is self-signed, as with Go's x509.Verify.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    for bundle in bundles.values():
        for cert in bundle.authorities:
            store.add_cert(crypto.X509.from_cryptography(cert))


def _store(made: SSL.Context) -> crypto.X509Store:
    store = made.get_cert_store()
    if store is None:  # cannot be: OpenSSL makes one with each context
        raise SSL.Error("the context has no certificate store")
    return store


def _vouched_intermediates(context: X509Context) -> list[x509.Certificate]:
    """Those of our own intermediates that an authority of our bundle signed.

    Most peers come from the same issuing authority. With it in the store OpenSSL ends the path there and
    spares one verification with the root's key in each handshake: 70 us with P-256, 490 us with P-384. The
    check after the handshake goes up to the root regardless, once for each chain."""
    authorities = context.bundle.authorities if context.bundle else ()
    return [cert for cert in context.svid.chain[1:] if any(_issued_by(cert, root) for root in authorities)]


def _issued_by(cert: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        cert.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _alpn_choice(ours: tuple[bytes, ...]) -> Callable[[SSL.Connection, list[bytes]], bytes]:
    def choose(_conn: SSL.Connection, offered: list[bytes]) -> bytes:
        for protocol in ours:
            if protocol in offered:
                return protocol
        raise NoCommonProtocol([("SSL routines", "", "no common application protocol")])

    return choose


# -- the verify callback ------------------------------------------------------------------------------------


class _Verifier:
    """OpenSSL asks it once for each certificate of a path, authority first, and once for each error.

    It never raises, and what it cannot judge it refuses. The reason is kept with the connection until
    ``handshake_failure`` asks for it, because an alert can carry none of our words."""

    def __init__(self, bundles: Mapping[str, TrustBundle], peer_role: Role) -> None:
        self.peer_role: Role = peer_role
        self.refusals: WeakKeyDictionary[SSL.Connection, SvidError] = WeakKeyDictionary()
        self._trust_domains = frozenset(bundles)
        self._kept: set[bytes] = set()

    def __call__(self, conn: SSL.Connection, cert: crypto.X509, code: int, depth: int, ok: int) -> bool:
        try:
            if not ok:
                raise self._openssl_refusal(cert.to_cryptography(), code)
            if depth == 0:
                self._check_leaf(_der(cert))
        except SvidError as error:
            return self._refuse(conn, error)
        except Exception as error:  # the library could not even parse it: refused (SECURITY.md section 6)
            return self._refuse(conn, SvidError("bad_certificate", type(error).__name__))
        return True

    def _refuse(self, conn: SSL.Connection, error: SvidError) -> bool:
        # A copy: the traceback of the raised one holds the connection, which would then never be freed.
        self.refusals[conn] = SvidError(error.why, error.detail)
        return False

    def _check_leaf(self, der: bytes) -> None:
        # The rules of a leaf do not depend on the time, so a leaf that kept them keeps them.
        fingerprint = hashlib.sha256(der).digest()
        if fingerprint in self._kept:
            return
        spiffe_id = check_leaf(load_certificate(der), role=self.peer_role)
        if spiffe_id.trust_domain not in self._trust_domains:
            raise SvidError("trust_domain", f"there is no bundle for {spiffe_id.trust_domain}")
        if len(self._kept) >= _MAX_LEAVES:
            self._kept.clear()
        self._kept.add(fingerprint)

    def _openssl_refusal(self, cert: x509.Certificate, code: int) -> SvidError:
        word = _WORDS.get(code, "bad_certificate")
        if word == "untrusted_root" and (strange := trust_domains_of(cert) - self._trust_domains):
            return SvidError("trust_domain", f"there is no bundle for {min(strange)}")
        if code == _CODES.ERR_INVALID_PURPOSE:
            check_leaf(cert, role=self.peer_role)  # says which rule, if it is the leaf
        return SvidError(word, f"OpenSSL verification error {code}")


def _verifier(conn: SSL.Connection) -> _Verifier:
    verifier = conn.get_context().get_app_data()
    if not isinstance(verifier, _Verifier):
        raise TypeError("the connection was not made with a context of this module")
    return verifier


def chain_shown_to_strangers(sock: socket.socket) -> list[bytes]:
    """The DER chain that the server at the other end of ``sock`` presents to a client without certificate.

    For showing and judging only: nothing is believed because of this handshake, and nothing is sent over it.
    ``sock`` must be connected and have a timeout. Empty when the handshake did not get that far."""
    seen: list[bytes] = []

    def note(conn: SSL.Connection, cert: crypto.X509, code: int, depth: int, ok: int) -> bool:
        if depth == 0 and not seen:
            seen.extend(presented_chain(conn))
        return True

    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_verify(SSL.VERIFY_PEER, note)
    timeout = sock.gettimeout()
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(timeout or 10), 0))
    conn = SSL.Connection(context, sock)
    conn.set_connect_state()
    try:
        conn.do_handshake()
        seen[:] = presented_chain(conn)
    except SSL.Error:
        seen[:] = presented_chain(conn) or seen  # refused for want of a certificate: the chain came before
    return seen
