"""Envoy's secret discovery service, version 3, over the same ``IdentitySource`` as the Workload API.

Names of resources (SPIRE's, so that configurations can be kept):

    default             the default SVID, with its key, as TlsCertificate
    a SPIFFE ID         that SVID
    ROOTCA              the bundle of the caller's own trust domain, as validation context
    a trust domain ID   that bundle (``spiffe://td``)
    ALL                 every bundle, as one SPIFFE validator that keeps them apart
    none at all         every SVID and every bundle, by their IDs

Since version 1.18 Envoy has a validator that takes an SVID of a trust domain only from the authorities of that
trust domain; whoever says he is younger gets it also for ROOTCA and single bundles. Others get plain authorities.

The protocol (Envoy, xDS, "ACK/NACK and resource type instance version"): a request names what is wanted; each
response has a version and a nonce; the next request repeats the nonce of the last response and with it either its
version (taken) or an error (refused). A request with an older nonce crossed our response on the way and is ignored.
After a refusal nothing is sent until something has changed, or Envoy and we would spin. A change is sent only to
those whose secrets it changed.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity.protos import envoy_core, envoy_discovery, envoy_tls, parse, well_known
from identity.rpc import Call, Caller, Method, Methods, RpcError, Status
from identity.workload_api import IdentitySource, WorkloadBundle, WorkloadSvid, require_present

SERVICE: Final = "/envoy.service.secret.v3.SecretDiscoveryService/"
SECRET_TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a name
VALIDATOR: Final = "envoy.tls.cert_validator.spiffe"
_MAX_NAMES: Final = 64
_MAX_REQUEST: Final = 64 * 1024  # Envoy's node has all its extensions in it: about 20 kB in version 1.40

OnEvent = Callable[[str, Mapping[str, object]], None]


class Sds:
    """``methods()`` is what a server is given. Events: ``sds_refused`` pid, names, problem."""

    def __init__(self, source: IdentitySource, on_event: OnEvent = lambda name, facts: None) -> None:
        self._source = source
        self._on_event = on_event

    def methods(self) -> Methods:
        """The service's methods; DeltaSecrets is not offered, as with SPIRE, and Envoy asks for it only when told."""
        return {
            SERVICE + "StreamSecrets": Method("bidi", self._stream, _MAX_REQUEST),
            SERVICE + "FetchSecrets": Method("unary", self._fetch, _MAX_REQUEST),
        }

    async def _fetch(self, call: Call, request: bytes) -> bytes:
        require_present(call.caller)
        subscription = _Subscription()
        subscription.take(parse(envoy_discovery.DiscoveryRequest, request))
        seen = self._source.version
        resources = await self._resources(call.caller, subscription)
        require_present(call.caller)
        return bytes(_response(resources, str(seen), "").SerializeToString())

    async def _stream(self, call: Call, requests: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        require_present(call.caller)
        subscription = _Subscription()
        sent: list[bytes] | None = None
        seen = self._source.version
        while True:
            news = await _request_or_change(requests, self._source, seen)
            if news is not None:
                if not news:
                    return  # Envoy has closed the stream
                if not self._take(call.caller, subscription, news[0]):
                    continue
                sent = None  # something else is wanted now: an answer is due even when it is the same
            if subscription.names is None:
                continue
            seen = self._source.version
            resources = await self._resources(call.caller, subscription)
            require_present(call.caller)
            if resources != sent:
                sent = resources
                subscription.nonce = secrets.token_hex(8)
                yield bytes(_response(resources, str(seen), subscription.nonce).SerializeToString())

    def _take(self, caller: Caller, subscription: _Subscription, data: bytes) -> bool:
        """Whether the request changes what is wanted. What it refuses is reported."""
        request = parse(envoy_discovery.DiscoveryRequest, data)
        if request.HasField("error_detail"):  # of the last response, or of one before that it crossed
            pid = caller.local.pid if caller.local else 0
            problem = _printable(request.error_detail.message)
            self._on_event("sds_refused", {"pid": pid, "names": sorted(request.resource_names), "problem": problem})
        return subscription.take(request)

    # -- resources --------------------------------------------------------------------------------------------------

    async def _resources(self, caller: Caller, subscription: _Subscription) -> list[bytes]:
        """The secrets that are wanted, serialised. INVALID_ARGUMENT for a name that this caller has nothing for."""
        svids = await self._source.svids_for(caller)
        bundles = await self._source.bundles_for(caller)
        if not svids:
            raise RpcError(Status.PERMISSION_DENIED, "no identity issued")
        made = dict(_secrets(svids, bundles, subscription.knows_validator))
        names = subscription.names or frozenset()
        if strange := names - made.keys():
            listed = ", ".join(sorted(strange))
            raise RpcError(Status.INVALID_ARGUMENT, f"this workload has no right to {listed}")
        wanted = names or {name for name in made if name.startswith("spiffe://")}
        return [made[name]().SerializeToString(deterministic=True) for name in sorted(wanted)]


async def _request_or_change(requests: AsyncIterator[bytes], source: IdentitySource, seen: int) -> list[bytes] | None:
    """The next request in a list, an empty list at their end, or None when the source has changed first."""
    found: list[list[bytes]] = []

    async def request(scope: trio.CancelScope) -> None:
        data = await anext(requests, None)
        found.append([] if data is None else [data])
        scope.cancel()

    async def change(scope: trio.CancelScope) -> None:
        await source.wait_change(seen)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request, nursery.cancel_scope)
        nursery.start_soon(change, nursery.cancel_scope)
    return found[0] if found else None


class _Subscription:
    """What one stream wants, and what was last sent to it. ``names``: None before the first request, empty: all."""

    def __init__(self) -> None:
        self.names: frozenset[str] | None = None
        self.nonce = ""
        self.knows_validator = False

    def take(self, request: Any) -> bool:
        """Whether ``request`` asks for something else than the one before it. Raises RpcError."""
        if request.type_url not in ("", SECRET_TYPE):
            raise RpcError(Status.INVALID_ARGUMENT, f"only {SECRET_TYPE} is served here")
        if len(request.resource_names) > _MAX_NAMES:
            raise RpcError(Status.INVALID_ARGUMENT, f"more than {_MAX_NAMES} resource names")
        if self.nonce and request.response_nonce != self.nonce:
            return False
        if request.HasField("node"):  # only the first request of a stream needs to have one
            version = request.node.user_agent_build_version.version
            self.knows_validator = (version.major_number, version.minor_number) >= (1, 18)
        names = frozenset(name for name in request.resource_names if name)
        changed = names != self.names
        self.names = names
        return changed


def _secrets(
    svids: Sequence[WorkloadSvid], bundles: Mapping[str, WorkloadBundle], knows_validator: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """All names of this caller, each with what makes its Secret."""
    own = svids[0].svid.id.trust_domain

    def bundle(name: str, trust_domain: str) -> Callable[[], Any]:
        only = {trust_domain: bundles[trust_domain]}
        if knows_validator:
            return lambda: _spiffe_validator(name, only)
        return lambda: _plain_validator(name, bundles[trust_domain])

    for trust_domain in bundles:
        yield f"spiffe://{trust_domain}", bundle(f"spiffe://{trust_domain}", trust_domain)
    if own in bundles:
        yield "ROOTCA", bundle("ROOTCA", own)
        yield "ALL", lambda: _spiffe_validator("ALL", bundles)
    yield "default", lambda: _certificate("default", svids[0])
    for item in reversed(svids):  # of two SVIDs with one ID the first counts
        yield str(item.svid.id), _maker(item)


def _maker(item: WorkloadSvid) -> Callable[[], Any]:
    return lambda: _certificate(str(item.svid.id), item)


def _certificate(name: str, item: WorkloadSvid) -> Any:
    svid = item.svid
    secret = envoy_tls.Secret(name=name)
    made = secret.tls_certificate
    made.certificate_chain.inline_bytes = b"".join(cert.public_bytes(Encoding.PEM) for cert in svid.chain)
    made.private_key.inline_bytes = svid.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return secret


def _pem(bundle: WorkloadBundle) -> bytes:
    return b"".join(cert.public_bytes(Encoding.PEM) for cert in bundle.x509_authorities)


def _plain_validator(name: str, bundle: WorkloadBundle) -> Any:
    secret = envoy_tls.Secret(name=name)
    secret.validation_context.trusted_ca.inline_bytes = _pem(bundle)
    return secret


def _spiffe_validator(name: str, bundles: Mapping[str, WorkloadBundle]) -> Any:
    config = envoy_tls.SPIFFECertValidatorConfig()
    for trust_domain, bundle in sorted(bundles.items()):
        source = envoy_core.DataSource(inline_bytes=_pem(bundle))
        config.trust_domains.add(name=trust_domain, trust_bundle=source)
    secret = envoy_tls.Secret(name=name)
    custom = secret.validation_context.custom_validator_config
    custom.name = VALIDATOR
    custom.typed_config.Pack(config, deterministic=True)
    return secret


def _response(resources: Sequence[bytes], version: str, nonce: str) -> Any:
    response = envoy_discovery.DiscoveryResponse(version_info=version, type_url=SECRET_TYPE, nonce=nonce)
    for data in resources:
        response.resources.append(well_known("google.protobuf.Any")(type_url=SECRET_TYPE, value=data))
    return response


def _printable(text: str) -> str:
    return "".join(c if " " <= c <= "~" else "?" for c in text[:300])
