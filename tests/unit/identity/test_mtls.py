"""Real handshakes in memory between our own contexts, and between ours and odd ones."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from OpenSSL import SSL

from identity import authority, mtls
from identity.authority import Authority
from identity.spiffe import SpiffeId
from identity.svid import SvidError, TrustBundle, X509Context
from tests.unit.identity import pki

# OpenSSL asks the real clock, so the certificates here are valid around the real now.
NOW = datetime.now(UTC)
RNG = random.Random(7)
H2 = b"h2"
H1 = b"http/1.1"


class World:
    """A trust domain with its authorities."""

    def __init__(self, trust_domain: str, curve: authority.Curve = "P-256") -> None:
        root_key, issuing_key = authority.new_key(curve), authority.new_key()
        root = authority.create_root(trust_domain, root_key, now=NOW, rng=RNG)
        issuing = authority.create_issuing(root, root_key, trust_domain, issuing_key.public_key(), now=NOW, rng=RNG)
        self.authority = Authority(trust_domain, (issuing,), issuing_key)
        self.bundle = TrustBundle(trust_domain, (root,))

    def context(self, name: str, *others: World) -> X509Context:
        spiffe_id = SpiffeId.of(self.bundle.trust_domain, f"/ns/a/sa/{name}")
        svid = authority.issue(self.authority, self.bundle, spiffe_id, now=NOW, rng=RNG)
        return X509Context(svid, {world.bundle.trust_domain: world.bundle for world in (self, *others)})


TD = World("td")
OTHER = World("other")
SERVER = TD.context("server")
CLIENT = TD.context("client")


class Handshake:
    """Two connections over memory, and what became of them."""

    def __init__(self, server: SSL.Context, client: SSL.Context) -> None:
        self.server = SSL.Connection(server, None)
        self.server.set_accept_state()
        self.client = SSL.Connection(client, None)
        self.client.set_connect_state()
        self.errors: dict[str, Exception] = {}
        self.from_server: list[bytes] = []

    def run(self) -> Handshake:
        for _ in range(4):
            self._step("client", self.client)
            self._carry(self.client, self.server)
            self._step("server", self.server)
            self.from_server += self._carry(self.server, self.client)
        self._step("client", self.client, read=True)  # in TLS 1.3 an alert comes after the client is done
        return self

    def _step(self, name: str, conn: SSL.Connection, *, read: bool = False) -> None:
        if name in self.errors:
            return
        try:
            conn.do_handshake()
            if read:
                conn.recv(1)
        except SSL.WantReadError:
            pass
        except SSL.Error as error:
            self.errors[name] = error

    @staticmethod
    def _carry(source: SSL.Connection, sink: SSL.Connection) -> list[bytes]:
        carried = []
        try:
            while True:
                carried.append(source.bio_read(65536))
                sink.bio_write(carried[-1])
        except SSL.WantReadError:
            return carried

    @property
    def why(self) -> str:
        """The server's word for its failure."""
        return mtls.handshake_failure(self.server, self.errors["server"]).why


def shake(server: X509Context = SERVER, client: X509Context = CLIENT, **options: Any) -> Handshake:
    made_server = mtls.server_context(server, alpn=options.get("server_alpn", [H2, H1]))
    made_client = mtls.client_context(client, alpn=options.get("client_alpn", [H2, H1]))
    return Handshake(made_server, made_client).run()


def stranger(
    certs: list[Any] | None,
    key: Any = None,
    *,
    alpn: list[bytes] | None = None,
    version: int = SSL.TLS1_3_VERSION,
) -> SSL.Context:
    """A client that checks nothing and presents what the test says."""
    made = SSL.Context(SSL.TLS_CLIENT_METHOD)
    made.set_min_proto_version(version)
    made.set_max_proto_version(version)
    if certs:
        made.use_certificate(certs[0])
        made.use_privatekey(key)
        for cert in certs[1:]:
            made.add_extra_chain_cert(cert)
    if alpn:
        made.set_alpn_protos(alpn)
    return made


def as_stranger(context: X509Context, **options: Any) -> SSL.Context:
    return stranger(list(context.svid.chain), context.svid.key, **options)


def meet(client: SSL.Context, server: X509Context = SERVER, **options: Any) -> Handshake:
    return Handshake(mtls.server_context(server, alpn=[H2, H1], **options), client).run()


def odd_leaf(**changes: Any) -> SSL.Context:
    """A client whose leaf is signed by our issuing authority, but is odd."""
    signer = TD.authority.certificate
    spec = pki.Spec(signer=TD.authority.key, not_before=NOW - timedelta(hours=1), not_after=NOW + timedelta(hours=1))
    for name, value in changes.items():
        setattr(spec, name, value)
    cert = spec.build(issuer_name=signer.subject)
    return stranger([cert, signer], pki.key("leaf"))


# -- what should work ---------------------------------------------------------------------------------------


def test_both_sides_learn_who_the_other_is() -> None:
    done = shake()
    assert not done.errors
    assert mtls.peer_identity(done.server, SERVER, now=NOW).uri == "spiffe://td/ns/a/sa/client"
    assert mtls.peer_identity(done.client, CLIENT, now=NOW).uri == "spiffe://td/ns/a/sa/server"
    assert mtls.peer_identity(done.server, SERVER, now=NOW, role="client").principal == "td/ns/a/sa/client"


def test_the_role_of_the_peer_cannot_be_mixed_up() -> None:
    done = shake()
    with pytest.raises(ValueError, match="client"):
        mtls.peer_identity(done.server, SERVER, now=NOW, role="server")


def test_two_of_us_agree_on_tls_1_3_and_a_post_quantum_group() -> None:
    facts = mtls.tls_facts(shake().server)
    assert facts == ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "X25519MLKEM768", H2)
    assert mtls.tls_facts(shake().client) == facts


def test_both_sides_see_the_whole_presented_chain_leaf_first() -> None:
    done = shake()
    assert mtls.presented_chain(done.server) == pki.chain(*CLIENT.svid.chain)
    assert mtls.presented_chain(done.client) == pki.chain(*SERVER.svid.chain)


def test_federated_trust_domains_know_each_other() -> None:
    server, client = TD.context("server", OTHER), OTHER.context("client", TD)
    done = shake(server, client)
    assert mtls.peer_identity(done.server, server, now=NOW).uri == "spiffe://other/ns/a/sa/client"
    assert mtls.peer_identity(done.client, client, now=NOW).uri == "spiffe://td/ns/a/sa/server"


def test_an_authority_with_p384_works() -> None:
    world = World("td", "P-384")
    assert not shake(world.context("server"), world.context("client")).errors


def test_tls_1_2_is_spoken_only_when_asked_for_and_then_with_ecdhe_and_aead() -> None:
    old = as_stranger(CLIENT, version=SSL.TLS1_2_VERSION)
    assert meet(old).why == "protocol"
    done = meet(old, minimum="1.2")
    facts = mtls.tls_facts(done.server)
    assert facts.version == "TLSv1.2"
    assert facts.cipher.startswith("ECDHE-ECDSA-")
    assert mtls.peer_identity(done.server, SERVER, now=NOW).uri == "spiffe://td/ns/a/sa/client"


@pytest.mark.parametrize("suite", [b"AES128-GCM-SHA256", b"ECDHE-ECDSA-AES128-SHA256", b"ECDHE-ECDSA-AES128-SHA"])
def test_tls_1_2_without_forward_secrecy_or_aead_is_refused(suite: bytes) -> None:
    old = as_stranger(CLIENT, version=SSL.TLS1_2_VERSION)
    old.set_cipher_list(suite + b":@SECLEVEL=0")
    assert meet(old, minimum="1.2").why == "protocol"


def test_tls_1_2_is_never_offered_in_cipher_suites_beyond_the_list() -> None:
    offered = SSL.Connection(mtls.server_context(SERVER, alpn=[], minimum="1.2"), None).get_cipher_list()
    assert offered
    assert all(name.startswith(("TLS_", "ECDHE-")) for name in offered)
    assert all("GCM" in name or "CHACHA20" in name for name in offered)
    assert not any("CCM" in name for name in offered)


# -- application protocols ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        ([H2, H1], [H1, H2], H2),
        ([H1, H2], [H2, H1], H1),
        ([H2, H1], [H1], H1),
        ([H2, H1], [b"spdy/3", H1], H1),
        ([H2, H1], [], b""),
        ([], [H2], b""),
    ],
)
def test_our_preference_decides_among_what_the_client_offers(
    ours: list[bytes], theirs: list[bytes], chosen: bytes
) -> None:
    done = shake(server_alpn=ours, client_alpn=theirs)
    assert not done.errors
    assert mtls.tls_facts(done.server).alpn == mtls.tls_facts(done.client).alpn == chosen


def test_a_client_with_only_unknown_protocols_gets_an_alert() -> None:
    done = shake(client_alpn=[b"spdy/3", b"h3"])
    assert done.why == "alpn"
    assert "no application protocol" in str(done.errors["client"])
    assert mtls.handshake_failure(done.client, done.errors["client"]).why == "alpn"


# -- no resumption (S-3) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_session_that_is_offered_again_is_not_resumed(version: int) -> None:
    server = mtls.server_context(SERVER, alpn=[], minimum="1.2")
    client = as_stranger(CLIENT, version=version)
    first = Handshake(server, client).run()
    session = first.client.get_session()
    assert session is not None
    second = Handshake(server, client)
    second.client.set_session(session)
    second.run()
    assert not second.errors
    # A full handshake again: the server sent its certificate, and no two handshakes share their keys.
    assert sum(map(len, second.from_server)) > len(pki.der(SERVER.svid.leaf))
    assert not resumed(second.client)
    assert first.client.master_key() != second.client.master_key()
    assert mtls.peer_identity(second.server, SERVER, now=NOW).uri == "spiffe://td/ns/a/sa/client"


def resumed(conn: SSL.Connection) -> bool:
    return bool(SSL._lib.SSL_session_reused(conn._ssl))  # type: ignore[attr-defined]  # pyOpenSSL has no name


def test_the_test_above_would_notice_a_resumed_session() -> None:
    server = SSL.Context(SSL.TLS_SERVER_METHOD)
    server.use_certificate(SERVER.svid.leaf)
    server.use_privatekey(SERVER.svid.key)
    client = stranger(None)
    first = Handshake(server, client).run()
    second = Handshake(server, client)
    session = first.client.get_session()
    assert session is not None
    second.client.set_session(session)
    assert resumed(second.run().client)


def test_a_client_context_offers_no_session() -> None:
    context = mtls.client_context(CLIENT, alpn=[])
    assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF
    assert mtls.server_context(SERVER, alpn=[]).get_session_cache_mode() == SSL.SESS_CACHE_OFF


def test_what_openssl_sends_as_tickets_names_nothing_but_an_empty_cache() -> None:
    """Two stateful tickets of 79 bytes before OpenSSL 4.1, none since; a whole session would take 250 each."""
    after_the_handshake = sum(map(len, shake().from_server[1:]))
    assert after_the_handshake in {0, 2 * 79}


@pytest.mark.slow
def test_with_the_published_openssl_configuration_no_ticket_is_sent(tmp_path: Path) -> None:
    conf = tmp_path / "openssl.cnf"
    conf.write_text(mtls.NO_TICKETS_CONF)
    code = "from tests.unit.identity.test_mtls import shake; print(len(shake().from_server))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OPENSSL_CONF": str(conf)}
    made = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert made.stdout.strip() == b"1"


def test_renegotiation_is_off() -> None:
    done = meet(as_stranger(CLIENT, version=SSL.TLS1_2_VERSION), minimum="1.2")
    done.client.renegotiate()
    Handshake._step(done, "client", done.client)
    Handshake._carry(done.client, done.server)
    with pytest.raises(SSL.WantReadError):
        done.server.recv(1)
    Handshake._carry(done.server, done.client)
    with pytest.raises(SSL.Error, match="no renegotiation"):
        done.client.do_handshake()
    assert done.server.total_renegotiations() == 0


# -- refusals -----------------------------------------------------------------------------------------------


def test_a_client_without_certificate_gets_an_alert() -> None:
    done = meet(stranger(None))
    assert done.why == "no_certificate"
    assert "certificate required" in str(done.errors["client"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"san": None}, "not_a_spiffe_id"),
        ({"san": pki.uris("https://td/a")}, "not_a_spiffe_id"),
        ({"san": pki.raw_uri_san(b"spiffe://td/a\0.b")}, "not_a_spiffe_id"),
        ({"san": pki.raw_uri_san(b"spiffe://td/\xff")}, "bad_certificate"),
        ({"san": pki.uris("spiffe://td")}, "not_a_spiffe_id"),
        ({"san": pki.uris("spiffe://td/a", "spiffe://td/b")}, "several_uri_sans"),
        ({"san": pki.uris("spiffe://nowhere/a")}, "trust_domain"),
        ({"basic": pki.x509.BasicConstraints(True, None)}, "leaf_is_ca"),
        ({"usage": None}, "key_usage"),
        ({"usage": pki.usage("digital_signature", "key_cert_sign")}, "key_usage"),
        ({"usage": pki.usage("key_agreement")}, "key_usage"),
        ({"purposes": [pki.EKU.SERVER_AUTH]}, "extended_key_usage"),
        ({"not_after": NOW - timedelta(minutes=1)}, "expired"),
        ({"not_before": NOW + timedelta(minutes=50)}, "not_yet_valid"),
        (
            {
                "serial": 3,
                "more": [(pki.x509.UnrecognizedExtension(pki.x509.ObjectIdentifier("1.2.3"), b"\5\0"), True)],
            },
            "bad_certificate",
        ),
    ],
)
def test_a_bad_leaf_is_refused_during_the_handshake(changes: dict[str, Any], why: str) -> None:
    done = meet(odd_leaf(**changes))
    assert done.why == why
    assert "alert" in str(done.errors["client"])


def test_a_client_of_an_unknown_trust_domain_is_refused() -> None:
    assert meet(as_stranger(OTHER.context("client"))).why == "trust_domain"


def test_a_client_of_a_false_authority_is_refused() -> None:
    assert meet(as_stranger(World("td").context("client"))).why == "untrusted_root"


def test_a_client_without_its_intermediate_is_refused_unless_we_have_it() -> None:
    second = World("td")
    server = X509Context(SERVER.svid, {"td": TrustBundle("td", TD.bundle.authorities + second.bundle.authorities)})
    alone = second.context("client").svid
    assert meet(stranger([alone.leaf], alone.key), server).why == "untrusted_root"


def test_our_own_intermediate_is_no_help_to_an_incomplete_chain() -> None:
    """It stands in OpenSSL's store as a short cut; the check that counts asks for the chain as presented."""
    done = meet(stranger([CLIENT.svid.leaf], CLIENT.svid.key))
    assert not done.errors
    with pytest.raises(SvidError, match="untrusted_root"):
        mtls.peer_identity(done.server, SERVER, now=NOW)


def test_an_authority_cannot_vouch_for_another_trust_domain() -> None:
    """OpenSSL's store is one for all trust domains: only the check after the handshake can tell."""
    server = TD.context("server", OTHER)
    liar = Authority("td", OTHER.authority.chain, OTHER.authority.key)
    key = authority.new_key()
    forged = authority.sign_svid(liar, SpiffeId.of("td", "/ns/a/sa/admin"), key.public_key(), now=NOW, rng=RNG)
    done = meet(stranger(list(forged), key), server)
    assert not done.errors
    with pytest.raises(SvidError, match="untrusted_root"):
        mtls.peer_identity(done.server, server, now=NOW)


def test_a_server_that_is_not_ours_is_refused_by_the_client() -> None:
    done = shake(World("td").context("server"), CLIENT)
    assert mtls.handshake_failure(done.client, done.errors["client"]).why == "untrusted_root"
    assert mtls.handshake_failure(done.server, done.errors["server"]).why == "closed"


def test_a_newer_bundle_judges_an_older_connection() -> None:
    done = shake()
    renewed = X509Context(SERVER.svid, {"td": World("td").bundle})
    with pytest.raises(SvidError, match="untrusted_root"):
        mtls.peer_identity(done.server, renewed, now=NOW)


def test_a_peer_is_judged_at_the_time_of_the_question() -> None:
    done = shake()
    with pytest.raises(SvidError, match="expired"):
        mtls.peer_identity(done.server, SERVER, now=NOW + timedelta(hours=2))


@pytest.mark.parametrize(
    "junk", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 64, b"PROXY TCP4 "]
)
def test_what_is_not_tls_is_a_protocol_failure(junk: bytes) -> None:
    server = SSL.Connection(mtls.server_context(SERVER, alpn=[H1]), None)
    server.set_accept_state()
    server.bio_write(junk)
    with pytest.raises(SSL.Error) as caught:
        server.do_handshake()
    assert mtls.handshake_failure(server, caught.value).why == "protocol"


def test_a_connection_that_ends_early_was_closed() -> None:
    server = SSL.Connection(mtls.server_context(SERVER, alpn=[H1]), None)
    error = SSL.SysCallError(-1, "Unexpected EOF")
    assert mtls.handshake_failure(server, error).why == "closed"


def test_an_exception_in_the_callback_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(mtls, "check_leaf", broken)
    done = meet(as_stranger(CLIENT))
    assert done.why == "bad_certificate"
    assert isinstance(done.errors["server"], SSL.Error)  # and not the MemoryError


def test_a_refused_connection_is_not_kept_alive_by_its_reason() -> None:
    server = mtls.server_context(SERVER, alpn=[])
    done = Handshake(server, odd_leaf(san=None)).run()
    assert done.why == "not_a_spiffe_id"
    gone = weakref.ref(done.server)
    del done
    gc.collect()
    assert gone() is None


def test_a_foreign_connection_is_not_taken_for_ours() -> None:
    conn = SSL.Connection(stranger(None), None)
    with pytest.raises(TypeError, match="context of this module"):
        mtls.peer_identity(conn, SERVER, now=NOW)


def test_the_memory_for_leafs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtls, "_MAX_LEAVES", 2)
    server = mtls.server_context(SERVER, alpn=[])
    for number in range(5):
        client = mtls.client_context(TD.context(f"c{number}"), alpn=[])
        assert not Handshake(server, client).run().errors
    assert len(server.get_app_data()._kept) <= 2
