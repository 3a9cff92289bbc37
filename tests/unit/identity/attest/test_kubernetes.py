"""Service-account tokens: hostile ones, an API server's answers, and pods that change while somebody looks (C-12)."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from identity.attest import kubernetes
from identity.attest.kubernetes import OfflineTokens, ReviewedTokens, check_audience
from identity.attest.pod import PodFacts
from identity.attest.service_token import MAX_TOKEN, ClusterKeys
from identity.rpc import RpcError, Status
from tests.unit.identity.attest.tokens import (
    CONTAINER,
    EC_KEY,
    ISSUER,
    NOW,
    OURS,
    POD_UID,
    RSA_KEY,
    ApiServer,
    bound,
    claims,
    extra,
    jwk_of,
    jwks,
    part,
    pod,
    review,
    token,
    user,
)

KEYS = ClusterKeys.parse(jwks())
OTHER_KEY = rsa.generate_private_key(65537, 2048)


class Clock:
    def __init__(self) -> None:
        self.passed = 0.0

    def wall(self) -> float:
        return NOW + self.passed

    def mono(self) -> float:
        return 5.0 + self.passed


def settings(clock: Clock, **more: Any) -> dict[str, Any]:
    return {"audience": OURS, "cluster": "east", "wall": clock.wall, "clock": clock.mono, **more}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def offline(clock: Clock) -> OfflineTokens:
    return OfflineTokens(KEYS, issuer=ISSUER, **settings(clock))


@pytest.fixture
def api() -> ApiServer:
    return ApiServer()


@pytest.fixture
def reviewed(api: ApiServer, clock: Clock) -> ReviewedTokens:
    return ReviewedTokens(api, **settings(clock))


async def refused(
    judge: OfflineTokens | ReviewedTokens, shown: str, status: Status = Status.PERMISSION_DENIED
) -> str:
    with pytest.raises(RpcError) as error:
        await judge.verify(shown)
    assert error.value.status is status
    return error.value.message


# -- good ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [token(), token(key=EC_KEY, alg="ES256", kid="e"), token(claims(aud=OURS))])
async def test_a_good_token_tells_its_pod(offline: OfflineTokens, shown: str) -> None:
    facts = await offline.verify(shown)
    assert facts.selectors() == {
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:pod-name:web-0",
        f"k8s:pod-uid:{POD_UID}",
        "k8s:node-name:node-1",
        "k8s_psat:cluster:east",
        "k8s_psat:agent_ns:shop",
        "k8s_psat:agent_sa:web",
        "k8s_psat:agent_pod_name:web-0",
        f"k8s_psat:agent_pod_uid:{POD_UID}",
        "k8s_psat:agent_node_name:node-1",
        "k8s_psat:agent_node_uid:n-1",
    }


async def test_a_reviewed_token_tells_labels_and_containers_too(reviewed: ReviewedTokens, api: ApiServer) -> None:
    found = (await reviewed.verify(token())).selectors()
    assert found >= {
        "k8s:pod-label:app:web",
        "k8s_psat:agent_pod_label:tier:front",
        "k8s:container-name:app",
        "k8s:container-image:registry.internal/web:1",
        "k8s:container-image:registry.internal/web@sha256:" + "1" * 64,
    }
    (post, review_path, body), (get, pod_path, _) = api.asked
    assert (post, review_path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
    assert json.loads(body)["spec"] == {"token": token(), "audiences": [OURS]}
    assert (get, pod_path) == ("GET", "/api/v1/namespaces/shop/pods/web-0")


async def test_a_token_of_an_older_cluster_has_its_node_from_the_pod(clock: Clock, api: ApiServer) -> None:
    offline = OfflineTokens(KEYS, issuer=ISSUER, api=api, **settings(clock))
    facts = await offline.verify(token(bound(node=None)))
    assert facts.token.node == "node-1"
    assert "k8s:pod-label:app:web" in facts.selectors()


# -- hostile tokens -----------------------------------------------------------------------------------------


def unsigned(alg: str = "none") -> str:
    return f"{part({'alg': alg, 'kid': 'r'})}.{part(claims())}."


def signed_with_the_public_key() -> str:
    """HS256 with the RSA key's public text as the secret."""
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    text = f"{part({'alg': 'HS256', 'kid': 'r'})}.{part(claims())}"
    mac = hmac.digest(RSA_KEY.public_key().public_bytes(*form), text.encode(), hashlib.sha256)
    return f"{text}.{unpadded(mac)}"


def unpadded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def tampered() -> str:
    header, _, signature = token().split(".")
    return f"{header}.{part(bound(namespace='kube-system'))}.{signature}"


def said_twice() -> str:
    """Two readers take two audiences from it."""
    header, _, signature = token().split(".")
    text = json.dumps(claims())[:-1] + f', "aud": ["{OURS}"]}}'
    return f"{header}.{unpadded(text.encode())}.{signature}"


def respelled() -> str:
    """The bits of the last letter that no byte takes: 256 bytes end in one that has four of them."""
    good = token()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return good[:-1] + letters[letters.index(good[-1]) | 1]


def own_jwk() -> str:
    return token(key=OTHER_KEY, jwk=jwk_of(OTHER_KEY, "r"), jku="https://evil.example/keys")


HOSTILE = {
    "another audience": (token(claims(aud=["https://vault.internal"])), "audience"),
    "the API server's audience": (token(claims(aud=["https://kubernetes.default.svc"])), "audience"),
    "two audiences": (token(claims(aud=[OURS, "https://vault.internal"])), "audience"),
    "two audiences in the other order": (token(claims(aud=["https://kubernetes.default.svc", OURS])), "audience"),
    "ours twice": (token(claims(aud=[OURS, OURS])), "audience"),
    "no audience": (token(claims(aud=None)), "audience"),
    "an empty list of audiences": (token(claims(aud=[])), "audience"),
    "ours with more": (token(claims(aud=[OURS + "/"])), "audience"),
    "ours in capitals": (token(claims(aud=[OURS.upper()])), "audience"),
    "expired": (token(claims(exp=NOW - 1)), "expired"),
    "expiring this very second": (token(claims(exp=NOW)), "expired"),
    "without an end": (token(claims(exp=None)), "for ever"),
    "an end that is a word": (token(claims(exp=str(NOW + 9))), "no time"),
    "an end that is true": (token(claims(exp=True)), "no time"),
    "an end beyond all times": (token(claims(exp=1e300)), "no time"),
    "an end that is no number": (token(claims(exp=float("nan"))), "no signed JWT"),
    "not valid yet": (token(claims(nbf=NOW + 61)), "not valid yet"),
    "made in the future": (token(claims(iat=NOW + 61)), "not valid yet"),
    "another issuer": (token(claims(iss="https://oidc.other.internal")), "issuer"),
    "an issuer with a slash more": (token(claims(iss=ISSUER + "/")), "issuer"),
    "no issuer": (token(claims(iss=None)), "issuer"),
    "alg none": (unsigned(), "alg"),
    "alg none with something as signature": (unsigned() + "AA", "alg"),
    "alg None": (unsigned("None") + "AA", "alg"),
    "HS256 with the public key": (signed_with_the_public_key(), "alg"),
    "HS256 with a secret of its own": (token(key="x" * 32, alg="HS256"), "alg"),
    "RS512": (token(alg="RS512"), "alg"),
    "PS256": (token(alg="PS256"), "alg"),
    "ES256 under the kid of an RSA key": (token(key=EC_KEY, alg="ES256", kid="r"), "alg"),
    "RS256 under the kid of an EC key": (token(kid="e"), "alg"),
    "a kid that nobody knows": (token(kid="x"), "does not publish"),
    "no kid": (f"{part({'alg': 'RS256'})}.{part(claims())}.AA", "kid"),
    "a kid that is a number": (f"{part({'alg': 'RS256', 'kid': 1})}.{part(claims())}.AA", "kid"),
    "another key under a known kid": (token(key=OTHER_KEY), "signature"),
    "its own key brought along": (own_jwk(), "signature"),
    "claims changed after signing": (tampered(), "signature"),
    "a signature of nothing": (".".join([*token().split(".")[:2], "AA"]), "signature"),
    "a crit": (token(crit=["exp"]), "crit"),
    "no kubernetes.io": (token(claims(**{"kubernetes.io": None})), "kubernetes.io"),
    "kubernetes.io is a list": (token(claims(**{"kubernetes.io": []})), "kubernetes.io"),
    "no namespace": (token(bound(namespace=None)), "namespace"),
    "a namespace with a slash": (token(bound(namespace="a/../b")), "namespace"),
    "a namespace with a line feed": (token(bound(namespace="shop\n")), "namespace"),
    "no pod: a token for a human": (token(bound(pod=None)), "pod"),
    "a pod without uid": (token(bound(pod={"name": "web-0"})), "uid"),
    "a pod without name": (token(bound(pod={"uid": POD_UID})), "name"),
    "a pod named like a path": (token(bound(pod={"name": "../../nodes/x", "uid": POD_UID})), "name"),
    "a pod named like a query": (token(bound(pod={"name": "web-0?x=1", "uid": POD_UID})), "name"),
    "no service account": (token(bound(serviceaccount=None)), "serviceaccount"),
    "a service account without uid": (token(bound(serviceaccount={"name": "web"})), "uid"),
    "a node without uid": (token(bound(node={"name": "node-1"})), "uid"),
    "a subject that is another account": (token(claims(sub="system:serviceaccount:shop:admin")), "sub"),
    "a subject that is a user": (token(claims(sub="kubernetes-admin")), "sub"),
    "no subject": (token(claims(sub=None)), "sub"),
    "claims that are a list": (f"{part({'alg': 'RS256', 'kid': 'r'})}.{part([])}.AA", "no signed JWT"),
    "an audience said twice": (said_twice(), "no signed JWT"),
    "a second spelling of its signature": (respelled(), "no signed JWT"),
    "a header that is a list": (f"{part([])}.{part(claims())}.AA", "no signed JWT"),
    "a header that is no JSON": ("AAAA.AAAA.AAAA", "no signed JWT"),
    "a header of brackets": (unpadded(b"[" * 9000) + ".AAAA.AAAA", "no signed JWT"),
    "empty": ("", "no signed JWT"),
    "blank": (" ", "no signed JWT"),
    "two parts": ("AAAA.AAAA", "no signed JWT"),
    "five parts, encrypted": ("A.A.A.A.A", "no signed JWT"),
    "a line feed at its end": (token() + "\n", "no signed JWT"),
    "a surrogate": ("\ud800.A.A", "no signed JWT"),
    "padding": (token() + "=", "no signed JWT"),
    "huge": ("A" * MAX_TOKEN + ".A.A", "too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_token_is_refused(name: str, offline: OfflineTokens) -> None:
    shown, word = HOSTILE[name]
    message = await refused(offline, shown)
    assert word in message
    assert not offline._kept


# What only a signature or an issuer can tell is the API server's affair there.
_NOT_SEEN = ("signature", "alg", "kid", "does not publish", "issuer", "crit")
UNASKED = [name for name, (_, word) in HOSTILE.items() if word not in _NOT_SEEN]


@pytest.mark.parametrize("name", UNASKED)
async def test_the_api_server_is_not_asked_for_what_cannot_be_good(
    name: str, reviewed: ReviewedTokens, api: ApiServer
) -> None:
    await refused(reviewed, HOSTILE[name][0])
    assert not api.asked


# -- the key set --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"keys": []}',
        '{"keys": {}}',
        '{"keys": [1]}',
        jwks({"kty": "oct", "k": "c2VjcmV0", "kid": "r", "alg": "HS256"}),
        jwks(jwk_of(RSA_KEY, "r", use="enc")),
        jwks(jwk_of(RSA_KEY, "")),
        jwks(jwk_of(RSA_KEY, "r", alg="PS256")),
        jwks(jwk_of(rsa.generate_private_key(65537, 1024), "r")),
        jwks(jwk_of(ec.generate_private_key(ec.SECP384R1()), "e")),
        jwks(jwk_of(RSA_KEY, "r"), jwk_of(OTHER_KEY, "r")),
        jwks(*[jwk_of(RSA_KEY, str(number)) for number in range(101)]),
    ],
)
def test_a_key_set_without_one_clear_key_is_refused(document: str) -> None:
    with pytest.raises(ValueError):
        ClusterKeys.parse(document)


async def test_new_keys_end_what_the_old_ones_made_good(offline: OfflineTokens) -> None:
    await offline.verify(token())
    offline.replace_keys(ClusterKeys.parse(jwks(jwk_of(OTHER_KEY, "r"))))
    assert "signature" in await refused(offline, token())


# -- what the API server answers ----------------------------------------------------------------------------

REVIEWS: dict[str, tuple[dict[str, Any], str]] = {
    "not authenticated": (review(authenticated=False), "does not know"),
    "authenticated is a word": (review(authenticated="true"), "does not know"),
    "authenticated is missing": (review(authenticated=None), "does not know"),
    "no status": ({}, "does not know"),
    "an error beside": (review(error="token lookup failed"), "could not judge"),
    "no audiences: the server knows none": (review(audiences=None), "audience"),
    "empty audiences": (review(audiences=[]), "audience"),
    "the API server's audience": (review(audiences=["https://kubernetes.default.svc"]), "audience"),
    "ours and the API server's": (review(audiences=[OURS, "https://kubernetes.default.svc"]), "audience"),
    "audiences are a text that contains ours": (review(audiences=OURS + "x"), "audience"),
    "no user": (review(user=None), "nobody"),
    "a human": (user(username="kubernetes-admin"), "no service account"),
    "a node": (user(username="system:node:node-1"), "no service account"),
    "an account with a colon too many": (user(username="system:serviceaccount:shop:web:x"), "no service account"),
    "an account without a name": (user(username="system:serviceaccount:shop:"), "service account has no name"),
    "another namespace": (user(username="system:serviceaccount:other:web"), "another pod"),
    "no uid of the account": (user(uid=""), "uid"),
    "no extra": (user(extra=None), "pod has no name"),
    "no pod name": (extra("pod-name", None), "pod has no name"),
    "no pod uid": (extra("pod-uid", None), "uid"),
    "two pod uids": (extra("pod-uid", [POD_UID, "x"]), "more than one"),
    "a pod uid that is no list": (extra("pod-uid", POD_UID), "more than one"),
    "a pod name like a path": (extra("pod-name", ["../secrets/x"]), "pod has no name"),
    "another pod's uid": (extra("pod-uid", ["other"]), "another pod"),
    "a node name like a path": (extra("node-name", ["a/b"]), "node has no name"),
}


@pytest.mark.parametrize("name", REVIEWS)
async def test_a_review_that_does_not_say_all_is_a_refusal(
    name: str, reviewed: ReviewedTokens, api: ApiServer
) -> None:
    document, word = REVIEWS[name]
    api.review = (201, document)
    assert word in await refused(reviewed, token())
    assert [method for method, _, _ in api.asked] == ["POST"]


SIDECAR_FIRST = pod(
    status__phase="Pending",
    spec__initContainers=[{"name": "sidecar", "restartPolicy": "Always"}],
    status__initContainerStatuses=[{"name": "sidecar", "state": {"running": {}}}],
    status__containerStatuses=[{"name": "app", "state": {"waiting": {}}}],
)
WAITING = pod(status__phase="Pending", status__containerStatuses=[{"name": "app", "state": {"waiting": {}}}])

PODS: dict[str, tuple[dict[str, Any], str]] = {
    "another pod has the name by now": (pod(metadata__uid="another"), "another one has the name"),
    "no uid": (pod(metadata__uid=None), "another one has the name"),
    "being deleted": (pod(metadata__deletionTimestamp="2026-01-01T00:00:00Z"), "being deleted"),
    "another name": (pod(metadata__name="web-1"), "another pod"),
    "another namespace": (pod(metadata__namespace="other"), "another pod"),
    "another service account": (pod(spec__serviceAccountName="admin"), "another service account"),
    "no service account": (pod(spec__serviceAccountName=None), "another service account"),
    "another node": (pod(spec__nodeName="node-2"), "not on its node"),
    "no node yet": (pod(spec__nodeName=None), "not on its node"),
    "done": (pod(status__phase="Succeeded"), "does not run"),
    "failed": (pod(status__phase="Failed"), "does not run"),
    "unknown": (pod(status__phase="Unknown"), "does not run"),
    "no phase": (pod(status__phase=None), "does not run"),
    "pending, nothing runs": (WAITING, "does not run"),
    "no status": ({"metadata": pod()["metadata"], "spec": pod()["spec"]}, "status"),
    "a list": ({"items": []}, "metadata"),
}


@pytest.mark.parametrize("name", PODS)
async def test_a_pod_that_is_not_the_tokens_any_more_is_refused(
    name: str, reviewed: ReviewedTokens, api: ApiServer
) -> None:
    document, word = PODS[name]
    api.pod = (200, document)
    assert word in await refused(reviewed, token())
    assert not reviewed._kept


async def test_a_pod_that_has_gone_is_refused(reviewed: ReviewedTokens, api: ApiServer) -> None:
    api.pod = (404, {"kind": "Status"})
    assert "has gone" in await refused(reviewed, token())


async def test_a_sidecar_that_starts_before_its_app_gets_its_identity(
    reviewed: ReviewedTokens, api: ApiServer
) -> None:
    api.pod = (200, SIDECAR_FIRST)
    found = (await reviewed.verify(token())).selectors()
    assert "k8s:sa:web" in found
    assert not [one for one in found if one.startswith("k8s:container-name")]  # one of two, nobody knows which


async def test_which_container_it_is_tells_its_id(reviewed: ReviewedTokens, api: ApiServer) -> None:
    two = pod(spec__containers=[{"name": "app"}, {"name": "log"}])
    api.pod = (200, two)
    facts = await reviewed.verify(token())
    assert "k8s:container-name:app" not in facts.selectors()
    assert "k8s:pod-image:registry.internal/web:1" in facts.selectors()
    known = PodFacts(facts.token, containers=facts.containers, container_id=CONTAINER)
    assert "k8s:container-name:app" in known.selectors()
    unknown = PodFacts(facts.token, containers=facts.containers[:1], container_id="0" * 64)
    assert "k8s:container-name:app" not in unknown.selectors()


# -- when it cannot be told ---------------------------------------------------------------------------------


@pytest.mark.parametrize("down", [ConnectionRefusedError(), TimeoutError(), trio.TooSlowError()])
async def test_an_api_server_that_is_down_is_no_refusal_and_no_permit(
    reviewed: ReviewedTokens, api: ApiServer, down: BaseException
) -> None:
    api.down = down
    await refused(reviewed, token(), Status.UNAVAILABLE)
    api.down = None
    await reviewed.verify(token())


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503, 302])
async def test_an_answer_that_is_no_answer_is_unavailable(
    reviewed: ReviewedTokens, api: ApiServer, status: int
) -> None:
    api.review = (status, review())
    message = await refused(reviewed, token(), Status.UNAVAILABLE)
    assert ("lacks the right" in message) == (status in (401, 403))
    api.review, api.pod = (201, review()), (status, pod())
    await refused(reviewed, token(), Status.UNAVAILABLE)


async def test_a_silent_api_server_is_not_waited_for_long(clock: Clock, autojump_clock: object) -> None:
    async def silent(method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        await trio.sleep_forever()
        raise AssertionError

    began = trio.current_time()
    await refused(ReviewedTokens(silent, **settings(clock)), token(), Status.UNAVAILABLE)
    assert trio.current_time() - began == kubernetes.TIMEOUT


# -- what is remembered -------------------------------------------------------------------------------------


async def test_a_good_answer_is_kept_for_a_minute_and_no_longer(
    reviewed: ReviewedTokens, api: ApiServer, clock: Clock
) -> None:
    await reviewed.verify(token())
    clock.passed = 59.9
    api.pod = (404, {})
    await reviewed.verify(token())
    assert len(api.asked) == 2
    clock.passed = 60.0
    await refused(reviewed, token())


async def test_a_kept_answer_ends_with_its_token(reviewed: ReviewedTokens, api: ApiServer, clock: Clock) -> None:
    short = token(claims(exp=NOW + 30))
    await reviewed.verify(short)
    clock.passed = 30.0
    assert "expired" in await refused(reviewed, short)


async def test_refusals_are_not_kept(reviewed: ReviewedTokens, api: ApiServer) -> None:
    api.review = (201, review(authenticated=False))
    await refused(reviewed, token())
    api.review = (201, review())
    await reviewed.verify(token())


async def test_the_token_itself_is_not_kept(reviewed: ReviewedTokens) -> None:
    facts = await reviewed.verify(token())
    assert list(reviewed._kept) == [hashlib.sha256(token().encode()).digest()]
    assert token() not in repr(reviewed._kept) + repr(facts)


async def test_what_is_kept_is_bounded(offline: OfflineTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "MAX_KEPT", 3)
    for number in range(6):
        await offline.verify(token(claims(jti=str(number))))
    assert len(offline._kept) == 3


# -- settings -----------------------------------------------------------------------------------------------


async def test_only_the_allowed_service_accounts_are_taken(api: ApiServer, clock: Clock) -> None:
    await ReviewedTokens(api, allowed=["shop:web"], **settings(clock)).verify(token())
    for allowed in ([], ["shop:admin"], ["other:web"]):
        judge = ReviewedTokens(api, allowed=allowed, **settings(clock))
        assert "shop:web is not allowed" in await refused(judge, token())


@pytest.mark.parametrize(
    "audience",
    [
        "",
        "https://kubernetes.default.svc",
        "https://kubernetes.default.svc.cluster.local",
        "https://kubernetes.default.svc.cluster.local/",
        "https://kubernetes.default.svc:443",
        "kubernetes.default.svc",
        "api",
    ],
)
def test_the_api_servers_audience_is_no_audience_for_us(audience: str, api: ApiServer) -> None:
    with pytest.raises(ValueError, match="choose one of your own"):
        ReviewedTokens(api, audience=audience)


def test_the_issuer_is_no_audience_for_us() -> None:
    with pytest.raises(ValueError, match="issuer"):
        OfflineTokens(KEYS, issuer=ISSUER, audience=ISSUER)
    with pytest.raises(ValueError, match="issuer"):
        OfflineTokens(KEYS, issuer="", audience=OURS)
    check_audience(OURS)
