"""What ``sidewall init sidecar | vm | gateway`` writes: commented files that load as they are. Their comments say
what to change first."""

from __future__ import annotations

from typing import Final

from config.problems import suggest

_HEAD: Final = """\
# yaml-language-server: $schema=https://sidewall.dev/schema/v1.json
# Every setting: sidewall config explain inbound     Is it right?  sidewall check sidewall.yaml
version: 1
"""

_SIDECAR: Final = """\
workload: shop/api                        # namespace/service account: spiffe://<trust domain>/ns/shop/sa/api
identity:
  caDir: ./ca                             # a CA on this machine: sidewall ca init ./ca
inbound:
  - listen: 8443                          # mTLS, callers must show a certificate; a bare port = all interfaces
    app: 8080                             # your service; a bare port = loopback
    # appProtocol: h2c                    # when the service speaks gRPC
outbound:
  - {listen: 9001, to: stock}             # your service calls http://127.0.0.1:9001; a bare port = loopback
upstreams:
  stock:
    endpoints: [127.0.0.1:8444]           # or   dns: stock.shop.internal:8443
    expect: shop/stock                    # who must be at the other end
policy:
  from: ./policy                          # AuthorizationPolicy documents, watched; an empty folder denies all
  default: deny                           # deny | istio | audit
telemetry:
  tracing: {sample: 0.05}                 # share of new traces that are exported (OTEL_TRACES_SAMPLER wins)
# workers: auto                           # processes; 1 by default
"""

_VM: Final = """\
workload:
  name: ledger
  namespace: legacy
  labels: {app: ledger, tier: vm}         # what policies select on
identity:                                 # files, renewed by somebody else and watched
  cert: /etc/sidewall/svid.pem
  key: /etc/sidewall/svid_key.pem
  bundle: /etc/sidewall/bundle.pem
inbound:
  - name: https
    listen: 0.0.0.0:8443
    app: 127.0.0.1:8080                   # must be loopback or unix:, unless unsafeApp: true
    appProtocol: http1                    # auto | http1 | h2c | tcp
    forwardClientCert: sanitizeSet        # the app sees x-forwarded-client-cert of the verified peer
    maxBody: 32MiB
    timeouts: {request: 60s, idle: 5m, header: 10s}
outbound:
  - {listen: 127.0.0.1:9001, to: stock}   # the app calls http://127.0.0.1:9001, we speak mTLS to stock
upstreams:
  stock:
    endpoints: [10.20.0.9:8443, 10.20.0.10:8443]   # or   dns: stock.shop.internal:8443
    expect: shop/stock                    # SPIFFE ID the far side must show
    trafficPolicy:                        # DestinationRule's own field names
      loadBalancer: {simple: LEAST_REQUEST}
      connectionPool: {http: {http2MaxRequests: 200}}
policy: {from: ./policy.d, default: deny}
telemetry:
  accessLog: {format: json, to: stdout}   # journald keeps it
  traces: {keep: 10000}                   # file: /var/lib/sidewall/traces.db  for sidewall trace
shutdown: {drain: 45s}
"""

_GATEWAY: Final = """\
# One door to several services: what terminates public TLS on this machine (a web server) forwards to a port here,
# and we speak mTLS to the service behind it. Public TLS and routes of our own come with Gateway documents.
workload: edge/gateway                    # the identity that the services see, and that their policies name
identity:
  caDir: ./ca                             # or cert, key and bundle
outbound:
  - {listen: 9101, to: api}               # loopback only: whoever can connect acts as edge/gateway
  - {listen: 9102, to: stock}
upstreams:
  api: {dns: api.shop.internal:8443, expect: shop/api}
  stock: {dns: stock.shop.internal:8443, expect: shop/stock, protocol: h2}
telemetry:
  tracing: {trustIncoming: never}         # strangers do not choose our trace ids
timeouts: {request: 30s}
limits: {body: 10MiB}
"""

TEMPLATES: Final[dict[str, str]] = {
    "sidecar": _HEAD + _SIDECAR,
    "vm": _HEAD + _VM,
    "gateway": _HEAD + _GATEWAY,
}

# The policy folder a file names, to be made beside it, and a first document for it.
POLICY_FOLDERS: Final[dict[str, str]] = {"sidecar": "policy", "vm": "policy.d"}

FIRST_POLICY: Final = """\
# Nobody may call until a policy allows it. This one lets the service account web read; change it, it applies at once.
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-web}               # the namespace is the workload's
spec:
  action: ALLOW
  rules:
  - from: [{source: {principals: ["*/ns/shop/sa/web"]}}]
    to: [{operation: {methods: [GET, HEAD]}}]
"""


def template(kind: str) -> str:
    """The text of sidewall.yaml for ``kind``. Raises LookupError naming the kinds."""
    try:
        return TEMPLATES[kind]
    except KeyError:
        known = ", ".join(TEMPLATES)
        raise LookupError(f"there is no template '{kind}': {suggest(kind, TEMPLATES)} known: {known}") from None
