"""Sidewall itself, as a user would run it: compiled, as in images and packages, and interpreted, as from pip."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

from benchmarks import compiled, pki
from benchmarks.rivals.rival import (
    ALLOWED_PREFIXES,
    Rival,
    Setup,
    admin_ready,
    first_line,
)


class Interpreted(Rival):
    name = "sidewall-py"
    note = "the same source without compiling; tracing at 1 % is on as well"

    def available(self) -> str | None:
        found = importlib.util.find_spec("proxy") and importlib.util.find_spec("proxy.__main__")
        return None if found else "package `proxy` has no __main__ yet"

    def version(self) -> str:
        return re.sub(r"^sidewall\s+", "", first_line([sys.executable, "-m", "proxy", "version"]))

    def write_config(self, setup: Setup) -> None:
        folder = setup.folder
        policy = folder / "policy"
        policy.mkdir()
        (policy / "allow-web.yaml").write_text(json.dumps(self._policy()))
        config = {
            "version": 1,
            "workload": f"{pki.NAMESPACE}/api",
            "identity": {
                "source": "files",
                "cert": str(setup.keys.api.chain),
                "key": str(setup.keys.api.key),
                "bundle": str(setup.keys.bundle),
            },
            "inbound": [
                {
                    "listen": f"127.0.0.1:{setup.listen}",
                    "app": f"127.0.0.1:{setup.app_port}",
                    "appProtocol": setup.app_speaks,
                }
            ],
            "policy": {"from": str(policy), "default": "deny"},
            "telemetry": {
                "accessLog": {"format": "json", "to": str(self.access_log(setup))},
                "tracing": {"sample": 0.01},
            },
            "admin": {"listen": f"127.0.0.1:{setup.admin}", "socket": str(folder / "admin.sock")},
            "workers": 1,
            "shutdown": {"drain": "1s", "readinessDelay": "0s"},
            "limits": {"handshakesPerSecond": 100000, "connectionsPerPeer": 10000},  # one caller is all there is
        }
        (folder / "sidewall.yaml").write_text(json.dumps(config, indent=2))

    @staticmethod
    def _policy() -> dict[str, object]:
        rule = {
            "from": [{"source": {"principals": [pki.principal("web")]}}],
            "to": [
                {
                    "operation": {
                        "methods": ["GET", "POST", "PUT"],
                        "paths": [p + "*" for p in ALLOWED_PREFIXES],
                    }
                }
            ],
        }
        return {
            "apiVersion": "security.istio.io/v1",
            "kind": "AuthorizationPolicy",
            "metadata": {"name": "allow-web", "namespace": pki.NAMESPACE},
            "spec": {"action": "ALLOW", "rules": [rule]},
        }

    def command(self, setup: Setup) -> list[str]:
        return [sys.executable, "-m", "proxy", "run", "-c", str(setup.folder / "sidewall.yaml")]

    def environ(self, setup: Setup) -> dict[str, str]:
        return {"PYTHONPATH": str(self.home())}

    def home(self) -> Path:
        """Where the packages are."""
        return Path(__file__).resolve().parents[2]

    def is_ready(self, setup: Setup) -> bool:
        return admin_ready(setup.admin)


class Sidewall(Interpreted):
    name = "sidewall"
    note = "the compiled build; tracing at 1 % is on as well"

    def available(self) -> str | None:
        return super().available() or compiled.missing()

    def home(self) -> Path:
        return compiled.build()
