"""check_peer_chain: what is accepted, what is refused and with which word, and what is remembered."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509 import verification

from identity import svid, x509_rules
from identity.spiffe import SpiffeId
from identity.svid import SvidError, TrustBundle, X509Svid, check_leaf, check_own_svid, check_peer_chain
from proxy import errors
from tests.unit.identity import pki
from tests.unit.identity.hostile import HOSTILE, Hostile
from tests.unit.identity.pki import EKU, HOUR, NOW, bundles, chain, issuing, key, leaf, root, signing, uris


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    svid._verdicts.clear()


ED = {name: pki.ed_key(name) for name in ("root", "issuing", "leaf")}
RSA = {name: pki.rsa_key(name) for name in ("root", "issuing", "leaf")}


def _of_kind(keys: dict[str, object]) -> tuple[list[x509.Certificate], x509.Certificate]:
    public = {name: one.public_key() for name, one in keys.items()}
    top = root(public_key=public["root"], signer=keys["root"])
    middle = issuing(public_key=public["issuing"], signer=keys["root"])
    return [leaf(public_key=public["leaf"], signer=keys["issuing"]), middle], top


GOOD: dict[str, tuple[list[x509.Certificate], x509.Certificate]] = {
    "leaf and intermediate": ([leaf(), issuing()], root()),
    "directly under the root": ([leaf(issuer="root")], root()),
    "the root is presented too": ([leaf(), issuing(), root()], root()),
    "intermediates in another order": (
        [leaf(issuer="two"), signing("one", "root"), signing("two", "one")],
        root(),
    ),
    "certificates that nobody needs": ([leaf(), signing("x", "y"), issuing(), leaf(serial=9)], root()),
    "an authority that is not self-signed": ([leaf()], issuing()),
    "two authorities of one name": (
        [leaf(), issuing(serial=5, public_key=key("old").public_key()), issuing()],
        root(),
    ),
    "four intermediates": (
        [leaf(issuer="d"), signing("d", "c"), signing("c", "b"), signing("b", "a"), signing("a", "root")],
        root(),
    ),
    "without basicConstraints": ([leaf(basic=None), issuing()], root()),
    "without extendedKeyUsage": ([leaf(purposes=None), issuing()], root()),
    "further purposes": ([leaf(purposes=[EKU.CLIENT_AUTH, EKU.CODE_SIGNING]), issuing()], root()),
    "other names beside the ID": (
        [
            leaf(
                san=x509.SubjectAlternativeName(
                    [x509.DNSName("b.a.svc"), x509.UniformResourceIdentifier("spiffe://td/ns/a/sa/b")]
                )
            ),
            issuing(),
        ],
        root(),
    ),
    "an intermediate with the ID of its trust domain": ([leaf(), issuing(san=uris("spiffe://td"))], root()),
    "an unknown extension that is not critical": (
        [
            leaf(more=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"), False)]),
            issuing(),
        ],
        root(),
    ),
    "pathLen just enough": (
        [leaf(), issuing(basic=x509.BasicConstraints(True, 0))],
        root(basic=x509.BasicConstraints(True, 1)),
    ),
    "RSA": _of_kind(RSA),
    "Ed25519": _of_kind(ED),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_proper_chain_is_accepted(name: str) -> None:
    certs, authority = GOOD[name]
    peer = check_peer_chain(chain(*certs), bundles(authority), now=NOW, role="client")
    assert peer.uri == "spiffe://td/ns/a/sa/b"
    assert peer.not_after == (NOW + HOUR).timestamp()


@pytest.mark.parametrize("name", [name for name in GOOD if name != "Ed25519"])
def test_what_we_accept_the_library_accepts(name: str) -> None:
    certs, authority = GOOD[name]
    assert oracle(certs, authority)


def oracle(certs: list[x509.Certificate], authority: x509.Certificate) -> bool:
    """The path builder of ``cryptography``, which knows no Ed25519 authorities."""
    either = verification.Criticality.AGNOSTIC
    signers = verification.ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, either, None)
    anybody = verification.ExtensionPolicy.permit_all()
    builder = verification.PolicyBuilder().store(verification.Store([authority])).time(NOW).max_chain_depth(4)
    builder = builder.extension_policies(ca_policy=signers, ee_policy=anybody)
    try:
        builder.build_client_verifier().verify(certs[0], certs[1:])
    except verification.VerificationError:
        return False
    return True


def test_there_are_at_least_fifty_hostile_chains_of_many_kinds() -> None:
    assert len(HOSTILE) >= 50
    assert len({one.name for one in HOSTILE}) == len(HOSTILE)
    assert len({one.why for one in HOSTILE}) >= 13


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda one: one.name)
def test_a_hostile_chain_is_refused_with_its_own_word(hostile: Hostile) -> None:
    with pytest.raises(SvidError) as caught:
        check_peer_chain(hostile.chain(), hostile.bundles(), now=NOW, role=hostile.role)
    assert (caught.value.why, caught.value.why in svid.PEER_REASONS) == (hostile.why, True)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda one: one.name)
def test_a_refusal_says_nothing_that_breaks_a_log_line(hostile: Hostile) -> None:
    with pytest.raises(SvidError) as caught:
        check_peer_chain(hostile.chain(), hostile.bundles(), now=NOW, role=hostile.role)
    assert str(caught.value).isprintable()
    assert str(caught.value).isascii()


def test_the_words_are_those_of_the_proxy() -> None:
    assert svid.PEER_REASONS == errors.PEER_REASONS


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("serial", [5, 6, 7, 8])
def test_a_leaf_with_any_one_byte_changed_is_refused(serial: int) -> None:
    whole, above = chain(leaf(serial=serial), issuing())
    for at in range(len(whole)):
        changed = whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :]
        with pytest.raises(SvidError):
            check_peer_chain([changed, above], bundles(), now=NOW, role="client")


def test_the_validity_includes_both_ends() -> None:
    certs, trust = chain(leaf(), issuing()), bundles()
    for moment in (NOW - HOUR, NOW + HOUR):
        svid._verdicts.clear()
        assert check_peer_chain(certs, trust, now=moment, role="client")
    with pytest.raises(SvidError, match="expired"):
        check_peer_chain(certs, trust, now=NOW + HOUR + timedelta(microseconds=1), role="client")
    with pytest.raises(SvidError, match="not_yet_valid"):
        check_peer_chain(certs, trust, now=NOW - HOUR - timedelta(microseconds=1), role="client")


def test_the_identity_lapses_with_the_first_certificate_of_the_path() -> None:
    certs = chain(leaf(), issuing(not_after=NOW + HOUR / 2))
    peer = check_peer_chain(certs, bundles(), now=NOW, role="client")
    assert peer.not_after == (NOW + HOUR / 2).timestamp()


def test_the_facts_of_a_peer_are_those_of_its_leaf() -> None:
    cert = leaf(serial=0xABC)
    peer = check_peer_chain(chain(cert, issuing()), bundles(), now=NOW, role="client")
    assert peer.id == SpiffeId("td", "/ns/a/sa/b")
    assert peer.principal == "td/ns/a/sa/b"
    assert (peer.serial, peer.issuer) == ("abc", "CN=issuing")
    assert peer.xfcc == f"Hash={peer.sha256};URI=spiffe://td/ns/a/sa/b".encode()
    assert len(peer.sha256) == 64


def test_an_issuer_name_with_control_characters_is_made_printable() -> None:
    evil = "CA\r\nx-evil: ~\x7f\x1b[31m"
    certs = chain(leaf(issuer=evil), signing(evil, "root"))
    peer = check_peer_chain(certs, bundles(), now=NOW, role="client")
    assert peer.issuer == "CN=CA??x-evil: ~??[31m"


def _padded(size: int) -> x509.Certificate:
    filler = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x04" * size)
    return leaf(more=[(filler, False)])


def test_ten_certificates_and_32_kib_are_just_allowed() -> None:
    certs = chain(leaf(), *[issuing()] * 9)
    assert check_peer_chain(certs, bundles(), now=NOW, role="client")
    above = pki.der(issuing())
    # The signature's length varies with its content: look for a filling that makes the sum exact.
    exact = next(
        whole
        for size in range(32 * 1024 - len(above) - 700, 32 * 1024)
        if len(whole := pki.der(_padded(size))) + len(above) == 32 * 1024
    )
    assert check_peer_chain([exact, above], bundles(), now=NOW, role="client")
    with pytest.raises(SvidError, match="chain_too_long"):
        check_peer_chain([exact, above + b"\0"], bundles(), now=NOW, role="client")


# -- several ways up ----------------------------------------------------------------------------------------


def _with_key_ids(child: str, signer: str) -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.SubjectKeyIdentifier.from_public_key(key(child).public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(key(signer).public_key()), False),
    ]


def _namesakes(count: int, *, with_ids: bool) -> list[x509.Certificate]:
    """Roots of one name with different keys, as several servers of one trust domain make them."""
    return [
        signing(
            "root",
            "root",
            serial=number + 1,
            public_key=key(f"root {number}").public_key(),
            signer=key(f"root {number}"),
            more=_with_key_ids(f"root {number}", f"root {number}") if with_ids else [],
        )
        for number in range(count)
    ]


def test_the_right_one_of_many_roots_of_one_name_is_found_by_its_key_identifier() -> None:
    roots = _namesakes(40, with_ids=True)
    signed = leaf(issuer="root", signer=key("root 39"), more=_with_key_ids("leaf", "root 39"))
    assert check_peer_chain(chain(signed), bundles(*roots), now=NOW, role="client")


def test_without_key_identifiers_a_few_namesakes_are_tried_and_not_more() -> None:
    roots = _namesakes(9, with_ids=False)
    for number, found in ((7, True), (8, False)):
        certs = chain(leaf(issuer="root", signer=key(f"root {number}")))
        if found:
            assert check_peer_chain(certs, bundles(*roots), now=NOW, role="client")
        else:
            with pytest.raises(SvidError, match="untrusted_root"):
                check_peer_chain(certs, bundles(*roots), now=NOW, role="client")


def test_a_contradicting_key_identifier_is_no_way_up() -> None:
    signed = leaf(issuer="root", more=_with_key_ids("leaf", "somebody"))
    tagged = root(more=_with_key_ids("root", "root"))
    with pytest.raises(SvidError, match="no authority of td issued"):
        check_peer_chain(chain(signed), bundles(tagged), now=NOW, role="client")


@pytest.mark.parametrize("order", [1, -1])
def test_a_path_that_fails_for_a_reason_says_more_than_one_that_is_forged(order: int) -> None:
    forged = signing("issuing", "root", signer=key("somebody"))
    late = issuing(not_after=NOW - HOUR)
    with pytest.raises(SvidError, match="expired"):
        check_peer_chain(chain(leaf(), *[forged, late][::order]), bundles(), now=NOW, role="client")


def test_the_first_of_two_such_reasons_is_given() -> None:
    late, unmarked = issuing(not_after=NOW - HOUR), issuing(usage=None)
    with pytest.raises(SvidError, match="expired"):
        check_peer_chain(chain(leaf(), late, unmarked), bundles(), now=NOW, role="client")


def test_an_expired_way_up_does_not_hide_a_living_one() -> None:
    certs = chain(leaf(), issuing(not_after=NOW - HOUR), issuing())
    assert check_peer_chain(certs, bundles(), now=NOW, role="client")


def test_a_search_among_namesakes_ends_after_a_counted_number_of_steps() -> None:
    maze = next(one for one in HOSTILE if one.name == "a maze of names")
    with pytest.raises(SvidError, match="too many certificates of the same name"):
        check_peer_chain(maze.chain(), bundles(), now=NOW, role="client")


# -- parts of the rules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "good"), [(2047, False), (2048, True), (8192, True), (8193, False)])
def test_rsa_keys_have_2048_to_8192_bits(bits: int, good: bool) -> None:
    public = pki.rsa_public(bits)
    if good:
        assert x509_rules.check_public_key(public) is public
    else:
        with pytest.raises(SvidError, match="weak_key"):
            x509_rules.check_public_key(public)


def test_a_leaf_alone_must_not_have_an_unknown_critical_extension() -> None:
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")
    with pytest.raises(SvidError, match="bad_certificate"):
        check_leaf(leaf(more=[(unknown, True)]))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"basic": x509.BasicConstraints(False, None)}, "bad_certificate"),
        ({"usage": None}, "key_usage"),
        ({"more": [(x509.NameConstraints([x509.DNSName("a")], None), False)]}, "bad_certificate"),
    ],
)
def test_an_authority_alone_is_checked(changes: dict[str, object], why: str) -> None:
    svid.check_authority(root(basic=x509.BasicConstraints(True, 0)))
    with pytest.raises(SvidError, match=why):
        svid.check_authority(root(**changes))


def test_the_trust_domains_of_any_certificate_can_be_named() -> None:
    names = uris("spiffe://one/a", "https://two/", "spiffe://THREE", "spiffe://four")
    assert x509_rules.trust_domains_of(leaf(san=names)) == {"one", "four"}


# -- what is remembered -------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the full judgements; the memory is empty at the start."""
    svid._verdicts.clear()
    counted: list[int] = []
    judge = svid._judge

    def counting(*args: object) -> object:
        counted.append(1)
        return judge(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(svid, "_judge", counting)
    return counted


def test_the_second_handshake_of_a_peer_is_not_judged_anew(judged: list[int]) -> None:
    certs, trust = chain(leaf(), issuing()), bundles()
    first = check_peer_chain(certs, trust, now=NOW, role="client")
    assert check_peer_chain(list(certs), trust, now=NOW + HOUR / 2, role="client") is first
    assert len(judged) == 1


def test_a_remembered_peer_is_refused_when_it_has_expired(judged: list[int]) -> None:
    certs, trust = chain(leaf(), issuing()), bundles()
    check_peer_chain(certs, trust, now=NOW, role="client")
    with pytest.raises(SvidError, match="expired"):
        check_peer_chain(certs, trust, now=NOW + 2 * HOUR, role="client")


def test_a_remembered_peer_is_good_at_both_ends_of_its_time(judged: list[int]) -> None:
    certs, trust = chain(leaf(), issuing()), bundles()
    for moment in (NOW, NOW - HOUR, NOW + HOUR):
        check_peer_chain(certs, trust, now=moment, role="client")
    assert len(judged) == 1


def test_a_remembered_peer_is_refused_when_its_authority_left_the_bundle(judged: list[int]) -> None:
    certs = chain(leaf(), issuing())
    check_peer_chain(certs, bundles(), now=NOW, role="client")
    with pytest.raises(SvidError, match="untrusted_root"):
        check_peer_chain(certs, bundles(signing("new root", "new root")), now=NOW, role="client")
    with pytest.raises(SvidError, match="trust_domain"):
        check_peer_chain(certs, {}, now=NOW, role="client")


def test_an_equal_bundle_read_again_keeps_the_verdict(judged: list[int]) -> None:
    authority = root()
    certs = chain(leaf(), issuing())
    check_peer_chain(certs, bundles(authority), now=NOW, role="client")
    again = x509.load_der_x509_certificate(pki.der(authority))
    check_peer_chain(certs, bundles(again), now=NOW, role="client")
    assert len(judged) == 1


def test_a_verdict_for_one_role_is_none_for_the_other(judged: list[int]) -> None:
    certs = chain(leaf(purposes=[EKU.CLIENT_AUTH]), issuing())
    check_peer_chain(certs, bundles(), now=NOW, role="client")
    with pytest.raises(SvidError, match="extended_key_usage"):
        check_peer_chain(certs, bundles(), now=NOW, role="server")


def test_refusals_are_not_remembered(judged: list[int]) -> None:
    for _ in range(2):
        with pytest.raises(SvidError):
            check_peer_chain(chain(leaf()), bundles(), now=NOW, role="client")
    assert len(judged) == 2
    assert not svid._verdicts


def test_the_memory_is_bounded(judged: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svid, "_MAX_REMEMBERED", 3)
    for serial in range(1, 9):
        check_peer_chain(chain(leaf(serial=serial), issuing()), bundles(), now=NOW, role="client")
        assert len(svid._verdicts) <= 3


def test_the_same_bytes_cut_differently_are_another_chain() -> None:
    assert svid._digest(b"ab", b"c") != svid._digest(b"a", b"bc")


def test_the_digest_of_a_bundle_counts_its_name() -> None:
    assert TrustBundle("a", (root(),)).digest != TrustBundle("b", (root(),)).digest


# -- ourselves ----------------------------------------------------------------------------------------------


def _own(**changes: object) -> X509Svid:
    whole = X509Svid(SpiffeId("td", "/ns/a/sa/b"), (leaf(), issuing()), key("leaf"))
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_our_own_svid_is_checked_like_a_peers() -> None:
    check_own_svid(_own(), bundles()["td"], now=NOW)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"key": key("other")}, "bad_certificate"),
        ({"id": SpiffeId("td", "/ns/a/sa/c")}, "id_mismatch"),
        ({"chain": (leaf(),)}, "untrusted_root"),
        ({"chain": (leaf(not_after=NOW - HOUR / 2), issuing())}, "expired"),
        ({"chain": (leaf(purposes=[EKU.CLIENT_AUTH]), issuing())}, "extended_key_usage"),
    ],
)
def test_an_svid_that_peers_would_refuse_is_not_ours(changes: dict[str, object], why: str) -> None:
    with pytest.raises(SvidError) as caught:
        check_own_svid(_own(**changes), bundles()["td"], now=NOW)
    assert caught.value.why == why


def test_an_svid_does_not_go_with_the_bundle_of_another_trust_domain() -> None:
    with pytest.raises(SvidError, match="trust_domain"):
        check_own_svid(_own(), TrustBundle("other", (root(),)), now=NOW)


def test_a_context_ends_with_its_chain_and_shows_no_key() -> None:
    context = pki.context()
    assert context.not_after == (NOW + HOUR).timestamp()
    assert context.not_before == (NOW - HOUR).timestamp()
    assert context.bundle is context.bundles["td"]
    assert "key" not in repr(context.svid).lower()


def test_issuing_asks_a_leaf_for_both_purposes() -> None:
    with pytest.raises(SvidError, match="extended_key_usage"):
        check_leaf(leaf(purposes=[EKU.SERVER_AUTH]))
    assert check_leaf(leaf(purposes=[EKU.SERVER_AUTH]), role="server") == SpiffeId("td", "/ns/a/sa/b")


def test_whatever_a_check_raises_becomes_a_refusal() -> None:
    @x509_rules.fail_closed
    def broken() -> None:
        raise RecursionError("deep")

    with pytest.raises(SvidError, match="bad_certificate: RecursionError"):
        broken()
