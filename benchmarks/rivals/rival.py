"""What every compared proxy has in common: how it is set up, started, and seen to be ready."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks import pki
from benchmarks.process import Child, free_port, port_open

ALLOWED_PREFIXES = ("/v1/", "/bench.")
SEARCH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"


@dataclass(frozen=True)
class Setup:
    """What one start of a rival is given."""

    folder: Path  # its own, empty
    keys: pki.Pki
    app_port: int
    app_speaks: str  # "http1" | "h2c"
    grpc: bool
    listen: int
    admin: int


def new_setup(folder: Path, keys: pki.Pki, app_port: int, *, app_speaks: str, grpc: bool = False) -> Setup:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return Setup(folder, keys, app_port, app_speaks, grpc, free_port(), free_port())


class Rival:
    """A proxy that can be started. Subclasses give the configuration and the command line."""

    name = ""
    note = ""
    http2_to_app = True  # can it speak HTTP/2 with prior knowledge to the app?

    def available(self) -> str | None:
        """Why it cannot run here, or None when it can."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def write_config(self, setup: Setup) -> None:
        raise NotImplementedError

    def command(self, setup: Setup) -> list[str]:
        raise NotImplementedError

    def environ(self, setup: Setup) -> dict[str, str]:
        return {}

    def is_ready(self, setup: Setup) -> bool:
        return port_open(setup.listen)

    def access_log(self, setup: Setup) -> Path:
        """Where its access log ends up."""
        return setup.folder / "access.log"

    def spawn(self, setup: Setup) -> Child:
        """Start it and return at once (the case `ready` measures from here)."""
        self.write_config(setup)
        return Child(self.name, self.command(setup), setup.folder, environ=self.environ(setup))

    def start(self, setup: Setup) -> Child:
        child = self.spawn(setup)
        try:
            child.wait_ready(lambda: self.is_ready(setup))
        except BaseException:
            child.stop()
            raise
        return child


def admin_ready(port: int) -> bool:
    """GET /ready on an admin port, as Envoy and Sidewall serve it."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=1.0) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def caller_context(keys: pki.Pki) -> ssl.SSLContext:
    """A TLS client that shows the SVID of `web`. The server has a SPIFFE ID and no name to check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(keys.bundle)
    context.load_cert_chain(keys.web.chain, keys.web.key)
    context.set_alpn_protocols(["http/1.1"])
    return context


def get_once(setup: Setup, path: str, context: ssl.SSLContext, fields: str = "") -> tuple[int, str]:
    """(status, body) of one GET over a new mTLS connection; (0, "") when there is no answer."""
    request = f"GET {path} HTTP/1.1\r\nhost: api.bench\r\n{fields}connection: close\r\n\r\n".encode()
    answer = b""
    try:
        with (
            socket.create_connection(("127.0.0.1", setup.listen), timeout=5.0) as raw,
            context.wrap_socket(raw, server_hostname="api.bench") as tls,
        ):
            tls.sendall(request)
            while data := tls.recv(65536):
                answer += data
    except OSError:
        pass  # some close without close_notify; what has arrived counts
    if answer[:7] != b"HTTP/1." or not answer[9:12].isdigit():
        return 0, ""
    return int(answer[9:12]), answer.partition(b"\r\n\r\n")[2].decode("latin-1")


def first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return ((done.stdout or "") + (done.stderr or "")).strip().split("\n", 1)[0]


LOG_JSON = (
    '{{"start_time":"{time}","method":"{method}","path":"{path}","protocol":"{protocol}","response_code":{status},'
    '"bytes_received":{received},"bytes_sent":{sent},"duration":{duration},"user_agent":"{agent}",'
    '"authority":"{host}","upstream_host":"{upstream}","downstream_remote_address":"{remote}",'
    '"requested_server_name":"{sni}","peer":"{peer}","tls_version":"{tls}"}}'
)
