"""Envoy normalizes the paths of requests as Istio's settings tell it to; ``istio_target`` must write the same."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from proxy.errors import MalformedRequest
from proxy.wire.path import NORMALIZATIONS, istio_target
from tests.support.envoy import _address, _typed, find_envoy, free_port, run_envoy

pytestmark = pytest.mark.slow

COUNT = 1500  # of targets, each asked under every normalization
PIECES = [
    *("/", "/", "/", "//", "a", "b", "A", ".", "..", "/.", "/..", "/../", "/./", "%2e", "%2E%2e", "%2F", "%2f", "%5C", "%5c"),
    *("\\", "%41", "%7e", "%7E", "%2561", "%20", "%c3%a9", "%00", "%", "%2", "%zz", ";x", "a;y=1", "..;/", ".;", "%3b"),
    *("~", "-", "_", "[", "]", "|", "^", "`", "{", "}", '"', "<", ">", "'", "!", "*", "+", ",", ":", "@", "=", "&", "$"),
    *("?", "?q=1", "?q=//..", "#", "#f", "%3f", "%23"),
]


def targets() -> list[bytes]:
    rng = random.Random(8)
    made = {"/" + "".join(rng.choices(PIECES, k=rng.choice([1, 2, 3, 4, 5, 7]))) for _ in range(COUNT)}
    return [target.encode("latin-1") for target in sorted(made)]


def envoy_config(ports: dict[str, int], admin: int) -> dict[str, Any]:
    listeners = []
    for name, port in ports.items():
        manager: dict[str, Any] = {
            "stat_prefix": name,
            "codec_type": "HTTP1",
            "normalize_path": name != "NONE",
            "merge_slashes": name.endswith("MERGE_SLASHES"),
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [ROUTE]}]},
            "http_filters": [_typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {})],
        }
        if name.startswith("DECODE"):
            manager["path_with_escaped_slashes_action"] = "UNESCAPE_AND_FORWARD"
        kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        chain = {"filters": [_typed("envoy.filters.network.http_connection_manager", kind, manager)]}
        listeners.append({"name": name, "address": _address(port), "filter_chains": [chain]})
    runtime = {"envoy.reloadable_features.http_reject_path_with_fragment": False}
    layers = [{"name": "static", "static_layer": runtime}]
    return {
        "admin": {"address": _address(admin)},
        "layered_runtime": {"layers": layers},
        "static_resources": {"listeners": listeners},
    }


ROUTE = {
    "match": {"prefix": ""},
    "direct_response": {"status": 200},
    "response_headers_to_add": [{"header": {"key": "x-path", "value": "%REQ(:PATH)%"}}],
}


class Asker:
    """One connection, made anew when Envoy has closed it over a target that it refuses."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sock: socket.socket | None = None

    def ask(self, target: bytes) -> bytes | None:
        """The target as Envoy forwards it; None when it refuses the request."""
        if self.sock is None:
            self.sock = socket.create_connection(("127.0.0.1", self.port), 10)
        self.sock.sendall(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.sock.recv(65536)
        if answer.startswith(b"HTTP/1.1 200"):
            return answer.partition(b"x-path: ")[2].partition(b"\r\n")[0]
        self.close()
        return None

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def ours(target: bytes, name: str) -> bytes | None:
    try:
        return istio_target(target, name)[1]
    except MalformedRequest:
        return None


_DOTS_WITH_PARAMETERS = re.compile(rb"/\.\.?(?:;|%3b)", re.IGNORECASE)


def is_meant(theirs: bytes | None, we: bytes | None) -> bool:
    """The two differences that proxy/wire/path.py speaks of."""
    if theirs is None:
        return False
    if we is None:
        return _DOTS_WITH_PARAMETERS.search(theirs.partition(b"?")[0]) is not None
    return theirs == b"/" + we and theirs.partition(b"?")[0] == b"//"


def compare(ports: dict[str, int]) -> tuple[int, int, int, list[str]]:
    asked = refused = meant = 0
    differ = []
    for name, port in ports.items():
        asker = Asker(port)
        for target in targets():
            theirs, we = asker.ask(target), ours(target, name)
            asked += 1
            refused += theirs is None
            if theirs != we and is_meant(theirs, we):
                meant += 1
            elif theirs != we:
                differ.append(f"{name} {target!r}: Envoy {theirs!r}, we {we!r}")
        asker.close()
    return asked, refused, meant, differ


async def test_envoy_and_we_normalize_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_envoy()
    ports = {name: free_port() for name in NORMALIZATIONS}
    async with run_envoy(envoy_config(ports, free_port()), tmp_path):
        asked, refused, meant, differ = await trio.to_thread.run_sync(compare, ports)
    with capsys.disabled():
        print(
            f"\nEnvoy and istio_target(): {asked} targets, {refused} refused by Envoy, "
            f"{meant} differ as documented, {len(differ)} otherwise"
        )
    assert not differ, "\n".join(differ[:40])
    assert meant < asked / 20
