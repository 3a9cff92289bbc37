"""The README's way from a denied call to an enforced policy, executed as printed (but for the ports)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house.tree import ROOT
from tests.integration.test_process import APP, free_port, sidewall

README = (ROOT / "README.md").read_text()
BLOCK = re.search(r"### From denied to enforced\n.*?```bash\n(.*?)```", README, re.DOTALL)

pytestmark = pytest.mark.slow


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """An app behind `api`, called through `web`; its folder is where the reader stands. The port of `web`."""
    app, inner, outer = free_port(), free_port(), free_port()
    assert sidewall("ca", "init", str(tmp_path / "ca"), "--trust-domain", "walk.test").returncode == 0
    (tmp_path / "policy").mkdir()
    identity, children = {"caDir": str(tmp_path / "ca")}, []
    api = {
        "workload": "shop/api",
        "identity": identity,
        "inbound": [{"listen": f"127.0.0.1:{inner}", "app": app}],
        "policy": "./policy",
        "telemetry": {"accessLog": {"to": str(tmp_path / "log")}, "flows": {"to": "./flows"}},
        "admin": {"socket": str(tmp_path / "api.sock"), "listen": "off"},
    }
    web = {
        "workload": "shop/web",
        "identity": identity,
        "outbound": [{"listen": f"127.0.0.1:{outer}", "to": "api"}],
        "upstreams": {"api": {"endpoints": [f"127.0.0.1:{inner}"], "expect": "shop/api"}},
        "telemetry": {"accessLog": {"to": str(tmp_path / "log")}},
        "admin": {"socket": str(tmp_path / "web.sock"), "listen": "off"},
    }
    (tmp_path / "sidewall.yaml").write_text(json.dumps(api))
    (tmp_path / "web.yaml").write_text(json.dumps(web))
    try:
        children.append(subprocess.Popen([sys.executable, "-c", APP, str(app)]))
        for name, socket in (("sidewall", "api"), ("web", "web")):
            command = [sys.executable, "-m", "proxy", "run", "-c", str(tmp_path / f"{name}.yaml")]
            with (tmp_path / "err").open("ab") as log:
                children.append(subprocess.Popen(command, cwd=ROOT, stderr=log))
            sidewall("ready", str(tmp_path / f"{socket}.sock"), "--wait", "20")
        yield tmp_path, outer
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_from_denied_to_enforced_and_back(mesh: tuple[Path, int]) -> None:
    assert BLOCK is not None
    folder, port = mesh
    commands = folder / "bin"
    commands.mkdir()
    (commands / "sidewall").write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m proxy "$@"\n')
    (commands / "sidewall").chmod(0o755)
    env = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SIDEWALL_ADMIN": str(folder / "api.sock")}
    script = "set -euxo pipefail\n" + BLOCK[1].replace("9001", str(port))
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    assert "verified" in told, told
    assert "/orders/17" in told
    assert "2 passed" in told or "2 cases" in told, told
    assert "newly allowed" in told.lower(), told
    assert "cut in" in told
    assert "let out" in told
    assert "403" in (folder / "answer.txt").read_text()
