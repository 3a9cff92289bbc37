"""nginx."""

from __future__ import annotations

import re

from benchmarks.apps import as_root, find_nginx
from benchmarks.rivals.rival import (
    ALLOWED_PREFIXES,
    LOG_JSON,
    Rival,
    Setup,
    admin_ready,
    first_line,
)

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
NGINX_GRPC = """grpc_pass grpc://app; grpc_read_timeout 600s; grpc_set_header X-Forwarded-Client-Cert {xfcc};"""


class Nginx(Rival):
    name = "nginx"
    note = "authorizes by certificate subject; HTTP/1.1 to the app except for gRPC"
    http2_to_app = False

    def available(self) -> str | None:
        return None if find_nginx() else "nginx is not installed"

    def version(self) -> str:
        return first_line([find_nginx() or "nginx", "-v"]).rsplit("/", 1)[-1]

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
