"""HAProxy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from benchmarks.rivals.rival import (
    ALLOWED_PREFIXES,
    LOG_JSON,
    SEARCH,
    Rival,
    Setup,
    admin_ready,
    first_line,
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
        found = re.search(r"version (\S+)", first_line([self._binary(), "-v"]))
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
