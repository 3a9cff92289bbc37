"""The clients that people have, unchanged, against our Workload API socket: py-spiffe, grpcio, go-spiffe.

Each runs outside our loop (a thread, a process), over a real Unix socket; identities come from a real authority.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from identity.rpc import RpcError, Status
from identity.workload_api import WorkloadApi, WorkloadBundle
from tests.support.issuing import IssuingSource, validate
from tests.support.rpc import Served, serve, until

T = TypeVar("T")
WEB = "spiffe://mesh.test/ns/shop/sa/web"
API = "spiffe://mesh.test/ns/shop/sa/api"


@pytest.fixture
def source() -> IssuingSource:
    return IssuingSource("mesh.test", "/ns/shop/sa/web", "/ns/shop/sa/api")


def offer(source: IssuingSource) -> Any:
    return serve(WorkloadApi(source, validate).methods())


async def in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


class Spiffe:
    """The PyPI client in a thread."""

    def __init__(self, served: Served) -> None:
        spiffe = pytest.importorskip("spiffe", reason="the PyPI package spiffe is not installed")
        self.module = spiffe
        self.errors = importlib.import_module("spiffe.workloadapi.errors")
        self._path = f"unix://{served.path}"

    async def ask(self, work: Callable[[Any], T]) -> T:
        def run() -> T:
            with self.module.WorkloadApiClient(self._path) as client:
                return work(client)

        return await in_thread(run)


def leaf_of(x509_source: Any) -> Any:
    return x509_source.get_x509_context().default_svid.leaf


# -- py-spiffe ------------------------------------------------------------------------------------------------------


async def test_py_spiffe_fetches_every_svid_with_its_bundle(source: IssuingSource) -> None:
    async with offer(source) as served:
        spiffe = Spiffe(served)
        context = await spiffe.ask(lambda client: client.fetch_x509_context())
        assert [str(svid.spiffe_id) for svid in context.x509_svids] == [WEB, API]
        default = context.default_svid
        assert default.cert_chain == list(source.svid(source.ids[0]).chain)
        assert default.private_key.public_key() == default.leaf.public_key()
        bundle = context.x509_bundle_set.get_bundle_for_trust_domain(spiffe.module.TrustDomain("mesh.test"))
        assert bundle.x509_authorities == set(source.bundle.authorities)
    assert all(caller.local is not None and caller.local.pid == os.getpid() for caller in source.callers)


async def test_py_spiffe_fetches_bundles_of_federated_trust_domains(source: IssuingSource) -> None:
    other = IssuingSource("other.test", "/x")
    source.federated["other.test"] = WorkloadBundle(other.bundle.authorities)
    async with offer(source) as served:
        spiffe = Spiffe(served)
        bundles = await spiffe.ask(lambda client: client.fetch_x509_bundles())
        found = bundles.get_bundle_for_trust_domain(spiffe.module.TrustDomain("other.test"))
        assert found.x509_authorities == set(other.bundle.authorities)
        context = await spiffe.ask(lambda client: client.fetch_x509_context())
        found = context.x509_bundle_set.get_bundle_for_trust_domain(spiffe.module.TrustDomain("other.test"))
        assert found.x509_authorities == set(other.bundle.authorities)


async def test_py_spiffe_fetches_and_validates_a_jwt(source: IssuingSource) -> None:
    async with offer(source) as served:
        spiffe = Spiffe(served)
        token = await spiffe.ask(lambda client: client.fetch_jwt_svid({"backend"}))
        assert str(token.spiffe_id) == WEB
        tokens = await spiffe.ask(lambda client: client.fetch_jwt_svids({"backend"}))
        assert [str(one.spiffe_id) for one in tokens] == [WEB, API]
        one = await spiffe.ask(lambda client: client.fetch_jwt_svid({"backend"}, subject=spiffe.module.SpiffeId(API)))
        assert str(one.spiffe_id) == API
        checked = await spiffe.ask(lambda client: client.validate_jwt_svid(token.token, "backend"))
        assert str(checked.spiffe_id) == WEB
        with pytest.raises(spiffe.errors.ValidateJwtSvidError, match="INVALID_ARGUMENT"):
            await spiffe.ask(lambda client: client.validate_jwt_svid(token.token, "somebody else"))
        bundles = await spiffe.ask(lambda client: client.fetch_jwt_bundles())
        bundle = bundles.get_bundle_for_trust_domain(spiffe.module.TrustDomain("mesh.test"))
        assert list(bundle.jwt_authorities) == ["first"]


async def test_py_spiffes_source_follows_a_rotation_of_leaf_issuing_authority_and_root(source: IssuingSource) -> None:
    async with offer(source) as served:
        spiffe = Spiffe(served)
        x509_source = await in_thread(lambda: spiffe.module.X509Source(socket_path=f"unix://{served.path}"))
        try:
            for rotate in (source.new_leafs, source.new_issuing, source.new_root, source.drop_old_roots):
                rotate()
                expected = source.svid(source.ids[0]).leaf
                await until(lambda expected=expected: leaf_of(x509_source) == expected)
                bundle = x509_source.get_bundle_for_trust_domain(spiffe.module.TrustDomain("mesh.test"))
                assert bundle.x509_authorities == set(source.bundle.authorities)
        finally:
            await in_thread(x509_source.close)


async def test_py_spiffes_source_survives_a_time_without_identity(source: IssuingSource) -> None:
    async with offer(source) as served:
        spiffe = Spiffe(served)
        x509_source = await in_thread(lambda: spiffe.module.X509Source(socket_path=f"unix://{served.path}"))
        try:
            before = leaf_of(x509_source)
            source.refusal = RpcError(Status.UNAVAILABLE, "the authority is away")
            source.changed()
            await until(lambda: not any(connection.calls for connection in served.server.connections))
            source.refusal = None
            source.new_leafs()
            await until(lambda: leaf_of(x509_source) != before, 10.0)
        finally:
            await in_thread(x509_source.close)


@pytest.mark.parametrize(
    ("status", "code"), [(Status.PERMISSION_DENIED, "PERMISSION_DENIED"), (Status.UNAVAILABLE, "UNAVAILABLE")]
)
async def test_py_spiffe_reads_our_refusals(source: IssuingSource, status: Status, code: str) -> None:
    source.refusal = RpcError(status, "no identity issued")
    async with offer(source) as served:
        spiffe = Spiffe(served)
        with pytest.raises(spiffe.errors.FetchX509SvidError, match=f"no identity issued.*{code}"):
            await spiffe.ask(lambda client: client.fetch_x509_svid())


# -- grpcio with the standard's own generated messages --------------------------------------------------------------


def stub_of(served: Served) -> tuple[Any, Any, Any]:
    grpc = pytest.importorskip("grpc", reason="grpcio is not installed")
    module = pytest.importorskip("spiffe._proto.workload_pb2_grpc", reason="spiffe has no generated service")
    messages = importlib.import_module("spiffe._proto.workload_pb2")
    channel = grpc.insecure_channel(f"unix:{served.path}")
    return channel, module.SpiffeWorkloadAPIStub(channel), messages


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ([], "INVALID_ARGUMENT"),
        ([("workload.spiffe.io", "TRUE")], "INVALID_ARGUMENT"),
        ([("workload.spiffe.io", "true ,")], "INVALID_ARGUMENT"),
        ([("workload.spiffe.io", "true")], "OK"),
    ],
)
async def test_the_security_header_must_be_exact(source: IssuingSource, metadata: Any, code: str) -> None:
    def ask() -> set[str]:
        grpc = importlib.import_module("grpc")
        channel, stub, messages = stub_of(served)
        asked = {"audience": ["a"]}
        calls = [
            lambda: next(stub.FetchX509SVID(messages.X509SVIDRequest(), metadata=metadata)),
            lambda: next(stub.FetchX509Bundles(messages.X509BundlesRequest(), metadata=metadata)),
            lambda: stub.FetchJWTSVID(messages.JWTSVIDRequest(**asked), metadata=metadata),
            lambda: next(stub.FetchJWTBundles(messages.JWTBundlesRequest(), metadata=metadata)),
        ]
        found = set()
        with channel:
            for call in calls:
                try:
                    call()
                    found.add("OK")
                except grpc.RpcError as error:
                    found.add(error.code().name)
        return found

    async with offer(source) as served:
        assert await in_thread(ask) == {code}


async def test_grpcio_is_refused_the_seventeenth_stream_and_an_oversized_request(source: IssuingSource) -> None:
    metadata = [("workload.spiffe.io", "true")]

    def ask() -> tuple[list[str], str]:
        grpc = importlib.import_module("grpc")
        channel, stub, messages = stub_of(served)
        with channel:
            streams = [stub.FetchX509SVID(messages.X509SVIDRequest(), metadata=metadata) for _ in range(16)]
            for stream in streams:
                next(stream)
            codes = []
            for _ in range(2):
                with pytest.raises(grpc.RpcError) as caught:
                    next(stub.FetchX509SVID(messages.X509SVIDRequest(), metadata=metadata))
                codes.append(caught.value.code().name)
            streams[0].cancel()
        channel, stub, messages = stub_of(served)
        with channel, pytest.raises(grpc.RpcError) as caught:
            stub.ValidateJWTSVID(messages.ValidateJWTSVIDRequest(audience="a", svid="x" * 5000), metadata=metadata)
        return codes, caught.value.code().name

    async with offer(source) as served:
        codes, oversized = await in_thread(ask)
    assert codes == ["RESOURCE_EXHAUSTED"] * 2
    assert oversized == "RESOURCE_EXHAUSTED"


# -- go-spiffe ------------------------------------------------------------------------------------------------------

_GO_PROGRAM = Path(__file__).parent / "peers" / "spiffe_go"


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Go program, built. Skips where Go or its modules are not to be had."""
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(go).exists():
        pytest.skip("Go is not installed")
    program = str(tmp_path_factory.mktemp("go") / "client")
    command = [go, "build", "-o", program, "."]
    built = subprocess.run(command, cwd=_GO_PROGRAM, capture_output=True, text=True, timeout=110, check=False)
    if built.returncode:
        pytest.skip(f"the go-spiffe program cannot be built here: {built.stderr[-300:]}")
    return program


class GoClient:
    """The running Go program: its lines as they come."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._buffer = b""

    async def line(self) -> dict[str, Any]:
        with trio.fail_after(20):
            while b"\n" not in self._buffer:
                data = await self._process.stdout.receive_some()  # type: ignore[union-attr]
                assert data, "the Go program has ended"
                self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return dict(json.loads(line))


@pytest.mark.slow
async def test_go_spiffe_fetches_validates_and_follows_a_rotation(source: IssuingSource, go_client: str) -> None:
    other = IssuingSource("other.test", "/x")
    source.federated["other.test"] = WorkloadBundle(other.bundle.authorities)
    source.hints["/ns/shop/sa/web"] = "internal"
    async with offer(source) as served, trio.open_nursery() as nursery:
        env = {**os.environ, "SPIFFE_ENDPOINT_SOCKET": f"unix://{served.path}"}
        start = partial(trio.run_process, [go_client], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process: trio.Process = await nursery.start(start)
        client = GoClient(process)
        tokens = await client.line()
        assert (tokens["event"], tokens["count"], tokens["id"], tokens["parsed"]) == ("jwt", 2, WEB, WEB), tokens
        assert "InvalidArgument" in tokens["wrong"]
        assert "PermissionDenied" in tokens["refused"]
        first = await client.line()
        assert first["ids"] == [WEB, API]
        assert (first["domains"], first["hints"]) == (["mesh.test", "other.test"], "internal")
        for rotate, authorities in (
            (source.new_leafs, 2),
            (source.new_issuing, 2),
            (source.new_root, 3),
            (source.drop_old_roots, 2),
        ):
            rotate()
            update = await client.line()
            serial = f"{source.svid(source.ids[0]).leaf.serial_number:x}"
            assert (update["event"], update["serial"], update["authorities"]) == ("x509", serial, authorities)
        assert {caller.local.pid for caller in source.callers if caller.local} == {process.pid}
        await process.stdin.aclose()  # type: ignore[union-attr]
