"""Envoy's jwt_authn filter, configured as Istio does, and ``Tokens``: the same verdict, the same headers for the app.

Where we differ on purpose is said in ``meant``, and counted.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from config.resources.request_authentication import ClaimHeader, HeaderPlace, JwtRule
from proxy.policy.jwt import TokenRefused, Tokens
from proxy.policy.jwt_keys import KeySet, read_keys
from proxy.wire.events import Headers
from tests.support.apps import EchoApp
from tests.support.client import open_client
from tests.support.envoy import _cluster as cluster_to
from tests.support.envoy import _config, _typed, find_envoy, free_port, run_envoy
from tests.support.tokens import ISSUER, b64, jwk, key_set, raw_token, token

pytestmark = pytest.mark.slow

Json = dict[str, Any]
OTHER = "https://other.example"
JWKS = key_set(
    jwk("ES256"), jwk("RS256", kid="rsa"), jwk("EdDSA", kid="ed"), jwk("RS256", kid="ps", number=1, alg="PS256")
)
RULES: dict[str, tuple[JwtRule, ...]] = {
    "usual": (JwtRule(ISSUER, jwks=JWKS),),
    "audience": (JwtRule(ISSUER, ("api", "https://shop/"), jwks=JWKS),),
    "any": (JwtRule("", jwks=JWKS),),
    "told": (
        JwtRule(
            ISSUER,
            jwks=JWKS,
            payload_header="x-payload",
            forward_token=True,
            claim_headers=tuple(
                ClaimHeader(f"x-{name}", name) for name in ("sub", "n", "f", "b", "list", "o.k", "none")
            ),
        ),
    ),
    "places": (
        JwtRule(
            ISSUER,
            jwks=JWKS,
            from_headers=(HeaderPlace("x-token", "T "), HeaderPlace("x-raw")),
            from_params=("jwt",),
            from_cookies=("session",),
        ),
    ),
    "two": (
        JwtRule(ISSUER, jwks=JWKS, claim_headers=(ClaimHeader("x-sub", "sub"),)),
        JwtRule(OTHER, ("api",), jwks=JWKS, from_headers=(HeaderPlace("x-other"),)),
    ),
    "shared": (JwtRule(OTHER, ("api",), jwks=JWKS), JwtRule(ISSUER, jwks=JWKS)),
}


class Inline:
    keys = read_keys(JWKS.encode())

    def keys_of(self, rule: JwtRule) -> KeySet | None:
        return self.keys

    def missing(self, rule: JwtRule) -> None:
        pass


# -- Envoy's side ---------------------------------------------------------------------------------------------


def provider(rule: JwtRule) -> Json:
    return {
        "issuer": rule.issuer,
        "audiences": list(rule.audiences),
        "local_jwks": {"inline_string": rule.jwks},
        "forward": rule.forward_token,
        "from_headers": [{"name": one.name, "value_prefix": one.prefix} for one in rule.from_headers],
        "from_params": list(rule.from_params),
        "from_cookies": list(rule.from_cookies),
        "forward_payload_header": rule.payload_header,
        "claim_to_headers": [{"header_name": one.header, "claim_name": one.claim} for one in rule.claim_headers],
        "payload_in_metadata": "payload",
    }


def requirement(names: list[str]) -> Json:
    """As istiod makes it: any one of the providers, or for each of them a valid token or none."""
    each = [{"requires_any": {"requirements": [{"provider_name": name}, {"allow_missing": {}}]}} for name in names]
    if len(each) == 1:
        return each[0]
    all_of = {"requires_all": {"requirements": each}}
    return {"requires_any": {"requirements": [*({"provider_name": name} for name in names), all_of]}}


def envoy(port: int, app: int) -> Json:
    providers = {f"{name}-{i}": provider(rule) for name, rules in RULES.items() for i, rule in enumerate(rules)}
    rules = [
        {"match": {"prefix": f"/{name}/"}, "requires": requirement([f"{name}-{i}" for i in range(len(rules))])}
        for name, rules in RULES.items()
    ]
    kind = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
    config = {"providers": providers, "rules": rules, "bypass_cors_preflight": True}
    manager = {"http_filters": [_typed("envoy.filters.http.jwt_authn", kind, config)]}
    whole = _config(port, free_port(), manager, cluster_to(app, http2=False))
    hcm = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    value = "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload:sub)%"
    hcm["route_config"]["request_headers_to_add"] = [{"header": {"key": "x-seen", "value": value}}]
    return whole


# -- requests -------------------------------------------------------------------------------------------------


def header(**members: str) -> str:
    return b64(json.dumps(members).encode())


def tokens(now: float) -> dict[str, str]:
    odd = {"alg": "ES256", "kid": "k"}
    claims: Json = {"n": 7, "f": 1.5, "b": True, "list": ["a", 1], "o": {"k": "deep"}, "sub": "user"}
    good = token(claims, now=now)
    head, body, signature = good.split(".")
    return {
        "good": good,
        "rsa": token(algorithm="RS256", kid="rsa", now=now),
        "ed": token(algorithm="EdDSA", kid="ed", now=now),
        "ps": token(algorithm="PS256", kid="ps", number=1, now=now),
        "not-ps": token(algorithm="RS256", kid="ps", number=1, now=now),
        "no-kid": token(kid=None, now=now),
        "wrong-kid": token(kid="x", now=now),
        "wrong-key": token(number=5, now=now),
        "family": token(algorithm="RS256", now=now),
        "hs256": f"{header(alg='HS256', kid='k')}.{body}.{signature}",
        "none": f"{header(alg='none')}.{body}.",
        "expired": token({"exp": now - 61}, now=now),
        "late": token({"exp": now - 50}, now=now),
        "early": token({"nbf": now + 70}, now=now),
        "soon": token({"nbf": now + 50}, now=now),
        "for-ever": token({"exp": None}, now=now),
        "other": token({"iss": OTHER, "sub": "two"}, now=now),
        "other-api": token({"iss": OTHER, "aud": "api"}, now=now),
        "third": token({"iss": "https://third"}, now=now),
        "no-iss": token({"iss": None}, now=now),
        "api": token({"aud": ["x", "api"]}, now=now),
        "api-url": token({"aud": "http://api/"}, now=now),
        "shop": token({"aud": "shop"}, now=now),
        "not-api": token({"aud": ["API", "x"]}, now=now),
        "text-exp": token({"exp": "soon"}, now=now),
        "bad-aud": token({"aud": {"a": 1}}, now=now),
        "cut": f"{head}.{body}.{signature[:-8]}",
        "two-parts": f"{head}.{body}",
        "junk": "junk",
        "list": raw_token(json.dumps(odd), "[1]"),
        "no-sub": token({"sub": None}, now=now),
    }


def requests(now: float) -> list[tuple[str, str, Headers, str]]:
    """(rules, target, headers, what it is)."""
    found = []
    for name, (what, text) in itertools.product(RULES, tokens(now).items()):
        plain = text.encode()
        places: dict[str, tuple[Headers, str]] = {
            "bearer": ([(b"authorization", b"Bearer " + plain)], ""),
            "param": ([], f"?access_token={text}&b=1"),
            "x-token": ([(b"x-token", b"T " + plain)], ""),
            "x-raw": ([(b"x-raw", plain)], ""),
            "x-other": ([(b"x-other", plain)], ""),
            "jwt": ([], f"?jwt={text}"),
            "cookie": ([(b"cookie", b"a=b; session=" + plain)], ""),
        }
        for place, (headers, query) in places.items():
            found.append((name, query, headers, f"{what} in {place}"))
        also = token({"sub": "also"}, now=now).encode()
        both: Headers = [(b"authorization", b"Bearer " + also), (b"x-other", plain)]
        found.append((name, "", both, f"{what} in x-other beside a good one"))
        twice: Headers = [(b"authorization", b"Bearer " + plain)]
        found.append((name, f"?access_token={also.decode()}", twice, f"{what} in bearer, a good one in the query"))
    for name, rules in RULES.items():
        forged: Headers = [(output.encode(), b"root") for rule in rules for output in sorted(rule.outputs)]
        found += [
            (name, "", forged, "nothing, with forged headers"),
            (name, "", [(b"authorization", b"Basic dTpw")], "basic"),
            (name, "", [(b"authorization", b"bearer junk")], "junk after a small bearer"),
        ]
    return found


def ours(name: str, query: str, headers: Headers, now: float) -> tuple[int, Headers, str]:
    try:
        found = Tokens(RULES[name], Inline()).judge(b"GET", headers, f"/{name}/a{query}".encode(), now)
    except TokenRefused as error:
        return (403 if error.reason == "token_audience" else 401), [], ""
    sub = (found.claims or {}).get("sub", "")
    return 200, found.headers, sub if isinstance(sub, str) else ""


def meant(name: str, what: str, envoys: int, we: int) -> str:
    """Why we say something else than Envoy; "" when it is not known."""
    if {envoys, we} == {401, 403} and not what.startswith("api"):
        return "the audience is judged after the signature, not before; or which of two reasons is told"
    if "small bearer" in what:
        return "the scheme of Authorization has no case"
    if name == "shared" and what.startswith("other-api in bearer, a good"):
        return "two tokens, each good by another rule: none of the rules accepts both"
    return ""


async def test_envoy_and_we_judge_tokens_alike(
    tmp_path: Path, nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]
) -> None:
    find_envoy()
    app, port, now = EchoApp(), free_port(), float(int(time.time()))
    await nursery.start(app.run)
    verdicts: Counter[int] = Counter()
    known: Counter[str] = Counter()
    differ = []
    questions = requests(now)
    async with run_envoy(envoy(port, app.port), tmp_path), open_client(port) as client:
        for name, query, headers, what in questions:
            stream = await client.begin("GET", f"/{name}/a{query}", list(headers), length=0, end=True)
            response = await client.wait(stream)
            status, kept, sub = ours(name, query, headers, now)
            verdicts[response.status] += 1
            if status != response.status:
                why = meant(name, what, response.status, status)
                known[why] += 1
                if not why:
                    differ.append(f"{name}: {what}: Envoy {response.status}, we {status}")
            elif status == 200:
                seen = json.loads(response.body)["headers"]
                theirs = sorted((n, v) for n, v in seen if n in WATCHED)
                us = sorted((n.decode(), v.decode("latin-1")) for n, v in kept if n.decode() in WATCHED)
                subject = next((v for n, v in seen if n == "x-seen"), "")
                same = set(us) <= set(theirs) if "a good one in the query" in what else us == theirs
                known["two tokens: Envoy tells the claims of both, we those of the one that policy sees"] += (
                    us != theirs
                )
                if not same or (subject if subject != "-" else "") != sub:
                    differ.append(f"{name}: {what}: Envoy {theirs} {subject!r}, we {us} {sub!r}")
    del known[""]
    with capsys.disabled():
        print(
            f"\nEnvoy and Tokens: {len(questions)} requests {dict(verdicts)}, {dict(known)}, {len(differ)} otherwise"
        )
    assert not differ, "\n".join(differ[:60])


WATCHED = frozenset(
    {
        *("authorization", "x-token", "x-raw", "x-other", "cookie", "x-payload"),
        *(f"x-{name}" for name in ("sub", "n", "f", "b", "list", "o.k", "none")),
    }
)
