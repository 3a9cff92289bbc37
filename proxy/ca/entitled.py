"""What registration entries entitle a caller to: documents of the store, read by ``identity.entries``.

A document that an older version stored and that is no entry to us gives nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from identity.entries import Entry, EntryError, matching
from identity.spiffe import SpiffeId

log = logging.getLogger("proxy.ca")


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What one entry gives to one caller. Lives in seconds, None for the authority's default."""

    entry_id: str
    spiffe_id: SpiffeId
    x509_ttl: float | None
    jwt_ttl: float | None
    dns_names: tuple[str, ...]


def entitled(documents: Iterable[Mapping[str, Any]], selectors: frozenset[str], now: datetime) -> list[Entitlement]:
    """What a caller with ``selectors`` gets, the most specific first; one for each identity."""
    entries = [entry for entry in map(_read, documents) if entry is not None]
    return [_entitlement(found.entry, found.spiffe_id) for found in matching(entries, selectors, now.timestamp())]


def entitlement_of(document: Mapping[str, Any], selectors: frozenset[str], now: datetime) -> Entitlement | None:
    """What an entry gives to a workload of a node, whose own ``selectors`` fill a pattern. That the workload fits is
    the node's to see. None when the entry has expired or cannot be filled."""
    entry = _read(document)
    if entry is None or 0 < entry.expires_at <= now.timestamp():
        return None
    spiffe_id = entry.resolve(selectors)
    return None if spiffe_id is None else _entitlement(entry, spiffe_id)


def checked_document(document: Mapping[str, Any], trust_domain: str) -> dict[str, Any]:
    """An entry as it is to be stored. Raises EntryError (a ValueError)."""
    return Entry.from_document(document, trust_domain).document()


def _read(document: Mapping[str, Any]) -> Entry | None:
    try:
        return Entry.from_document(document)
    except EntryError as error:
        facts = {"event": "ca.entry", "entry": str(document.get("id")), "problem": str(error)}
        log.warning("an entry in the store cannot be used", extra=facts)
        return None


def _entitlement(entry: Entry, spiffe_id: SpiffeId) -> Entitlement:
    return Entitlement(entry.id, spiffe_id, entry.x509_svid_ttl or None, entry.jwt_svid_ttl or None, entry.dns_names)
