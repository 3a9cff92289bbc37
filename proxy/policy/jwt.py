"""Tokens: found in a request's head, judged, and turned into claims that policy can ask for (AUTHZ 12). Pure.

    no token in any known place      passes, without claims
    one rule accepts all it finds    passes with the claims of its first token; the tokens are taken out of the head
    otherwise                        TokenRefused: 401, or 403 when only the audience is wrong

What a rule asks of a token, in this order, so that nothing costly is done for what is malformed and no claim is
believed before the signature:

    size, three parts, JSON objects without a member said twice, bounded depth      identity/jws.py
    header: an algorithm of the list, no ``crit``                  keys that it brings along are ignored
    ``iss`` is the rule's (only to tell which rule it is for)
    a key of the rule's set, by ``kid``, of the algorithm's family; the signature    jwt_keys.py
    ``exp`` and ``nbf`` with a minute of leeway; one of the rule's audiences

It is Istio's order of things except where Istio would believe a claim before the signature. Verified tokens are
remembered by their SHA-256 for five minutes at most, with the key set they were verified by: a new set asks again.
No token, no claim and no part of one is in an error, a log line or a ``repr``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from config.resources.request_authentication import JwtRule
from identity.jws import Compact, NotAToken, take_apart
from proxy.errors import SidewallError
from proxy.policy.jwt_keys import ALGORITHMS, KeySet
from proxy.policy.jwt_places import Places, canonical, told, without
from proxy.wire.events import Headers

MAX_TOKEN: Final = 16 * 1024  # bytes
MAX_TOKENS: Final = 8  # in the places of one rule
LEEWAY: Final = 60.0  # seconds, Istio's
_REMEMBERED: Final = 300.0  # seconds
_HALF: Final = 2048  # tokens in each half of the cache
_LATEST: Final = 1e12  # seconds: what is beyond is no time

TOKEN_WORDS: Final = frozenset(
    {
        *("too_long", "too_many", "malformed", "algorithm", "critical", "key_id", "issuer", "no_keys", "unknown_key"),
        *("signature", "claims", "times", "expired", "not_yet_valid", "audience"),
    }
)


class TokenRefused(SidewallError):
    """A token that is not believed. ``word``, for operators: one of TOKEN_WORDS."""

    reason = "token_invalid"

    def __init__(self, word: str) -> None:
        super().__init__(f"token: {word}", reason="token_audience" if word == "audience" else "token_invalid")
        self.word = word


class KeySource(Protocol):
    """Where the keys of rules come from."""

    def keys_of(self, rule: JwtRule) -> KeySet | None:
        """The set as it is known now; None when it was never there."""

    def missing(self, rule: JwtRule) -> None:
        """A token names a key that is not in the set: it may be a new one."""


@dataclass(frozen=True, slots=True)
class JwtResult:
    """``claims``: of the token that was accepted, None without one. ``headers`` and ``target``: the head as policy
    and the app are to see it; the very objects that were given when nothing has changed."""

    claims: Mapping[str, Any] | None = field(repr=False)
    headers: Headers = field(repr=False)
    target: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Verified:
    claims: Mapping[str, Any] = field(repr=False)
    told: Headers = field(repr=False)
    until: float  # remembered so long


class _Rule:
    """A rule, ready to use."""

    __slots__ = ("audiences", "number", "places", "rule")

    def __init__(self, number: int, rule: JwtRule) -> None:
        self.number = number
        self.rule = rule
        self.places = Places(rule)
        self.audiences = frozenset(map(_bare, rule.audiences))


class Tokens:
    """The rules of one workload and route. Made anew by each reload; ``keys`` outlives it. ``outputs``: the headers
    that only verified tokens fill, as ``canonical`` writes them."""

    __slots__ = ("_keys", "_new", "_old", "_rules", "outputs")

    def __init__(self, rules: Sequence[JwtRule], keys: KeySource) -> None:
        self._rules = [_Rule(number, rule) for number, rule in enumerate(rules)]
        self._keys = keys
        self.outputs = frozenset(canonical(name.encode()) for rule in rules for name in rule.outputs)
        self._new: dict[tuple[bytes, int, bytes], _Verified] = {}
        self._old: dict[tuple[bytes, int, bytes], _Verified] = {}

    def __repr__(self) -> str:
        return f"<Tokens of {len(self._rules)} rules>"

    def judge(self, method: bytes, headers: Headers, target: bytes, now: float) -> JwtResult:
        """``headers`` and ``target`` of a validated head; ``now``: seconds of the epoch. Raises TokenRefused."""
        headers = without(headers, self.outputs)
        if method == b"OPTIONS" and _is_preflight(headers):
            return JwtResult(None, headers, target)
        refused: TokenRefused | None = None
        for rule in self._rules:
            tokens = rule.places.find(headers, target)
            if not tokens:
                continue
            try:
                found = self._accept(rule, tokens, now)
            except TokenRefused as error:
                if refused is None or refused.word == "issuer":
                    refused = error  # that of the rule which the token was for
                continue
            return self._passed(rule, found, headers, target)
        if refused is not None:
            raise refused
        return JwtResult(None, headers, target)

    def _accept(self, rule: _Rule, tokens: list[bytes], now: float) -> _Verified:
        """All tokens of a rule must be good: the app could look at any of them."""
        if len(tokens) > MAX_TOKENS:
            raise TokenRefused("too_many")
        first, *_ = [self._verify(rule, token, now) for token in tokens]
        return first

    def _passed(self, rule: _Rule, found: _Verified, headers: Headers, target: bytes) -> JwtResult:
        if not rule.rule.forward_token:
            headers, target = rule.places.without_tokens(headers, target)
        if found.told:
            headers = [*headers, *found.told]
        return JwtResult(found.claims, headers, target)

    # -- one token ----------------------------------------------------------------------------------------

    def _verify(self, rule: _Rule, token: bytes, now: float) -> _Verified:
        if len(token) > MAX_TOKEN:
            raise TokenRefused("too_long")
        keys = self._keys.keys_of(rule.rule)
        key = (hashlib.sha256(token).digest(), rule.number, keys.digest if keys is not None else b"")
        known = self._new.get(key) or self._old.get(key)
        if known is None or now >= known.until:
            known = self._verify_anew(rule, token, keys, now)
            self._keep(key, known)
        else:
            _check_times(known.claims, now)
        return known

    def _verify_anew(self, rule: _Rule, token: bytes, keys: KeySet | None, now: float) -> _Verified:
        try:
            parts = take_apart(token.decode("ascii"), MAX_TOKEN)
        except (NotAToken, UnicodeDecodeError):
            raise TokenRefused("malformed") from None
        if rule.rule.issuer and parts.claims.get("iss") != rule.rule.issuer:
            raise TokenRefused("issuer")
        if keys is None:
            raise TokenRefused("no_keys")
        self._check_signature(rule.rule, parts, keys)
        _check_kinds(parts.claims)
        _check_times(parts.claims, now)
        _check_audience(parts.claims, rule.audiences)
        claims = _with_words(parts.claims, rule.rule.split_claims)
        return _Verified(claims, told(rule.rule, parts.claims, parts.payload), _until(parts.claims, now))

    def _check_signature(self, rule: JwtRule, parts: Compact, keys: KeySet) -> None:
        algorithm, kid = parts.header.get("alg"), parts.header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
            raise TokenRefused("algorithm")
        if "crit" in parts.header:  # extensions that must be understood: we know none (RFC 7515 4.1.11)
            raise TokenRefused("critical")
        if kid is not None and not isinstance(kid, str):
            raise TokenRefused("key_id")
        candidates = keys.candidates(algorithm, kid)
        if not candidates:
            self._keys.missing(rule)
            raise TokenRefused("unknown_key")
        if not any(key.verifies(algorithm, parts.signed, parts.signature) for key in candidates):
            if kid is None:
                self._keys.missing(rule)
            raise TokenRefused("signature")

    def _keep(self, key: tuple[bytes, int, bytes], found: _Verified) -> None:
        if len(self._new) >= _HALF:
            self._old, self._new = self._new, {}
        self._new[key] = found


def _is_preflight(headers: Headers) -> bool:
    """A browser's question before a request: it never carries a token (AUTHZ 12)."""
    names = {field[0] for field in headers}
    return b"origin" in names and b"access-control-request-method" in names


# -- claims ---------------------------------------------------------------------------------------------------


def _check_kinds(claims: Mapping[str, Any]) -> None:
    """RFC 7519 4.1: what the registered claims are. A token in which they are something else is refused, as in Envoy:
    who reads it next could take it for anything."""
    audience = claims.get("aud", "")
    values = audience if isinstance(audience, list) else [audience]
    values = values + [claims.get(name, "") for name in ("iss", "sub", "jti")]
    if not all(isinstance(value, str) for value in values):
        raise TokenRefused("claims")
    _time(claims, "iat")


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST:
        raise TokenRefused("times")
    return float(value)


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    ends, begins = _time(claims, "exp"), _time(claims, "nbf")
    if ends is not None and now >= ends + LEEWAY:
        raise TokenRefused("expired")
    if begins is not None and now < begins - LEEWAY:
        raise TokenRefused("not_yet_valid")


def _until(claims: Mapping[str, Any], now: float) -> float:
    ends = _time(claims, "exp")
    return now + _REMEMBERED if ends is None else min(ends + LEEWAY, now + _REMEMBERED)


def _check_audience(claims: Mapping[str, Any], audiences: frozenset[str]) -> None:
    if not audiences:
        return
    said = claims.get("aud")
    values = said if isinstance(said, list) else [said]
    if not any(isinstance(value, str) and _bare(value) in audiences for value in values):
        raise TokenRefused("audience")


def _bare(audience: str) -> str:
    """An audience as Envoy compares it: without http(s):// before it and one slash after it."""
    scheme, mark, rest = audience.partition("://")
    return (rest if mark and scheme in ("http", "https") else audience).removesuffix("/")


def _with_words(claims: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    """``claims`` with the texts of ``names`` (top level) as lists of words. ``scope`` and ``permission`` are split by
    whoever asks for them."""
    split = {name: [word for word in claims[name].split(" ") if word] for name in names if _is_text(claims, name)}
    return {**claims, **split} if split else claims


def _is_text(claims: Mapping[str, Any], name: str) -> bool:
    return isinstance(claims.get(name), str)
