"""The service Admin: one table, method name -> function of the authority. JSON in, JSON out.

The same table serves the commands on a folder without a running server (``proxy.cli.ca_client``), so a command does
the same either way. Who may call: on the Unix socket the user the server runs as, and root; over TLS an identity
with an entry that says ``admin``. A method checks what it is given, because its caller may be any program.

Names in JSON are those of the values' fields, in camelCase where SPIRE has a name (entries), else as they are here.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from identity import protos
from identity.ca.model import KINDS, AuthorityKind, CallerFacts, NoSuchThing, RotationReport
from identity.ca.service import CaService
from identity.ca_api import ADMIN, MAX_ADMIN, api
from identity.files import certificates_pem
from identity.rpc import Call, Method, Methods, RpcError, Status
from identity.spiffe import SpiffeId
from proxy.ca import admin_entries, admin_federation
from proxy.ca.denials import facts_of
from proxy.ca.desk import Desk
from proxy.ca.documents import own_document
from proxy.ca.fields import Request
from proxy.ca.work import Refused, now

_LONGEST_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class Context:
    """What a function needs beside the authority. ``local``: whether it may name files of this machine;
    ``server``: facts of the running process, empty without one."""

    caller: CallerFacts
    now: datetime
    local: bool
    server: Mapping[str, Any]


Act = Callable[[CaService, Request, Context], Any]


# -- status, nodes, certificates ----------------------------------------------------------------------------


def _status(service: CaService, request: Request, context: Context) -> Any:
    status = service.status(context.now)
    facts = asdict(status)
    facts["authorities"] = [_without(view, "certificate") for view in facts["authorities"]]
    rotation = {kind: asdict(report) for kind, report in service.rotation_status(context.now).items()}
    return {**facts, "rotation": rotation, "at": context.now.timestamp(), "server": dict(context.server)}


def _nodes(service: CaService, request: Request, context: Context) -> Any:
    return [asdict(node) for node in service.nodes(limit=request.number("limit", 1000), after=request.text("after"))]


def _issued(service: CaService, request: Request, context: Context) -> Any:
    spiffe_id, after = request.text("spiffe_id"), request.text("after")
    found = service.issued(now=context.now, spiffe_id=spiffe_id, limit=request.number("limit", 100), after=after)
    return [asdict(view) for view in found]


def _revoke(service: CaService, request: Request, context: Context) -> Any:
    """A node that loses its identity is forgotten too: it has to attest again, an old key does not bring it back."""
    what, reason = request.needed("what"), request.text("reason")[:_LONGEST_REASON]
    made = service.revoke(what, reason or "by hand", now=context.now, caller=context.caller)
    if made.kind == "id":
        try:
            service.forget_node(SpiffeId.parse(made.what), now=context.now, caller=context.caller)
        except NoSuchThing:
            pass  # it was a workload's
    return asdict(made)


def _unrevoke(service: CaService, request: Request, context: Context) -> Any:
    service.unrevoke(request.needed("what"), now=context.now, caller=context.caller)


def _revocations(service: CaService, request: Request, context: Context) -> Any:
    return asdict(service.revocations(context.now))


def _ban(service: CaService, request: Request, context: Context) -> Any:
    reason = request.text("reason")[:_LONGEST_REASON]
    service.ban(request.spiffe_id("spiffe_id"), reason or "by hand", now=context.now, caller=context.caller)


def _unban(service: CaService, request: Request, context: Context) -> Any:
    service.unban(request.spiffe_id("spiffe_id"), now=context.now, caller=context.caller)


def _forget(service: CaService, request: Request, context: Context) -> Any:
    service.forget_node(request.spiffe_id("spiffe_id"), now=context.now, caller=context.caller)


# -- tokens -------------------------------------------------------------------------------------------------


def _create_token(service: CaService, request: Request, context: Context) -> Any:
    """With ``selectors`` the token is for the machine, and an entry gives ``spiffe_id`` to its processes that fit."""
    wanted, ttl = request.spiffe_id("spiffe_id"), request.seconds("ttl", 600.0)
    admin_entries.check_not_ours(service, wanted)
    selectors = request.texts("selectors")
    holder, entry = wanted, None
    if selectors:
        holder = SpiffeId.of(wanted.trust_domain, f"/sidewall/node{wanted.path}")
        entry = admin_entries.ensure(service, wanted, holder, selectors, context.now, context.caller)
    secret = service.create_token(holder, ttl=ttl, now=context.now, caller=context.caller)
    return {
        "secret": secret,
        "trust_domain": service.trust_domain,
        "spiffe_id": str(holder),
        "expires_at": context.now.timestamp() + ttl,
        "entry": entry,
        "url": context.server.get("url", ""),
        "fingerprint": context.server.get("fingerprint") or root_fingerprint(service),
    }


def root_fingerprint(service: CaService) -> str:
    """``sha256:...`` of the root above the active issuing authority; empty when there is none."""
    views = service.authorities()
    signing = [view.parent for view in views if view.kind == "x509-issuing" and view.state == "active"]
    roots = [view.certificate for view in views if view.kind == "x509-root" and view.id in signing]
    return f"sha256:{hashlib.sha256(roots[0]).hexdigest()}" if roots else ""


def _tokens(service: CaService, request: Request, context: Context) -> Any:
    return [asdict(token) for token in service.tokens(now=context.now)]


def _delete_token(service: CaService, request: Request, context: Context) -> Any:
    service.delete_token(request.needed("id"), now=context.now, caller=context.caller)


# -- rotation -----------------------------------------------------------------------------------------------


def _rotation(service: CaService, request: Request, context: Context) -> Any:
    return {kind: asdict(report) for kind, report in service.rotation_status(context.now).items()}


def _rotate(service: CaService, request: Request, context: Context) -> Any:
    """``step``: prepare, activate, taint, revoke. ``authority_id`` for the last two."""
    kind, step = _kind(request.needed("kind")), request.needed("step")
    force, dry_run = request.flag("force"), request.flag("dry_run")
    common: dict[str, Any] = {"force": force, "dry_run": dry_run, "now": context.now, "caller": context.caller}
    which: dict[str, Any] = {"authority_id": request.text("authority_id")}
    report: RotationReport
    if step == "prepare":
        report = service.prepare_authority(kind, **common)
    elif step == "activate":
        report = service.activate_authority(kind, **common)
    elif step == "taint":
        report = service.taint_authority(kind, **which, **common)
    elif step == "revoke":
        report = service.revoke_authority(kind, **which, **common)
    else:
        raise ValueError(f"{step!r} is no step: prepare, activate, taint or revoke")
    return asdict(report)


def _kind(text: str) -> AuthorityKind:
    for kind in KINDS:
        if kind == text:
            return kind
    raise ValueError(f"{text!r} is no kind of authority: {', '.join(KINDS)}")


def _csr(service: CaService, request: Request, context: Context) -> Any:
    return {"pem": service.csr(now=context.now, caller=context.caller).decode()}


def _import(service: CaService, request: Request, context: Context) -> Any:
    pem = request.needed("pem").encode()
    return asdict(service.import_issuing(pem, now=context.now, caller=context.caller))


# -- journal, bundle, backup --------------------------------------------------------------------------------


def _log(service: CaService, request: Request, context: Context) -> Any:
    found = service.log(since=request.number("since", 0), limit=request.number("limit", 1000))
    return [asdict(record) for record in found]


def _journal_head(service: CaService, request: Request, context: Context) -> Any:
    seq, digest = service.journal_head()
    return {"seq": seq, "hash": digest}


def _verify_log(service: CaService, request: Request, context: Context) -> Any:
    return asdict(service.verify_journal())


def _bundle(service: CaService, request: Request, context: Context) -> Any:
    bundle = service.bundle()
    return {
        "trust_domain": bundle.trust_domain,
        "sequence": bundle.sequence,
        "refresh_hint": bundle.refresh_hint,
        "jwks": own_document(bundle).decode(),
        "pem": certificates_pem(bundle.roots).decode(),
    }


def _backup(service: CaService, request: Request, context: Context) -> Any:
    if not context.local:
        raise RpcError(Status.PERMISSION_DENIED, "a backup is asked for on the machine itself")
    path = Path(request.needed("path"))
    if not path.is_absolute():
        raise ValueError("the path of a backup is absolute")
    passphrase = request.text("passphrase") or None
    return {"warnings": service.backup(path, passphrase=passphrase, now=context.now, caller=context.caller)}


def _without(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != name}


ACTS: Final[Mapping[str, Act]] = {
    "Status": _status,
    "Nodes": _nodes,
    "Issued": _issued,
    "Revoke": _revoke,
    "Unrevoke": _unrevoke,
    "Revocations": _revocations,
    "Ban": _ban,
    "Unban": _unban,
    "Forget": _forget,
    "CreateToken": _create_token,
    "Tokens": _tokens,
    "DeleteToken": _delete_token,
    "Rotation": _rotation,
    "Rotate": _rotate,
    "Csr": _csr,
    "Import": _import,
    "Log": _log,
    "JournalHead": _journal_head,
    "VerifyLog": _verify_log,
    "Bundle": _bundle,
    "Backup": _backup,
    **admin_entries.ACTS,
    **admin_federation.ACTS,
}


def perform(service: CaService, name: str, facts: Mapping[str, Any], context: Context) -> Any:
    """One act. Raises CaError, ValueError, IdentityFileError; KeyError for an unknown name."""
    return ACTS[name](service, Request(facts), context)


def to_json(value: Any) -> bytes:
    return orjson.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (tuple, frozenset, set)):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


class Administration:
    """The methods, for the running server. ``server``: its facts, asked for at each call."""

    def __init__(self, desk: Desk, server: Callable[[], Mapping[str, Any]] = dict) -> None:
        self._desk = desk
        self._server = server

    def methods(self) -> Methods:
        guard = self._desk.denials.guard
        return {ADMIN + name: Method("unary", guard(self._answer), MAX_ADMIN) for name in ACTS}

    async def _answer(self, call: Call, data: bytes) -> bytes:
        caller = await self._operator(call)
        name = call.method.removeprefix(ADMIN)
        facts = _read(protos.parse(api.AdminRequest, data).json)
        context = Context(caller, now(), call.caller.local is not None, self._server())
        service = self._desk.service
        found = await self._desk.work.ask(lambda: to_json(perform(service, name, facts, context)), to_operator=True)
        answer: bytes = api.AdminReply(json=found).SerializeToString()
        return answer

    async def _operator(self, call: Call) -> CallerFacts:
        """Raises Refused."""
        local, peer = call.caller.local, call.caller.peer
        if local is not None:
            if local.uid not in (0, os.geteuid()) or not local.still_there():
                raise Refused("only root and the authority's own user may administer it")
            return facts_of(call.caller, "operator", f"uid:{local.uid}")
        if peer is None or peer.id.trust_domain != self._desk.trust_domain:
            raise Refused("administration needs the Unix socket, or an SVID with an admin entry")
        if not await self._desk.work.ask(lambda: admin_entries.is_admin(self._desk.service, peer, now())):
            raise Refused("there is no admin entry for this identity", subject=peer.uri)
        return facts_of(call.caller, "operator", peer.uri)


def _read(data: bytes) -> Mapping[str, Any]:
    try:
        found = orjson.loads(data or b"{}")
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise RpcError(Status.INVALID_ARGUMENT, "the request is not a JSON object")
    return found
