"""Bundle documents: both directions, what is refused, and that nobody goes back."""

from __future__ import annotations

import base64
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from identity import authority, bundle
from identity.bundle import Bundle, BundleError
from identity.files import create_ca
from identity.spiffe import SpiffeId

NOW = datetime(2026, 11, 1, tzinfo=UTC)
TD = "shop.internal"


def make_root(name: str = TD) -> Any:
    return authority.create_root(name, authority.new_key(), now=NOW, rng=random.Random(1))


ROOTS = (make_root(), make_root())
EC, RSA = ec.generate_private_key(ec.SECP256R1()).public_key(), rsa.generate_private_key(65537, 2048).public_key()
WHOLE = Bundle(TD, ROOTS, {"one": EC, "two": RSA}, sequence=7, refresh_hint=60.0)


def changed(**more: Any) -> bytes:
    return json.dumps({**json.loads(WHOLE.document()), **more}).encode()


def with_key(**more: Any) -> bytes:
    """The document with one key changed."""
    whole = json.loads(WHOLE.document())
    whole["keys"][more.pop("at", 2)].update(more)
    return json.dumps(whole).encode()


def test_a_bundle_is_written_and_read_without_loss() -> None:
    read = bundle.parse(WHOLE.document(), TD)
    assert bundle.same(read, WHOLE)
    assert (read.sequence, read.refresh_hint, read.trust_domain) == (7, 60.0, TD)
    assert read.roots == ROOTS


def test_the_jwt_part_holds_no_certificates() -> None:
    keys = json.loads(WHOLE.jwt_document())["keys"]
    assert [(key["use"], key["kid"], key["kty"]) for key in keys] == [("jwt-svid", "one", "EC"), ("jwt-svid", "two", "RSA")]


def test_no_private_part_is_ever_written() -> None:
    for key in json.loads(WHOLE.document())["keys"]:
        assert not key.keys() & {"d", "p", "q", "dp", "dq", "qi"}


def test_another_reader_understands_it() -> None:
    spiffe = pytest.importorskip("spiffe", reason="the spiffe package is not installed")
    domain = spiffe.TrustDomain(TD)
    jwt_bundle = spiffe.JwtBundle.parse(domain, WHOLE.jwt_document())
    assert set(jwt_bundle.jwt_authorities) == {"one", "two"}


def test_an_empty_list_trusts_nothing() -> None:
    read = bundle.parse(b'{"keys":[]}', TD)
    assert (read.roots, dict(read.jwt_keys), read.sequence) == ((), {}, 0)
    assert read.refresh_hint == bundle.DEFAULT_REFRESH


def test_keys_of_another_use_and_unknown_members_are_ignored() -> None:
    whole = {"keys": [{"use": "sig", "kty": "oct", "k": "x"}, {"kty": "EC"}], "spiffe_new": 1}
    assert bundle.parse(json.dumps(whole), TD).roots == ()


CERT = base64.b64encode(ROOTS[0].public_bytes(Encoding.DER)).decode()
SMALL = rsa.generate_private_key(65537, 1024).public_key()


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "no list of keys"),
        (b'{"keys":{}}', "no list of keys"),
        (b'{"keys":[1]}', r"keys\[0\]: not an object"),
        (b" " * (2**20 + 1), "longer"),
        (json.dumps({"keys": [{"use": "x"}] * 1001}), "more than 1000"),
        (with_key(at=0, x5c=[]), r"keys\[0\].*exactly one"),
        (with_key(at=0, x5c=[CERT, CERT]), "exactly one"),
        (with_key(at=0, x5c=CERT), "exactly one"),
        (with_key(at=0, x5c=["%%%"]), "x5c"),
        (with_key(at=0, x5c=[CERT[:-8]]), "x5c"),
        (with_key(kid=""), "needs a kid"),
        (with_key(kid=7), "needs a kid"),
        (with_key(kid="x" * 257), "needs a kid"),
        (with_key(kid="two"), "twice"),
        (with_key(kty="oct"), "EC or RSA"),
        (with_key(d="AAAA"), "not a public key"),
        (with_key(x="AAAA"), "well-formed"),
        (with_key(crv="secp256k1"), "well-formed|curve"),
        (with_key(at=3, n=""), "well-formed|bits"),
        (changed(spiffe_sequence="7"), "spiffe_sequence"),
        (changed(spiffe_sequence=-1), "spiffe_sequence"),
        (changed(spiffe_sequence=True), "spiffe_sequence"),
        (changed(spiffe_refresh_hint="5m"), "spiffe_refresh_hint"),
    ],
)
def test_a_malformed_document_is_refused_whole(document: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        bundle.parse(document, TD)


@pytest.mark.parametrize("key", [SMALL, ed25519.Ed25519PrivateKey.generate().public_key(), "text", ec.generate_private_key(ec.SECP256K1()).public_key()])
def test_weak_and_foreign_keys_are_refused(key: Any) -> None:
    with pytest.raises(ValueError, match=r"bits|EC or RSA|curve"):
        bundle.check_jwt_key(key)


def test_a_leaf_is_no_authority(tmp_path: Path) -> None:
    ca = create_ca(tmp_path / "ca", TD, now=NOW)
    svid = authority.issue(
        ca.authority, ca.bundle, SpiffeId.parse(f"spiffe://{TD}/a"), now=NOW, rng=random.SystemRandom()
    )
    with pytest.raises(BundleError, match=r"keys\[0\]: x5c: .*not a CA"):
        bundle.parse(Bundle(TD, (svid.leaf,)).document(), TD)
    assert bundle.parse(Bundle(TD, (svid.chain[1],)).document(), TD).roots == (svid.chain[1],), "an issuer may be an anchor"


def test_nobody_goes_back_and_nothing_changes_under_the_same_number() -> None:
    older = Bundle(TD, ROOTS[:1], sequence=6)
    newer = Bundle(TD, ROOTS[:1], sequence=8)
    other = Bundle(TD, ROOTS[:1], sequence=7)
    assert bundle.accept(None, older.document(), TD).sequence == 6
    assert bundle.accept(WHOLE, newer.document(), TD).sequence == 8
    assert bundle.same(bundle.accept(WHOLE, WHOLE.document(), TD), WHOLE)
    with pytest.raises(BundleError, match="go back from 7 to 6"):
        bundle.accept(WHOLE, older.document(), TD)
    with pytest.raises(BundleError, match="still number 7"):
        bundle.accept(WHOLE, other.document(), TD)


@settings(max_examples=100)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_bundle_or_a_bundle_error(data: bytes) -> None:
    try:
        bundle.parse(data, TD)
    except BundleError:
        pass
