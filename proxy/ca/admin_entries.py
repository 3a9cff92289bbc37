"""Administration of registration entries: what is stored has been read and checked by ``identity.entries`` first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from identity.ca.model import CallerFacts
from identity.ca.service import CaService
from identity.ca_api import own_parent
from identity.spiffe import SpiffeId
from identity.svid import PeerIdentity
from proxy.ca.entitled import checked_document
from proxy.ca.fields import Request

if TYPE_CHECKING:
    from proxy.ca.admin import Context

_PAGE: Final = 100


def _create(service: CaService, request: Request, context: Context) -> Any:
    document = _checked(service, request.document("entry"))
    return service.create_entry(document, now=context.now, caller=context.caller)


def _get(service: CaService, request: Request, context: Context) -> Any:
    return service.get_entry(request.needed("id"))


def _list(service: CaService, request: Request, context: Context) -> Any:
    return service.list_entries(
        spiffe_id=request.text("spiffe_id"),
        parent_id=request.text("parent_id"),
        selectors=request.texts("selectors"),
        limit=request.number("limit", _PAGE),
        after=request.text("after"),
    )


def _update(service: CaService, request: Request, context: Context) -> Any:
    """``change``: fields to replace in the stored entry; the rest stays, and its revision guards against others."""
    before = service.get_entry(request.needed("id"))
    document = _checked(service, {**before, **request.document("change"), "id": before["id"]})
    return service.update_entry(
        {**document, "revisionNumber": before["revisionNumber"]}, now=context.now, caller=context.caller
    )


def _delete(service: CaService, request: Request, context: Context) -> Any:
    service.delete_entry(request.needed("id"), now=context.now, caller=context.caller)


def _apply(service: CaService, request: Request, context: Context) -> Any:
    """All or nothing. ``prune``: entries that are not among them are deleted."""
    documents = [_checked(service, document) for document in request.documents("entries")]
    done = service.apply_entries(
        documents,
        prune=request.flag("prune"),
        dry_run=request.flag("dry_run"),
        now=context.now,
        caller=context.caller,
    )
    return [{"action": action, "entry": entry} for action, entry in done]


ACTS: Final[Mapping[str, Callable[[CaService, Request, Any], Any]]] = {
    "CreateEntry": _create,
    "GetEntry": _get,
    "ListEntries": _list,
    "UpdateEntry": _update,
    "DeleteEntry": _delete,
    "ApplyEntries": _apply,
}


def _checked(service: CaService, document: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError (also for the authority's own identity)."""
    checked = checked_document(document, service.trust_domain)
    if checked["spiffeId"] == own_parent(service.trust_domain):
        raise ValueError(f"{checked['spiffeId']} is the authority's own identity")
    return checked


def check_not_ours(service: CaService, spiffe_id: SpiffeId) -> None:
    if str(spiffe_id) == own_parent(service.trust_domain):
        raise ValueError(f"{spiffe_id} is the authority's own identity")


def ensure(
    service: CaService,
    spiffe_id: SpiffeId,
    parent: SpiffeId,
    selectors: list[str],
    now: datetime,
    caller: CallerFacts,
) -> Any:
    """The entry that gives ``spiffe_id`` below ``parent`` to what fits ``selectors``; made when it is not there."""
    document = _checked(
        service, {"spiffeId": str(spiffe_id), "parentId": str(parent), "selectors": sorted(set(selectors))}
    )
    for found in service.list_entries(spiffe_id=str(spiffe_id), parent_id=str(parent), selectors=selectors):
        if set(found.get("selectors", ())) == set(selectors):
            return found
    return service.create_entry(document, now=now, caller=caller)


def is_admin(service: CaService, peer: PeerIdentity, now: datetime) -> bool:
    """Whether an entry in force makes this identity an operator. A pattern never does. Revoked ones are none."""
    at = now.timestamp()
    if service.revocations(now).reason_for(peer.uri, [peer.serial], [], at) is not None:
        return False
    entries = service.list_entries(spiffe_id=peer.uri)
    return any(one.get("admin") is True and not 0 < float(one.get("expiresAt") or 0) <= at for one in entries)
