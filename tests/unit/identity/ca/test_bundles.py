"""Our own bundle, and those of foreign trust domains."""

from __future__ import annotations

import pytest

from identity.ca.model import Conflict, NoSuchThing, NotAllowed
from identity.ca.service import CaService
from identity.spiffe import SpiffeIdError
from tests.support.ca import NOW, issue, kinds, of_kind

JWKS = b'{"keys": []}'


def put(ca: CaService, sequence: int, name: str = "other", document: bytes = JWKS) -> None:
    ca.set_federated(name, document, sequence, {"profile": "https_spiffe"}, now=NOW)


def test_our_bundle_holds_the_root_and_the_jwt_key(ca: CaService) -> None:
    bundle = ca.bundle()
    assert (bundle.trust_domain, bundle.sequence, bundle.refresh_hint) == ("td", 1, 300.0)
    assert list(bundle.jwt_keys) == of_kind(ca, "jwt", "active")
    assert [view.certificate for view in ca.authorities() if view.kind == "x509-root"] == list(bundle.roots_der)
    assert bundle.trust_bundle.authorities == bundle.roots


def test_its_sequence_moves_with_each_change_of_its_content_and_with_nothing_else(ca: CaService) -> None:
    issue(ca)
    ca.prepare_authority("x509-issuing", now=NOW)  # not in the bundle
    assert ca.bundle().sequence == 1
    ca.prepare_authority("jwt", now=NOW)
    ca.prepare_authority("x509-root", now=NOW)
    assert ca.bundle().sequence == 3


def test_a_foreign_bundle_is_kept_with_its_settings(ca: CaService) -> None:
    put(ca, 3)
    found = ca.federated()["other"]
    assert (found.document, found.sequence, found.settings) == (JWKS, 3, {"profile": "https_spiffe"})
    assert kinds(ca)[-1] == "federated_bundle_set"


def test_a_foreign_bundle_never_goes_back(ca: CaService) -> None:
    put(ca, 3)
    put(ca, 3)
    with pytest.raises(Conflict, match="would go back from 3 to 2"):
        put(ca, 2)
    put(ca, 4)
    assert ca.federated()["other"].sequence == 4


@pytest.mark.parametrize(
    ("name", "document", "error"),
    [("td", JWKS, NotAllowed), ("Not A Domain", JWKS, SpiffeIdError), ("other", b"x" * (1 << 20) + b"x", NotAllowed)],
)
def test_what_cannot_be_a_foreign_bundle_is_refused(
    ca: CaService, name: str, document: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        put(ca, 1, name, document)
    assert ca.federated() == {}


def test_a_foreign_bundle_can_be_taken_away(ca: CaService) -> None:
    put(ca, 1)
    ca.delete_federated("other", now=NOW)
    assert ca.federated() == {}
    with pytest.raises(NoSuchThing):
        ca.delete_federated("other", now=NOW)
