"""The rules of X509-SVIDs one by one, each with its verdict: what ``identity verify`` prints.

The verdict that counts is ``check_peer_chain``'s, the same function that every connection goes through. What
is here only finds out which rule it was: the same checks, called one after the other instead of until the
first refusal. A rule behind a broken one in the same check was not looked at, and is said not to have been.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from identity.svid import (
    MAX_CHAIN_BYTES,
    MAX_CHAIN_CERTIFICATES,
    PeerIdentity,
    SvidError,
    TrustBundle,
    check_leaf,
    check_peer_chain,
    load_certificate,
)
from identity.x509_rules import MAX_DEPTH, build_path, leaf_id

# The rules of a leaf in the order in which check_leaf asks them, with the word of each.
_LEAF: Final = (
    ("bad_certificate", "leaf: no critical extension that nobody here understands"),
    ("leaf_is_ca", "leaf: is not an authority"),
    ("key_usage", "leaf: key usage is critical, has digitalSignature, lacks keyCertSign and cRLSign"),
    ("extended_key_usage", "leaf: extended key usage allows a server, where it says anything"),
    ("weak_key", "leaf: key is ECDSA P-256 or P-384, Ed25519, or RSA of 2048 bits or more"),
    ("weak_signature", "leaf: signature uses SHA-256 or better, or Ed25519"),
)
_SIZE: Final = f"chain: at most {MAX_CHAIN_CERTIFICATES} certificates and {MAX_CHAIN_BYTES // 1024} KiB, all readable"
_ID: Final = "leaf: exactly one URI SAN, a SPIFFE ID with a path"
_DOMAIN: Final = "bundle: there is one of the leaf's own trust domain"
_PATH: Final = f"chain: within {MAX_DEPTH} steps to an authority of that bundle, sound, and valid now"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``ok``: None where the rule was not reached."""

    rule: str
    ok: bool | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """``peer`` is None when the chain was refused; ``refusal`` then says what every connection would say."""

    verdicts: tuple[Verdict, ...]
    peer: PeerIdentity | None
    refusal: str = ""


def judge(chain_der: Sequence[bytes], bundles: Mapping[str, TrustBundle], *, now: datetime) -> Judgement:
    """All rules for a server's chain (DER, leaf first). Raises nothing for what a peer can send."""
    verdicts = tuple(_verdicts(chain_der, bundles, now))
    try:
        peer = check_peer_chain(chain_der, bundles, now=now, role="server")
    except SvidError as error:
        return Judgement(verdicts, None, _text(error))
    return Judgement(verdicts, peer)


def _verdicts(chain_der: Sequence[bytes], bundles: Mapping[str, TrustBundle], now: datetime) -> list[Verdict]:
    chain, size = _load(chain_der)
    if chain is None:
        return [size, *(Verdict(rule, None) for rule in (_ID, _DOMAIN, _PATH)), *_leaf_verdicts(None)]
    leaf = chain[0]
    own = _asked(_ID, lambda: leaf_id(leaf))
    return [size, own, *_chain_verdicts(chain, bundles, now, known=bool(own.ok)), *_leaf_verdicts(leaf)]


def _load(chain_der: Sequence[bytes]) -> tuple[list[x509.Certificate] | None, Verdict]:
    if not chain_der:
        return None, Verdict(_SIZE, False, "no_certificate")
    if len(chain_der) > MAX_CHAIN_CERTIFICATES or sum(map(len, chain_der)) > MAX_CHAIN_BYTES:
        return None, Verdict(_SIZE, False, f"{len(chain_der)} certificates, {sum(map(len, chain_der))} bytes")
    try:
        return [load_certificate(der) for der in chain_der], Verdict(_SIZE, True)
    except SvidError as error:
        return None, Verdict(_SIZE, False, _text(error))


def _chain_verdicts(
    chain: list[x509.Certificate], bundles: Mapping[str, TrustBundle], now: datetime, *, known: bool
) -> list[Verdict]:
    if not known:
        return [Verdict(_DOMAIN, None), Verdict(_PATH, None)]
    leaf, *presented = chain
    name = leaf_id(leaf).trust_domain
    bundle = bundles.get(name)
    if bundle is None:
        return [Verdict(_DOMAIN, False, f"there is none of {name}"), Verdict(_PATH, None)]
    found = _asked(_PATH, lambda: build_path(leaf, presented, bundle.authorities, trust_domain=name, now=now))
    return [Verdict(_DOMAIN, True), found]


def _asked(rule: str, check: Callable[[], object]) -> Verdict:
    try:
        check()
    except SvidError as error:
        return Verdict(rule, False, _text(error))
    return Verdict(rule, True)


def _leaf_verdicts(leaf: x509.Certificate | None) -> list[Verdict]:
    """check_leaf stops at the first broken rule: those before it hold, those behind it were not asked."""
    broken, detail = _first_broken(leaf) if leaf is not None else (0, "")
    verdicts = []
    for number, (_, rule) in enumerate(_LEAF):
        ok = None if broken is not None and number > broken else True
        if number == broken:
            ok = None if leaf is None or not detail else False
        verdicts.append(Verdict(rule, ok, detail if ok is False else ""))
    return verdicts


def _first_broken(leaf: x509.Certificate) -> tuple[int | None, str]:
    try:
        check_leaf(leaf, role="server")
    except SvidError as error:
        words = [word for word, _ in _LEAF]
        # Its name is asked first of all: then nothing is known of the rest.
        return (words.index(error.why), _text(error)) if error.why in words else (0, "")
    return None, ""


def _text(error: SvidError) -> str:
    return f"{error.why}: {error.detail}" if error.detail else error.why
