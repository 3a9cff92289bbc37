"""What we know of a certificate that a caller has shown: for whom it was issued, and under which authority.

A node's own certificates are told from those it was given for its workloads by the holder they were issued to:
``node:<its SPIFFE ID>``. An identity of the trust domain is not a node just because it is one (C-7).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from identity.ca.model import Node, NoSuchThing
from identity.ca.service import CaService
from identity.spiffe import SpiffeId
from identity.svid import PeerIdentity

_REMEMBERED: Final = 4096


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate of ours. Nothing of this ever changes."""

    holder: str
    authority_id: str
    key_hash: str


class Holders:
    """Looks certificates up by serial. Safe to use from threads."""

    def __init__(self, service: CaService) -> None:
        self._service = service
        self._known: dict[str, Shown] = {}

    def of(self, peer: PeerIdentity, now: datetime) -> Shown | None:
        """None: the store knows no such living certificate."""
        found = self._known.get(peer.serial)
        if found is None:
            found = self._find(peer, now)
            if found is not None:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[peer.serial] = found
        return found

    def remembered(self, serial: str) -> Shown | None:
        """Without a look into the store."""
        return self._known.get(serial)

    def _find(self, peer: PeerIdentity, now: datetime) -> Shown | None:
        # Serials are 128 random bits: what comes after all but the last digit is the one meant, or a near miss.
        for view in self._service.issued(now=now, spiffe_id=peer.uri, limit=4, after=peer.serial[:-1]):
            if view.serial == peer.serial:
                return Shown(view.holder, view.authority_id, view.key_hash)
        return None


def node_or_none(service: CaService, spiffe_id: SpiffeId) -> Node | None:
    try:
        return service.node(spiffe_id)
    except NoSuchThing:
        return None
