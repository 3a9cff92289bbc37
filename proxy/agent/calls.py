"""What a node asks of the authority: the calls of ``identity.ca_api`` as functions over a channel.

A node makes its keys itself (C-2): each function that gets an SVID is given the key, sends a request that proves the
possession of it, and gives back an SVID that was checked as a peer would check it. Everything that can go wrong is an
RpcError (what the authority, or the way to it, said) or a BadAnswer (what it said cannot be believed).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from identity import bundle as bundles
from identity.bundle import Bundle, BundleError
from identity.ca_api import ATTEST, CHALLENGE, ISSUE, ISSUE_JWT, LEAVE, RENEW, api
from identity.protos import parse
from identity.rpc import RpcError, Status
from identity.spiffe import SpiffeId, SpiffeIdError
from identity.svid import PrivateKey, SvidError, X509Svid, check_own_svid
from identity.workload_source import split_certificates
from identity.x509_rules import public_key_der
from proxy.rpc.client import Channel

_TIMEOUT: Final = 15.0  # seconds


class BadAnswer(Exception):
    """The authority's answer cannot be used: our clock, its clock, or not our authority at all."""


@dataclass(frozen=True, slots=True)
class Proof:
    """How a node shows who it is (``identity.ca_api``). Exactly one of the first four. ``wish``: the SPIFFE ID it
    wants, where the proof leaves a choice."""

    join_token: str = field(default="", repr=False)
    k8s_token: str = field(default="", repr=False)
    unix_peer: bool = False
    expired: X509Svid | None = None
    wish: str = ""


@dataclass(frozen=True, slots=True)
class Attested:
    """What attestation gave."""

    svid: X509Svid
    bundle: Bundle
    url: str = ""  # where Node is served, when it is not where we came from


def new_key() -> ec.EllipticCurvePrivateKey:
    """A workload's key: P-256, in memory only (C-2)."""
    return ec.generate_private_key(ec.SECP256R1())


async def attest(
    channel: Channel, proof: Proof, key: PrivateKey, *, now: datetime, machine_id: str = "", hostname: str = ""
) -> Attested:
    """A first SVID. Raises RpcError, BadAnswer."""
    request = api.AttestRequest(
        csr=csr_of(key), machine_id=machine_id[:200], hostname=hostname[:200], spiffe_id=proof.wish
    )
    if proof.join_token:
        request.join_token = proof.join_token
    elif proof.k8s_token:
        request.k8s_token = proof.k8s_token
    elif proof.expired is not None:
        request.expired_svid.CopyFrom(await _expired(channel, proof.expired, key))
    else:
        request.unix_peer = proof.unix_peer
    reply = await _ask(channel, ATTEST, request, api.AttestReply)
    bundle = read_bundle(reply.bundle)
    return Attested(read_svid(reply.svid, key, bundle, now=now), bundle, reply.url)


async def _expired(channel: Channel, svid: X509Svid, key: PrivateKey) -> Any:
    """The old key's signature over the authority's number and the new key."""
    if not isinstance(svid.key, ec.EllipticCurvePrivateKey):
        raise BadAnswer("the expired SVID has a key of another kind than ours")
    nonce = (await _ask(channel, CHALLENGE, api.Empty(), api.ChallengeReply)).nonce
    signed = nonce + public_key_der(key.public_key())
    signature = svid.key.sign(signed, ec.ECDSA(hashes.SHA256()))
    return api.ExpiredSvid(chain=_chain(svid), nonce=nonce, signature=signature)


async def renew(
    channel: Channel, key: PrivateKey, bundle: Bundle, *, now: datetime, machine_id: str = ""
) -> X509Svid:
    """The node's next SVID, over a channel that shows the one it has. Raises RpcError, BadAnswer."""
    request = api.RenewRequest(csr=csr_of(key), machine_id=machine_id[:200])
    return read_svid(await _ask(channel, RENEW, request, api.Svid), key, bundle, now=now)


async def issue(
    channel: Channel,
    keys: Mapping[str, PrivateKey],
    bundle: Bundle,
    *,
    now: datetime,
    wishes: Mapping[str, str],
) -> dict[str, X509Svid | RpcError]:
    """SVIDs for entries below the node: a key for each entry id, and the ID that is expected of it in ``wishes``.
    Each has its own outcome. Raises RpcError, BadAnswer for the whole."""
    entries = list(keys)
    items = [
        api.IssueItem(entry_id=entry, csr=csr_of(keys[entry]), spiffe_id=wishes.get(entry, "")) for entry in entries
    ]
    reply = await _ask(channel, ISSUE, api.IssueRequest(items=items), api.IssueReply)
    if len(reply.outcomes) != len(entries):
        raise BadAnswer(f"{len(reply.outcomes)} outcomes for {len(entries)} requests")
    found: dict[str, X509Svid | RpcError] = {}
    for entry, outcome in zip(entries, reply.outcomes, strict=True):
        if outcome.status:
            found[entry] = RpcError(_status(outcome.status), outcome.message)
        else:
            found[entry] = read_svid(outcome.svid, keys[entry], bundle, now=now)
    return found


async def issue_jwt(channel: Channel, entry_id: str, spiffe_id: str, audiences: Sequence[str]) -> tuple[str, float]:
    """A JWT-SVID and its end, in seconds of the epoch. Raises RpcError."""
    request = api.JwtRequest(entry_id=entry_id, spiffe_id=spiffe_id, audience=list(audiences))
    reply = await _ask(channel, ISSUE_JWT, request, api.JwtReply)
    return str(reply.token), float(reply.not_after)


async def leave(channel: Channel) -> None:
    """Have the authority forget the node and revoke what it holds. Raises RpcError."""
    await _ask(channel, LEAVE, api.Empty(), api.Empty)


async def _ask(channel: Channel, method: str, request: Any, reply: Any) -> Any:
    return parse(reply, await channel.unary(method, request.SerializeToString(), timeout=_TIMEOUT))


# -- forms ------------------------------------------------------------------------------------------------------


def csr_of(key: PrivateKey) -> bytes:
    """A request (PKCS #10, DER) that says nothing but that we have the private key (C-4)."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def read_svid(message: Any, key: PrivateKey, bundle: Bundle, *, now: datetime) -> X509Svid:
    """An ``Svid``, checked as a peer would. Raises BadAnswer."""
    try:
        spiffe_id = SpiffeId.parse(message.spiffe_id)
        svid = X509Svid(spiffe_id, split_certificates(message.chain), key)
        check_own_svid(svid, bundle.trust_bundle, now=now)
    except (SpiffeIdError, SvidError, ValueError) as error:
        raise BadAnswer(f"the SVID it issued is not good: {error} (compare the clocks)") from None
    return svid


def read_bundle(message: Any) -> Bundle:
    """A ``Bundle``. Raises BadAnswer."""
    try:
        return bundles.parse(message.document, message.trust_domain)
    except (BundleError, SpiffeIdError) as error:
        raise BadAnswer(f"the bundle it gave is not good: {error}") from None


def _chain(svid: X509Svid) -> bytes:
    return b"".join(cert.public_bytes(Encoding.DER) for cert in svid.chain)


def _status(number: int) -> Status:
    try:
        return Status(number)
    except ValueError:
        return Status.UNKNOWN
