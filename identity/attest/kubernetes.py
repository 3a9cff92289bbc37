"""Pods that show a service-account token (C-12): judged by the cluster's API server, or by its published keys.

    by the API server   ``ReviewedTokens``: it tells whether the token is good *now* (a token dies with its pod), then
                        the pod is read: the same UID, running, the same service account, not being deleted
    by the keys alone   ``OfflineTokens``: for clusters whose API server cannot be reached from here. A deleted pod's
                        token stays good until it expires, so the tokens should be short (10 minutes are the shortest
                        that Kubernetes gives). With ``api`` the pod is read here, too

Both refuse with PERMISSION_DENIED what is not good and say UNAVAILABLE when it cannot be told, so that new pods are
denied while the API server is away; those with an SVID renew with it and never come here.

A good answer is remembered for ``KEPT`` seconds under the token's SHA-256, never the token. ``api`` is any async
function ``(method, path, body) -> (status, document)``; it raises OSError when the server cannot be reached.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from hashlib import sha256
from typing import Any, Final

import trio

from identity.attest.pod import PodFacts, check_pod
from identity.attest.service_token import (
    ClusterKeys,
    TokenFacts,
    TokenRefused,
    namespace,
    object_name,
    object_uid,
    read_claims,
    unverified_claims,
)
from identity.rpc import RpcError, Status

Api = Callable[[str, str, bytes], Awaitable[tuple[int, dict[str, Any]]]]

KEPT: Final = 60.0  # seconds
TIMEOUT: Final = 5.0  # seconds for one answer of the API server
MAX_KEPT: Final = 10_000  # tokens
_EXTRA: Final = "authentication.kubernetes.io/"
# What API servers call themselves, so that a token which opens one is never sent to us by mistake.
_API_SERVERS: Final = ("kubernetes.default.svc", "kubernetes.default", "kubernetes", "api")


class _Tokens:
    """What both judges have in common. ``allowed``: "namespace:service-account"s; None leaves it to the entries.
    ``wall``: seconds since 1970; ``clock``: monotonic seconds."""

    def __init__(
        self,
        *,
        audience: str,
        cluster: str = "",
        allowed: Collection[str] | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError for an audience that is an API server's."""
        check_audience(audience)
        self._audience = audience
        self._cluster = cluster
        self._allowed = None if allowed is None else frozenset(allowed)
        self._wall = wall
        self._clock = clock
        self._kept: dict[bytes, tuple[float, PodFacts]] = {}  # by hash of the token -> until (clock), facts

    async def verify(self, token: str) -> PodFacts:
        """Who bears the token. Raises RpcError: PERMISSION_DENIED, UNAVAILABLE."""
        key = sha256(token.encode("utf-8", "surrogatepass")).digest()
        try:
            known = self._known(key)
            if known is None:
                known = await self._judge(token)
                self._check_allowed(known.token)
                self._keep(key, known)
        except TokenRefused as error:
            raise RpcError(Status.PERMISSION_DENIED, f"the Kubernetes token is refused: {error}") from None
        return known

    async def _judge(self, token: str) -> PodFacts:
        raise NotImplementedError

    def _check_allowed(self, facts: TokenFacts) -> None:
        account = f"{facts.namespace}:{facts.service_account}"
        if self._allowed is not None and account not in self._allowed:
            raise TokenRefused(f"the service account {account} is not allowed here")

    def _known(self, key: bytes) -> PodFacts | None:
        until, facts = self._kept.get(key, (0.0, None))
        if facts is None:
            return None
        if self._clock() >= until or self._wall() >= facts.token.expires_at:
            del self._kept[key]
            return None
        return facts

    def _keep(self, key: bytes, facts: PodFacts) -> None:
        now = self._clock()
        if len(self._kept) >= MAX_KEPT:
            self._kept = {one: entry for one, entry in self._kept.items() if entry[0] > now}
        while len(self._kept) >= MAX_KEPT:
            del self._kept[next(iter(self._kept))]  # the oldest
        self._kept[key] = (now + KEPT, facts)

    async def _pod(self, api: Api, facts: TokenFacts) -> PodFacts:
        path = f"/api/v1/namespaces/{facts.namespace}/pods/{facts.pod}"  # both are checked names
        status, document = await _ask(api, "GET", path, b"")
        if status == 404:
            raise TokenRefused("its pod has gone")
        _expect(status, (200,), "GET pods")
        return check_pod(document, facts, cluster=self._cluster)


class OfflineTokens(_Tokens):
    """By the cluster's published keys. ``issuer``: the cluster's, exactly (``iss`` of its tokens)."""

    def __init__(self, keys: ClusterKeys, *, issuer: str, api: Api | None = None, **settings: Any) -> None:
        """``settings``: see ``_Tokens``. Raises ValueError."""
        super().__init__(**settings)
        if not issuer:
            raise ValueError("the issuer of the cluster's tokens must be known")
        if issuer == self._audience:
            raise ValueError("the audience must not be the issuer: tokens for the API server would be taken")
        self._issuer = issuer
        self._api = api
        self.keys = keys

    async def _judge(self, token: str) -> PodFacts:
        claims = self.keys.verify(token)
        facts = read_claims(claims, audience=self._audience, issuer=self._issuer, now=self._wall())
        if self._api is None:
            return PodFacts(facts, self._cluster)
        return await self._pod(self._api, facts)

    def replace_keys(self, keys: ClusterKeys) -> None:
        """The cluster has changed its keys. What was good by the old ones is asked again."""
        self.keys = keys
        self._kept.clear()


class ReviewedTokens(_Tokens):
    """By the API server's TokenReview. Our own service account needs ``create`` on ``tokenreviews`` and ``get`` on
    ``pods``."""

    def __init__(self, api: Api, **settings: Any) -> None:
        """``settings``: see ``_Tokens``. Raises ValueError."""
        super().__init__(**settings)
        self._api = api

    async def _judge(self, token: str) -> PodFacts:
        claimed = read_claims(unverified_claims(token), audience=self._audience, now=self._wall())  # cheap, and first
        reviewed = read_review(await self._review(token), audience=self._audience, expires_at=claimed.expires_at)
        if (reviewed.pod_uid, reviewed.namespace) != (claimed.pod_uid, claimed.namespace):
            raise TokenRefused("the API server takes it for another pod's")
        return await self._pod(self._api, reviewed)

    async def _review(self, token: str) -> Mapping[str, Any]:
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [self._audience]},
        }
        path = "/apis/authentication.k8s.io/v1/tokenreviews"
        status, document = await _ask(self._api, "POST", path, json.dumps(review).encode())
        _expect(status, (200, 201), "POST tokenreviews")
        return document


def check_audience(audience: str) -> None:
    """Raises ValueError for one that API servers use for themselves: such a token is a key to the cluster."""
    host = audience.removeprefix("https://").partition("/")[0].partition(":")[0]
    bare = host.removesuffix(".").removesuffix(".cluster.local")
    if not audience or bare in _API_SERVERS:
        raise ValueError(f'the audience "{audience}" is empty or the API server\'s own: choose one of your own')


def read_review(document: Mapping[str, Any], *, audience: str, expires_at: float = 0.0) -> TokenFacts:
    """Who bears the reviewed token. Raises TokenRefused."""
    status = document.get("status")
    if not isinstance(status, dict) or status.get("authenticated") is not True:
        raise TokenRefused("the API server does not know it")
    if status.get("error"):
        raise TokenRefused("the API server could not judge it")
    if status.get("audiences") != [audience]:  # absent: the server knows no audiences and took it for its own
        raise TokenRefused("the API server has not confirmed its audience")
    user = status.get("user")
    if not isinstance(user, dict):
        raise TokenRefused("the API server has named nobody")
    account = _account(user.get("username"))
    extra = user.get("extra")
    pod, pod_uid = _of_extra(extra, "pod-name"), _of_extra(extra, "pod-uid")
    node, node_uid = _of_extra(extra, "node-name"), _of_extra(extra, "node-uid")
    return TokenFacts(
        *account,
        object_uid(user.get("uid"), "service account"),
        object_name(pod, "pod"),
        object_uid(pod_uid, "pod"),
        object_name(node, "node") if node else "",
        object_uid(node_uid, "node") if node_uid else "",
        expires_at,
    )


def _account(username: object) -> tuple[str, str]:
    """(namespace, service account)."""
    parts = username.split(":") if isinstance(username, str) else []
    if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"]:
        raise TokenRefused("it is no service account's")
    return namespace(parts[2]), object_name(parts[3], "service account")


def _of_extra(extra: object, name: str) -> str:
    found = extra.get(_EXTRA + name) if isinstance(extra, dict) else None
    if found is None:
        return ""
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
        raise TokenRefused(f"the API server tells more than one {name}")
    return found[0]


async def _ask(api: Api, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        with trio.fail_after(TIMEOUT):
            status, document = await api(method, path, body)
    except (OSError, trio.TooSlowError):
        raise RpcError(Status.UNAVAILABLE, "the Kubernetes API server cannot be reached") from None
    return status, document if isinstance(document, dict) else {}


def _expect(status: int, good: tuple[int, ...], what: str) -> None:
    """Raises RpcError UNAVAILABLE: it cannot be told now, or we ourselves lack the right to ask."""
    if status in good:
        return
    hint = " (the authority's service account lacks the right)" if status in (401, 403) else ""
    raise RpcError(Status.UNAVAILABLE, f"the Kubernetes API server has answered {what} with {status}{hint}")
