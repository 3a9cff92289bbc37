"""PyPI's spiffe-tls calls a Sidewall; both have their identities from our Workload API, and keep them by rotation."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from identity.files import CaFolder
from identity.workload_api import WorkloadApi
from proxy.net.tls import Credentials
from tests.support.apps import EchoApp
from tests.support.issuing import IssuingSource, validate
from tests.support.mesh import API, TRUST_DOMAIN, Side, close_side, start_api
from tests.support.rpc import serve, until

T = TypeVar("T")
# spiffe-tls itself uses what spiffe has deprecated, leaves the socket of a refused call open, and logs that contexts
# of earlier calls cannot be changed any more (pyOpenSSL 26); each new call has a new one.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
REQUEST = b"GET /ok HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n"

spiffe: Any = pytest.importorskip("spiffe", reason="the PyPI package spiffe is not installed")
spiffetls: Any = pytest.importorskip("spiffetls", reason="the PyPI package spiffe-tls is not installed")


async def in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


def leaf_of(x509_source: Any) -> Any:
    return x509_source.get_x509_context().default_svid.leaf


async def ask(side: Side, x509_source: Any, expected: str = API) -> bytes:
    """The status line that spiffe-tls gets, or the words of its refusal."""
    authorize = importlib.import_module("spiffetls.tlsconfig.authorize").authorize_id(spiffe.SpiffeId(expected))

    def run() -> bytes:
        mode = spiffetls.ClientTlsMode.TLS
        try:
            connection = spiffetls.dial(f"127.0.0.1:{side.port}", x509_source, mode, authorize)
        except Exception as error:
            return repr(error).encode()
        try:
            connection.sendall(REQUEST)
            answer: bytes = connection.recv(1000)
            return answer.split(b"\r\n")[0]
        finally:
            connection.close()

    return await in_thread(run)


async def test_spiffe_tls_talks_mutual_tls_with_us_through_a_rotation_of_everything(nursery: trio.Nursery) -> None:
    source = IssuingSource(TRUST_DOMAIN, "/ns/shop/sa/web", "/ns/shop/sa/api")
    app = EchoApp()
    await nursery.start(app.run)
    async with serve(WorkloadApi(source, validate).methods()) as served, trio.open_nursery() as serving:
        side = await start_api(serving, CaFolder(Path("/nowhere"), source.authority, source.bundle), app.port)
        x509_source = await in_thread(lambda: spiffe.X509Source(socket_path=f"unix://{served.path}"))
        try:
            assert await ask(side, x509_source) == b"HTTP/1.1 200 OK"
            assert b"200" not in await ask(side, x509_source, API + "x")
            for rotate in (source.new_leafs, source.new_issuing, source.new_root, source.drop_old_roots):
                rotate()
                side.worker.credentials = Credentials(source.context("/ns/shop/sa/api"))
                await until(lambda: leaf_of(x509_source) == source.svid(source.ids[0]).leaf)
                assert await ask(side, x509_source) == b"HTTP/1.1 200 OK"
        finally:
            await in_thread(x509_source.close)
            await close_side(side)
            serving.cancel_scope.cancel()
    side.worker.poller.close()
    peers = {record.peer.uri for record in side.records if record.peer}
    assert peers == {f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/web"}
