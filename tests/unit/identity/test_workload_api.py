"""The Workload API's rules, method by method, without a transport."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key

from identity.protos import workload
from identity.rpc import Call, Caller, RpcError, Status
from identity.workload_api import SERVICE, WorkloadApi, WorkloadBundle
from tests.support.issuing import IssuingSource, validate

WEB = "spiffe://mesh.test/web"
API = "spiffe://mesh.test/api"
STREAMS = {
    "FetchX509SVID": workload.X509SVIDResponse,
    "FetchX509Bundles": workload.X509BundlesResponse,
    "FetchJWTBundles": workload.JWTBundlesResponse,
}


@dataclass
class Process:
    pid: int = 7
    uid: int = 0
    gid: int = 0
    gone: bool = False
    looks: int = 0

    def still_there(self) -> bool:
        self.looks += 1
        return not self.gone

    def close(self) -> None:
        self.gone = True


@pytest.fixture
def source() -> IssuingSource:
    return IssuingSource("mesh.test", "/web", "/api")


@pytest.fixture
def process() -> Process:
    return Process()


def call_of(process: Process | None, header: str | None = "true") -> Call:
    metadata = {} if header is None else {"workload.spiffe.io": header}
    return Call("", Caller(local=process), metadata)


def stream(source: IssuingSource, name: str, call: Call, request: bytes = b"") -> Any:
    handler: Any = WorkloadApi(source, validate).methods()[SERVICE + name].handler
    return aclosing(handler(call, request))


async def unary(source: IssuingSource, name: str, call: Call, request: Any) -> Any:
    handler: Any = WorkloadApi(source, validate).methods()[SERVICE + name].handler
    return await handler(call, request.SerializeToString())


async def first(source: IssuingSource, name: str, call: Call) -> Any:
    async with stream(source, name, call) as replies:
        return STREAMS[name].FromString(await anext(replies))


async def status_of(awaitable: Any) -> Status:
    with pytest.raises(RpcError) as caught:
        await awaitable
    return caught.value.status


# -- contents -------------------------------------------------------------------------------------------------------


async def test_an_svid_comes_with_its_chain_its_key_and_its_bundle(source: IssuingSource, process: Process) -> None:
    response = await first(source, "FetchX509SVID", call_of(process))
    assert [svid.spiffe_id for svid in response.svids] == [WEB, API]
    svid = source.svid(source.ids[0])
    message = response.svids[0]
    assert message.x509_svid == b"".join(cert.public_bytes(Encoding.DER) for cert in svid.chain)
    assert len(svid.chain) == 2
    key: Any = load_der_private_key(message.x509_svid_key, None)
    assert key.public_key() == svid.leaf.public_key()
    assert message.bundle == source.bundle.authorities[0].public_bytes(Encoding.DER)
    assert not response.federated_bundles
    assert not response.crl


async def test_foreign_bundles_are_apart_from_the_own_one(source: IssuingSource, process: Process) -> None:
    other = IssuingSource("other.test", "/x").bundle.authorities
    source.federated["other.test"] = WorkloadBundle(other, b'{"keys":[1]}')
    der = other[0].public_bytes(Encoding.DER)
    call = call_of(process)
    assert dict((await first(source, "FetchX509SVID", call)).federated_bundles) == {"spiffe://other.test": der}
    bundles = (await first(source, "FetchX509Bundles", call)).bundles
    assert sorted(bundles) == ["spiffe://mesh.test", "spiffe://other.test"]
    assert (await first(source, "FetchJWTBundles", call)).bundles["spiffe://other.test"] == b'{"keys":[1]}'


async def test_a_hint_occurs_once(source: IssuingSource, process: Process) -> None:
    source.hints.update({"/web": "internal", "/api": "internal"})
    response = await first(source, "FetchX509SVID", call_of(process))
    assert [svid.hint for svid in response.svids] == ["internal", ""]
    tokens = await unary(source, "FetchJWTSVID", call_of(process), workload.JWTSVIDRequest(audience=["a"]))
    assert [one.hint for one in workload.JWTSVIDResponse.FromString(tokens).svids] == ["internal", ""]


async def test_a_token_is_for_one_id_when_asked(source: IssuingSource, process: Process) -> None:
    asked = workload.JWTSVIDRequest(audience=["a", "b", "a"], spiffe_id=API)
    response = workload.JWTSVIDResponse.FromString(await unary(source, "FetchJWTSVID", call_of(process), asked))
    (svid,) = response.svids
    assert svid.spiffe_id == API
    checked = await unary(
        source, "ValidateJWTSVID", call_of(process), workload.ValidateJWTSVIDRequest(audience="b", svid=svid.svid)
    )
    answer = workload.ValidateJWTSVIDResponse.FromString(checked)
    assert answer.spiffe_id == API
    assert list(answer.claims["aud"]) == ["a", "b"]


# -- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "", "True", "TRUE", "true ", "1"])
@pytest.mark.parametrize("name", [*STREAMS, "FetchJWTSVID", "ValidateJWTSVID"])
async def test_without_the_exact_header_nothing_is_looked_at(
    source: IssuingSource, process: Process, name: str, header: str | None
) -> None:
    call = call_of(process, header)
    if name in STREAMS:
        assert await status_of(first(source, name, call)) is Status.INVALID_ARGUMENT
    else:
        asked = unary(source, name, call, workload.JWTSVIDRequest(audience=["a"]))
        assert await status_of(asked) is Status.INVALID_ARGUMENT
    assert (source.callers, process.looks) == ([], 0)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_caller_that_is_no_local_process_gets_nothing(source: IssuingSource, name: str) -> None:
    assert await status_of(first(source, name, call_of(None))) is Status.PERMISSION_DENIED
    assert source.callers == []


@pytest.mark.parametrize("status", [Status.PERMISSION_DENIED, Status.UNAVAILABLE])
@pytest.mark.parametrize("name", STREAMS)
async def test_the_sources_refusal_is_the_callers(
    source: IssuingSource, process: Process, name: str, status: Status
) -> None:
    source.refusal = RpcError(status, "no")
    assert await status_of(first(source, name, call_of(process))) is status


async def test_no_svid_at_all_is_permission_denied(source: IssuingSource, process: Process) -> None:
    source.ids = []
    assert await status_of(first(source, "FetchX509SVID", call_of(process))) is Status.PERMISSION_DENIED
    asked = unary(source, "FetchJWTSVID", call_of(process), workload.JWTSVIDRequest(audience=["a"]))
    assert await status_of(asked) is Status.PERMISSION_DENIED


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"audience": [""]},
        {"audience": ["a", ""]},
        {"audience": [str(number) for number in range(33)]},
        {"audience": ["a"], "spiffe_id": "https://mesh.test/web"},
        {"audience": ["a"], "spiffe_id": "spiffe://mesh.test/../web"},
    ],
)
async def test_a_senseless_token_request_is_refused(
    source: IssuingSource, process: Process, fields: dict[str, Any]
) -> None:
    asked = unary(source, "FetchJWTSVID", call_of(process), workload.JWTSVIDRequest(**fields))
    assert await status_of(asked) is Status.INVALID_ARGUMENT


@pytest.mark.parametrize("fields", [{"audience": "a"}, {"svid": "x.y.z"}, {"audience": "a", "svid": "x.y.z"}])
async def test_a_token_that_is_none_is_refused(
    source: IssuingSource, process: Process, fields: dict[str, str]
) -> None:
    async def never(token: str, audience: str, bundles: Any) -> Any:
        raise ValueError("not a token")

    handler: Any = WorkloadApi(source, never).methods()[SERVICE + "ValidateJWTSVID"].handler
    request = workload.ValidateJWTSVIDRequest(**fields).SerializeToString()
    assert await status_of(handler(call_of(process), request)) is Status.INVALID_ARGUMENT


async def test_a_request_that_is_no_message_is_refused(source: IssuingSource, process: Process) -> None:
    async with stream(source, "FetchX509SVID", call_of(process), b"\xff") as replies:
        assert await status_of(anext(replies)) is Status.INVALID_ARGUMENT


# -- streams --------------------------------------------------------------------------------------------------------


async def settle(replies: AsyncIterator[bytes]) -> bytes | None:
    """The next message, or None when there is none for now."""
    with trio.move_on_after(0.02):
        return await anext(replies)
    return None


async def test_each_change_sends_the_full_set(source: IssuingSource, process: Process) -> None:
    async with stream(source, "FetchX509SVID", call_of(process)) as replies:
        seen = [await anext(replies)]
        for rotate in (source.new_leafs, source.new_issuing, source.new_root):
            rotate()
            seen.append(await anext(replies))
    assert len(set(seen)) == 4
    assert {len(workload.X509SVIDResponse.FromString(one).svids) for one in seen} == {2}


@pytest.mark.parametrize("name", STREAMS)
async def test_what_has_not_changed_is_not_sent_again(source: IssuingSource, process: Process, name: str) -> None:
    async with stream(source, name, call_of(process)) as replies:
        await anext(replies)
        source.changed()
        assert await settle(replies) is None
        assert len(source.callers) > 1


async def test_a_new_leaf_is_no_news_for_those_who_follow_bundles(source: IssuingSource, process: Process) -> None:
    async with stream(source, "FetchX509Bundles", call_of(process)) as replies:
        await anext(replies)
        source.new_leafs()
        assert await settle(replies) is None


async def test_a_change_between_two_looks_is_not_lost(source: IssuingSource, process: Process) -> None:
    async with stream(source, "FetchX509SVID", call_of(process)) as replies:
        before = await anext(replies)
        source.new_leafs()
        source.new_leafs()
        assert await anext(replies) != before
        assert await settle(replies) is None


async def test_the_process_is_looked_at_before_every_message(source: IssuingSource, process: Process) -> None:
    async with stream(source, "FetchX509SVID", call_of(process)) as replies:
        await anext(replies)
        looks = process.looks
        source.new_leafs()
        await anext(replies)
        assert process.looks > looks
        process.gone = True
        source.new_leafs()
        assert await status_of(anext(replies)) is Status.PERMISSION_DENIED


async def test_a_process_that_ends_while_its_svid_is_made_does_not_get_it(
    source: IssuingSource, process: Process
) -> None:
    made = source.jwt_svids

    async def slow(*more: Any) -> Any:
        process.gone = True
        return await made(*more)

    source.jwt_svids = slow  # type: ignore[method-assign]
    asked = unary(source, "FetchJWTSVID", call_of(process), workload.JWTSVIDRequest(audience=["a"]))
    assert await status_of(asked) is Status.PERMISSION_DENIED


async def test_a_deleted_entry_ends_the_stream(source: IssuingSource, process: Process) -> None:
    async with stream(source, "FetchX509SVID", call_of(process)) as replies:
        await anext(replies)
        source.refusal = RpcError(Status.PERMISSION_DENIED, "no identity issued")
        source.changed()
        assert await status_of(anext(replies)) is Status.PERMISSION_DENIED
