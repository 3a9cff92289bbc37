"""Chains put together at random, judged by our path builder and by the library's: we are never the laxer."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.svid import SvidError, check_peer_chain
from tests.unit.identity.pki import DAY, NOW, bundles, chain, leaf, named, root, signing, usage
from tests.unit.identity.test_svid import oracle

NAMES = ["root", "a", "b", "c"]

times = st.sampled_from([timedelta(days=-2), timedelta(hours=-1), timedelta(hours=1), timedelta(days=2)])
basics = st.sampled_from([None, *(x509.BasicConstraints(True, length) for length in (None, None, None, 0, 1, 2))])
usages = st.sampled_from([None, usage("key_cert_sign"), usage("key_cert_sign"), usage("digital_signature")])
authorities = st.builds(
    lambda subject, issuer, basic, its_usage, until: signing(
        subject, issuer, basic=basic, usage=its_usage, not_before=NOW - 3 * DAY, not_after=NOW + until
    ),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    basics,
    usages,
    times,
)
leafs = st.builds(
    lambda issuer, until: leaf(issuer=issuer, not_before=NOW - 3 * DAY, not_after=NOW + until),
    st.sampled_from(NAMES),
    times,
)
roots = st.builds(
    lambda basic, until: root(basic=basic, not_before=NOW - 3 * DAY, not_after=NOW + until), basics, times
)


def ours(certs: list[x509.Certificate], authority: x509.Certificate) -> bool:
    try:
        check_peer_chain(chain(*certs), bundles(authority), now=NOW, role="client")
    except SvidError:
        return False
    return True


@settings(max_examples=200, deadline=None)
@given(leafs, st.lists(authorities, max_size=5), roots)
def test_what_we_accept_the_library_accepts_too(
    first: x509.Certificate, others: list[x509.Certificate], authority: x509.Certificate
) -> None:
    if ours([first, *others], authority):
        assert oracle([first, *others], authority)


@settings(max_examples=60, deadline=None)
@given(st.permutations(NAMES[1:]), st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_sound_chain_is_accepted_by_both_in_any_order(order: list[str], length: int, rng: object) -> None:
    path = ["root", *order[:length]]
    signers = [signing(below, above) for above, below in pairwise(path)]
    rng.shuffle(signers)  # type: ignore[attr-defined]
    certs = [leaf(issuer=path[-1]), *signers]
    assert certs[0].issuer == named(path[-1])
    assert ours(certs, root())
    assert oracle(certs, root())
