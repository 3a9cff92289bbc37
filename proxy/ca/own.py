"""The server's own identity: an SVID from the authority itself, for ``own_parent(trust domain)``.

It is made anew at half life, when its authority was tainted, and its credentials are made anew with each new bundle.
A client that knows nothing but the fingerprint of a root (from a join string) must find that root in what the server
presents, so the root is appended to the chain; for others it is one certificate more that they have already.

Without an issuing authority (a company root that has not answered yet) there is no SVID, and TLS is refused.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import Final

import trio
from cryptography.hazmat.primitives.serialization import Encoding

from identity.authority import new_key
from identity.ca.bundles import OwnBundle
from identity.ca.model import ITSELF, CaError
from identity.ca.service import CaService
from identity.ca_api import own_parent
from identity.disk import IdentityFileError
from identity.spiffe import SpiffeId
from identity.svid import SvidError, TrustBundle, X509Context, X509Svid
from identity.x509_rules import build_path
from proxy.ca.work import now
from proxy.net.tls import Credentials

log = logging.getLogger("proxy.ca")
_LOOK: Final = 1.0  # seconds
_RETRY: Final = 5.0


class OwnIdentity:
    """See the module. ``credentials`` is None until there are some."""

    def __init__(self, service: CaService, renewed: Callable[[X509Context], None] = lambda context: None) -> None:
        self._service = service
        self._renewed = renewed
        self._limiter = trio.CapacityLimiter(1)
        self._svid: X509Svid | None = None
        self._authority_id = ""
        self._renew_at = 0.0  # seconds of the epoch
        self._bundle: TrustBundle | None = None
        self.id = SpiffeId.parse(own_parent(service.trust_domain))
        self.credentials: Credentials | None = None
        self.problem = "no SVID yet"
        self.fingerprint = ""  # of the root that it presents

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it until cancelled; started when the first attempt has been made."""
        await self._try()
        task_status.started()
        while True:
            await trio.sleep(_LOOK if self.credentials is not None else _RETRY)
            if now().timestamp() >= self._renew_at:
                await self._try()

    def follow(self, bundle: TrustBundle, tainted: tuple[str, ...]) -> None:
        """The bundle as it is now, and whose signatures are to be renewed."""
        if self._authority_id in tainted:
            self._renew_at = 0.0
        if self._svid is not None and (self._bundle is None or bundle.digest != self._bundle.digest):
            self._use(self._svid, bundle)

    async def _try(self) -> None:
        try:
            svid, bundle = await trio.to_thread.run_sync(self._issue, limiter=self._limiter)
        except (CaError, IdentityFileError, SvidError) as error:
            self.problem = str(error)
            self._renew_at = now().timestamp() + _RETRY
            log.error("no SVID for the server", extra={"event": "ca.own_svid", "problem": self.problem})
            return
        self._svid, self.problem = svid, ""
        begun = now().timestamp()
        self._renew_at = begun + (svid.not_after - begun) / 2
        self._use(svid, bundle.trust_bundle)

    def _issue(self) -> tuple[X509Svid, OwnBundle]:
        """In a thread."""
        key, moment = new_key(), now()
        issued = self._service.issue_x509(self.id, key.public_key(), caller=ITSELF, now=moment)
        bundle = self._service.bundle()
        path = build_path(
            issued.chain[0],
            issued.chain[1:],
            bundle.roots,
            trust_domain=self._service.trust_domain,
            now=moment,
        )
        root = path.certificates[-1]
        self.fingerprint = f"sha256:{hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest()}"
        self._authority_id = issued.authority_id
        return X509Svid(self.id, (*issued.chain, root), key), bundle

    def _use(self, svid: X509Svid, bundle: TrustBundle) -> None:
        self._bundle = bundle
        context = X509Context(svid, {bundle.trust_domain: bundle})
        self.credentials = Credentials(context)
        self._renewed(context)
