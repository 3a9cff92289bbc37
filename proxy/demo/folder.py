"""The demo's folder: a CA, three configurations, and policies that are almost empty.

    ca/                    root, issuing CA, bundle
    policy/                AuthorizationPolicy documents, watched by all three sidecars
    web/ api/ stock/       sidewall.yaml, admin.sock, traces.db, access.log, and what the processes printed
"""

from __future__ import annotations

import json
import shutil
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from identity.files import IdentityFileError, create_ca, load_ca

TRUST_DOMAIN: Final = "demo.local"
NAMES: Final = ("web", "api", "stock")
_MARK: Final = ".sidewall-demo"
_LONGEST_SOCKET: Final = 100  # sun_path holds 108 bytes

_COMMON: Final = """\
workload: demo/{name}
identity: {{caDir: ../ca}}
policy: {{from: ../policy}}
telemetry:
  accessLog: {{to: {log}}}
  traces: {{file: traces.db}}
admin: {{socket: admin.sock, listen: off}}
shutdown: {{drain: 2s, readinessDelay: 0s}}
"""
_UPSTREAM: Final = "  {name}: {{endpoints: [127.0.0.1:{port}], expect: demo/{name}}}\n"

_POLICY: Final = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: demo}}
spec:
  selector: {{matchLabels: {{app: {to}}}}}
  action: ALLOW
  rules:
  - from: [{{source: {{principals: [demo.local/ns/demo/sa/{who}]}}}}]
    to: [{{operation: {{methods: [{method}], paths: [{path}]}}}}]
"""

# Documents by the name of their file. Only the first is there from the beginning.
POLICIES: Final = {
    "allow-api": _POLICY.format(name="allow-api", to="stock", who="api", method="POST", path="/demo.Stock/*"),
    "allow-web": _POLICY.format(name="allow-web", to="api", who="web", method="GET", path="/orders/*"),
    "allow-web-to-stock": _POLICY.format(
        name="allow-web-to-stock", to="stock", who="web", method="POST", path="/demo.Stock/*"
    ),
}


class FolderProblem(Exception):
    """The folder cannot be used; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Ports:
    """``web``: where you call; ``x_app``: a service; ``x_in``: its sidecar's mTLS door; ``x_to_y``: its way out."""

    web: int
    api_app: int
    stock_app: int
    api_in: int
    stock_in: int
    web_to_api: int
    web_to_stock: int
    api_to_stock: int


def free_ports() -> Ports:
    """Ports of 127.0.0.1 that nobody uses now, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(8)]
        return Ports(*(int(sock.getsockname()[1]) for sock in sockets))


class Folder:
    """``path`` with what the demo keeps in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.policy = self.path / "policy"

    def of(self, name: str, file: str) -> Path:
        return self.path / name / file

    def stores(self) -> list[str]:
        return [str(self.of(name, "traces.db")) for name in NAMES]

    def allow(self, name: str) -> Path:
        """Drop a document of ``POLICIES`` in, whole at once."""
        path = self.policy / f"{name}.yaml"
        fresh = path.with_suffix(".new")
        fresh.write_text(POLICIES[name])
        return fresh.replace(path)

    def offer(self, name: str) -> Path:
        """The same beside the policies, to be copied by hand."""
        path = self.path / f"{name}.yaml"
        path.write_text(POLICIES[name])
        return path

    def make(self, ports: Ports) -> None:
        """Everything anew but the CA and documents of your own. Raises FolderProblem."""
        self._claim()
        self._make_ca()
        self.policy.mkdir(exist_ok=True)
        for name in POLICIES:
            (self.policy / f"{name}.yaml").unlink(missing_ok=True)
        self.allow("allow-api")
        for name, text in configurations(self, ports).items():
            shutil.rmtree(self.path / name, ignore_errors=True)
            (self.path / name).mkdir()
            self.of(name, "sidewall.yaml").write_text(text)

    def remove(self) -> bool:
        """Delete the folder if it is one of ours; says whether there was one. Raises FolderProblem."""
        if not self.path.exists():
            return False
        self._check_ours()
        shutil.rmtree(self.path)
        return True

    def _claim(self) -> None:
        if len(str(self.of("stock", "admin.sock"))) > _LONGEST_SOCKET:
            raise FolderProblem(f"{self.path} is too long for a socket in it; choose a shorter one with --dir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                self._check_ours()
            (self.path / _MARK).touch()
        except OSError as error:
            raise FolderProblem(f"{self.path} cannot be used: {error.strerror}; choose another with --dir") from None

    def _check_ours(self) -> None:
        if not (self.path / _MARK).is_file():
            raise FolderProblem(f"{self.path} was not made by the demo; choose another with --dir")

    def _make_ca(self) -> None:
        now = datetime.now(UTC)
        try:
            load_ca(self.path / "ca", now=now)
        except (IdentityFileError, OSError):
            shutil.rmtree(self.path / "ca", ignore_errors=True)
            create_ca(self.path / "ca", TRUST_DOMAIN, now=now)


def configurations(folder: Folder, ports: Ports) -> dict[str, str]:
    """The text of each sidecar's sidewall.yaml."""
    web = f"""\
outbound:
  - {{listen: 127.0.0.1:{ports.web_to_api}, to: api}}
  - {{listen: 127.0.0.1:{ports.web_to_stock}, to: stock}}
upstreams:
{_UPSTREAM.format(name="api", port=ports.api_in)}{_UPSTREAM.format(name="stock", port=ports.stock_in)}"""
    api = f"""\
inbound:
  - {{name: api, listen: 127.0.0.1:{ports.api_in}, app: 127.0.0.1:{ports.api_app}}}
outbound:
  - {{listen: 127.0.0.1:{ports.api_to_stock}, to: stock}}
upstreams:
{_UPSTREAM.format(name="stock", port=ports.stock_in)}"""
    stock = f"""\
inbound:
  - {{name: stock, listen: 127.0.0.1:{ports.stock_in}, app: 127.0.0.1:{ports.stock_app}, appProtocol: h2c}}
"""
    return {name: _common(folder, name) + text for name, text in zip(NAMES, (web, api, stock), strict=True)}


def _common(folder: Folder, name: str) -> str:
    return _COMMON.format(name=name, log=json.dumps(str(folder.of(name, "access.log"))))  # quoted as YAML wants it
