"""Administration of foreign trust domains: whose bundles we hold, and where newer ones come from.

A bundle is set by hand the first time: that is the moment of trust (SPIFFE Federation 6.2), except for https_web,
where the Web's PKI vouches for the first one too. Removing the endpoint leaves the bundle; removing the trust domain
takes both away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from identity.bundle import Bundle, accept, parse
from identity.ca.service import CaService
from identity.spiffe import SpiffeId, check_trust_domain
from proxy.ca.documents import EMPTY_DOCUMENT
from proxy.ca.fetching import check_url
from proxy.ca.fields import Request

PROFILES: Final = ("https_spiffe", "https_web")


def _list(service: CaService, request: Request, context: Any) -> Any:
    return [
        {
            "trust_domain": name,
            "sequence": found.sequence,
            "roots": len(parse(found.document, name).roots),
            "updated_at": found.updated_at,
            "settings": dict(found.settings),
        }
        for name, found in service.federated().items()
    ]


def _get(service: CaService, request: Request, context: Any) -> Any:
    name = _name(request)
    found = service.federated().get(name)
    if found is None:
        raise ValueError(f"there is no bundle of {name}")
    return {"trust_domain": name, "sequence": found.sequence, "jwks": found.document.decode()}


def _set(service: CaService, request: Request, context: Any) -> Any:
    """``jwks``: the document. By hand it may also replace one that was fetched, but not go back (C-16)."""
    name, document = _name(request), request.needed("jwks").encode()
    before = service.federated().get(name)
    offered = accept(held(name, before.document) if before is not None else None, document, name)
    settings = before.settings if before is not None else {}
    service.set_federated(name, document, offered.sequence, settings, now=context.now, caller=context.caller)
    return {"trust_domain": name, "sequence": offered.sequence, "roots": len(offered.roots)}


def _follow(service: CaService, request: Request, context: Any) -> Any:
    """Where newer bundles come from. ``endpoint_spiffe_id``: of the server, for https_spiffe, in a trust domain whose
    bundle we hold."""
    name, url, profile = _name(request), request.needed("url"), request.needed("profile")
    check_url(url)
    settings = {"url": url, "profile": profile}
    known = service.federated()
    if profile == "https_spiffe":
        server = request.spiffe_id("endpoint_spiffe_id")
        if server.trust_domain not in known and server.trust_domain != service.trust_domain:
            raise ValueError(f"set a bundle of {server.trust_domain} first: nobody vouches for {server} yet")
        settings["endpoint_spiffe_id"] = str(server)
    elif profile != "https_web":
        raise ValueError(f"{profile!r} is no profile: {' or '.join(PROFILES)}")
    before = known.get(name)
    document, sequence = (before.document, before.sequence) if before is not None else (EMPTY_DOCUMENT, 0)
    service.set_federated(name, document, sequence, settings, now=context.now, caller=context.caller)
    return {"trust_domain": name, "settings": settings}


def _unfollow(service: CaService, request: Request, context: Any) -> Any:
    name = _name(request)
    before = service.federated().get(name)
    if before is None:
        raise ValueError(f"there is no bundle of {name}")
    service.set_federated(name, before.document, before.sequence, {}, now=context.now, caller=context.caller)


def _delete(service: CaService, request: Request, context: Any) -> Any:
    service.delete_federated(_name(request), now=context.now, caller=context.caller)


ACTS: Final[Mapping[str, Callable[[CaService, Request, Any], Any]]] = {
    "Federated": _list,
    "GetFederated": _get,
    "SetFederated": _set,
    "Follow": _follow,
    "Unfollow": _unfollow,
    "DeleteFederated": _delete,
}


def held(trust_domain: str, document: bytes) -> Bundle | None:
    """What we hold of a trust domain; None when that is nothing yet."""
    return None if document == EMPTY_DOCUMENT else parse(document, trust_domain)


def _name(request: Request) -> str:
    text = request.needed("trust_domain")
    return SpiffeId.parse(text).trust_domain if text.startswith("spiffe://") else check_trust_domain(text)
