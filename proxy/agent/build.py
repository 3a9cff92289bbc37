"""A node's identity source out of the settings of ``identity.ca``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from config.model import Authority
from identity.attest.machine import MachineFacts
from identity.disk import IdentityFileError, read_file
from identity.files import parse_bundle, read_certificates
from identity.renewal import OnEvent
from identity.revocations import Revocations
from identity.svid import TrustBundle
from identity.x509_rules import trust_domains_of
from proxy.agent.calls import Proof
from proxy.agent.memory import NodeFolder
from proxy.agent.source import CaSource
from proxy.agent.way import NotThere, Way

_MAX_TOKEN: Final = 64 * 1024  # bytes


def from_authority(
    settings: Authority,
    folder: Path | None,
    account: str,
    *,
    on_event: OnEvent,
    changed: Callable[[], None] = lambda: None,
    revoked: Callable[[Revocations], None] = lambda revocations: None,
) -> CaSource:
    """How a node of a running CA proves who it is: by what it kept when it joined, by a pod's token, or by the socket
    that it calls on. ``account``: the path of the SPIFFE ID that it wants where it has a choice.

    Raises IdentityFileError for settings that cannot work."""
    try:
        way = Way.parse(settings.url)
    except NotThere as error:
        raise IdentityFileError("identity.ca", str(error), "e.g. https://ca.shop.internal:15012") from None
    kept = NodeFolder(folder) if folder is not None else None

    def proof() -> Proof | None:
        if settings.token_file is not None:
            token = read_file(settings.token_file, _MAX_TOKEN).decode("utf-8", "replace").strip()
            return Proof(k8s_token=token, wish=account)
        return Proof(unix_peer=True, wish=account) if way.path else None

    return CaSource(
        way,
        proof,
        on_event=on_event,
        bundle=read_root(settings.bundle_file) if settings.bundle_file is not None else None,
        folder=kept,
        machine_id=MachineFacts.read().text,
        hostname=os.uname().nodename,
        changed=changed,
        revoked=revoked,
    )


def read_root(path: Path) -> TrustBundle:
    """A PEM file with the authorities of one trust domain, which they name themselves. Raises IdentityFileError."""
    named = {name for cert in read_certificates(path) for name in trust_domains_of(cert)}
    if len(named) != 1:
        problem = f"its certificates are of {' and '.join(sorted(named)) or 'no trust domain'}"
        raise IdentityFileError(path, problem, "expected the root of the CA (sidewall ca bundle)")
    return parse_bundle(path, read_file(path), named.pop())
