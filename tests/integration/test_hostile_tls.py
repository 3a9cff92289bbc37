"""What may not pass the inbound handshake, and what it is called when it does not (S-1..S-6)."""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from identity import authority
from identity.files import create_ca
from identity.spiffe import SpiffeId
from identity.svid import TrustBundle, X509Context, X509Svid
from proxy.lifecycle import Caps
from proxy.net.tls import Credentials
from tests.support.mesh import API, TRUST_DOMAIN, WEB, Mesh, make_context, open_mesh
from tests.support.raw import GOOD, Heard, RawApp, ask, connect, talk, tls_client, until


@asynccontextmanager
async def inbound(folder: Path, **settings: Any) -> AsyncIterator[tuple[Mesh, RawApp, ssl.SSLContext]]:
    """A sidecar, its app, and the TLS of a caller that is welcome."""
    app = RawApp()
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run)
        api = {"caps": Caps(handshakes_per_second=0), "settings": settings}
        async with open_mesh(folder, app.port, api=api) as mesh:
            yield mesh, app, tls_client(make_context(mesh.ca, WEB), folder / "good")
        nursery.cancel_scope.cancel()


async def attempt(port: int, tls: ssl.SSLContext) -> Heard:
    """A handshake and a request; a refusal at any point is an empty, closed ``Heard``."""
    try:
        return await ask(port, GOOD, tls)
    except (ssl.SSLError, trio.BrokenResourceError):
        return Heard(closed=True)


async def refused(mesh: Mesh, count: int = 1) -> set[str]:
    """The reasons of the handshakes that failed, once ``count`` are known."""
    await until(lambda: len(mesh.api.telemetry.closed) >= count)
    family = mesh.api.telemetry.instruments.handshakes
    reasons = {record.reason for record in mesh.api.telemetry.closed}
    assert all(family.labels("server", reason).value for reason in reasons), "not counted"
    return reasons


async def still_serves(mesh: Mesh, app: RawApp, good: ssl.SSLContext) -> None:
    """Nothing came to the app so far; the next caller is served."""
    assert (app.complete, app.everything) == ([], b"")
    heard = await ask(mesh.api.port, GOOD, good)
    assert heard.status == 200
    assert mesh.api.worker.handshaking == 0


PLAIN = {
    "plain HTTP": b"GET /hit HTTP/1.1\r\nHost: api.shop\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "PROXY header": b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "binary PROXY header": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
    "zeros": bytes(5000),
    "garbage": random.Random(1).randbytes(5000),
    "oversize record": b"\x16\x03\x01\xff\xff" + bytes(65535),
    "empty records": b"\x16\x03\x01\0\0" * 1000,
    "warning alerts": b"\x15\x03\x01\0\2\1\0" * 1000,
    "application data first": b"\x17\x03\x03\0\5hello",
    "hello of SSL 2": b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10" + bytes(37),
    "half a hello, then the end": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("sent", PLAIN.values(), ids=PLAIN)
async def test_what_is_not_tls_is_closed_and_the_app_sees_nothing(tmp_path: Path, sent: bytes) -> None:
    async with inbound(tmp_path, handshake_timeout=0.5) as (mesh, app, good):
        heard = await talk(await connect(mesh.api.port), sent)
        assert heard.closed
        assert b"HTTP/" not in heard.data
        assert await refused(mesh) <= {"protocol", "closed", "timeout"}
        await still_serves(mesh, app, good)


async def test_a_caller_without_a_certificate_is_refused(tmp_path: Path) -> None:
    async with inbound(tmp_path) as (mesh, app, good):
        without = tls_client(make_context(mesh.ca, WEB), tmp_path, certificate=False)
        heard = await attempt(mesh.api.port, without)
        assert (heard.data, heard.closed) == (b"", True)
        assert await refused(mesh) == {"no_certificate"}
        await still_serves(mesh, app, good)


REASONS = {
    "other ca": {"untrusted_root"},
    "other trust domain": {"trust_domain"},
    "expired": {"expired"},
    "not yet valid": {"not_yet_valid"},
}


def strange(kind: str, mesh: Mesh, folder: Path) -> X509Context:
    """An SVID that is wrong in one way. Those of another time come from an authority that both sides trust."""
    name = "elsewhere.test" if kind == "other trust domain" else TRUST_DOMAIN
    shift = {"expired": -7200, "not yet valid": 3600}.get(kind, 0)
    now = datetime.now(UTC) + timedelta(seconds=shift)
    other = create_ca(folder / "other", name, now=now - timedelta(days=1))
    if shift:
        both = TrustBundle(TRUST_DOMAIN, (*mesh.ca.bundle.authorities, *other.bundle.authorities))
        for side in (mesh.api, mesh.web):
            assert side.worker.credentials is not None
            side.worker.credentials = Credentials(
                X509Context(side.worker.credentials.context.svid, {TRUST_DOMAIN: both})
            )
    spiffe_id, key = SpiffeId.parse(f"spiffe://{name}/ns/shop/sa/api"), authority.new_key()
    rng, ttl = random.SystemRandom(), timedelta(hours=1)
    chain = authority.sign_svid(other.authority, spiffe_id, key.public_key(), now=now, rng=rng, ttl=ttl)
    return X509Context(X509Svid(spiffe_id, chain, key), {name: other.bundle})


@pytest.mark.parametrize("kind", REASONS)
async def test_a_certificate_that_proves_nothing_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    async with inbound(tmp_path) as (mesh, app, good):
        tls = tls_client(strange(kind, mesh, tmp_path), tmp_path / "strange")
        heard = await attempt(mesh.api.port, tls)
        assert (heard.data, heard.closed) == (b"", True)
        assert await refused(mesh) == REASONS[kind]
        await still_serves(mesh, app, good)


class Shameless(Credentials):
    """Shows a certificate whatever the time."""

    def expired(self, wall: float) -> bool:
        return False


@pytest.mark.parametrize("kind", REASONS)
async def test_an_upstream_whose_certificate_proves_nothing_is_a_503(tmp_path: Path, kind: str) -> None:
    async with inbound(tmp_path) as (mesh, app, _):
        context = strange(kind, mesh, tmp_path)
        bundles = {**context.bundles, TRUST_DOMAIN: mesh.ca.bundle}
        mesh.api.worker.credentials = Shameless(X509Context(context.svid, bundles))
        heard = await ask(mesh.web.port, GOOD)
        assert (heard.status, heard.reason, app.complete) == (503, "upstream_tls_failed", [])
        assert (mesh.web.records[0].reason, mesh.api.records) == ("upstream_tls_failed", [])


async def test_a_refused_upstream_is_counted_by_what_was_wrong_with_it(tmp_path: Path) -> None:
    async with inbound(tmp_path) as (mesh, _, _):
        context = strange("other ca", mesh, tmp_path)
        bundles = {**context.bundles, TRUST_DOMAIN: mesh.ca.bundle}
        mesh.api.worker.credentials = Shameless(X509Context(context.svid, bundles))
        await ask(mesh.web.port, GOOD)
        mesh.api.worker.credentials = Credentials(make_context(mesh.ca, API))
        assert (await ask(mesh.web.port, GOOD)).status == 200
    family = mesh.web.telemetry.instruments.handshakes
    assert [family.labels("client", word).value for word in ("untrusted_root", "ok")] == [1, 1]


async def test_tls_1_2_is_refused_while_1_3_is_the_minimum(tmp_path: Path) -> None:
    async with inbound(tmp_path) as (mesh, app, good):
        old = tls_client(make_context(mesh.ca, WEB), tmp_path / "old")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        heard = await attempt(mesh.api.port, old)
        assert (heard.data, heard.closed) == (b"", True)
        assert await refused(mesh) == {"protocol"}
        await still_serves(mesh, app, good)


@pytest.mark.parametrize(
    ("ciphers", "accepted"),
    [
        ("ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("ECDHE-ECDSA-AES128-SHA256", False),
        ("DHE-RSA-AES128-GCM-SHA256", False),
    ],
)
async def test_tls_1_2_where_allowed_is_ecdhe_with_aead_only(tmp_path: Path, ciphers: str, accepted: bool) -> None:
    async with inbound(tmp_path) as (mesh, app, _):
        mesh.api.worker.credentials = Credentials(make_context(mesh.ca, API), "1.2")
        old = tls_client(make_context(mesh.ca, WEB), tmp_path / "old")
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        old.set_ciphers(ciphers)
        heard = await attempt(mesh.api.port, old)
        assert (heard.status, len(app.complete)) == ((200, 1) if accepted else (0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\0\x01"], ids=["silence", "half a hello"])
async def test_a_slow_handshake_ends_in_time(tmp_path: Path, sent: bytes) -> None:
    async with inbound(tmp_path, handshake_timeout=0.2) as (mesh, app, good):
        heard = await talk(await connect(mesh.api.port), sent)
        assert (heard.data, heard.closed) == (b"", True)
        assert await refused(mesh) == {"timeout"}
        await still_serves(mesh, app, good)


async def drip(stream: trio.abc.Stream, data: bytes) -> None:
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.sleep(0.02)


@pytest.mark.slow
async def test_a_handshake_that_drips_gets_no_more_time(tmp_path: Path) -> None:
    async with inbound(tmp_path, handshake_timeout=0.3) as (mesh, app, good):
        stream = await connect(mesh.api.port)
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await drip(stream, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500))
        await trio.aclose_forcefully(stream)
        assert await refused(mesh) == {"timeout"}
        await still_serves(mesh, app, good)


def _resume(port: int, tls: ssl.SSLContext) -> list[bool]:
    """Two connections, the second offering the session of the first; whether each was resumed."""
    session, reused = None, []
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", port)) as tcp, tls.wrap_socket(tcp, session=session) as conn:
            conn.sendall(GOOD)
            while conn.recv(65536):
                pass
            session = conn.session
            reused.append(bool(conn.session_reused))
    return reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed(tmp_path: Path, version: ssl.TLSVersion) -> None:
    async with inbound(tmp_path) as (mesh, app, good):
        mesh.api.worker.credentials = Credentials(make_context(mesh.ca, API), "1.2")
        good.minimum_version = good.maximum_version = version
        assert await trio.to_thread.run_sync(_resume, mesh.api.port, good) == [False, False]
        assert len(app.complete) == 2


async def test_only_unknown_application_protocols_get_an_alert(tmp_path: Path) -> None:
    async with inbound(tmp_path) as (mesh, app, good):
        strange_tls = tls_client(make_context(mesh.ca, WEB), tmp_path / "alpn")
        strange_tls.set_alpn_protocols(["h3", "spdy/3"])
        heard = await attempt(mesh.api.port, strange_tls)
        assert heard.data == b""
        assert await refused(mesh) == {"alpn"}
        await still_serves(mesh, app, good)


@pytest.mark.parametrize(
    ("alpn", "sent"),
    [
        ("h2", b"GET /hit HTTP/1.1\r\nHost: api.shop\r\n\r\n"),
        ("http/1.1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    ],
)
async def test_bytes_that_contradict_alpn_end_the_connection(tmp_path: Path, alpn: str, sent: bytes) -> None:
    async with inbound(tmp_path) as (mesh, app, good):
        tls = tls_client(make_context(mesh.ca, WEB), tmp_path / "alpn")
        tls.set_alpn_protocols([alpn])
        heard = await talk(await connect(mesh.api.port, tls), sent)
        assert heard.closed
        assert 200 not in heard.statuses
        await still_serves(mesh, app, good)
        assert sum(mesh.api.telemetry.instruments.malformed.labels(word).value for word in WORDS) == 1


WORDS = ("version_unsupported", "bad_request_line", "method_unknown", "frame_error")


async def test_a_body_cut_without_close_notify_is_not_a_body(tmp_path: Path) -> None:
    """S-6: FIN alone never ends a message, here of an upload whose length only its end would tell."""
    async with inbound(tmp_path) as (mesh, app, good):
        stream = await connect(mesh.api.port, good)
        await stream.send_all(
            b"POST /hit HTTP/1.1\r\nHost: api.shop\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        await until(lambda: b"/hit" in app.everything)
        await stream.transport_stream.send_eof()  # type: ignore[attr-defined]
        await until(lambda: app.cut)
        await trio.aclose_forcefully(stream)
        assert app.complete == []
        assert (await ask(mesh.api.port, GOOD, good)).status == 200
        assert mesh.api.records[0].reason == "downstream_closed"
