"""Envoy as the judge: random policies, translated as Istio does, and random requests. ``decide`` must say the same.

One Envoy serves all policies: a route for each set of them, chosen by the header x-case, brings its own RBAC rules.
Callers with an identity come over mTLS, the others over plaintext, from several addresses of the loopback network.
Opaque TCP has a listener for each set.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import random
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.policy.engine import AccessRequest, CompiledPolicies, WorkloadFacts, compile_policies, decide
from proxy.policy.facts import forwarded_client
from tests.support.apps import free_socket
from tests.support.envoy import _address, _typed, find_envoy, run_envoy
from tests.support.envoy_rbac import http_filter, jwt_filter, network_filter, per_route
from tests.support.mtls import ca_of, credentials
from tests.support.raw import write_bundle, write_svid
from tests.unit.policy.documents import document, read_data
from tests.unit.policy.questions import namespace_of

pytestmark = pytest.mark.slow

SETS, REQUESTS = 240, 16
TCP_SETS, TCP_REQUESTS = 40, 6
LABELS = {"app": "api"}
API = WorkloadFacts("shop", LABELS, "istio-system", "api")
CALLERS = ["mesh.test/ns/shop/sa/web", "mesh.test/ns/shop/sa/webb", "mesh.test/ns/ops/sa/web", "two.test/ns/ops/sa/x", None]
FILTERS = {"DENY": "deny", "ALLOW": "allow"}

WORDS: dict[str, list[str]] = {
    "principals": ["*", "mesh.test/ns/shop/sa/web", "mesh.test/ns/shop/*", "*/sa/web", "mesh.test*", "*b", "spiffe://mesh.test/*"],
    "namespaces": ["*", "shop", "ops", "s*", "*p", "*o*", "o*s"],
    "serviceAccounts": ["web", "shop/web", "ops/web", "ops/x", "x"],
    "trustDomains": ["*", "mesh.test", "two.test", "two*", "*.test", "m*", "mesh"],
    "ipBlocks": ["127.0.0.1", "127.0.0.0/31", "127.0.0.9/30", "127.0.0.0/8", "10.0.0.0/8", "::/0", "0.0.0.0/0"],
    "remoteIpBlocks": ["127.0.0.2", "10.0.0.0/8", "10.1.2.3", "2001:db8::/32", "127.0.0.0/8", "10.1.2.99/24", "::/0"],
    "methods": ["*", "GET", "PUT", "P*", "*T", "get", "*E*"],
    "paths": [
        *("*", "/", "/a", "/a*", "/a/*", "*b", "*/b", "/a/b", "*a*", "/a*b"),
        *("/{*}", "/a/{*}", "/a/{**}", "/{*}/b", "/a/{**}/b", "/{*}/{*}", "/{**}"),
    ],
    "hosts": ["*", "api", "API", "api:80", "api*", "*.shop", "*:80", "b.Shop"],
    "ports": ["1", "080"],  # and those of the listeners
    "requestPrincipals": ["*", "i/s", "i/*", "i/s*", "*/s", "*i/s", "*s", "i*", "i", "https://i/s", "https://i*", "*/"],
}
CLAIM_WORDS = ["*", "a", "b", "a*", "*b", "7", "true"]
KEYS = {
    "source.ip": WORDS["ipBlocks"],
    "remote.ip": WORDS["remoteIpBlocks"],
    "source.namespace": WORDS["namespaces"],
    "source.serviceAccount": WORDS["serviceAccounts"],
    "source.trustDomain": WORDS["trustDomains"],
    "source.principal": WORDS["principals"],
    "destination.ip": ["127.0.0.1", "127.0.0.0/24", "10.0.0.0/8", "::/0"],
    "destination.port": WORDS["ports"],
    "connection.sni": ["*", "api.shop", "api*", "*.shop", "API.shop"],
    "request.headers[x-role]": ["*", "a", "b", "a*", "*b", "a,b", "A"],
    "request.headers[X-Other]": ["*", "a", "ab"],
    "request.headers[:method]": WORDS["methods"],
    "request.headers[:authority]": WORDS["hosts"],
    "request.headers[host]": WORDS["hosts"],
    "request.auth.principal": WORDS["requestPrincipals"],
    "request.auth.audiences": CLAIM_WORDS,
    "request.auth.presenter": CLAIM_WORDS,
    "request.auth.claims[scope]": [*CLAIM_WORDS, "a b"],
    "request.auth.claims[a]": CLAIM_WORDS,
    "request.auth.claims[a][b]": CLAIM_WORDS,
    "request.auth.claims[x.y]": CLAIM_WORDS,
    "request.headers[:path]": ["*", "/a", "/a?*", "*=b", "/a*"],
}
TCP_KEYS = [key for key in KEYS if not key.startswith(("source.n", "source.s", "source.t", "source.p", "connection"))]
CLAIMS: list[dict[str, Any] | None] = [
    *(None, None, {}),
    {"iss": "i", "sub": "s", "aud": "a", "azp": ["a", "b"], "scope": "a b"},
    {"iss": "https://i", "sub": "s", "aud": ["b"], "a": {"b": "ab"}, "scope": ["a b"], "x.y": "a"},
    {"iss": "i", "sub": "", "a": "a", "scope": "b", "x": {"y": "a"}},
    {"iss": "i", "a": {"b": ["a", "x", 7]}, "azp": True, "scope": " a  b "},
    {"iss": "xi", "sub": "ss", "a": {"b": {"a": "a"}}, "scope": "x", "azp": 7},
    {"iss": "i", "sub": "sx", "a": [{"b": "a"}], "azp": [], "scope": ""},
    {"iss": "", "sub": "s", "a": {"b": [["a"]]}, "azp": "ab", "x.y": None},
]
KEY = ec.generate_private_key(ec.SECP256R1())
PATHS = ["/", "/a", "/a/", "/a/b", "/ab", "/b", "/a/c/b", "/a/c/d/b", "/a//b", "/a/x;y=1", "/a/%2Fb", "/a/x*", "/xa*", "/a/[b"]
FORWARDED = ["", "10.1.2.3", "10.9.9.9, 10.1.2.3", "10.1.2.3,127.0.0.2", "2001:db8::1", "junk", "10.1.2.3, junk", " 10.1.2.3 "]


# -- chance ---------------------------------------------------------------------------------------------------


class Chance:
    """Random documents, the same in every run but for the ports."""

    def __init__(self, seed: int, ports: list[int]) -> None:
        self.rng = random.Random(seed)
        self.ports = [str(port) for port in ports]

    def documents(self, *, tcp: bool = False) -> list[dict[str, Any]]:
        names = self.rng.sample(["shop/p", "shop/q", "istio-system/r"], self.rng.choice([1, 1, 2, 3]))
        return [document(name, self.spec(tcp)) for name in names]

    def spec(self, tcp: bool) -> dict[str, Any]:
        action = self.rng.choice(["ALLOW", "ALLOW", "DENY", ""])
        least = 0 if action != "DENY" and self.rng.random() < 0.05 else 1
        rules = [self.rule(tcp) for _ in range(self.rng.randint(least, 3))]
        return {"rules": rules, **({"action": action} if action else {})}

    def rule(self, tcp: bool) -> dict[str, Any]:
        rule: dict[str, Any] = {}
        if self.rng.random() < 0.6:
            facts = ["ipBlocks", "remoteIpBlocks", "requestPrincipals"]
            facts = [*facts[: 2 + (self.rng.random() < 0.2)]] if tcp else [*facts, "principals", "namespaces", "trustDomains"]
            rule["from"] = [{"source": self.clauses(facts)} for _ in range(self.rng.choice([1, 1, 2]))]
            if not tcp and self.rng.random() < 0.15:
                rule["from"] = [{"source": {self.rng.choice(["serviceAccounts", "notServiceAccounts"]): self.values("serviceAccounts")}}]
        if self.rng.random() < 0.6:
            facts = ["ports", "ports", "methods"] if tcp else ["methods", "paths", "paths", "hosts", "ports"]
            rule["to"] = [{"operation": self.clauses(facts)} for _ in range(self.rng.choice([1, 1, 2]))]
        if self.rng.random() < 0.4:
            keys = TCP_KEYS if tcp else [*KEYS, *(key for key in KEYS if key.startswith("request.auth"))]
            rule["when"] = [self.when(self.rng.choice(keys)) for _ in range(self.rng.choice([1, 1, 2]))]
        return rule

    def clauses(self, facts: list[str]) -> dict[str, list[str]]:
        found = {}
        for fact in self.rng.sample(facts, self.rng.choice([1, 1, 2])):
            name = fact if self.rng.random() < 0.75 else f"not{fact[0].upper()}{fact[1:]}"
            found[name] = self.values(fact)
        return found

    def when(self, key: str) -> dict[str, Any]:
        lists = self.rng.choice([["values"], ["values"], ["notValues"], ["values", "notValues"]])
        return {"key": key, **{name: self.values("ports" if key == "destination.port" else key) for name in lists}}

    def values(self, fact: str) -> list[str]:
        words = KEYS.get(fact) or WORDS[fact]
        if fact == "ports":
            words = [*words, *self.ports, *self.ports]
        return self.rng.choices(words, k=self.rng.choice([1, 1, 2, 3]))

    def request(self) -> Asked:
        path = self.rng.choice(PATHS)
        return Asked(
            principal=self.rng.choice(CALLERS),
            method=self.rng.choice(["GET", "PUT", "POST", "DELETE"]),
            path=path,
            target=path + self.rng.choice(["", "", "?x=b"]),
            host=self.rng.choice(["api", "API", "api:80", "b.shop", "B.SHOP:80", "a.b.shop"]),
            roles=self.rng.choice([[], [], ["a"], ["b"], ["a", "b"], ["a,b"], [""], ["ab", "x"]]),
            other=self.rng.choice([[], ["a"], ["ab"]]),
            source_ip=self.rng.choice(["127.0.0.1", "127.0.0.2", "127.0.0.9"]),
            forwarded=self.rng.choice(FORWARDED),
            sni=self.rng.choice(["", "api.shop", "API.shop"]),
            claims=self.rng.choice(CLAIMS),
        )


@dataclass(frozen=True)
class Asked:
    principal: str | None
    method: str
    path: str
    target: str
    host: str
    roles: list[str]
    other: list[str]
    source_ip: str
    forwarded: str
    sni: str
    claims: dict[str, Any] | None

    def facts(self, port: int) -> AccessRequest:
        headers = {name: lines for name, lines in (("x-role", self.roles), ("x-other", self.other)) if lines}
        return AccessRequest(
            principal=self.principal,
            namespace=namespace_of(self.principal),
            port=port,
            method=self.method,
            host=self.host,
            path=self.path,
            target=self.target,
            source_ip=self.source_ip,
            remote_ip=forwarded_client(self.forwarded, self.source_ip),
            destination_ip="127.0.0.1",
            sni=self.sni if self.principal is not None else "",
            headers=headers,
            claims=self.claims,
        )


# -- Envoy ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ports:
    admin: int
    plain: int
    secure: int
    tcp: list[int]

    @classmethod
    def free(cls) -> Ports:
        held = [free_socket() for _ in range(3 + TCP_SETS)]  # all at once: no port comes twice
        for sock, _ in held:
            sock.close()
        admin, plain, secure, *tcp = [port for _, port in held]
        return cls(admin, plain, secure, tcp)


def envoy_config(ports: Ports, sets: list[list[dict[str, Any]]], opaque: list[list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    routes = [
        {
            "match": {"prefix": "/", "headers": [{"name": "x-case", "string_match": {"exact": str(number)}}]},
            "direct_response": {"status": 200},
            "typed_per_filter_config": per_route(documents, FILTERS),
        }
        for number, documents in enumerate(sets)
    ]
    listeners = [
        {"name": "plain", "address": _address(ports.plain), "filter_chains": [http_chain(routes)]},
        {
            "name": "secure",
            "address": _address(ports.secure),
            "listener_filters": [
                _typed("envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector", {})
            ],
            "filter_chains": [{**http_chain(routes), "transport_socket": downstream_tls(folder)}],
        },
    ]
    for port, documents in zip(ports.tcp, opaque, strict=True):
        echo = _typed("envoy.filters.network.echo", "envoy.extensions.filters.network.echo.v3.Echo", {})
        filters = [*network_filter(documents, "DENY"), *network_filter(documents, "ALLOW"), echo]
        listeners.append({"name": f"tcp-{port}", "address": _address(port), "filter_chains": [{"filters": filters}]})
    return {"admin": {"address": _address(ports.admin)}, "static_resources": {"listeners": listeners}}


def http_chain(routes: list[dict[str, Any]]) -> dict[str, Any]:
    manager = {
        "stat_prefix": "it",
        "codec_type": "HTTP1",
        "use_remote_address": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            jwt_filter(json.dumps({"keys": [{**jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "k"}]})),
            *(http_filter(name) for name in FILTERS.values()),
            _typed("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router", {}),
        ],
    }
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    return {"filters": [_typed("envoy.filters.network.http_connection_manager", kind, manager)]}


def context_of(principal: str) -> Any:
    return credentials(f"spiffe://{principal}", principal.partition("/")[0]).context


def downstream_tls(folder: Path) -> dict[str, Any]:
    chain, key = write_svid(context_of("mesh.test/ns/shop/sa/api"), folder / "server")
    domains = []
    for name in ("mesh.test", "two.test"):
        ca_of(name)
        (folder / name).mkdir(parents=True)
        bundle = write_bundle(context_of(f"{name}/ns/shop/sa/api"), folder / name)
        domains.append({"name": name, "trust_bundle": {"filename": str(bundle)}})
    validator = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
    common = {
        "tls_certificates": [{"certificate_chain": {"filename": str(chain)}, "private_key": {"filename": str(key)}}],
        "validation_context": {
            "custom_validator_config": _typed("envoy.tls.cert_validator.spiffe", validator, {"trust_domains": domains})
        },
    }
    kind = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return _typed("envoy.transport_sockets.tls", kind, {"require_client_certificate": True, "common_tls_context": common})


# -- the callers ----------------------------------------------------------------------------------------------


class Client:
    """Connections to Envoy, kept open, one for each way to call."""

    def __init__(self, ports: Ports, folder: Path) -> None:
        self.ports = ports
        self.folder = folder
        self.open: dict[tuple[str | None, str, str], http.client.HTTPConnection] = {}

    def ask(self, case: int, asked: Asked) -> int:
        connection = self.connection(asked)
        connection.putrequest(asked.method, asked.target, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", asked.host)
        connection.putheader("x-case", str(case))
        if asked.method in ("PUT", "POST"):
            connection.putheader("Content-Length", "0")
        for name, lines in (("x-role", asked.roles), ("X-Other", asked.other)):
            for line in lines:
                connection.putheader(name, line)
        if asked.forwarded:
            connection.putheader("x-forwarded-for", asked.forwarded)
        if asked.claims is not None:
            connection.putheader("Authorization", "Bearer " + jwt.encode(asked.claims, KEY, "ES256", {"kid": "k"}))
        connection.endheaders()
        response = connection.getresponse()
        response.read()
        return response.status

    def connection(self, asked: Asked) -> http.client.HTTPConnection:
        sni = asked.sni if asked.principal is not None else ""
        key = (asked.principal, asked.source_ip, sni)
        if key not in self.open:
            port = self.ports.plain if asked.principal is None else self.ports.secure
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            sock = socket.create_connection(("127.0.0.1", port), 10, source_address=(asked.source_ip, 0))
            connection.sock = sock if asked.principal is None else self.secured(sock, asked.principal, sni)
            self.open[key] = connection
        return self.open[key]

    def secured(self, sock: socket.socket, principal: str, sni: str) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(*write_svid(context_of(principal), self.folder / principal.replace("/", "-")))
        return context.wrap_socket(sock, server_hostname=sni or None)

    def close(self) -> None:
        for connection in self.open.values():
            connection.close()


@contextmanager
def client_of(ports: Ports, folder: Path) -> Iterator[Client]:
    client = Client(ports, folder)
    try:
        yield client
    finally:
        client.close()


def is_echoed(port: int, source_ip: str) -> bool:
    with socket.create_connection(("127.0.0.1", port), 10, source_address=(source_ip, 0)) as sock:
        sock.sendall(b"x")
        try:
            return sock.recv(1) == b"x"
        except ConnectionResetError:
            return False


# -- the comparison -------------------------------------------------------------------------------------------


def compiled(documents: list[dict[str, Any]]) -> CompiledPolicies:
    return compile_policies(read_data(documents), API, "istio")


def ask_http(ports: Ports, sets: list[list[dict[str, Any]]], chance: Chance, folder: Path) -> tuple[Counter[bool], list[str]]:
    told: Counter[bool] = Counter()
    differ = []
    with client_of(ports, folder) as client:
        for number, documents in enumerate(sets):
            policies = compiled(documents)
            for _ in range(REQUESTS):
                asked = chance.request()
                request = asked.facts(ports.plain if asked.principal is None else ports.secure)
                status = client.ask(number, asked)
                assert status in (200, 403), (status, asked)
                ours = decide(policies, request)
                told[status == 200] += 1
                if ours.allowed != (status == 200):
                    differ.append(f"Envoy {status}, we {ours}\n  {asked}\n  {[d['spec'] for d in documents]}")
    return told, differ


def ask_tcp(ports: Ports, opaque: list[list[dict[str, Any]]], chance: Chance) -> tuple[Counter[bool], list[str]]:
    told: Counter[bool] = Counter()
    differ = []
    for port, documents in zip(ports.tcp, opaque, strict=True):
        policies = compiled(documents)
        for _ in range(TCP_REQUESTS):
            source = chance.rng.choice(["127.0.0.1", "127.0.0.2", "127.0.0.9", str(ipaddress.ip_address(0x7F000000 + chance.rng.randint(1, 16)))])
            passed = is_echoed(port, source)
            request = AccessRequest(protocol="tcp", principal=None, namespace=None, port=port, source_ip=source, destination_ip="127.0.0.1")
            ours = decide(policies, request)
            told[passed] += 1
            if ours.allowed != passed:
                differ.append(f"Envoy {passed}, we {ours}\n  {source} to {port}\n  {[d['spec'] for d in documents]}")
    return told, differ


async def test_envoy_and_we_decide_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_envoy()
    ports = Ports.free()
    chance = Chance(2026, [ports.plain, ports.secure])
    sets = [chance.documents() for _ in range(SETS)]
    opaque = []
    for port in ports.tcp:
        chance.ports = [str(port)]
        opaque.append(chance.documents(tcp=True))
    config = envoy_config(ports, sets, opaque, tmp_path / "keys")
    async with run_envoy(config, tmp_path / "envoy"):
        http_told, http_differ = await trio.to_thread.run_sync(ask_http, ports, sets, chance, tmp_path / "callers")
        tcp_told, tcp_differ = await trio.to_thread.run_sync(ask_tcp, ports, opaque, chance)
    differ = [*http_differ, *tcp_differ]
    with capsys.disabled():
        print(
            f"\nEnvoy and decide(): {sum(http_told.values())} HTTP pairs over {SETS} sets of policies "
            f"({http_told[True]} allowed, {http_told[False]} denied), {sum(tcp_told.values())} TCP pairs over {TCP_SETS} "
            f"({tcp_told[True]} allowed, {tcp_told[False]} denied), {len(differ)} disagree"
        )
    assert not differ, "\n".join(differ[:5])
    assert sum(http_told.values()) + sum(tcp_told.values()) >= 2000
    assert min(*http_told.values(), *tcp_told.values()) >= 20
