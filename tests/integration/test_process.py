"""The whole process, as users start it: files, sockets, signals, reloads, workers."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-web, namespace: shop}
spec: {rules: [{from: [{source: {principals: [proc.test/ns/shop/sa/web]}}], to: [{operation: {paths: [%s]}}]}]}
"""
APP = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def sidewall(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


class Pair:
    """An app, an inbound and an outbound process, all of their own."""

    def __init__(self, folder: Path, workers: int = 1) -> None:
        self.folder = folder
        self.app, self.inner, self.outer = free_port(), free_port(), free_port()
        self.policy = folder / "policy"
        self.policy.mkdir()
        self.allow("/*")
        assert sidewall("ca", "init", str(folder / "ca"), "--trust-domain", "proc.test").returncode == 0
        self._write("api", {"inbound": [{"listen": f"127.0.0.1:{self.inner}", "app": self.app}], "policy": "policy", "workers": workers})
        self._write(
            "web",
            {
                "outbound": [{"listen": f"127.0.0.1:{self.outer}", "to": "api"}],
                "upstreams": {"api": {"endpoints": [f"127.0.0.1:{self.inner}"], "expect": "shop/api"}},
            },
        )
        self.children = [subprocess.Popen([sys.executable, "-c", APP, str(self.app)])]
        self.api, self.web = self.start("api"), self.start("web")
        for name in ("api", "web"):
            ready = sidewall("ready", self.socket(name), "--wait", "20")
            assert ready.returncode == 0, ready.stderr

    def allow(self, path: str) -> None:
        (self.policy / "allow.yaml").write_text(ALLOW % path)

    def socket(self, name: str) -> str:
        return str(self.folder / f"{name}.sock")

    def _write(self, name: str, more: dict[str, Any]) -> None:
        config = {
            "workload": f"shop/{name}",
            "identity": {"caDir": "ca"},
            "admin": {"socket": self.socket(name), "listen": "off"},
            "telemetry": {"accessLog": {"to": str(self.folder / f"{name}.log")}},
            "shutdown": {"drain": "5s", "readinessDelay": "0s"},
            **more,
        }
        (self.folder / f"{name}.yaml").write_text(json.dumps(config))

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.err").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "proxy", "run", "-c", str(self.folder / f"{name}.yaml")], cwd=ROOT, stderr=log
            )
        self.children.append(child)
        return child

    def get(self, path: str = "/") -> int:
        with socket.create_connection(("127.0.0.1", self.outer), timeout=10) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\r\n".encode())
            return int(sock.makefile("rb").readline().split()[1])

    def wait_for(self, status: int, path: str = "/", seconds: float = 5.0) -> None:
        deadline = time.monotonic() + seconds
        while (found := self.get(path)) != status:
            assert time.monotonic() < deadline, f"still {found}, not {status}"
            time.sleep(0.05)

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.end()


@pytest.mark.slow
def test_traffic_reload_bad_reload_status_and_a_clean_end(pair: Pair) -> None:
    assert pair.get() == 200
    pair.allow("/other")
    pair.wait_for(403)
    assert pair.get("/other") == 200
    # a bad file keeps the old generation, and says so everywhere
    (pair.policy / "allow.yaml").write_text((ALLOW % "/*").replace("rules", "ruels"))
    refused = sidewall("reload", pair.socket("api"))
    assert refused.returncode == 1
    assert "SW0101" in refused.stderr
    assert (pair.get("/other"), pair.get()) == (200, 403)
    status = json.loads(sidewall("status", pair.socket("api"), "-o", "json").stdout)["items"][0]
    assert not status["last_reload_ok"]
    assert status["problems"]
    # a directory swapped by symlink, as Kubernetes does it, is noticed by content
    pair.allow("/*")
    assert sidewall("reload", pair.socket("api")).returncode == 0
    assert pair.get() == 200
    pair.api.send_signal(signal.SIGTERM)
    assert pair.api.wait(10) == 0
    assert pair.get() == 503
    line = json.loads((pair.folder / "api.log").read_text().splitlines()[0])
    assert line["peer"] == "spiffe://proc.test/ns/shop/sa/web"
    assert line["response_code"] == 200
    assert not Path(pair.socket("api")).exists()


@pytest.mark.slow
def test_a_volume_of_kubernetes_swapped_by_symlink_is_noticed(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    try:
        real = tmp_path / "policy"
        for name, path in (("..one", "/*"), ("..two", "/only")):
            (real / name).mkdir()
            (real / name / "allow.yaml").write_text(ALLOW % path)
        (real / "..data").symlink_to("..one")
        (real / "allow.yaml").unlink()
        (real / "allow.yaml").symlink_to("..data/allow.yaml")
        pair.wait_for(200)
        (real / "..tmp").symlink_to("..two")
        os.replace(real / "..tmp", real / "..data")
        pair.wait_for(403)
        assert pair.get("/only") == 200
    finally:
        pair.end()


@pytest.mark.slow
def test_workers_share_a_port_a_dead_one_comes_back_and_metrics_are_summed(tmp_path: Path) -> None:
    pair = Pair(tmp_path, workers=2)
    try:
        assert all(pair.get() == 200 for _ in range(20))
        status = json.loads(sidewall("status", pair.socket("api"), "-o", "json").stdout)["items"][0]
        pids = {worker["pid"] for worker in status["workers"]}
        assert len(pids) == 2
        os.kill(min(pids), signal.SIGKILL)
        deadline = time.monotonic() + 15
        while True:
            found = json.loads(sidewall("status", pair.socket("api"), "-o", "json").stdout)["items"][0]
            if len(found.get("workers", [])) == 2 and found["ready"] and min(pids) not in {w["pid"] for w in found["workers"]}:
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)
        pair.wait_for(200)
        pair.allow("/nothing")
        assert sidewall("reload", pair.socket("api")).returncode == 0
        pair.wait_for(403)
        pair.api.send_signal(signal.SIGTERM)
        assert pair.api.wait(15) == 0
    finally:
        pair.end()


def decision_of(pair: Pair, path: str) -> str:
    with socket.create_connection(("127.0.0.1", pair.outer), timeout=10) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\r\n".encode())
        found = re.search(rb"x-sidewall-decision: ([a-z2-7]+)", sock.makefile("rb").read())
    assert found, "the answer names its decision"
    return found[1].decode()


@pytest.mark.slow
def test_a_decision_can_be_explained_and_derived_again_by_its_id(pair: Pair) -> None:
    pair.allow("/orders")
    pair.wait_for(403)
    decision = decision_of(pair, "/private?x=1")
    told = sidewall("explain", decision, "--at", pair.socket("api"), "--verify")
    assert told.returncode == 0, told.stderr
    assert "/private" in told.stdout
    assert "paths" in told.stdout
    assert "verified" in told.stdout
    assert decision_of(pair, "/private?y=2") == decision, "the same question has the same id"
    pair.allow("/elsewhere")
    assert sidewall("reload", pair.socket("api")).returncode == 0
    changed = sidewall("explain", decision, "--at", pair.socket("api"), "--verify", "-o", "json")
    assert changed.returncode == 1
    assert json.loads(changed.stdout)["derived_again"]["same"] is False
    unknown = sidewall("explain", "a" * 26, "--at", pair.socket("api"))
    assert unknown.returncode == 69
    assert "no local proxy remembers" in unknown.stderr


@pytest.mark.slow
def test_workers_end_when_their_supervisor_was_killed(tmp_path: Path) -> None:
    pair = Pair(tmp_path, workers=2)
    try:
        status = json.loads(sidewall("status", pair.socket("api"), "-o", "json").stdout)["items"][0]
        workers = [worker["pid"] for worker in status["workers"]]
        pair.api.kill()
        pair.api.wait()
        deadline = time.monotonic() + 15
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "they go on alone"
            time.sleep(0.1)
        assert pair.get() == 503
    finally:
        pair.end()


@pytest.mark.slow
def test_a_second_process_on_the_same_socket_ends_with_73_and_the_first_is_unharmed(pair: Pair) -> None:
    second = sidewall("run", "-c", str(pair.folder / "api.yaml"))
    assert second.returncode == 73
    assert "cannot listen on" in second.stderr
    assert pair.get() == 200


@pytest.mark.slow
def test_a_quarantine_is_rehearsed_made_kept_over_a_restart_and_lifted(tmp_path: Path) -> None:
    pair = Pair(tmp_path, workers=2)
    api = pair.socket("api")
    try:
        rehearsed = sidewall("quarantine", "shop/web", "--at", api, "--rehearse", "-o", "json")
        assert rehearsed.returncode == 0, rehearsed.stderr
        assert json.loads(rehearsed.stdout)["items"][0]["what"] == "would be cut"
        assert pair.get() == 200
        made = sidewall("quarantine", "shop/web", "--at", api, "--reason", "drill")
        assert made.returncode == 0, made.stderr
        assert "proc.test/ns/shop/sa/web" in made.stdout
        assert " cut in " in made.stdout
        assert all(pair.get() == 403 for _ in range(10)), "every worker refuses"
        assert (pair.folder / "api.quarantine.json").stat().st_mode & 0o777 == 0o600
        pair.api.send_signal(signal.SIGTERM)
        assert pair.api.wait(15) == 0
        pair.api = pair.start("api")
        assert sidewall("ready", api, "--wait", "20").returncode == 0
        assert pair.get() == 403
        assert "drill" in sidewall("quarantine", "--list", "--at", api).stdout
        assert sidewall("quarantine", "shop/web", "--at", api, "--lift").returncode == 0
        pair.wait_for(200)
        assert sidewall("quarantine", "shop/web", "--at", api, "--lift").returncode == 1
        assert sidewall("quarantine", "shop/../web", "--at", api).returncode == 2
    finally:
        pair.end()


@pytest.mark.slow
def test_a_damaged_quarantine_lets_nobody_in(pair: Pair) -> None:
    pair.api.send_signal(signal.SIGTERM)
    assert pair.api.wait(10) == 0
    (pair.folder / "api.quarantine.json").write_text('[{"principal": "proc.test/ns/sh')
    again = sidewall("run", "-c", str(pair.folder / "api.yaml"))
    assert again.returncode == 78
    assert "api.quarantine.json cannot be read" in again.stderr
    assert pair.get() == 503
