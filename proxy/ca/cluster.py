"""Asking a Kubernetes API server: what ``identity.attest.kubernetes`` is given, and which judge of tokens is made.

Inside a cluster address, root certificates and our own token come from where Kubernetes puts them in each pod. The
token is read again for each question, because the kubelet replaces the file. One question is one connection of the
standard library's client in a thread: new pods attest once, then renew by their SVID.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from identity.attest.kubernetes import Api, OfflineTokens, ReviewedTokens
from identity.attest.service_token import ClusterKeys
from identity.disk import read_file

_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT: Final = 5.0  # seconds
_LARGEST: Final = 4 * 1024 * 1024  # bytes of an answer
_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Cluster:
    """Whose pods may attest. ``jwks``: the cluster's keys, for judging tokens without its API server, which needs
    ``issuer``. ``allowed``: namespace:service-account, everybody's when empty: the entries decide then."""

    name: str
    audience: str
    allowed: tuple[str, ...] = ()
    jwks: Path | None = None
    issuer: str = ""

    def verifier(self) -> OfflineTokens | ReviewedTokens:
        """Raises ValueError, IdentityFileError, OSError (not in a cluster)."""
        settings: dict[str, Any] = {"audience": self.audience, "cluster": self.name, "allowed": self.allowed or None}
        if self.jwks is not None:
            keys = ClusterKeys.parse(read_file(self.jwks))
            return OfflineTokens(keys, issuer=self.issuer, **settings)
        return ReviewedTokens(in_cluster(), **settings)


def in_cluster(account: Path = _ACCOUNT) -> Api:
    """The API server of the cluster that we run in. Raises OSError when we run in none."""
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not (account / "token").exists():
        raise OSError(errno.ENOENT, "this is no pod of a Kubernetes cluster: give the cluster's keys with --k8s-jwks")
    return api_at(host, int(port), account)


def api_at(host: str, port: int, account: Path) -> Api:
    """``account``: a folder with ``token`` and ``ca.crt``."""
    limiter = trio.CapacityLimiter(_AT_ONCE)

    async def ask(method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        return await trio.to_thread.run_sync(
            _ask, host, port, account, method, path, body, limiter=limiter, abandon_on_cancel=True
        )

    return ask


def _ask(host: str, port: int, account: Path, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    context = ssl.create_default_context(cafile=str(account / "ca.crt"))
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT, context=context)
    headers = {
        "authorization": f"Bearer {(account / 'token').read_text().strip()}",
        "accept": "application/json",
        "content-type": "application/json",
    }
    try:
        connection.request(method, path, body or None, headers)
        answer = connection.getresponse()
        found = json.loads(answer.read(_LARGEST))
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(errno.EPROTO, f"its answer cannot be read: {error}") from None
    finally:
        connection.close()
    return answer.status, found if isinstance(found, dict) else {}
