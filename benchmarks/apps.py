"""The service behind the proxy. Its CPU is not counted; it only must not be the bottleneck.

One app serves a whole run. nginx answers small requests and downloads, on one plaintext port for HTTP/1.1
and one for HTTP/2 with prior knowledge; `canned.py` plays the gRPC services and swallows uploads.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import Child, free_port, port_open

SMALL = '{"order":42,"state":"packed","lines":[{"item":"bolt-m8","n":12}]}'
PATH = "/v1/orders/42"  # below the prefix that every rival allows
WHOAMI_PATH = "/v1/whoami"  # answers what the app was told about the caller
BIG_PATH = "/v1/big.bin"

NGINX = """
daemon off; worker_processes 1; {user} error_log {folder}/app.log warn; pid {folder}/app.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; sendfile on; keepalive_timeout 600s; keepalive_requests 1000000000;
  client_body_temp_path {folder}/app-body; proxy_temp_path {folder}/app-proxy;
  fastcgi_temp_path {folder}/app-f; uwsgi_temp_path {folder}/app-u; scgi_temp_path {folder}/app-s;
  default_type application/json;
  server {{
    listen 127.0.0.1:{http1} backlog=4096;
    listen 127.0.0.1:{h2c} http2 backlog=4096;
    location / {{ return 200 '{small}'; }}
    location = {whoami} {{ return 200 '<$http_x_forwarded_client_cert>'; }}
    location = {big} {{ alias {folder}/big.bin; default_type application/octet-stream; }}
  }}
}}
"""


@dataclass(frozen=True)
class Ports:
    """Where each kind of app listens."""

    http1: int
    h2c: int
    unary: int
    stream: int
    sink: int  # both versions


class Apps:
    """All apps of a run: `start()`, `ports`, `stop()`. ``big`` is the size of the download in bytes."""

    def __init__(self, folder: Path, big: int) -> None:
        self.folder = folder
        self.ports = Ports(*(free_port() for _ in range(5)))
        self.big = folder / "big.bin"
        with self.big.open("wb") as file:
            file.truncate(big)  # sparse: zeros that cost no disk
        self._children: list[Child] = []

    @staticmethod
    def available() -> str | None:
        return None if find_nginx() else "nginx is not installed (it plays the app)"

    def start(self) -> None:
        config = self.folder / "app.conf"
        config.write_text(
            NGINX.format(
                folder=self.folder,
                user=as_root(),
                http1=self.ports.http1,
                h2c=self.ports.h2c,
                small=SMALL,
                big=BIG_PATH,
                whoami=WHOAMI_PATH,
            )
        )
        nginx = find_nginx() or "nginx"
        self._run("app", [nginx, "-e", str(self.folder / "app.log"), "-c", str(config)], self.ports.http1)
        for mode in ("unary", "stream", "sink"):
            port = getattr(self.ports, mode)
            self._run(mode, [sys.executable, "-m", "benchmarks.canned", str(port), mode], port)

    def _run(self, name: str, command: list[str], port: int) -> None:
        here = str(Path(__file__).resolve().parent.parent)
        child = Child(name, command, self.folder, environ={"PYTHONPATH": here})
        self._children.append(child)
        child.wait_ready(lambda: port_open(port))

    def stop(self) -> None:
        for child in reversed(self._children):
            child.stop()
        self._children.clear()


def as_root() -> str:
    """Started by root, nginx would read our private folder as somebody else."""
    return "user root;" if os.geteuid() == 0 else ""


def find_nginx() -> str | None:
    return shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/nginx/sbin")
