"""How a caller without an SVID gets its first one, and how it does not."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from identity.ca_api import api, own_parent
from identity.rpc import Caller, RpcError, Status
from identity.spiffe import SpiffeId
from identity.svid import check_leaf
from tests.unit.ca_server.authority import NODE, TD, WEB, Held, House, csr, house, new_key

OWN = own_parent(TD)
OTHER = os.geteuid() + 1


async def refused(attempt: Any) -> RpcError:
    with pytest.raises(RpcError) as caught:
        await attempt
    return caught.value


# -- join tokens --------------------------------------------------------------------------------------------


async def test_a_join_token_gives_its_identity_to_the_key_of_the_request(ca: House) -> None:
    held = await ca.join()

    assert check_leaf(held.leaf) == SpiffeId.parse(NODE)
    assert held.leaf.public_key() == held.key.public_key()
    node = ca.service.node(SpiffeId.parse(NODE))
    assert (node.how, node.expires_at) == ("join_token", held.svid.not_after)
    assert held.reply.bundle.trust_domain == TD
    assert datetime.now(UTC).timestamp() < held.reply.renew_at < held.svid.not_after


async def test_a_token_is_good_once(ca: House) -> None:
    secret = ca.service.create_token(SpiffeId.parse(NODE), now=datetime.now(UTC))
    await ca.attest(ca.stranger(), join_token=secret)

    error = await refused(ca.attest(ca.stranger(), join_token=secret))

    assert error.status == Status.PERMISSION_DENIED
    assert "join token" in ca.journal("denied")[-1].facts["reason"]


async def test_a_bad_request_does_not_use_the_token_up(ca: House) -> None:
    secret = ca.service.create_token(SpiffeId.parse(NODE), now=datetime.now(UTC))
    broken = bytearray(csr(new_key()))
    broken[-1] ^= 1

    error = await refused(ca.attest(ca.stranger(), join_token=secret, csr=bytes(broken)))

    assert error.status == Status.INVALID_ARGUMENT
    await ca.attest(ca.stranger(), join_token=secret)


async def test_five_wrong_tokens_a_minute_from_one_address_and_no_more(ca: House, autojump_clock: Any) -> None:
    for _ in range(5):
        assert (await refused(ca.attest(ca.stranger(), join_token="x"))).status == Status.PERMISSION_DENIED
        await trio.sleep(1)
    secret = ca.service.create_token(SpiffeId.parse(NODE), now=datetime.now(UTC))

    assert (await refused(ca.attest(ca.stranger(), join_token=secret))).status == Status.RESOURCE_EXHAUSTED

    await ca.attest(ca.stranger("192.0.2.2"), join_token=secret)


async def test_the_authoritys_own_identity_is_never_given_out(ca: House) -> None:
    secret = ca.service.create_token(SpiffeId.parse(OWN), now=datetime.now(UTC))

    assert "own identity" in (await refused(ca.attest(ca.stranger(), join_token=secret))).message
    attempt = ca.attest(ca.local(os.geteuid()), unix_peer=True, spiffe_id=OWN)
    assert "own identity" in (await refused(attempt)).message


async def test_an_identity_held_by_one_machine_is_not_given_to_another_that_has_a_token(ca: House) -> None:
    await ca.join()

    error = await refused(ca.join(address="192.0.2.9"))

    assert error.status == Status.PERMISSION_DENIED
    assert "held with another key" in error.message


async def test_one_attestation_a_second_from_one_address_after_a_burst_of_five(
    ca: House, autojump_clock: Any
) -> None:
    request = {"unix_peer": True}
    for _ in range(5):
        await refused(ca.attest(ca.stranger(), **request))
    assert (await refused(ca.attest(ca.stranger(), **request))).status == Status.RESOURCE_EXHAUSTED

    await trio.sleep(1.01)

    assert (await refused(ca.attest(ca.stranger(), **request))).status == Status.INVALID_ARGUMENT


async def test_a_flood_of_refusals_does_not_become_a_flood_of_records(ca: House, autojump_clock: Any) -> None:
    for number in range(150):
        await refused(ca.attest(ca.stranger(f"192.0.2.{number}"), unix_peer=True))

    assert len(ca.journal("denied")) == 100
    await trio.sleep(1)
    await refused(ca.attest(ca.stranger("192.0.2.200"), unix_peer=True))
    assert "50 more were not written down" in ca.journal("denied")[-1].facts["reason"]


# -- requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: b"", "1 to 8192 bytes"),
        (lambda: b"\x30" * 9000, "1 to 8192 bytes"),
        (lambda: b"nonsense", "not a certificate request"),
        (lambda: csr(new_key()) + b"\0", "not a certificate request"),
        (lambda: csr(ec.generate_private_key(ec.SECP521R1())), "curve secp521r1"),
        (lambda: csr(rsa.generate_private_key(65537, 1024)), "1024 bits"),
        (lambda: csr(new_key(), hashes.SHA224()), "signature algorithm"),
    ],
)
async def test_a_request_must_prove_an_allowed_key(ca: House, make: Any, why: str) -> None:
    error = await refused(ca.attest(ca.stranger(), join_token="x", csr=make() or b"\0" * 9000))

    assert error.status == Status.INVALID_ARGUMENT
    assert why in error.message


async def test_ed25519_keys_are_taken(ca: House) -> None:
    from cryptography import x509

    key = ed25519.Ed25519PrivateKey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    secret = ca.service.create_token(SpiffeId.parse(NODE), now=datetime.now(UTC))

    held = await ca.attest(ca.stranger(), join_token=secret, csr=request.public_bytes(Encoding.DER))

    assert held.leaf.public_key() == key.public_key()


async def test_a_request_without_proof_is_refused(ca: House) -> None:
    assert (await refused(ca.attest(ca.stranger()))).status == Status.INVALID_ARGUMENT
    assert (await refused(ca.attest(ca.stranger(), unix_peer=False))).status == Status.INVALID_ARGUMENT


# -- Unix peers ---------------------------------------------------------------------------------------------


async def test_the_owner_may_be_anybody_of_the_trust_domain(ca: House) -> None:
    held = await ca.attest(ca.local(os.geteuid()), unix_peer=True, spiffe_id=WEB)

    assert str(check_leaf(held.leaf)) == WEB
    attempt = ca.attest(ca.local(os.geteuid()), unix_peer=True, spiffe_id="spiffe://other.test/a")
    assert (await refused(attempt)).status == Status.PERMISSION_DENIED


async def test_the_owners_processes_may_hold_the_same_identity(ca: House) -> None:
    first = await ca.attest(ca.local(os.geteuid()), unix_peer=True, spiffe_id=WEB)
    second = await ca.attest(ca.local(os.geteuid()), unix_peer=True, spiffe_id=WEB)

    assert first.svid.serial != second.svid.serial
    assert await ca.renew(first)


async def test_others_get_what_an_entry_says(ca: House) -> None:
    ca.entry(WEB, OWN, f"unix:uid:{OTHER}", x509SvidTtl=300, dnsNames=["web.test"])

    held = await ca.attest(ca.local(OTHER, f"unix:uid:{OTHER}", "unix:gid:9"), unix_peer=True)

    assert str(check_leaf(held.leaf)) == WEB
    assert held.svid.not_after - datetime.now(UTC).timestamp() == pytest.approx(300, abs=5)
    assert ca.service.node(SpiffeId.parse(WEB)).selectors == ("unix:gid:9", f"unix:uid:{OTHER}")


async def test_others_get_nothing_without_an_entry_and_nothing_else_with_one(ca: House) -> None:
    ca.entry(WEB, OWN, f"unix:uid:{OTHER}")

    assert "no entry" in (await refused(ca.attest(ca.local(OTHER, "unix:uid:99999"), unix_peer=True))).message
    wish = ca.attest(ca.local(OTHER, f"unix:uid:{OTHER}"), unix_peer=True, spiffe_id=NODE)
    assert "no entry" in (await refused(wish)).message


async def test_who_fits_several_entries_must_say_which(ca: House) -> None:
    ca.entry(WEB, OWN, f"unix:uid:{OTHER}")
    ca.entry(NODE, OWN, f"unix:uid:{OTHER}")
    caller = ca.local(OTHER, f"unix:uid:{OTHER}")

    assert (await refused(ca.attest(caller, unix_peer=True))).status == Status.INVALID_ARGUMENT
    assert str(check_leaf((await ca.attest(caller, unix_peer=True, spiffe_id=NODE)).leaf)) == NODE


async def test_renewal_ends_with_the_entry_that_let_the_caller_in(ca: House) -> None:
    entry = ca.entry(WEB, OWN, f"unix:uid:{OTHER}")
    held = await ca.attest(ca.local(OTHER, f"unix:uid:{OTHER}"), unix_peer=True)
    held = await ca.renew(held)
    ca.service.delete_entry(entry, now=datetime.now(UTC))

    assert "no entry is left" in (await refused(ca.renew(held))).message


async def test_a_weaker_proof_does_not_take_what_a_machine_holds_by_token(ca: House) -> None:
    await ca.join(WEB)
    ca.entry(WEB, OWN, f"unix:uid:{OTHER}")

    error = await refused(ca.attest(ca.local(OTHER, f"unix:uid:{OTHER}"), unix_peer=True))

    assert "joined by join_token" in error.message


async def test_a_unix_peer_is_believed_on_the_socket_only(ca: House) -> None:
    error = await refused(ca.attest(Caller(address="192.0.2.1:1"), unix_peer=True, spiffe_id=WEB))

    assert error.status == Status.INVALID_ARGUMENT


# -- Kubernetes ---------------------------------------------------------------------------------------------


class Pod:
    def selectors(self) -> frozenset[str]:
        return frozenset({"k8s:ns:shop", "k8s:sa:web"})


class Cluster:
    async def verify(self, token: str) -> Pod:
        if token != "good":
            raise RpcError(Status.PERMISSION_DENIED, "the token is not good")
        return Pod()


async def test_a_kubernetes_token_gives_what_the_entries_say_of_the_pod(ca: House) -> None:
    ca.kubernetes = Cluster()
    ca.refresh()
    ca.entry(f"spiffe://{TD}/ns/{{ns}}/sa/{{sa}}", OWN, "k8s:ns:shop")

    held = await ca.attest(ca.stranger(), k8s_token="good")

    assert str(check_leaf(held.leaf)) == WEB
    assert (await refused(ca.attest(ca.stranger(), k8s_token="bad"))).status == Status.PERMISSION_DENIED


async def test_kubernetes_tokens_are_refused_where_nobody_can_judge_them(ca: House) -> None:
    assert (await refused(ca.attest(ca.stranger(), k8s_token="x"))).status == Status.FAILED_PRECONDITION


# -- expired SVIDs ------------------------------------------------------------------------------------------


async def expired_proof(ca: House, held: Held, key: Any, *, signer: Any = None) -> Any:
    nonce = await ca.challenge()
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    signature = (signer or held.key).sign(nonce + public, ec.ECDSA(hashes.SHA256()))
    return api.ExpiredSvid(chain=held.svid.chain, nonce=nonce, signature=signature)


async def test_an_expired_svid_counts_for_nothing_unless_switched_on(ca: House) -> None:
    assert (await refused(ca.challenge())).status == Status.FAILED_PRECONDITION
    proof = api.ExpiredSvid(chain=b"x", nonce=b"x", signature=b"x")
    assert (await refused(ca.attest(ca.stranger(), expired_svid=proof))).status == Status.FAILED_PRECONDITION


async def test_the_old_key_brings_a_node_back_and_nobody_else(tmp_path: Path) -> None:
    with house(tmp_path, allow_expired=3600.0) as ca:
        await ca.look()
        held, key = await ca.join(), new_key()
        thief = await expired_proof(ca, held, key, signer=new_key())
        assert (
            "not signed" in (await refused(ca.attest(ca.stranger("192.0.2.5"), key=key, expired_svid=thief))).message
        )
        other = await expired_proof(ca, held, new_key())  # signed, but for another new key
        assert (
            "not signed" in (await refused(ca.attest(ca.stranger("192.0.2.5"), key=key, expired_svid=other))).message
        )
        proof = await expired_proof(ca, held, key)

        back = await ca.attest(ca.stranger("192.0.2.5"), key=key, expired_svid=proof)

        assert str(check_leaf(back.leaf)) == NODE
        assert ca.service.node(SpiffeId.parse(NODE)).how == "join_token"
        again = ca.attest(ca.stranger("192.0.2.6"), key=key, expired_svid=proof)
        assert "challenge" in (await refused(again)).message
        stale = await expired_proof(ca, held, new_key())  # its first key is no longer the last one
        late = ca.attest(ca.stranger("192.0.2.6"), key=new_key(), expired_svid=stale)
        assert (await refused(late)).status == Status.PERMISSION_DENIED


async def test_who_was_revoked_does_not_come_back_by_an_old_key(tmp_path: Path) -> None:
    with house(tmp_path, allow_expired=3600.0) as ca:
        await ca.look()
        held, key = await ca.join(), new_key()
        await ca.ask("Revoke", what=NODE, reason="stolen")
        proof = await expired_proof(ca, held, key)

        error = await refused(ca.attest(ca.stranger("192.0.2.5"), key=key, expired_svid=proof))

        assert "join again" in error.message


async def test_names_that_a_caller_gives_are_short_and_plain(ca: House) -> None:
    for name in ("x" * 201, "\x1b[2J", "schön"):
        error = await refused(ca.attest(ca.local(os.geteuid()), unix_peer=True, spiffe_id=WEB, machine_id=name))
        assert error.status == Status.INVALID_ARGUMENT
