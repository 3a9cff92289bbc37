"""Processes of this machine that call on the Unix socket, as their attestation sees them."""

from __future__ import annotations

from identity.attest.proc import AttestationError
from identity.attest.unix import UnixPeer
from identity.rpc import LocalPeer

__all__ = ["UnixPeer", "selectors_of"]


def selectors_of(local: LocalPeer, *, hash_exe: bool) -> frozenset[str]:
    """``unix:uid:...`` and so on; ``hash_exe``: with the digest of its program. Blocks: it reads files. Raises
    AttestationError (an OSError) when the process has gone."""
    if not isinstance(local, UnixPeer):
        raise AttestationError("unreadable", "not a process of this machine")
    return frozenset(local.selectors(hash_exe=hash_exe))
