"""The bundle endpoint with real TLS: read by our own stack (https_spiffe) and by others (https_web, curl)."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from identity.authority import create_issuing, create_root, new_key, sign_svid
from identity.bundle import Bundle, parse
from identity.ca.model import NotAllowed
from identity.ca.service import OPERATOR, CaService
from identity.spiffe import SpiffeId
from identity.svid import TrustBundle, X509Context, X509Svid
from proxy.ca.admin import Context, perform
from proxy.ca.bundle_endpoint import BundleEndpoint, WebFiles
from proxy.ca.federation import Federation
from proxy.ca.fetching import FetchFailed, check_url, fetch_spiffe, fetch_web
from proxy.net.listener import Address, bind
from proxy.net.poller import Poller
from proxy.net.tls import Credentials
from tests.support.tools import run, tool

TD = "far.test"
ID = SpiffeId.parse(f"spiffe://{TD}/sidewall/ca")


def far() -> tuple[X509Context, Bundle]:
    """A server of the foreign trust domain, and its bundle."""
    import random

    now, rng = datetime.now(UTC), random.SystemRandom()
    root_key, issuing_key, key = new_key(), new_key(), new_key()
    root = create_root(TD, root_key, now=now, rng=rng)
    issuing = create_issuing(root, root_key, TD, issuing_key.public_key(), now=now, rng=rng)
    from identity.authority import Authority

    chain = sign_svid(Authority(TD, (issuing,), issuing_key), ID, key.public_key(), now=now, rng=rng)
    bundle = TrustBundle(TD, (root,))
    return X509Context(X509Svid(ID, tuple(chain), key), {TD: bundle}), Bundle(TD, (root,), {}, 7, 60.0)


class Served:
    """``body[0]`` is what the endpoint gives."""

    def __init__(
        self, endpoint: BundleEndpoint, poller: Poller, port: int, bundle: Bundle, body: list[bytes]
    ) -> None:
        self.endpoint = endpoint
        self.body = body
        self.poller = poller
        self.port = port
        self.bundle = bundle
        self.url = f"https://localhost:{port}/bundle"

    @property
    def first(self) -> str:
        return self.bundle.document().decode()

    def document(self, sequence: int) -> bytes:
        return replace(self.bundle, sequence=sequence).document()


@asynccontextmanager
async def serving(web: WebFiles | None = None, body: bytes | None = None) -> AsyncIterator[Served]:
    context, bundle = far()
    credentials, given = Credentials(context), [body or bundle.document()]
    poller = Poller(linger=0.0)
    sock = bind(Address("127.0.0.1", 0))
    endpoint = BundleEndpoint(poller, lambda: given[0], lambda: credentials, web, ID)
    endpoint.check()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(poller.serve)
            nursery.start_soon(endpoint.serve, sock)
            yield Served(endpoint, poller, sock.getsockname()[1], bundle, given)
            nursery.cancel_scope.cancel()
    finally:
        poller.close()


@pytest.fixture
def web(tmp_path: Path) -> WebFiles:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = WebFiles(tmp_path / "web.pem", tmp_path / "web.key")
    files.certificate.write_bytes(cert.public_bytes(Encoding.PEM))
    files.key.touch(mode=0o600)
    files.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


async def test_the_bundle_is_fetched_from_the_server_with_the_right_id() -> None:
    async with serving() as far:
        bundles = {TD: far.bundle.trust_bundle}
        document = await fetch_spiffe(far.poller, far.url, str(ID), bundles)

        found = parse(document, TD)
        assert (found.sequence, found.refresh_hint, found.roots) == (7, 60.0, far.bundle.roots)


async def test_another_id_or_another_bundle_is_refused() -> None:
    async with serving() as served:
        with pytest.raises(FetchFailed):
            await fetch_spiffe(served.poller, served.url, f"spiffe://{TD}/other", {TD: served.bundle.trust_bundle})
        _, other = far()
        with pytest.raises(FetchFailed):
            await fetch_spiffe(served.poller, served.url, str(ID), {TD: other.trust_bundle})


async def test_a_document_that_is_too_long_is_refused() -> None:
    async with serving(body=b" " * (1024 * 1024 + 1)) as far:
        with pytest.raises(FetchFailed):
            await fetch_spiffe(far.poller, far.url, str(ID), {TD: far.bundle.trust_bundle})


async def test_nobody_there_and_nobody_who_answers(autojump_clock: object) -> None:
    poller = Poller(linger=0.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(poller.serve)
        with pytest.raises(FetchFailed):
            await fetch_spiffe(poller, "https://127.0.0.1:1/", str(ID), {})
        nursery.cancel_scope.cancel()
    poller.close()


async def test_the_web_profile_is_read_by_the_webs_rules(web: WebFiles) -> None:
    context = ssl.create_default_context(cafile=str(web.certificate))
    async with serving(web) as far:
        assert parse(await fetch_web(far.url, context=context), TD).sequence == 7
        with pytest.raises(FetchFailed):
            await fetch_web(far.url)  # a certificate that the Web does not know


@pytest.mark.slow
async def test_curl_reads_it_and_gets_nothing_else(web: WebFiles) -> None:
    curl = tool("curl")
    async with serving(web) as far:
        common = [curl, "-sS", "--cacert", str(web.certificate)]
        head = await run([*common, "-I", far.url])
        assert head.startswith("HTTP/1.1 200")
        assert "application/json" in head
        assert parse(await run([*common, far.url]), TD).sequence == 7
        assert await run([*common, "-o", "/dev/null", "-w", "%{http_code}", "-d", "x", far.url]) == "405"


async def test_a_web_certificate_that_was_replaced_is_shown(web: WebFiles, tmp_path: Path) -> None:
    async with serving(web) as served:
        before = served.endpoint._shown
        web.certificate.touch()
        served.endpoint._mark = (0, 0)
        served.endpoint._read_again()
        assert served.endpoint._shown is not before
        web.certificate.write_text("broken")
        kept = served.endpoint._shown
        served.endpoint._mark = (0, 0)
        served.endpoint._read_again()
        assert served.endpoint._shown is kept


@pytest.mark.parametrize(
    "url",
    ["http://a/", "https:///x", "https://u@a/", "https://a/?q=1", "https://a/#f", "https://a:x/", "spiffe://a/b", ""],
)
def test_an_endpoint_is_an_https_address_and_nothing_more(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check_url(url)


# -- following ----------------------------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[CaService]:
    with CaService.create(tmp_path / "ca", "near.test", now=datetime.now(UTC)) as service:
        yield service


def act(service: CaService, name: str, **facts: Any) -> Any:
    return perform(service, name, facts, Context(OPERATOR, datetime.now(UTC), True, {}))


def follow(service: CaService, served: Served) -> None:
    act(service, "SetFederated", trust_domain=TD, jwks=served.first)
    act(
        service,
        "Follow",
        trust_domain=TD,
        url=served.url,
        profile="https_spiffe",
        endpoint_spiffe_id=str(ID),
    )


async def until(check: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not check():
            await trio.sleep(0.01)


async def again(federation: Federation) -> None:
    """Have it ask now, once the last attempt is quite over."""
    await until(lambda: federation._courses[TD].at > trio.current_time())
    federation._courses[TD].at = 0.0


async def test_a_newer_bundle_is_taken_and_an_older_one_is_not(ours: CaService) -> None:
    async with serving() as served, trio.open_nursery() as nursery:
        follow(ours, served)
        served.body[0] = served.document(9)
        federation = Federation(ours, served.poller)
        nursery.start_soon(federation.run)
        await until(lambda: ours.federated()[TD].sequence == 9)

        served.body[0] = served.document(8)
        await again(federation)
        await until(lambda: "would go back from 9 to 8" in federation.problems.get(TD, ""))
        assert ours.federated()[TD].sequence == 9

        served.body[0] = b"{}"
        await again(federation)
        await until(lambda: "no list of keys" in federation.problems.get(TD, ""))
        served.body[0] = served.document(9)
        await again(federation)
        await until(lambda: not federation.problems)
        nursery.cancel_scope.cancel()
    kinds = [record.kind for record in ours.log()]
    assert kinds.count("federated_bundle_set") == 3  # set, followed, the newer one


async def test_a_server_that_nobody_vouches_for_is_not_believed(ours: CaService) -> None:
    async with serving() as served, serving() as impostor, trio.open_nursery() as nursery:
        follow(ours, served)
        act(
            ours,
            "Follow",
            trust_domain=TD,
            url=impostor.url,
            profile="https_spiffe",
            endpoint_spiffe_id=str(ID),
        )
        federation = Federation(ours, served.poller)
        nursery.start_soon(federation.run)
        await until(lambda: TD in federation.problems)
        assert ours.federated()[TD].sequence == 7
        nursery.cancel_scope.cancel()


def test_https_spiffe_needs_a_first_bundle_and_our_own_trust_domain_is_not_foreign(ours: CaService) -> None:
    facts = {"trust_domain": TD, "url": "https://a/", "profile": "https_spiffe", "endpoint_spiffe_id": str(ID)}
    with pytest.raises(ValueError, match="nobody vouches"):
        act(ours, "Follow", **facts)
    with pytest.raises(NotAllowed):
        act(ours, "Follow", trust_domain="near.test", url="https://a/", profile="https_web")
    with pytest.raises(ValueError, match="no profile"):
        act(ours, "Follow", trust_domain=TD, url="https://a/", profile="http")


def test_a_foreign_bundle_is_shown_unfollowed_and_deleted(ours: CaService) -> None:
    _, bundle = far()
    act(ours, "SetFederated", trust_domain=TD, jwks=bundle.document().decode())
    act(ours, "Follow", trust_domain=TD, url="https://a/", profile="https_web")

    (listed,) = act(ours, "Federated")
    assert (listed["sequence"], listed["roots"], listed["settings"]["profile"]) == (7, 1, "https_web")
    act(ours, "Unfollow", trust_domain=TD)
    assert act(ours, "Federated")[0]["settings"] == {}
    assert act(ours, "GetFederated", trust_domain=TD)["jwks"] == bundle.document().decode()
    act(ours, "DeleteFederated", trust_domain=TD)
    assert act(ours, "Federated") == []
