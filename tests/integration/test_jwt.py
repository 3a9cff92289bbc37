"""Tokens and plaintext callers with real processes: documents, an issuer that rotates its keys and goes away, logs."""

from __future__ import annotations

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_process import Pair, sidewall
from tests.support.tokens import jwk, key_set, raw_token, token

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

TOKENS = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: shop}
spec:
  jwtRules:
  - issuer: ISSUER
    audiences: [api]
    outputClaimToHeaders: [{header: x-user, claim: sub}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: shop}
spec:
  rules:
  - from: [{source: {requestPrincipals: ["ISSUER/user"]}}]
    to: [{operation: {paths: ["/private/*"]}}]
  - to: [{operation: {paths: ["/public"]}}]
"""
PEER = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: MODE}}
"""


class Issuer:
    """Answers discovery and keys on a thread of its own; ``keys`` None: it is away."""

    def __init__(self) -> None:
        self.keys: str | None = key_set(jwk("ES256"), jwk("RS256", kid="rsa"), jwk("EdDSA", kid="ed"))
        issuer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                pages = {"/.well-known/openid-configuration": issuer.discovery(), "/keys": issuer.keys}
                page = pages.get(self.path) if issuer.keys is not None else None
                self.send_response(200 if page else 503)
                self.send_header("content-length", str(len(page or "")))
                self.end_headers()
                self.wfile.write((page or "").encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def discovery(self) -> str:
        return json.dumps({"issuer": self.url, "jwks_uri": f"{self.url}/keys"})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def token(self, **more: Any) -> str:
        claims = {"iss": self.url, "aud": "api", **more.pop("claims", {})}
        return token(claims, now=time.time(), **more)


class Guarded(Pair):
    """A pair whose inbound side reads tokens of ``issuer``."""

    def __init__(self, folder: Path, issuer: Issuer) -> None:
        self.issuer = issuer
        super().__init__(folder)

    def allow(self, path: str) -> None:
        (self.policy / "allow.yaml").write_text(TOKENS.replace("ISSUER", self.issuer.url))

    def ask(self, path: str, text: str = "", port: int = 0) -> tuple[int, bytes]:
        """Status and the whole answer; 0 when there is none."""
        line = f"authorization: Bearer {text}\r\n" if text else ""
        with socket.create_connection(("127.0.0.1", port or self.outer), timeout=10) as sock:
            try:
                sock.sendall(f"GET {path} HTTP/1.1\r\nhost: api\r\n{line}connection: close\r\n\r\n".encode())
                got = sock.makefile("rb").read()
            except OSError:
                got = b""
        return (int(got.split()[1]) if got.startswith(b"HTTP/1.1 ") else 0), got

    def until(self, status: int, path: str, text: str = "", port: int = 0) -> None:
        deadline = time.monotonic() + 30
        while (found := self.ask(path, text, port)[0]) != status:
            assert time.monotonic() < deadline, f"still {found}, not {status}"
            time.sleep(0.1)

    def everything_written(self) -> str:
        time.sleep(0.5)  # the access log is written in batches
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.[le][or][gr]"))


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    made = Issuer()
    yield made
    made.close()


@pytest.fixture
def pair(tmp_path: Path, issuer: Issuer) -> Iterator[Guarded]:
    made = Guarded(tmp_path, issuer)
    yield made
    made.end()


def test_tokens_rotation_an_absent_issuer_and_what_is_written_about_them(pair: Guarded, issuer: Issuer) -> None:
    good = [
        issuer.token(),
        issuer.token(algorithm="RS256", kid="rsa"),
        issuer.token(algorithm="EdDSA", kid="ed"),
    ]
    bad = [
        issuer.token(claims={"exp": 1000}),
        issuer.token(claims={"iss": "https://evil.example"}),
        issuer.token(number=7),
        raw_token('{"alg": "none"}', json.dumps({"iss": issuer.url, "aud": "api", "sub": "user"})),
    ]
    for text in good:
        assert pair.ask("/private/a", text)[0] == 200
    for text in bad:
        status, answer = pair.ask("/public", text)
        assert status == 401
        assert b'www-authenticate: bearer error="invalid_token"' in answer.lower()
    assert pair.ask("/public", issuer.token(claims={"aud": "other"}))[0] == 403
    assert pair.ask("/public")[0] == 200
    assert pair.ask("/private/a")[0] == 403
    # in the query the token is neither seen by policy nor written down
    assert pair.ask(f"/private/a?access_token={good[0]}")[0] == 200
    # the issuer goes away: the last good keys stay
    keys, issuer.keys = issuer.keys, None
    assert pair.ask("/private/a", issuer.token(claims={"jti": "1"}))[0] == 200
    # it comes back with another key, which is asked for when a token names it
    del keys
    issuer.keys = key_set(jwk("ES256", kid="new", number=1))
    pair.until(200, "/private/a", issuer.token(kid="new", number=1))
    assert pair.ask("/private/a", good[0])[0] == 401
    status = json.loads(sidewall("status", pair.socket("api"), "-o", "json").stdout)["items"][0]
    assert [place["keys"] for place in status["token_keys"]] == [1]
    written = pair.everything_written()
    assert '"token_invalid"' in written
    assert "token: expired" in written
    assert not [part for text in (*good, *bad) for part in text.split(".") if len(part) > 20 and part in written]


def test_a_listener_becomes_permissive_and_strict_again_by_documents(pair: Guarded, issuer: Issuer) -> None:
    assert pair.ask("/public", port=pair.inner)[0] == 0
    peer = pair.policy / "peer.yaml"
    peer.write_text(PEER.replace("MODE", "PERMISSIVE"))
    pair.until(200, "/public", port=pair.inner)
    assert pair.ask("/public")[0] == 200
    peer.write_text(PEER.replace("MODE", "DISABLE"))
    pair.until(503, "/public")
    assert pair.ask("/private/a", issuer.token(), port=pair.inner)[0] == 200
    peer.unlink()
    pair.until(0, "/public", port=pair.inner)
    assert pair.ask("/public")[0] == 200
    assert re.search(r"without a certificate", pair.everything_written())


def test_keys_that_cannot_be_used_are_refused_with_their_place(pair: Guarded) -> None:
    before = (pair.policy / "allow.yaml").read_text()
    for rule, code in (
        ("{issuer: a, jwks: '{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}'}", "SW0105"),
        ("{issuer: 'http://id.example.com'}", "SW0203"),
        ("{issuer: 'https://id.example.com', fromBody: x}", "SW0101"),
    ):
        text = TOKENS.partition("spec:")[0] + f"spec: {{jwtRules: [{rule}]}}\n"
        (pair.policy / "allow.yaml").write_text(text)
        refused = sidewall("reload", pair.socket("api"))
        assert refused.returncode == 1
        assert re.search(rf"allow\.yaml:5:\d+: error {code}|{code}", refused.stderr), refused.stderr
    (pair.policy / "allow.yaml").write_text(before)
    assert sidewall("reload", pair.socket("api")).returncode == 0
    assert pair.ask("/public")[0] == 200
