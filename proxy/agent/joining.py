"""Joining and leaving: what `sidewall join` and `sidewall leave` do, step by step, so that each can be told.

Joining: the root that the string names is looked for in what the server shows; only then is the token sent, over TLS
to a server that has the authority's identity under that root. The key is made here. What is kept is written before
anybody is told that it is done: a token is good once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from identity.attest.join import JoinString
from identity.attest.machine import MachineFacts
from identity.rpc import RpcError, Status
from identity.svid import TrustBundle, X509Context
from proxy.agent import calls
from proxy.agent.calls import Proof
from proxy.agent.memory import NodeFacts, NodeFolder, Remembered
from proxy.agent.way import Way, as_node, as_stranger, connected, find_root

Step = Callable[[str, str], None]
"""What was done, and where: one line each."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Who this machine is now."""

    spiffe_id: str
    url: str
    not_after: float
    folder: Path


async def join(text: JoinString, folder: NodeFolder, step: Step) -> Joined:
    """Raises RpcError, BadAnswer, IdentityFileError (there is something in ``folder`` already)."""
    folder.check_free()
    way, root = await _recognise(text)
    step("CA reached, its root is the one that the token names", f"{way.host}:{way.port}")
    machine = MachineFacts.read().text
    async with connected(way, as_stranger(root), text.trust_domain) as channel:
        got = await calls.attest(
            channel,
            Proof(join_token=text.secret),
            calls.new_key(),
            now=datetime.now(UTC),
            machine_id=machine,
            hostname=os.uname().nodename,
        )
    step(f"enrolled as {got.svid.id}", "token used up")
    facts = NodeFacts(str(got.svid.id), text.trust_domain, str(way), machine, datetime.now(UTC).timestamp())
    folder.create(facts, got.svid, got.bundle)
    step("key made here, stored 0600", str(folder.path))
    return Joined(str(got.svid.id), str(way), got.svid.not_after, folder.path)


async def _recognise(text: JoinString) -> tuple[Way, TrustBundle]:
    """The first address that answers. Raises RpcError; the wrong root at one of them ends the search."""
    problems = []
    for host, port in text.addresses:
        way = Way(host, port)
        try:
            return way, await find_root(way, text.pin, text.trust_domain)
        except RpcError as error:
            if error.status is not Status.UNAVAILABLE:
                raise
            problems.append(error.message)
    raise RpcError(Status.UNAVAILABLE, "; ".join(problems))


async def leave(folder: NodeFolder) -> None:
    """Have the authority forget this machine and revoke what it holds. Raises RpcError, IdentityFileError.

    Connections of who was revoked are ended, this one too, and sometimes before its answer has come. So it is asked
    once more: an authority that does not know us any more has done it."""
    kept = folder.load()
    try:
        await _leave(kept)
    except RpcError as error:
        if error.status is not Status.UNAVAILABLE:
            raise
        try:
            await _leave(kept)
        except RpcError as again:
            if again.status not in (Status.PERMISSION_DENIED, Status.UNAUTHENTICATED):
                raise


async def _leave(kept: Remembered) -> None:
    bundle = kept.bundle.trust_bundle
    context = X509Context(kept.svid, {bundle.trust_domain: bundle})
    async with connected(Way.parse(kept.facts.url), as_node(context), bundle.trust_domain) as channel:
        await calls.leave(channel)
