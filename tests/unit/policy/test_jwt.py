from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from config.resources.request_authentication import ClaimHeader, HeaderPlace, JwtRule
from proxy.policy.jwt import LEEWAY, MAX_TOKEN, TOKEN_WORDS, JwtResult, TokenRefused, Tokens
from proxy.policy.jwt_keys import KeySet, UnusableSet, read_keys
from proxy.wire.events import Headers
from tests.support.tokens import ISSUER, NOW, b64, jwk, key_set, private_key, raw_token, token

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


class Source:
    """Key sets by issuer."""

    def __init__(self, **sets: str) -> None:
        self.sets = {issuer: read_keys(text.encode()) for issuer, text in sets.items()}
        self.missed: list[str] = []

    def keys_of(self, rule: JwtRule) -> KeySet | None:
        return self.sets.get(rule.issuer)

    def missing(self, rule: JwtRule) -> None:
        self.missed.append(rule.issuer)


def source(*keys: dict[str, Any]) -> Source:
    return Source(**{ISSUER: key_set(*(keys or (jwk("ES256"),)))})


def rule(**more: Any) -> JwtRule:
    return JwtRule(**{"issuer": ISSUER, **more})


def judge(
    text: str | None = None,
    *rules: JwtRule,
    keys: Source | None = None,
    headers: Iterable[tuple[bytes, ...]] = (),
    target: bytes = b"/a",
    method: bytes = b"GET",
    now: float = NOW,
) -> JwtResult:
    given: Headers = bearer(text) if text is not None else []
    return Tokens(rules or (rule(),), keys or source()).judge(method, [*given, *headers], target, now)


def bearer(text: str) -> Headers:
    return [(b"authorization", b"Bearer " + text.encode())]


def word(text: str | None, *rules: JwtRule, **more: Any) -> str:
    with pytest.raises(TokenRefused) as caught:
        judge(text, *rules, **more)
    assert caught.value.word in TOKEN_WORDS
    assert caught.value.reason == ("token_audience" if caught.value.word == "audience" else "token_invalid")
    return caught.value.word


# -- good and bad tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_good_token_gives_its_claims(algorithm: str) -> None:
    found = judge(token(algorithm=algorithm), keys=source(jwk(algorithm)))
    assert found.claims == {"iss": ISSUER, "sub": "user", "exp": int(NOW) + 3600}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_token_of_another_key_of_the_same_name_is_refused(algorithm: str) -> None:
    text = token(algorithm=algorithm, number=1)
    assert word(text, keys=source(jwk(algorithm))) == "signature"


def test_no_token_passes_without_claims_and_nothing_is_touched() -> None:
    headers: Headers = [(b"authorization", b"Basic dTpw"), (b"x-a", b"1")]
    target = b"/a?x=1"
    found = Tokens((rule(),), source()).judge(b"GET", headers, target, NOW)
    assert found.claims is None
    assert found.headers is headers
    assert found.target is target


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", ""])
def test_alg_none_is_never_believed(name: str) -> None:
    unsigned = f"{b64(json.dumps({'alg': name, 'kid': 'k'}).encode())}.{b64(payload().encode())}."
    assert word(unsigned) == "algorithm"
    assert word(raw_token(json.dumps({"alg": name, "kid": "k"}), payload())) == "algorithm"


def payload(**more: Any) -> str:
    return json.dumps({"iss": ISSUER, "sub": "user", "exp": int(NOW) + 3600, **more})


@pytest.mark.parametrize("form", ["pem", "der", "jwk"])
def test_a_public_key_is_no_shared_secret(form: str) -> None:
    public = private_key("RS256").public_key()
    secret = {
        "pem": public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "der": public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "jwk": json.dumps(jwk("RS256")).encode(),
    }[form]
    signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'k'}).encode())}.{b64(payload().encode())}"
    forged = f"{signed}.{b64(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"
    assert word(forged, keys=source(jwk("RS256"))) == "algorithm"


def test_a_shared_secret_in_the_set_is_no_key() -> None:
    oct_key = {"kty": "oct", "kid": "k", "k": b64(b"s" * 32)}
    with pytest.raises(UnusableSet):
        read_keys(key_set(oct_key).encode())
    assert read_keys(key_set(oct_key, jwk("ES256")).encode()).ignored == 1
    signed = f"{b64(json.dumps({'alg': 'HS256', 'kid': 'k'}).encode())}.{b64(payload().encode())}"
    forged = f"{signed}.{b64(hmac.new(b's' * 32, signed.encode(), hashlib.sha256).digest())}"
    assert word(forged, keys=source(oct_key, jwk("ES256", kid="other"))) == "algorithm"


@pytest.mark.parametrize(
    ("said", "has"), [("ES256", "RS256"), ("RS256", "ES256"), ("EdDSA", "ES256"), ("ES384", "ES256")]
)
def test_the_algorithm_of_a_token_never_meets_a_key_of_another_family(said: str, has: str) -> None:
    keys = source(jwk(has))
    assert word(token(algorithm=said), keys=keys) == "unknown_key"
    assert keys.missed == [ISSUER]


def test_a_key_is_for_the_algorithm_it_names_only() -> None:
    keys = source(jwk("RS256", alg="RS256"))
    assert judge(token(algorithm="RS256"), keys=keys).claims
    assert word(token(algorithm="RS512"), keys=keys) == "unknown_key"
    assert word(token(algorithm="PS256"), keys=keys) == "unknown_key"


def test_a_signature_of_other_bytes_is_refused() -> None:
    head, body, signature = token().split(".")
    _, other, _ = token({"sub": "root"}).split(".")
    assert word(f"{head}.{other}.{signature}") == "signature"
    for cut in ("", signature[:40], signature[:80], b64(b"\0" * 64)):
        assert word(f"{head}.{body}.{cut}") == "signature"


def test_keys_that_a_token_brings_along_are_ignored() -> None:
    stranger = jwk("ES256", number=1)
    brought = {"jwk": stranger, "jku": "https://evil.example/keys", "x5u": "https://evil.example/c", "x5c": ["MA=="]}
    assert word(token(number=1, header=brought)) == "signature"
    assert word(token(number=1, header=brought, kid="evil")) == "unknown_key"
    assert judge(token(header=brought)).claims


@pytest.mark.parametrize("header", [{"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"crit": None}])
def test_extensions_that_must_be_understood_are_refused(header: dict[str, Any]) -> None:
    assert word(token(header=header)) == "critical"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a.b",
        "a.b.c.d",
        "a.b.c.d.e",
        "..",
        token() + "=",
        token() + ".",
        " ".join(token().split(".")),
        token() + "," + token(),
        raw_token("[]", "{}"),
        raw_token('"alg"', "{}"),
        raw_token('{"alg": "ES256"}', "null"),
        raw_token('{"alg": "ES256", "kid": "k", "alg": "none"}', payload()),
        raw_token('{"alg": "ES256", "kid": "k"}', payload()[:-1] + ', "sub": "root"}'),
        raw_token('{"alg": "ES256", "kid": "k"}', payload()[:-1] + ', "a": {"b": 1, "\\u0062": 2}}'),
        raw_token('{"alg": "ES256", "kid": "k"}', payload()[:-1] + ', "a": NaN}'),
        raw_token('{"alg": "ES256", "kid": "k"}', payload()[:-1] + ', "a": "\\ud800"}'),
        raw_token('{"alg": "ES256", "kid": "k"}', payload()[:-1] + ', "a": ' + "[" * 40 + "]" * 40 + "}"),
        raw_token('{"alg": "ES256", "kid": "k"}', payload()[:-1] + ', "a": ' + "[" * 6000),
        raw_token('{"alg": "ES256", "kid": "k"}', payload()[:-1] + ', "a": ' + "9" * 6000 + "}"),
    ],
)
def test_what_is_not_a_token_in_its_one_form_is_refused(text: str) -> None:
    assert word(text) == "malformed"


def test_deep_but_bearable_claims_are_read() -> None:
    found = judge(token({"a": [[[[{"b": ["[[[[" * 40]}]]]]}))
    assert found.claims is not None


def test_huge_tokens_are_refused_before_anything_is_parsed() -> None:
    fits = token({"a": "x" * 11_000})
    assert len(fits) < MAX_TOKEN
    assert judge(fits).claims
    assert word(token({"a": "x" * 13_000})) == "too_long"
    assert word("." * (MAX_TOKEN + 1)) == "too_long"


@pytest.mark.parametrize("kid", [7, ["k"], {"k": 1}, True])
def test_a_key_id_is_a_text(kid: object) -> None:
    assert word(token(header={"kid": kid})) == "key_id"


# -- keys -----------------------------------------------------------------------------------------------------


def test_without_a_key_id_every_key_of_the_family_is_tried() -> None:
    keys = source(jwk("RS256"), jwk("ES256", kid="a"), jwk("ES256", kid="b", number=1))
    assert judge(token(kid=None, number=1), keys=keys).claims
    assert word(token(kid=None, number=2), keys=keys) == "signature"
    assert keys.missed == [ISSUER]


def test_a_key_without_a_name_is_not_one_that_a_token_names() -> None:
    keys = source(jwk("ES256", kid=None))
    assert word(token(), keys=keys) == "unknown_key"
    assert judge(token(kid=None), keys=keys).claims


def test_an_unknown_key_id_asks_for_new_keys_and_a_bad_signature_does_not() -> None:
    keys = source()
    assert word(token(kid="new"), keys=keys) == "unknown_key"
    assert keys.missed == [ISSUER]
    assert word(token(number=1), keys=keys) == "signature"
    assert keys.missed == [ISSUER]


def test_without_any_keys_nothing_is_believed_and_no_token_passes_still() -> None:
    keys = Source()
    assert word(token(), keys=keys) == "no_keys"
    assert judge(None, keys=keys).claims is None


def test_after_a_rotation_the_old_key_is_no_longer_believed_though_it_was_remembered() -> None:
    keys = source(jwk("ES256", kid="old"))
    tokens = Tokens((rule(),), keys)
    headers = bearer(token(kid="old"))
    fresh = bearer(token(kid="new", number=1))
    assert tokens.judge(b"GET", headers, b"/", NOW).claims
    keys.sets[ISSUER] = read_keys(key_set(jwk("ES256", kid="old"), jwk("ES256", kid="new", number=1)).encode())
    assert tokens.judge(b"GET", headers, b"/", NOW).claims
    assert tokens.judge(b"GET", fresh, b"/", NOW).claims
    keys.sets[ISSUER] = read_keys(key_set(jwk("ES256", kid="new", number=1)).encode())
    with pytest.raises(TokenRefused, match="unknown_key"):
        tokens.judge(b"GET", headers, b"/", NOW)


@pytest.mark.parametrize(
    "key",
    [
        {"use": "enc"},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"kty": "oct"},
        {"kty": ["EC"]},
        {"crv": "secp256k1"},
        {"x": "AA"},
        {"x": 1},
        {"alg": "RS256"},
        {"alg": 5},
        {"kid": 5},
        {"kid": "k" * 300},
    ],
)
def test_keys_that_are_for_something_else_are_left_out(key: dict[str, Any]) -> None:
    found = read_keys(key_set({**jwk("ES256"), **key}, jwk("EdDSA")).encode())
    assert [one.family for one in found.keys] == ["Ed25519"]
    assert found.ignored == 1


def test_weak_rsa_keys_are_left_out() -> None:
    weak = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    number = b64(weak.n.to_bytes(128, "big"))
    with pytest.raises(UnusableSet):
        read_keys(key_set({"kty": "RSA", "n": number, "e": "AQAB", "kid": "k"}).encode())


def test_the_private_part_of_a_key_is_not_kept() -> None:
    whole = {**jwk("ES256"), "d": b64(b"1" * 32)}
    (key,) = read_keys(key_set(whole).encode()).keys
    assert not hasattr(key.public, "private_numbers")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": {}}', '{"keys": []}', '{"keys": [1]}', "[" * 9000, "\xff"]
)
def test_what_is_no_key_set_is_refused(text: str) -> None:
    with pytest.raises(UnusableSet):
        read_keys(text.encode("latin-1"))


# -- claims ---------------------------------------------------------------------------------------------------


def test_times_have_a_minute_of_leeway() -> None:
    short = token({"exp": NOW + 10})
    assert judge(short, now=NOW + 10 + LEEWAY - 1).claims
    assert word(short, now=NOW + 10 + LEEWAY) == "expired"
    early = token({"nbf": NOW + 100, "exp": NOW + 1000})
    assert judge(early, now=NOW + 100 - LEEWAY).claims
    assert word(early, now=NOW + 100 - LEEWAY - 1) == "not_yet_valid"


@pytest.mark.parametrize(
    "claims", [{"exp": "soon"}, {"exp": True}, {"exp": -1}, {"exp": 1e300}, {"nbf": [1]}, {"exp": {}}, {"iat": "x"}]
)
def test_a_time_that_is_no_number_is_refused(claims: dict[str, Any]) -> None:
    assert word(token(claims)) == "times"


def test_a_token_without_an_end_is_believed_as_in_istio() -> None:
    assert judge(token({"exp": None}), now=NOW * 2).claims


def test_a_remembered_token_still_ends_in_time() -> None:
    tokens = Tokens((rule(),), source())
    headers = bearer(token({"exp": NOW + 10}))
    assert tokens.judge(b"GET", headers, b"/", NOW).claims
    assert tokens.judge(b"GET", headers, b"/", NOW + 60).claims
    with pytest.raises(TokenRefused, match="expired"):
        tokens.judge(b"GET", headers, b"/", NOW + 70)


@pytest.mark.parametrize("issuer", ["https://id.example.com/", "HTTPS://id.example.com", None, 5, [ISSUER]])
def test_the_issuer_is_compared_exactly(issuer: object) -> None:
    assert word(token({"iss": issuer})) == "issuer"


def test_a_rule_without_an_issuer_believes_any_whose_key_it_is() -> None:
    any_issuer = JwtRule("", jwks_uri="https://x/keys")
    keys = Source(**{"": key_set(jwk("ES256"))})
    assert judge(token({"iss": "whoever"}), any_issuer, keys=keys).claims
    assert judge(token({"iss": None}), any_issuer, keys=keys).claims


@pytest.mark.parametrize("aud", ["api", ["x", "api"], "https://api/", ["http://api"]])
def test_one_audience_of_the_token_is_enough(aud: object) -> None:
    assert judge(token({"aud": aud}), rule(audiences=("other", "api"))).claims


@pytest.mark.parametrize(
    "claims",
    [
        *({"aud": aud} for aud in (5, {"api": 1}, [["api"]], ["api", None], ["api", 1])),
        *({"sub": 5}, {"sub": ["user"]}, {"jti": 1}, {"jti": {}}),
    ],
)
def test_registered_claims_of_another_kind_are_refused(claims: dict[str, Any]) -> None:
    assert word(token(claims), rule(audiences=("api",))) == "claims"
    assert word(token(claims)) == "claims"
    for name in ("aud", "sub", "jti"):
        null = raw_token(
            '{"alg": "ES256", "kid": "k"}', payload()[:-1].replace('"sub"', '"x"') + f', "{name}": null}}'
        )
        assert word(null) == "claims"


@pytest.mark.parametrize("aud", [None, "", "API", "api2", [], ["x", ""]])
def test_another_audience_is_forbidden(aud: object) -> None:
    assert word(token({"aud": aud}), rule(audiences=("api",))) == "audience"


def test_no_audience_of_a_forged_token_is_ever_looked_at() -> None:
    assert word(token({"aud": "other"}, number=1), rule(audiences=("api",))) == "signature"


def test_words_of_named_claims_are_parted() -> None:
    found = judge(token({"roles": "a  b", "scope": "x y"}), rule(split_claims=("roles", "absent", "exp")))
    assert found.claims is not None
    assert (found.claims["roles"], found.claims["scope"]) == (["a", "b"], "x y")


# -- places ---------------------------------------------------------------------------------------------------


def test_the_usual_places_are_the_bearer_header_and_the_access_token_parameter() -> None:
    good = token().encode()
    for headers, target in (
        ([(b"authorization", b"Bearer " + good)], b"/a"),
        ([(b"authorization", b"bearer  " + good)], b"/a"),
        ([], b"/a?access_token=" + good),
        ([], b"/a?x=1&access%5ftoken=" + good.replace(b".", b"%2E") + b"&y"),
    ):
        assert judge(headers=headers, target=target).claims, (headers, target)
    assert judge(headers=[(b"x-token", good)], target=b"/a?token=" + good).claims is None


@pytest.mark.parametrize("value", [b"Bearer", b"Bearer x", b"BEARER ."])
def test_a_bearer_without_a_good_token_is_refused(value: bytes) -> None:
    assert word(None, headers=[(b"authorization", value)]) == "malformed"


def test_places_that_a_rule_names_replace_the_usual_ones() -> None:
    named = rule(from_headers=(HeaderPlace("x-token", "T "),), from_params=("jwt",), from_cookies=("session",))
    good = token().encode()
    for headers, target in (
        ([(b"x-token", b"T " + good)], b"/"),
        ([(b"x_token", b"T " + good)], b"/"),
        ([], b"/?jwt=" + good),
        ([(b"cookie", b"a=b; session=" + good + b"; c=d")], b"/"),
    ):
        assert judge(None, named, headers=headers, target=target).claims
    for headers, target in (
        ([(b"authorization", b"Bearer " + good)], b"/?access_token=" + good),
        ([(b"x-token", b"t " + good)], b"/?JWT=" + good),
        ([(b"cookie", b"Session=" + good)], b"/"),
    ):
        assert judge(None, named, headers=headers, target=target).claims is None


def test_the_token_is_taken_out_unless_the_app_is_to_have_it() -> None:
    good = token().encode()
    headers = [(b"authorization", b"Bearer " + good), (b"x-a", b"1")]
    target = b"/a?x=%20&access_token=" + good + b"&y=2"
    found = judge(headers=headers, target=target)
    assert (found.headers, found.target) == ([(b"x-a", b"1")], b"/a?x=%20&y=2")
    kept = judge(None, rule(forward_token=True), headers=headers, target=target)
    assert (kept.headers, kept.target) == (headers, target)
    assert judge(target=b"/a?access_token=" + good).target == b"/a"


def test_cookies_and_headers_without_a_token_stay() -> None:
    named = rule(from_headers=(HeaderPlace("authorization", "JWT "),), from_cookies=("s",))
    cookie = (b"cookie", b"s=" + token().encode())
    basic = (b"authorization", b"Basic dTpw")
    assert judge(None, named, headers=[cookie, basic]).headers == [cookie, basic]


def test_all_tokens_of_a_rule_must_be_good() -> None:
    good, bad = token().encode(), token(number=1).encode()
    headers = [(b"authorization", b"Bearer " + good)]
    assert judge(headers=headers, target=b"/?access_token=" + good).claims
    assert word(None, headers=headers, target=b"/?access_token=" + bad) == "signature"
    assert word(None, headers=headers, target=b"/?access_token=" + good + b"&access_token=" + bad) == "signature"
    assert word(None, target=b"/?" + b"&".join([b"access_token=" + good] * 9)) == "too_many"


def test_the_claims_are_those_of_the_first_token() -> None:
    headers = bearer(token({"sub": "one"}))
    found = judge(headers=headers, target=b"/?access_token=" + token({"sub": "two"}).encode())
    assert found.claims is not None
    assert found.claims["sub"] == "one"
    assert found.target == b"/"


def test_one_rule_that_accepts_is_enough_and_hides_what_is_bad_elsewhere() -> None:
    other = JwtRule("other", from_headers=(HeaderPlace("x-other"),))
    keys = Source(**{ISSUER: key_set(jwk("ES256")), "other": key_set(jwk("EdDSA"))})
    good = token().encode()
    theirs = token({"iss": "other"}, algorithm="EdDSA").encode()
    bad = (b"x-other", b"junk")
    both = (rule(), other)
    assert judge(None, *both, keys=keys, headers=[(b"x-other", theirs)]).claims
    found = judge(None, *both, keys=keys, headers=[bad, (b"authorization", b"Bearer " + good)])
    assert found.claims is not None
    assert found.headers == [bad]
    assert word(None, *both, keys=keys, headers=[bad]) == "malformed"


def test_rules_that_share_a_place_are_told_apart_by_the_issuer() -> None:
    keys = Source(**{ISSUER: key_set(jwk("ES256")), "other": key_set(jwk("EdDSA"))})
    both = (JwtRule("other"), rule())
    assert judge(token(), *both, keys=keys).claims
    assert judge(token({"iss": "other"}, algorithm="EdDSA"), *both, keys=keys).claims
    assert word(token({"iss": "third"}), *both, keys=keys) == "issuer"
    assert word(token({"exp": 5}), *both, keys=keys) == "expired"
    assert word(token({"iss": "other"}), *both, keys=keys) == "unknown_key"


def test_a_preflight_is_not_asked_for_a_token() -> None:
    headers = [
        (b"origin", b"https://web"),
        (b"access-control-request-method", b"PUT"),
        (b"authorization", b"Bearer junk"),
        (b"x-user", b"root"),
    ]
    named = rule(claim_headers=(ClaimHeader("x-user", "sub"),))
    found = judge(None, named, headers=headers, method=b"OPTIONS")
    assert found.claims is None
    assert (b"x-user", b"root") not in found.headers
    assert word(None, headers=headers) == "malformed"
    assert word(None, headers=headers[1:], method=b"OPTIONS") == "malformed"


# -- what the app is told -------------------------------------------------------------------------------------

OUTPUTS = rule(
    payload_header="x-payload",
    claim_headers=(ClaimHeader("x-user", "sub"), ClaimHeader("x-team", "org.team"), ClaimHeader("x-list", "groups")),
)


def test_headers_for_claims_are_never_those_of_the_caller() -> None:
    forged = [(b"x-user", b"root"), (b"x_user", b"root"), (b"x-payload", b"e30"), (b"x-team", b"a"), (b"x-b", b"1")]
    found = judge(None, OUTPUTS, headers=forged)
    assert found.headers == [(b"x-b", b"1")]
    good = judge(token(), OUTPUTS, headers=forged)
    assert [value for name, value in good.headers if name.replace(b"_", b"-") == b"x-user"] == [b"user"]


def test_claims_become_headers() -> None:
    text = token({"org": {"team": "red"}, "groups": ["a", {"b": 1}]})
    found = judge(text, OUTPUTS)
    assert found.headers == [
        (b"x-payload", text.split(".")[1].encode()),
        (b"x-user", b"user"),
        (b"x-team", b"red"),
        (b"x-list", base64.b64encode(b'["a",{"b":1}]')),
    ]


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        ("a", b"a"),
        ("é", "é".encode()),
        (" a ", b"a"),
        (True, b"true"),
        (False, b"false"),
        (7, b"7"),
        (-7.0, b"-7"),
        (1.5, b"1.500000"),
        ({"a": 1}, base64.b64encode(b'{"a":1}')),
        ("", None),
        (" ", None),
        ("a\r\nx-admin: 1", None),
        ("a\0", None),
        ("a\x7f", None),
        ("x" * 8193, None),
    ],
)
def test_a_claim_is_told_when_a_header_can_carry_it(claim: object, value: bytes | None) -> None:
    found = judge(token({"user": claim}), rule(claim_headers=(ClaimHeader("x-user", "user"),)))
    assert found.headers == ([(b"x-user", value)] if value is not None else [])


def test_a_claim_with_dots_in_its_name_comes_before_a_path() -> None:
    text = token({"a.b": "name", "a": {"b": "path"}})
    assert judge(text, rule(claim_headers=(ClaimHeader("x-a", "a.b"),))).headers == [(b"x-a", b"name")]


# -- secrets --------------------------------------------------------------------------------------------------


def test_no_token_and_no_claim_is_ever_shown() -> None:
    good, bad = token({"sub": "sesame"}), token({"sub": "sesame"}, number=1)
    tokens = Tokens((OUTPUTS,), source())
    found = tokens.judge(b"GET", bearer(good), b"/", NOW)
    with pytest.raises(TokenRefused) as caught:
        tokens.judge(b"GET", bearer(bad), b"/", NOW)
    shown = " ".join(map(repr, (found, tokens, caught.value, caught.value.args, source().sets[ISSUER])))
    shown += caught.value.detail + str(caught.value)
    assert "sesame" not in shown
    assert not any(part in shown for part in (*good.split("."), *bad.split(".")))


def test_what_is_remembered_is_bounded() -> None:
    tokens = Tokens((rule(),), source())
    tokens_kept = tokens._new
    first = bearer(token())
    tokens.judge(b"GET", first, b"/", NOW)
    (verified,) = tokens_kept.values()
    for number in range(5000):
        tokens._keep((b"%d" % number, 0, b""), verified)
    assert len(tokens._new) + len(tokens._old) <= 4096
