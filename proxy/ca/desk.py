"""What the handlers of one process share, and the messages that several of them give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from identity.ca.bundles import OwnBundle
from identity.ca.model import Issued
from identity.ca.service import CaService
from identity.ca_api import api, own_parent
from identity.spiffe import SpiffeId
from proxy.ca.batches import Batches
from proxy.ca.denials import Denials
from proxy.ca.documents import own_document
from proxy.ca.rates import Rates
from proxy.ca.work import Refused, Work

# Attested once, held by one machine, renewed with the key it has: nobody else may hold it at the same time.
EXCLUSIVE: Final = frozenset({"join_token"})


@dataclass
class Desk:
    """``allow_expired``: seconds after its end for which an SVID still proves who its holder was; 0: never.
    ``local_url``: where processes of this machine find Node, which needs TLS."""

    service: CaService
    allow_expired: float = 0.0
    local_url: str = ""
    work: Work = field(default_factory=Work)
    rates: Rates = field(default_factory=Rates)
    batches: Batches = field(init=False)
    denials: Denials = field(init=False)

    def __post_init__(self) -> None:
        self.batches = Batches(self.service)
        self.denials = Denials(self.service, self.rates.denials)

    @property
    def trust_domain(self) -> str:
        return self.service.trust_domain

    def may_be_issued(self, spiffe_id: SpiffeId) -> SpiffeId:
        """``spiffe_id`` itself. Raises Refused when it is foreign, or the authority's own: who held that could be
        taken for the authority by every node."""
        if spiffe_id.trust_domain != self.trust_domain or not spiffe_id.path:
            raise Refused(f"{spiffe_id} is not an identity of {self.trust_domain}", subject=str(spiffe_id))
        if str(spiffe_id) == own_parent(self.trust_domain):
            raise Refused(f"{spiffe_id} is the authority's own identity", subject=str(spiffe_id))
        return spiffe_id


def svid_message(spiffe_id: SpiffeId | str, issued: Issued) -> Any:
    """``Svid`` of ``identity.ca_api``."""
    return api.Svid(
        spiffe_id=str(spiffe_id),
        chain=b"".join(cert.public_bytes(Encoding.DER) for cert in issued.chain),
        not_after=issued.not_after,
        serial=issued.serial,
        authority_id=issued.authority_id,
    )


def bundle_message(bundle: OwnBundle) -> Any:
    """``Bundle`` of ``identity.ca_api``: our own."""
    return api.Bundle(trust_domain=bundle.trust_domain, document=own_document(bundle))
