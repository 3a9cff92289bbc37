"""The metric families of one proxy: names, labels and help in one place, so that the page can be read here.

Names follow the OpenTelemetry-to-Prometheus rules (dots to ``_``, unit suffix, ``_total``). Labels never hold
a raw path, a Host, a user agent or the name of somebody who did not prove it.
"""

from __future__ import annotations

from proxy.observe.metrics import Registry


class Instruments:
    """All families; ``Telemetry`` binds their series."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._requests()
        self._connections()
        self._proxy()

    def _requests(self) -> None:
        r = self.registry
        http = ("http_request_method", "http_response_status_code")
        rpc = ("rpc_system_name", "rpc_method", "rpc_response_status_code")
        self.http_server = r.histogram(
            "http_server_request_duration_seconds",
            "Duration of inbound HTTP requests, from head in to answer out.",
            *(*http, "http_route", "url_scheme", "network_protocol_version", "error_type"),
        )
        self.http_client = r.histogram(
            "http_client_request_duration_seconds",
            "Duration of outbound HTTP requests.",
            *(*http, "server_address", "server_port", "error_type"),
        )
        self.rpc_server = r.histogram(
            "rpc_server_call_duration_seconds", "Duration of inbound gRPC calls.", *rpc, "error_type"
        )
        self.rpc_client = r.histogram(
            "rpc_client_call_duration_seconds",
            "Duration of outbound gRPC calls.",
            *(*rpc, "error_type", "server_address"),
        )
        self.active_server = r.gauge("http_server_active_requests", "Inbound exchanges that are open.")
        self.active_client = r.gauge("http_client_active_requests", "Outbound exchanges that are open.")
        self.requests = r.counter(
            "sidewall_requests_total",
            "Exchanges by who called whom, route and outcome.",
            *("direction", "source", "destination", "route", "code", "flags", "grpc_status"),
        )
        self.decisions = r.counter(
            "sidewall_authz_decisions_total",
            "Authorization decisions.",
            *("decision", "policy", "rule", "source"),
        )
        self.without_context = r.counter(
            "sidewall_outbound_without_context_total",
            "Outbound exchanges in which the app passed no trace context on.",
        )
        self.malformed = r.counter("sidewall_malformed_total", "Malformed messages refused.", "reason")

    def _connections(self) -> None:
        r = self.registry
        self.handshakes = r.counter("sidewall_handshakes_total", "TLS handshakes.", "role", "result")
        self.connections = r.gauge("sidewall_connections", "Open connections.", "direction", "kind")
        self.connections_total = r.counter(
            "sidewall_connections_total", "Connections opened.", "direction", "kind"
        )
        self.tcp_bytes = r.counter("sidewall_tcp_bytes_total", "Bytes of opaque TCP.", "direction", "dir")
        self.limits = r.counter("sidewall_limits_total", "How often a limit was hit.", "limit")

    def _proxy(self) -> None:
        r = self.registry
        self.svid_expiry = r.gauge("sidewall_svid_expiry_timestamp_seconds", "When our certificate ends.")
        self.svid_renewals = r.counter("sidewall_svid_renewals_total", "Certificate renewals.", "result")
        self.generation = r.gauge("sidewall_config_generation", "Generation of the configuration in use.")
        self.reload_ok = r.gauge(
            "sidewall_config_last_reload_successful", "1 when the last reload was taken, 0 when refused."
        )
        self.reload_time = r.gauge(
            "sidewall_config_last_reload_success_timestamp_seconds", "When a configuration was last taken."
        )
        self.dropped = r.counter(
            "sidewall_telemetry_dropped_total", "Log lines and spans lost to overload.", "signal"
        )
        self.loop_lag = r.gauge(
            "sidewall_event_loop_lag_seconds", "The latest the event loop came to a timer in the last 15 s."
        )
        self.build = r.gauge("sidewall_build_info", "Versions, as labels.", "version", "python", "openssl")
