"""A real authority in a folder, callers that are not real, and the answers of its handlers as messages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from identity.attest.unix import UnixPeer
from identity.ca.model import CaSettings
from identity.ca.service import CaService
from identity.ca_api import ADMIN, ATTEST, CHALLENGE, ISSUE, ISSUE_JWT, LEAVE, RENEW, WATCH, api
from identity.rpc import Call, Caller
from identity.spiffe import SpiffeId
from identity.svid import PeerIdentity, check_peer_chain
from proxy.ca.admin import Administration
from proxy.ca.denials import Denials
from proxy.ca.desk import Desk
from proxy.ca.documents import certificates_of
from proxy.ca.enrol import Enrol
from proxy.ca.node import Nodes
from proxy.ca.watch import Watching

TD = "mesh.test"
NODE = f"spiffe://{TD}/node"
WEB = f"spiffe://{TD}/ns/shop/sa/web"
SETTINGS = CaSettings(min_ttl=1.0)


class LocalCaller(UnixPeer):
    """A process with the selectors it is given."""

    def __init__(self, uid: int, *selectors: str) -> None:
        self._uid, self._told, self.there = uid, frozenset(selectors), True

    @property
    def pid(self) -> int:
        return 4711

    @property
    def uid(self) -> int:
        return self._uid

    @property
    def gid(self) -> int:
        return self._uid

    def selectors(self, *, hash_exe: bool = False) -> frozenset[str]:
        return self._told

    def still_there(self) -> bool:
        return self.there

    def close(self) -> None:
        self.there = False

    def __del__(self) -> None:
        pass


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def csr(key: Any, digest: Any = None, **more: Any) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest or hashes.SHA256(), **more).public_bytes(Encoding.DER)


@dataclass
class Held:
    """A node with its key and chain."""

    key: ec.EllipticCurvePrivateKey
    svid: Any
    reply: Any = None

    @property
    def leaf(self) -> x509.Certificate:
        return certificates_of(self.svid.chain)[0]


@dataclass
class House:
    """The authority and its handlers."""

    service: CaService
    allow_expired: float = 0.0
    desk: Desk = field(init=False)

    def __post_init__(self) -> None:
        self.desk = Desk(self.service, self.allow_expired)
        self.watching = Watching(self.service)
        self.nodes = Nodes(self.desk, self.watching, life=0.0)
        self.kubernetes: Any = None
        self.methods: dict[str, Any] = {}
        self.refresh()

    def refresh(self) -> None:
        self.methods = {
            **Enrol(self.desk, self.kubernetes).methods(),
            **self.nodes.methods(),
            **Administration(self.desk, lambda: {"url": "https://ca.test:15012"}).methods(),
        }

    async def look(self) -> None:
        await self.watching._look()

    async def call(self, method: str, request: Any, caller: Caller, kind: Any = None) -> Any:
        answer = await self.methods[method].handler(Call(method, caller), request.SerializeToString())
        return answer if kind is None else kind.FromString(answer)

    # -- callers --------------------------------------------------------------------------------------------

    def stranger(self, address: str = "192.0.2.1") -> Caller:
        return Caller(address=f"{address}:5000")

    def local(self, uid: int, *selectors: str) -> Caller:
        return Caller(local=LocalCaller(uid, *selectors), address="unix:/run/ca.sock")

    def peer(self, held: Held) -> Caller:
        ders = [cert.public_bytes(Encoding.DER) for cert in certificates_of(held.svid.chain)]
        bundles = {TD: self.service.bundle().trust_bundle}
        found: PeerIdentity = check_peer_chain(ders, bundles, now=datetime.now(UTC), role="client")
        return Caller(peer=found, address="192.0.2.7:5000")

    # -- acts -----------------------------------------------------------------------------------------------

    async def attest(self, caller: Caller, **proof: Any) -> Held:
        key = proof.pop("key", None) or new_key()
        request = api.AttestRequest(csr=proof.pop("csr", None) or csr(key), hostname="vm1", **proof)
        reply = await self.call(ATTEST, request, caller, api.AttestReply)
        return Held(key, reply.svid, reply)

    async def join(self, spiffe_id: str = NODE, address: str = "192.0.2.1") -> Held:
        secret = self.service.create_token(SpiffeId.parse(spiffe_id), now=datetime.now(UTC))
        return await self.attest(self.stranger(address), join_token=secret)

    async def renew(self, held: Held, key: Any = None, machine_id: str = "") -> Held:
        key = key or new_key()
        request = api.RenewRequest(csr=csr(key), machine_id=machine_id)
        svid = await self.call(RENEW, request, self.peer(held), api.Svid)
        return Held(key, svid)

    async def issue(self, held: Held, *items: Any) -> list[Any]:
        request = api.IssueRequest(items=items)
        return list((await self.call(ISSUE, request, self.peer(held), api.IssueReply)).outcomes)

    async def issue_jwt(self, held: Held, **facts: Any) -> Any:
        return await self.call(ISSUE_JWT, api.JwtRequest(**facts), self.peer(held), api.JwtReply)

    async def leave(self, held: Held) -> None:
        await self.call(LEAVE, api.Empty(), self.peer(held))

    async def challenge(self) -> bytes:
        reply = await self.call(CHALLENGE, api.Empty(), self.stranger(), api.ChallengeReply)
        nonce: bytes = reply.nonce
        return nonce

    def watch(self, held: Held, seen: int = 0) -> Any:
        data = api.WatchRequest(seen_sequence=seen).SerializeToString()
        return self.methods[WATCH].handler(Call(WATCH, self.peer(held)), data)

    async def ask(self, act: str, caller: Caller | None = None, **facts: Any) -> Any:
        request = api.AdminRequest(json=json.dumps(facts).encode())
        answer = await self.call(ADMIN + act, request, caller or self.local(os.geteuid()), api.AdminReply)
        return json.loads(answer.json)

    def entry(self, spiffe_id: str = WEB, parent: str = NODE, *selectors: str, **more: Any) -> str:
        document = {"spiffeId": spiffe_id, "parentId": parent, "selectors": list(selectors or ("unix:uid:7",))}
        made = self.service.create_entry({**document, **more}, now=datetime.now(UTC))
        return str(made["id"])

    def journal(self, kind: str) -> list[Any]:
        return [record for record in self.service.log() if record.kind == kind]


@contextmanager
def house(folder: Path, **more: Any) -> Iterator[House]:
    settings = more.pop("settings", SETTINGS)
    with CaService.create(folder / "ca", TD, now=datetime.now(UTC), settings=settings) as service:
        yield House(service, **more)


async def until(check: Any, seconds: float = 5.0) -> None:
    """Wait until ``check`` says yes."""
    with trio.fail_after(seconds):
        while not check():
            await trio.sleep(0.01)


__all__ = ["NODE", "TD", "WEB", "Denials", "Held", "House", "csr", "house", "new_key", "until"]
