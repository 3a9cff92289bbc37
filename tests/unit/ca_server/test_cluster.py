"""Asking a Kubernetes API server, played by the standard library over real TLS."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from identity.attest.kubernetes import OfflineTokens
from proxy.ca.cluster import Cluster, api_at, in_cluster


class Server(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[tuple[str, str, str, bytes]]] = []
    reply: ClassVar[bytes] = b"{}"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.asked.append((self.command, self.path, self.headers["authorization"], body))
        self.send_response(201)
        self.send_header("content-length", str(len(self.reply)))
        self.end_headers()
        self.wfile.write(self.reply)

    do_GET = do_POST

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """What Kubernetes mounts into a pod; and the server's key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "ca.crt").write_bytes(cert.public_bytes(Encoding.PEM))
    (tmp_path / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "token").write_text("first\n")
    return tmp_path


@pytest.fixture
def port(account: Path) -> Iterator[int]:
    Server.asked, Server.reply = [], b"{}"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "ca.crt", account / "key")
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


async def test_the_token_is_read_again_for_each_question(account: Path, port: int) -> None:
    ask = api_at("localhost", port, account)
    Server.reply = json.dumps({"status": {"authenticated": True}}).encode()

    assert await ask("POST", "/apis/x", b"{}") == (201, {"status": {"authenticated": True}})
    (account / "token").write_text("second\n")
    await ask("GET", "/api/v1/namespaces/a/pods/b", b"")

    assert [(method, path, bearer) for method, path, bearer, _ in Server.asked] == [
        ("POST", "/apis/x", "Bearer first"),
        ("GET", "/api/v1/namespaces/a/pods/b", "Bearer second"),
    ]


async def test_what_is_no_answer_is_as_good_as_none(account: Path, port: int) -> None:
    ask = api_at("localhost", port, account)
    Server.reply = b"<html>"

    with pytest.raises(OSError, match="cannot be read"):
        await ask("GET", "/x", b"")
    with pytest.raises(OSError, match=r".+"):
        await api_at("127.0.0.1", port, account)("GET", "/x", b"")  # a name that its certificate has not


def test_outside_of_a_cluster_its_keys_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(OSError, match="--k8s-jwks"):
        in_cluster(tmp_path)


def test_an_api_servers_audience_is_refused(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jwks = account / "jwks"
    jwks.write_text(json.dumps({"keys": [_jwk()]}))

    assert isinstance(Cluster("prod", "sidewall-ca", (), jwks, "https://issuer").verifier(), OfflineTokens)
    with pytest.raises(ValueError, match="API server's own"):
        Cluster("prod", "https://kubernetes.default.svc", (), jwks, "https://issuer").verifier()
    with pytest.raises(ValueError, match="issuer"):
        Cluster("prod", "sidewall-ca", (), jwks).verifier()


def _jwk() -> dict[str, Any]:
    import jwt

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    found: dict[str, Any] = jwt.get_algorithm_by_name("ES256").to_jwk(key, as_dict=True)
    return {**found, "kid": "1", "use": "sig", "alg": "ES256"}
