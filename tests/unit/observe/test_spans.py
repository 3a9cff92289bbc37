from __future__ import annotations

import re
from typing import Any

import pytest

from proxy.observe import names
from proxy.observe.names import GRPC_CODES
from proxy.observe.spans import Span, build_spans, peer_name, split_address
from tests.unit.observe.records import STARTED, decision, denied, exchange, grpc, peer, trace

KNOWN = {b"/shop.Stock/Reserve": "shop.Stock/Reserve"}


def pair(record: object) -> tuple[Span, Span]:
    server, client = build_spans(record, "shop/api", KNOWN)  # type: ignore[arg-type]
    return server, client


@pytest.mark.parametrize("direction", ["inbound", "outbound"])
def test_an_exchange_is_a_server_span_and_a_client_span_below_it(direction: str) -> None:
    parent = trace(seed=9)
    record = exchange(direction, trace=trace(seed=2, parent=parent))
    server, client = pair(record)
    assert record.trace is not None
    assert (server.kind, client.kind) == ("SERVER", "CLIENT")
    assert server.parent_id == parent.client_span_id.decode()
    assert server.remote_parent
    assert server.span_id == record.trace.span_id.decode()
    assert client.span_id == record.trace.client_span_id.decode()
    assert client.parent_id == server.span_id
    assert not client.remote_parent
    assert server.trace_id == client.trace_id == parent.trace_id.decode()


def test_times_are_wall_clock_and_the_client_span_lies_within() -> None:
    record = exchange(seconds=0.05)
    record.sent_at = record.started_at + 0.010
    record.connect_seconds = 0.007
    server, client = pair(record)
    assert server.start_ns == pytest.approx(STARTED * 1e9, abs=1000)
    assert server.duration_ns == pytest.approx(50e6, abs=1000)
    assert client.start_ns - server.start_ns == pytest.approx(3e6, abs=1000)
    assert client.end_ns == pytest.approx(server.end_ns, abs=2000)


def test_a_refused_exchange_has_no_client_span() -> None:
    record = denied()
    record.decision_id = "f3kq2vjz5ryt4c7mabxw6h2nde"
    (server,) = build_spans(record, "shop/api", KNOWN)
    assert server.attributes[names.DECISION_ID] == "f3kq2vjz5ryt4c7mabxw6h2nde"
    assert server.decision == "deny"
    assert server.status == "UNSET"
    assert names.ERROR_TYPE not in server.attributes
    assert server.attributes[names.REASON] == "no_allow_policy_matched"
    assert server.attributes[names.NEAREST] == "shop/allow-web#0:methods"
    assert server.attributes[names.FLAGS] == ["RBAC"]


def test_an_exchange_without_trace_context_has_no_spans() -> None:
    assert build_spans(exchange(trace=None), "shop/api", KNOWN) == []


def test_the_http_server_span_has_the_stable_attributes() -> None:
    record = exchange(route="/orders/*", user_agent=b"x" * 300, bytes_received=5)
    server, _ = pair(record)
    assert server.name == "GET /orders/*"
    expected = {
        "http.request.method": "GET",
        "url.scheme": "https",
        "url.path": "/orders/17",
        "http.route": "/orders/*",
        "http.response.status_code": 200,
        "network.protocol.version": "2",
        "server.address": "api.shop",
        "server.port": 8443,
        "client.address": "10.1.4.7",
        "network.peer.address": "10.1.4.7",
        "network.peer.port": 40122,
        "user_agent.original": "x" * 256,
        "http.request.body.size": 5,
        "http.response.body.size": 167,
    }
    assert expected.items() <= server.attributes.items()


def test_every_span_says_who_the_peer_is_and_what_was_decided() -> None:
    expected = {
        "tls.established": True,
        "tls.protocol.version": "1.3",
        "tls.client.hash.sha256": "ab" * 32,
        "tls.client.issuer": "CN=shop issuing",
        "tls.client.not_after": "2026-11-26T10:26:12Z",
        "service.peer.name": "web",
        "service.peer.namespace": "shop",
        "sidewall.peer.id": "spiffe://shop.internal/ns/shop/sa/web",
        "sidewall.direction": "inbound",
        "sidewall.authz.decision": "allow",
        "security_rule.ruleset.name": "shop/allow-web",
        "security_rule.name": "0",
        "sidewall.upstream.name": "app",
        "sidewall.attempts": 1,
        "sidewall.config.generation": 12,
    }
    for span in pair(exchange()):
        assert expected.items() <= span.attributes.items()


def test_the_outbound_side_names_the_server_it_met() -> None:
    _, client = pair(exchange("outbound"))
    assert client.attributes["sidewall.peer.id"] == "spiffe://shop.internal/ns/shop/sa/api"
    assert client.attributes["tls.server.hash.sha256"] == "ab" * 32
    assert client.peer == "shop/api"
    assert "tls.client.hash.sha256" not in client.attributes


def test_the_http_client_span_has_the_url_without_credentials() -> None:
    record = exchange("outbound", authority=b"alice:secret@api.shop", attempts=3)
    _, client = pair(record)
    expected = {
        "http.request.method": "GET",
        "url.full": "https://api.shop/orders/17",
        "http.request.resend_count": 2,
        "network.peer.address": "10.1.4.9",
        "network.peer.port": 8443,
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
    }
    assert expected.items() <= client.attributes.items()
    assert client.name == "GET"
    assert "secret" not in str(client.attributes)


def test_an_unknown_method_is_other_and_makes_no_name() -> None:
    server, client = pair(exchange(method=b"BREW"))
    assert (server.name, client.name) == ("HTTP", "HTTP")
    assert server.attributes["http.request.method"] == "_OTHER"
    assert server.attributes["http.request.method_original"] == "BREW"


@pytest.mark.parametrize(
    ("changes", "server", "client", "error"),
    [
        ({"status": 200}, "UNSET", "UNSET", None),
        ({"status": 404}, "UNSET", "ERROR", None),
        ({"status": 503}, "ERROR", "ERROR", "503"),
        ({"status": 503, "reason": "no_identity", "first_byte_at": 0.0}, "ERROR", "ERROR", "no_identity"),
        ({"status": 200, "reason": "upstream_reset"}, "ERROR", "ERROR", "upstream_reset"),
        ({"status": 0, "reason": "downstream_closed"}, "ERROR", "ERROR", "downstream_closed"),
    ],
)
def test_status_follows_the_conventions(
    changes: dict[str, Any], server: str, client: str, error: str | None
) -> None:
    spans = pair(exchange(**changes))
    assert (spans[0].status, spans[1].status) == (server, client)
    assert spans[0].attributes.get("error.type") == error


def test_our_own_answer_is_not_said_to_be_the_upstreams() -> None:
    server, client = pair(exchange(status=503, reason="upstream_connect_failed", first_byte_at=0.0))
    assert server.attributes["http.response.status_code"] == 503
    assert "http.response.status_code" not in client.attributes


def test_a_grpc_exchange_has_rpc_spans_instead_of_http_spans() -> None:
    for span in pair(grpc()):
        assert span.name == "shop.Stock/Reserve"
        assert span.attributes["rpc.system.name"] == "grpc"
        assert span.attributes["rpc.method"] == "shop.Stock/Reserve"
        assert span.attributes["rpc.response.status_code"] == "OK"
        assert span.code == "OK"
        assert not {"http.request.method", "http.response.status_code", "url.full"} & set(span.attributes)


def test_a_grpc_method_nobody_has_answered_is_other() -> None:
    server, _ = pair(grpc(path=b"/guess.Work/One"))
    assert server.name == "grpc"
    assert server.attributes["rpc.method"] == "_OTHER"
    assert server.attributes["rpc.method_original"] == "guess.Work/One"


@pytest.mark.parametrize("code", range(17))
def test_grpc_status_is_an_error_for_the_client_unless_ok_and_for_the_server_if_its_fault(code: int) -> None:
    server, client = pair(grpc(grpc_status=code))
    at_fault = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
    assert (server.status == "ERROR") == (GRPC_CODES[code] in at_fault)
    assert (client.status == "ERROR") == (code != 0)
    assert client.attributes.get("error.type") == (GRPC_CODES[code] if code else None)


def test_a_grpc_answer_without_status_is_an_error_of_both() -> None:
    server, client = pair(grpc(grpc_status=None, status=502, reason="upstream_protocol_error"))
    assert (server.status, client.status) == ("ERROR", "ERROR")
    assert server.attributes["http.response.status_code"] == 502
    assert server.attributes["error.type"] == "upstream_protocol_error"


def test_a_strangers_context_becomes_a_link() -> None:
    record = exchange(trace=trace(link=(b"4b" * 16, b"00" * 7 + b"01")))
    server, client = pair(record)
    assert server.link == ("4b" * 16, "00" * 7 + "01")
    assert client.link is None
    assert server.parent_id == ""


def test_timings_are_on_the_client_span() -> None:
    record = exchange(connect_seconds=0.004)
    record.sent_at = record.started_at + 0.005
    record.first_byte_at = record.started_at + 0.030
    _, client = pair(record)
    assert client.attributes["sidewall.time.connect"] == 0.004
    assert client.attributes["sidewall.time.first_byte"] == pytest.approx(0.025)
    assert client.attributes["sidewall.time.body"] == pytest.approx(0.0182)


def test_a_dry_run_decision_is_marked() -> None:
    assert pair(exchange(decision=decision(audited=True)))[0].decision == "audit_deny"


def test_names_of_peers_come_from_proof_only() -> None:
    assert peer_name(None) == "unknown"
    assert peer_name(peer("shop/web")) == "shop/web"


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("10.1.4.7:40122", "10.1.4.7", 40122),
        ("[::1]:80", "::1", 80),
        ("[::1]", "::1", 0),
        ("::1", "::1", 0),
        ("api.shop", "api.shop", 0),
        ("unix:/run/app.sock", "unix:/run/app.sock", 0),
        ("", "", 0),
        ("a:123456", "a:123456", 0),
        ("a:٤", "a:٤", 0),
    ],
)
def test_addresses_are_split(address: str, host: str, port: int) -> None:
    assert split_address(address) == (host, port)


def test_our_names_are_those_of_the_released_conventions() -> None:
    from opentelemetry.semconv import schemas
    from opentelemetry.semconv._incubating import attributes as incubating
    from opentelemetry.semconv._incubating.attributes import (
        rpc_attributes,
        security_rule_attributes,
        service_attributes,
        tls_attributes,
    )
    from opentelemetry.semconv.attributes import (
        client_attributes,
        error_attributes,
        http_attributes,
        network_attributes,
        server_attributes,
        telemetry_attributes,
        url_attributes,
        user_agent_attributes,
    )

    assert incubating is not None
    modules = (
        rpc_attributes,
        security_rule_attributes,
        service_attributes,
        tls_attributes,
        client_attributes,
        error_attributes,
        http_attributes,
        network_attributes,
        server_attributes,
        telemetry_attributes,
        url_attributes,
        user_agent_attributes,
    )
    released = {value for module in modules for value in vars(module).values() if isinstance(value, str)}
    released |= {"http.request.body.size", "http.response.body.size"}  # incubating, in a module of that name
    ours = {
        value
        for name, value in vars(names).items()
        if name.isupper() and isinstance(value, str) and re.fullmatch(r"[a-z_]+(\.[a-z0-9_]+)+", value)
    }
    assert {name for name in ours - released if not name.startswith("sidewall.")} == set()
    assert names.SCHEMA_URL in {schema.value for schema in schemas.Schemas}
