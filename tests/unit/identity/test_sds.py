"""Envoy's secret discovery service: names, versions, nonces, and who is asked before what is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from identity.protos import envoy_discovery, envoy_tls
from identity.rpc import Call, Caller, RpcError, Status
from identity.sds import SECRET_TYPE, SERVICE, VALIDATOR, Sds
from identity.workload_api import WorkloadBundle
from tests.support.issuing import IssuingSource
from tests.unit.identity.test_workload_api import Process, status_of

TD = "spiffe://mesh.test"
WEB, API = TD + "/web", TD + "/api"


class Envoy:
    """One stream, as Envoy uses it."""

    def __init__(
        self, source: IssuingSource, process: Process | None, version: tuple[int, int] | None = (1, 40)
    ) -> None:
        self.reported: list[dict[str, Any]] = []
        methods = Sds(source, self._report).methods()
        self._version = version
        self._send, self._receive = trio.open_memory_channel[bytes](10)
        call = Call(SERVICE + "StreamSecrets", Caller(local=process))
        self.replies: Any = methods[SERVICE + "StreamSecrets"].handler(call, self._receive)  # type: ignore[arg-type]
        self.fetch: Any = methods[SERVICE + "FetchSecrets"].handler
        self.call = call
        self.last: Any = None

    def _report(self, name: str, facts: Any) -> None:
        self.reported.append({"event": name, **facts})

    def request(self, *names: str, nonce: str | None = None, error: str = "", type_url: str = SECRET_TYPE) -> Any:
        request = envoy_discovery.DiscoveryRequest(resource_names=names, type_url=type_url)
        if self._version is not None and self.last is None:
            version = request.node.user_agent_build_version.version
            version.major_number, version.minor_number = self._version
        if self.last is not None:
            request.response_nonce = self.last.nonce if nonce is None else nonce
            request.version_info = "" if error else self.last.version_info
        if error:
            request.error_detail.message = error
        return request

    def say(self, *names: str, **more: Any) -> None:
        self._send.send_nowait(self.request(*names, **more).SerializeToString())

    def hang_up(self) -> None:
        self._send.close()

    async def hear(self) -> dict[str, Any]:
        """The secrets of the next response, by name."""
        with trio.fail_after(2):
            self.last = envoy_discovery.DiscoveryResponse.FromString(await anext(self.replies))
        assert self.last.type_url == SECRET_TYPE
        return self.open(self.last)

    @staticmethod
    def open(response: Any) -> dict[str, Any]:
        assert {item.type_url for item in response.resources} <= {SECRET_TYPE}
        made = [envoy_tls.Secret.FromString(item.value) for item in response.resources]
        return {secret.name: secret for secret in made}

    async def hears_nothing(self) -> bool:
        with trio.move_on_after(0.02):
            await anext(self.replies)
            return False
        return True


@pytest.fixture
def source() -> IssuingSource:
    return IssuingSource("mesh.test", "/web", "/api")


@pytest.fixture
def process() -> Process:
    return Process()


@asynccontextmanager
async def open_stream(source: IssuingSource, process: Process | None, **more: Any) -> AsyncIterator[Envoy]:
    envoy = Envoy(source, process, **more)
    try:
        yield envoy
    finally:
        await envoy.replies.aclose()


def chain_of(secret: Any) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(secret.tls_certificate.certificate_chain.inline_bytes)


def validator_of(secret: Any) -> dict[str, list[x509.Certificate]]:
    custom = secret.validation_context.custom_validator_config
    assert custom.name == VALIDATOR
    config = envoy_tls.SPIFFECertValidatorConfig()
    assert custom.typed_config.type_url.endswith(
        "/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
    )
    config.ParseFromString(custom.typed_config.value)
    return {one.name: x509.load_pem_x509_certificates(one.trust_bundle.inline_bytes) for one in config.trust_domains}


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "path"), [("default", WEB), (WEB, WEB), (API, API)])
async def test_a_certificate_by_name(source: IssuingSource, process: Process, name: str, path: str) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say(name)
        secret = (await envoy.hear())[name]
    svid = next(source.svid(one) for one in source.ids if str(one) == path)
    assert chain_of(secret) == list(svid.chain)
    key: Any = load_pem_private_key(secret.tls_certificate.private_key.inline_bytes, None)
    assert key.public_key() == svid.leaf.public_key()


@pytest.mark.parametrize("name", ["ROOTCA", TD])
async def test_the_own_bundle_is_good_for_its_own_trust_domain(
    source: IssuingSource, process: Process, name: str
) -> None:
    source.federated["other.test"] = WorkloadBundle(IssuingSource("other.test", "/x").bundle.authorities)
    async with open_stream(source, process) as envoy:
        envoy.say(name)
        secret = (await envoy.hear())[name]
    assert validator_of(secret) == {"mesh.test": list(source.bundle.authorities)}


async def test_all_bundles_are_kept_apart(source: IssuingSource, process: Process) -> None:
    other = IssuingSource("other.test", "/x").bundle.authorities
    source.federated["other.test"] = WorkloadBundle(other)
    async with open_stream(source, process) as envoy:
        envoy.say("ALL", "spiffe://other.test")
        secrets = await envoy.hear()
    assert validator_of(secrets["ALL"]) == {"mesh.test": list(source.bundle.authorities), "other.test": list(other)}
    assert validator_of(secrets["spiffe://other.test"]) == {"other.test": list(other)}


@pytest.mark.parametrize("version", [None, (1, 17)])
async def test_an_old_envoy_gets_plain_authorities(source: IssuingSource, process: Process, version: Any) -> None:
    async with open_stream(source, process, version=version) as envoy:
        envoy.say("ROOTCA")
        context = (await envoy.hear())["ROOTCA"].validation_context
    assert x509.load_pem_x509_certificates(context.trusted_ca.inline_bytes) == list(source.bundle.authorities)
    assert not context.HasField("custom_validator_config")


async def test_no_name_at_all_is_every_svid_and_every_bundle(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say()
        assert sorted(await envoy.hear()) == [TD, API, WEB]


@pytest.mark.parametrize("name", ["other", TD + "/nobody", "spiffe://other.test", "rootca"])
async def test_a_name_that_is_not_the_callers_is_refused(source: IssuingSource, process: Process, name: str) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("default", name)
        with pytest.raises(RpcError, match=name) as caught:
            await envoy.hear()
    assert caught.value.status is Status.INVALID_ARGUMENT


# -- versions and nonces --------------------------------------------------------------------------------------------


async def test_an_ack_is_answered_by_silence_until_something_changes(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        before = await envoy.hear()
        version, nonce = envoy.last.version_info, envoy.last.nonce
        envoy.say("default")
        assert await envoy.hears_nothing()
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        await envoy.hear()
        envoy.say("default")
        source.new_leafs()
        after = await envoy.hear()
        assert chain_of(after["default"]) != chain_of(before["default"])
        assert envoy.last.version_info != version
        assert envoy.last.nonce != nonce
        assert nonce


async def test_a_refusal_is_reported_and_not_answered_again(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        await envoy.hear()
        envoy.say("default", error="bad key\n")
        source.changed()
        assert await envoy.hears_nothing()
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        await envoy.hear()
        envoy.say("default", error="bad key\n")
        source.new_leafs()
        await envoy.hear()  # what has changed may be better
        envoy.say("default")
        assert await envoy.hears_nothing()
        assert envoy.reported == [{"event": "sds_refused", "pid": 7, "names": ["default"], "problem": "bad key?"}]


async def test_a_request_that_crossed_our_response_is_ignored(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        await envoy.hear()
        envoy.say("ROOTCA", nonce="an old one")
        envoy.say("ALL")
        assert list(await envoy.hear()) == ["ALL"]


async def test_another_name_is_answered_at_once(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        await envoy.hear()
        envoy.say("default", "ROOTCA")
        assert sorted(await envoy.hear()) == ["ROOTCA", "default"]


async def test_a_new_leaf_is_no_news_for_those_who_have_the_bundle(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("ROOTCA")
        await envoy.hear()
        source.new_leafs()
        assert await envoy.hears_nothing()


async def test_the_stream_ends_with_the_requests(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        await envoy.hear()
        envoy.hang_up()
        with pytest.raises(StopAsyncIteration):
            await anext(envoy.replies)


async def test_fetch_answers_once_without_a_nonce(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        request = envoy.request("default", "ROOTCA").SerializeToString()
        response = envoy_discovery.DiscoveryResponse.FromString(await envoy.fetch(envoy.call, request))
        assert sorted(envoy.open(response)) == ["ROOTCA", "default"]
        assert (response.nonce, response.version_info) == ("", str(source.version))


# -- refusals -------------------------------------------------------------------------------------------------------


async def test_a_caller_that_is_no_local_process_gets_nothing(source: IssuingSource) -> None:
    async with open_stream(source, None) as envoy:
        envoy.say("default")
        assert await status_of(envoy.hear()) is Status.PERMISSION_DENIED
        assert await status_of(envoy.fetch(envoy.call, b"")) is Status.PERMISSION_DENIED
    assert source.callers == []


async def test_the_process_is_looked_at_before_every_message(source: IssuingSource, process: Process) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say("default")
        await envoy.hear()
        process.gone = True
        source.new_leafs()
        assert await status_of(envoy.hear()) is Status.PERMISSION_DENIED


async def test_without_an_svid_there_are_no_bundles_either(source: IssuingSource, process: Process) -> None:
    source.ids = []
    async with open_stream(source, process) as envoy:
        envoy.say("ROOTCA")
        assert await status_of(envoy.hear()) is Status.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("names", "type_url"),
    [
        (["default"], "type.googleapis.com/envoy.config.cluster.v3.Cluster"),
        ([str(n) for n in range(65)], SECRET_TYPE),
    ],
)
async def test_senseless_requests_are_refused(
    source: IssuingSource, process: Process, names: list[str], type_url: str
) -> None:
    async with open_stream(source, process) as envoy:
        envoy.say(*names, type_url=type_url)
        assert await status_of(envoy.hear()) is Status.INVALID_ARGUMENT
