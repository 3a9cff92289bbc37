"""Two sidecars that live from a running CA, and an app, under load: rotations, a CA that dies, a revocation."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from identity.ca.model import CaSettings
from identity.ca.service import CaService
from tests.support.authority import REPOSITORY, TD, RunningCa, free_port

APP = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
ALLOW = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: shop}
spec: {action: ALLOW, rules: [{from: [{source: {principals: ["*/ns/shop/sa/web"]}}]}]}
"""


class Mesh:
    """A CA, an app behind the sidecar ``api``, and the sidecar ``web`` that leads there."""

    def __init__(self, folder: Path, settings: CaSettings) -> None:
        CaService.create(folder / "ca", TD, now=datetime.now(UTC), settings=settings).close()
        self.folder = folder
        self.ca = RunningCa(folder).start()
        self.app, self.inner, self.outer = free_port(), free_port(), free_port()
        (folder / "policy").mkdir()
        (folder / "policy" / "allow.yaml").write_text(ALLOW)
        self._write("api", {"inbound": [{"listen": f"127.0.0.1:{self.inner}", "app": self.app}], "policy": "policy"})
        upstream = {"endpoints": [f"127.0.0.1:{self.inner}"], "expect": "shop/api"}
        outbound = [{"listen": f"127.0.0.1:{self.outer}", "to": "api"}]
        self._write("web", {"outbound": outbound, "upstreams": {"api": upstream}})
        self.children = [subprocess.Popen([sys.executable, "-c", APP, str(self.app)])]
        for name in ("api", "web"):
            self._start(name)

    def _write(self, name: str, more: dict[str, Any]) -> None:
        config = {
            "workload": f"shop/{name}",
            "identity": {"ca": f"unix:{self.ca.socket}", "folder": str(self.folder / f"{name}.identity")},
            "admin": {"socket": str(self.folder / f"{name}.sock"), "listen": "off"},
            "telemetry": {"accessLog": {"to": str(self.folder / f"{name}.log")}},
            **more,
        }
        (self.folder / f"{name}.yaml").write_text(json.dumps(config))

    def _start(self, name: str) -> None:
        with (self.folder / f"{name}.err").open("wb") as log:
            command = [sys.executable, "-m", "proxy", "run", "-c", str(self.folder / f"{name}.yaml")]
            self.children.append(subprocess.Popen(command, cwd=REPOSITORY, stderr=log))
        self.until(lambda: "ready\n" in self.admin(name, "/ready"), 20)

    def admin(self, name: str, path: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(self.folder / f"{name}.sock"))
                sock.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
                return b"".join(iter(lambda: sock.recv(65536), b"")).decode()
        except OSError:
            return ""

    @staticmethod
    def until(is_so: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ask(self, act: str, **facts: Any) -> Any:
        async def ask() -> Any:
            return await self.ca.ask(act, **facts)

        return trio.run(ask)

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
        if self.ca.process is not None:
            self.ca.stop(signal.SIGKILL)


class Load:
    """So many requests a second, over kept connections; everything that was not answered with 200 is kept."""

    def __init__(self, port: int, rate: float, threads: int = 5) -> None:
        self.done = 0
        self.failures: list[str] = []
        self._port, self._pause, self._stop = port, threads / rate, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number / rate,)) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, offset: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        due = time.monotonic() + offset
        while not self._stop.wait(max(due - time.monotonic(), 0)):
            due += self._pause
            try:
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    reason = answer.getheader("x-sidewall-reason")
                    self.failures.append(f"{datetime.now(UTC):%H:%M:%S} {answer.status} {reason}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{datetime.now(UTC):%H:%M:%S} {error!r}")
                connection.close()
            self.done += 1
        connection.close()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sw") as made:
        yield Path(made)


def settings(svid: float, issuing: float, root: float) -> CaSettings:
    return CaSettings(
        svid_ttl=svid,
        min_ttl=1.0,
        max_ttl=svid,
        issuing_life=issuing,
        root_life=root,
        jwt_life=issuing,
        refresh_hint=1.0,
        old_grace=2.0,
    )


def story(mesh: Mesh, load: Load, seconds: float, away: float) -> list[tuple[str, str]]:
    """Let it run; in the middle the CA is killed and is away. What the journal says was activated."""
    time.sleep(seconds / 2)
    mesh.ca.stop(signal.SIGKILL)
    time.sleep(away)
    mesh.ca.start()
    time.sleep(seconds / 2)
    log = mesh.ask("Log", limit=100_000)
    return [(one["kind"], one["facts"].get("of", "")) for one in log if one["kind"] == "authority_activated"]


@pytest.mark.slow
def test_a_killed_ca_and_rotations_cost_no_request(folder: Path) -> None:
    mesh = Mesh(folder, settings(svid=12.0, issuing=30.0, root=600.0))
    try:
        load = Load(mesh.outer, 50)
        story(mesh, load, 12.0, 3.0)
        load.end()
        assert load.failures == []
        assert load.done > 500
        assert mesh.ask("VerifyLog")["ok"]
    finally:
        mesh.end()


@pytest.mark.long
@pytest.mark.timeout(400)
def test_two_issuing_rotations_and_a_root_rotation_cost_no_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With SVIDs of 20 s, renewed at 10, the CA may be away for about 8 s; see the next test for a minute."""
    mesh = Mesh(folder, settings(svid=20.0, issuing=80.0, root=200.0))
    try:
        load = Load(mesh.outer, 50)
        time.sleep(150.0)
        mesh.ca.stop(signal.SIGKILL)
        time.sleep(5.0)
        mesh.ca.start()
        time.sleep(75.0)
        load.end()
        log = mesh.ask("Log", limit=100_000)
        done = [one["facts"].get("of", "") for one in log if one["kind"] == "authority_activated"]
        with capsys.disabled():
            print(f"\n{load.done} requests, {len(load.failures)} failed; activated: {done}; {load.failures[:5]}")
        assert load.failures == []
        assert done.count("x509-issuing") >= 2
        assert "x509-root" in done
    finally:
        mesh.end()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_minute_without_the_ca_costs_no_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Renewal is due at 75 s, when the CA is away; the SVID ends at 150 s, when it is long back."""
    mesh = Mesh(folder, settings(svid=150.0, issuing=600.0, root=3000.0))
    try:
        load = Load(mesh.outer, 50)
        story(mesh, load, 100.0, 60.0)
        load.end()
        with capsys.disabled():
            print(f"\n{load.done} requests, {len(load.failures)} failed; {load.failures[:5]}")
        assert load.failures == []
    finally:
        mesh.end()


@pytest.mark.slow
def test_a_revoked_identity_is_cut_off_within_a_second(folder: Path) -> None:
    mesh = Mesh(folder, CaSettings())
    try:
        load = Load(mesh.outer, 50)
        time.sleep(1.0)
        mesh.ask("Revoke", what=f"spiffe://{TD}/ns/shop/sa/web", reason="token found in a paste")
        time.sleep(1.0)
        cut_at = load.done
        time.sleep(1.0)
        load.end()
        after = load.done - cut_at
        assert len(load.failures) >= after > 20, "nothing passes any more"
        assert any("revoked" in line for line in (folder / "api.log").read_text().splitlines())
    finally:
        mesh.end()
