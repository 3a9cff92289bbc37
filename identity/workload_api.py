"""The SPIFFE Workload API: five methods over an ``IdentitySource``, without a transport (see ``identity.rpc``).

The standard is short, and what clients rely on is in its details (SPIFFE Workload API 1 to 6, SECURITY.md C-9, C-10):

- Every call carries the metadata ``workload.spiffe.io: true``, exactly; otherwise InvalidArgument. It keeps out
  requests that a browser or a confused proxy was talked into.
- A stream answers at once, then sends the *full* set whenever it has changed, for as long as the caller likes. What
  is the same as before is not sent again: clients reload their servers at each message.
- No identity for this caller is PermissionDenied, also in the middle of a stream when its last entry was deleted;
  not ready yet, or the authority away with nothing cached, is Unavailable. Real clients try again after either.
- The first SVID is the default one. A ``hint`` occurs once in a response.

A Unix socket says who connected, not who holds it now; the process may have ended and its number may be another's.
So the caller is asked for again before *every* message (``LocalPeer.still_there``), after the last await before it.
A caller without a local peer gets nothing: this API gives out private keys.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from identity.protos import parse, workload
from identity.rpc import Call, Caller, Method, Methods, RpcError, Status
from identity.spiffe import SpiffeId, SpiffeIdError
from identity.svid import X509Svid

SERVICE: Final = "/SpiffeWorkloadAPI/"
SECURITY_HEADER: Final = "workload.spiffe.io"
_MAX_AUDIENCES: Final = 32


@dataclass(frozen=True, slots=True)
class WorkloadSvid:
    """An X509-SVID for a caller. ``hint``: what its entry says it is for."""

    svid: X509Svid
    hint: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadJwt:
    """A JWT-SVID for a caller, in compact serialisation."""

    spiffe_id: str
    token: str = field(repr=False)
    hint: str = ""


@dataclass(frozen=True, slots=True)
class WorkloadBundle:
    """What one trust domain is verified by. ``jwks``: its JWT authorities as a JWKS document."""

    x509_authorities: tuple[x509.Certificate, ...] = field(repr=False)
    jwks: bytes = field(default=b'{"keys":[]}', repr=False)

    @property
    def der(self) -> bytes:
        """The X.509 authorities, concatenated."""
        return b"".join(cert.public_bytes(Encoding.DER) for cert in self.x509_authorities)


class IdentitySource(Protocol):
    """Where identities come from: an agent, or a sidecar for its own app. Each method may raise RpcError with
    PERMISSION_DENIED (this caller gets nothing) or UNAVAILABLE (nothing can be said yet)."""

    @property
    def version(self) -> int:
        """Moves whenever anybody's answer may have changed."""
        ...

    async def wait_change(self, seen: int) -> int:
        """Wait until ``version`` is not ``seen``; at once when it is not."""
        ...

    async def svids_for(self, caller: Caller) -> Sequence[WorkloadSvid]:
        """The caller's X509-SVIDs, the default one first; never empty."""
        ...

    async def bundles_for(self, caller: Caller) -> Mapping[str, WorkloadBundle]:
        """Trust domain name to bundle: the own one and those that the caller's entries federate with."""
        ...

    async def jwt_svids(
        self, caller: Caller, spiffe_id: SpiffeId | None, audiences: Sequence[str]
    ) -> Sequence[WorkloadJwt]:
        """Fresh (or cached and still young) JWT-SVIDs: for ``spiffe_id``, or for each of the caller's IDs."""
        ...


JwtValidator = Callable[[str, str, Mapping[str, WorkloadBundle]], Awaitable[tuple[str, Mapping[str, Any]]]]
"""Token, audience, bundles -> the subject and all claims. Raises ValueError with a reason fit for the caller."""


def require_present(caller: Caller) -> None:
    """Raises RpcError unless the process that connected is still there (C-9)."""
    if caller.local is None:
        raise RpcError(Status.PERMISSION_DENIED, "callers are known by their Unix socket only")
    if not caller.local.still_there():
        raise RpcError(Status.PERMISSION_DENIED, "the process that connected has gone")


class WorkloadApi:
    """``methods()`` is what a server is given."""

    def __init__(self, source: IdentitySource, validate_jwt: JwtValidator) -> None:
        self._source = source
        self._validate_jwt = validate_jwt

    def methods(self) -> Methods:
        """The five methods by their full names."""
        return {
            SERVICE + "FetchX509SVID": Method("stream", self._fetch_x509_svid),
            SERVICE + "FetchX509Bundles": Method("stream", self._fetch_x509_bundles),
            SERVICE + "FetchJWTSVID": Method("unary", self._fetch_jwt_svid),
            SERVICE + "FetchJWTBundles": Method("stream", self._fetch_jwt_bundles),
            SERVICE + "ValidateJWTSVID": Method("unary", self._validate_jwt_svid),
        }

    # -- X.509 ------------------------------------------------------------------------------------------------------

    def _fetch_x509_svid(self, call: Call, request: bytes) -> AsyncIterator[bytes]:
        return self._each(call, workload.X509SVIDRequest, request, self._x509_svids)

    async def _x509_svids(self, call: Call) -> bytes:
        svids = await self._source.svids_for(call.caller)
        bundles = await self._source.bundles_for(call.caller)
        if not svids:
            raise RpcError(Status.PERMISSION_DENIED, "no identity issued")
        response = workload.X509SVIDResponse()
        hints: set[str] = set()
        for item in svids:
            _add_svid(response, item, bundles, hints)
        own = {item.svid.id.trust_domain for item in svids}
        for trust_domain, bundle in bundles.items():
            if trust_domain not in own:
                response.federated_bundles[f"spiffe://{trust_domain}"] = bundle.der
        return _serialise(response)

    def _fetch_x509_bundles(self, call: Call, request: bytes) -> AsyncIterator[bytes]:
        return self._each(call, workload.X509BundlesRequest, request, self._x509_bundles)

    async def _x509_bundles(self, call: Call) -> bytes:
        response = workload.X509BundlesResponse()
        for trust_domain, bundle in (await self._source.bundles_for(call.caller)).items():
            response.bundles[f"spiffe://{trust_domain}"] = bundle.der
        return _serialise(response)

    # -- JWT --------------------------------------------------------------------------------------------------------

    async def _fetch_jwt_svid(self, call: Call, request: bytes) -> bytes:
        asked = _opened(call, workload.JWTSVIDRequest, request)
        audiences = list(dict.fromkeys(asked.audience))
        if not audiences or not all(audiences):
            raise RpcError(Status.INVALID_ARGUMENT, "audience must be specified")
        if len(audiences) > _MAX_AUDIENCES:
            raise RpcError(Status.INVALID_ARGUMENT, f"more than {_MAX_AUDIENCES} audiences")
        spiffe_id = _parse_id(asked.spiffe_id)
        svids = await self._source.jwt_svids(call.caller, spiffe_id, audiences)
        if not svids:
            raise RpcError(Status.PERMISSION_DENIED, "no identity issued")
        response = workload.JWTSVIDResponse()
        hints: set[str] = set()
        for item in svids:
            hint = _once(item.hint, hints)
            response.svids.add(spiffe_id=item.spiffe_id, svid=item.token, hint=hint)
        require_present(call.caller)
        return _serialise(response)

    def _fetch_jwt_bundles(self, call: Call, request: bytes) -> AsyncIterator[bytes]:
        return self._each(call, workload.JWTBundlesRequest, request, self._jwt_bundles)

    async def _jwt_bundles(self, call: Call) -> bytes:
        response = workload.JWTBundlesResponse()
        for trust_domain, bundle in (await self._source.bundles_for(call.caller)).items():
            response.bundles[f"spiffe://{trust_domain}"] = bundle.jwks
        return _serialise(response)

    async def _validate_jwt_svid(self, call: Call, request: bytes) -> bytes:
        asked = _opened(call, workload.ValidateJWTSVIDRequest, request)
        if not asked.audience:
            raise RpcError(Status.INVALID_ARGUMENT, "audience must be specified")
        if not asked.svid:
            raise RpcError(Status.INVALID_ARGUMENT, "svid must be specified")
        bundles = await self._source.bundles_for(call.caller)
        try:
            subject, claims = await self._validate_jwt(asked.svid, asked.audience, bundles)
        except ValueError as error:
            raise RpcError(Status.INVALID_ARGUMENT, str(error)) from None
        response = workload.ValidateJWTSVIDResponse(spiffe_id=subject)
        response.claims.update(dict(claims))
        require_present(call.caller)
        return _serialise(response)

    # -- streams ----------------------------------------------------------------------------------------------------

    async def _each(
        self, call: Call, kind: Any, request: bytes, build: Callable[[Call], Awaitable[bytes]]
    ) -> AsyncIterator[bytes]:
        """What ``build`` gives now, and again whenever it gives something else."""
        _opened(call, kind, request)
        before: bytes | None = None
        while True:
            seen = self._source.version
            message = await build(call)
            require_present(call.caller)
            if message != before:
                yield message
                before = message
            await self._source.wait_change(seen)


def _opened(call: Call, kind: Any, request: bytes) -> Any:
    """The parsed request of a call that may be served at all. Raises RpcError."""
    if call.metadata.get(SECURITY_HEADER) != "true":
        raise RpcError(Status.INVALID_ARGUMENT, "security header missing from request")
    require_present(call.caller)
    return parse(kind, request)


def _add_svid(response: Any, item: WorkloadSvid, bundles: Mapping[str, WorkloadBundle], hints: set[str]) -> None:
    svid = item.svid
    bundle = bundles.get(svid.id.trust_domain)
    if bundle is None:
        raise RpcError(Status.UNAVAILABLE, "the trust bundle has not arrived yet")
    response.svids.add(
        spiffe_id=str(svid.id),
        x509_svid=b"".join(cert.public_bytes(Encoding.DER) for cert in svid.chain),
        x509_svid_key=svid.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        bundle=bundle.der,
        hint=_once(item.hint, hints),
    )


def _once(hint: str, given: set[str]) -> str:
    """``hint``, or nothing when an earlier SVID of the response has it already (Workload API 5.2.1)."""
    if not hint or hint in given:
        return ""
    given.add(hint)
    return hint


def _parse_id(text: str) -> SpiffeId | None:
    try:
        return SpiffeId.parse(text) if text else None
    except SpiffeIdError as error:
        raise RpcError(Status.INVALID_ARGUMENT, f"spiffe_id: {error}") from None


def _serialise(message: Any) -> bytes:
    return bytes(message.SerializeToString(deterministic=True))  # maps in order: equal sets are equal bytes
