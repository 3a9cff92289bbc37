from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from config.load import load_all, load_config
from config.model import Address, Config, Inbound, Limits, Timeouts, Workload
from config.problems import ConfigError
from config.resolve import _cpus
from proxy.wire.limits import WireLimits
from proxy.wire.path import NORMALIZATIONS
from proxy.wiring import wire_limits
from tests.unit.config.loading import NOWHERE, codes_of, load, problems_of

TEN_LINES = """
version: 1
workload: shop/api
inbound:
  - listen: 8443
    app: 8080
"""


def test_the_smallest_file_is_one_line() -> None:
    loaded = load("app: 8080")
    (inbound,) = loaded.config.inbound
    assert (inbound.listen, inbound.app, inbound.mtls) == (
        Address("0.0.0.0", 8443),
        Address("127.0.0.1", 8080),
        "STRICT",
    )
    assert (inbound.name, inbound.protocol, inbound.app_protocol) == ("in-8443", "auto", "http1")
    assert loaded.warnings == ()


def test_a_workload_may_be_written_short_or_long() -> None:
    short = load(TEN_LINES).config.workload
    assert (short.namespace, short.name, short.service_account) == ("shop", "api", "api")
    assert short.labels == {"app": "api"}
    text = "app: 1\nworkload: {name: l, namespace: n, serviceAccount: s, labels: {tier: vm, app: other}}"
    long = load(text).config.workload
    assert (long.namespace, long.name, long.service_account) == ("n", "l", "s")
    assert long.labels == {"app": "other", "tier": "vm"}


def test_a_workload_is_named_after_the_host_or_the_pod() -> None:
    assert load("app: 1").config.workload.namespace == "default"
    assert load("app: 1").config.workload.name
    pod = load("app: 1", env={"POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "api"}).config.workload
    assert (pod.namespace, pod.name) == ("shop", "api")


def test_every_limit_of_the_wire_has_the_same_default_in_the_configuration() -> None:
    ours, theirs = Limits(), WireLimits()
    assert WireLimits().authority == "check"  # not for a person to set: what a Unix socket's own services need
    for name in WireLimits.__dataclass_fields__.keys() - {"authority", "path_normalization"}:
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("name", ["strict", *NORMALIZATIONS])
def test_the_paths_of_requests_are_normalized_as_configured(name: str) -> None:
    assert wire_limits(load(f"{{app: 1, policy: {{pathNormalization: {name}}}}}").config).path_normalization == name


def test_paths_have_one_reading_unless_something_else_is_written() -> None:
    assert wire_limits(load("app: 1").config).path_normalization == WireLimits().path_normalization == "strict"


def test_times_of_a_listener_come_from_the_general_ones_unless_written() -> None:
    config = load(
        "timeouts: {header: 3s, request: 4s, poolIdle: 7s, connect: 2s}\n"
        "inbound: [{app: 1, timeouts: {request: 60s}}]\n"
        "outbound: [{to: a}]\n"
        "upstreams: {a: {dns: a:1, expect: x/a, timeouts: {connect: 1s}}}"
    ).config
    assert (config.inbound[0].timeouts.header, config.inbound[0].timeouts.request) == (3, 60)
    assert (config.outbound[0].timeouts.header, config.outbound[0].timeouts.request) == (3, 4)
    assert (config.upstreams["a"].timeouts.connect, config.upstreams["a"].timeouts.idle) == (1, 7)
    assert config.origins["inbound[0].timeouts.header"] == "sidewall.yaml:1"
    assert config.origins["inbound[0].timeouts.request"] == "sidewall.yaml:2"
    assert config.origins["inbound[0].timeouts.idle"] == "default"


def test_bodies_and_heads_of_a_listener_come_from_the_limits_unless_written() -> None:
    config = load("limits: {body: 1MiB, head: 32KiB}\ninbound: [{app: 1}, {listen: 2, app: 3, maxBody: 0}]").config
    assert [(item.max_body, item.max_header) for item in config.inbound] == [(2**20, 32768), (0, 32768)]


def test_the_field_names_of_a_destination_rule_are_understood() -> None:
    upstream = load(
        "outbound: [{to: a}]\n"
        "upstreams: {a: {endpoints: [10.0.0.1:1], expect: [x/a, spiffe://td/b], trafficPolicy: {loadBalancer: "
        "{simple: ROUND_ROBIN}, connectionPool: {tcp: {maxConnections: 7, connectTimeout: 250ms}, "
        "http: {http1MaxPendingRequests: 8, http2MaxRequests: 9, maxRequestsPerConnection: 10, idleTimeout: 11s}}}}}"
    ).config.upstreams["a"]
    pool = upstream.traffic_policy.connection_pool
    assert upstream.traffic_policy.load_balancer.simple == "ROUND_ROBIN"
    assert (pool.tcp.max_connections, pool.http.http1_max_pending_requests, pool.http.http2_max_requests) == (7, 8, 9)
    assert (pool.http.max_requests_per_connection, upstream.timeouts.connect, upstream.timeouts.idle) == (
        10,
        0.25,
        11,
    )
    assert upstream.expected_ids("shop.internal") == {"spiffe://shop.internal/ns/x/sa/a", "spiffe://td/b"}


def test_opaque_bytes_on_one_side_are_opaque_on_the_other() -> None:
    config = load("inbound: [{app: 1, appProtocol: tcp}, {listen: 2, app: 3, protocol: tcp}]").config
    assert [(item.protocol, item.app_protocol) for item in config.inbound] == [("tcp", "tcp"), ("tcp", "tcp")]
    assert codes_of("inbound: [{app: 1, protocol: h2, appProtocol: tcp}]") == ["SW0206"]


def test_identity_is_files_or_the_folder_of_a_ca() -> None:
    files = load("app: 1\nidentity: {cert: c.pem, key: k.pem, bundle: /b.pem}").config.identity
    assert (files.source, files.cert, files.bundle, files.ca_dir) == (
        "files",
        NOWHERE / "c.pem",
        Path("/b.pem"),
        None,
    )
    folder = load("app: 1\nidentity: {caDir: ca, ttl: 5m}").config.identity
    assert (folder.source, folder.ca_dir, folder.ttl) == ("ca-folder", NOWHERE / "ca", 300)
    assert load("app: 1").config.identity.ca_dir == Path("/home/me/.local/state/sidewall/ca")
    assert codes_of("app: 1\nidentity: {cert: c}") == ["SW0106", "SW0106"]
    assert codes_of("app: 1\nidentity: {caDir: c, bundle: b}") == ["SW0206"]


def test_paths_begin_at_the_file_they_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc" / "policy").mkdir(parents=True)
    (tmp_path / "etc" / "s.yaml").write_text("inbound: [{listen: 'unix:in.sock', app: 'unix:app.sock'}]\n")
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("etc/s.yaml"), env={})
    assert config.inbound[0].app == Address(path="etc/app.sock")
    assert config.policy.from_ == (Path("etc/policy"),)
    override = load_config(Path("etc/s.yaml"), env={}, overrides={"telemetry.traces.file": "t.db"})
    assert override.telemetry.traces.file == tmp_path / "t.db"


def test_all_problems_come_at_once() -> None:
    text = (
        "vesion: 1\nworkers: many\ninbound: [{listen: 1}, {app: x}]\nadmin: {listen: 0.0.0.0:15000}\n---\nkind: X\n"
    )
    assert [(p.code, p.line) for p in problems_of(text)] == [
        ("SW0101", 1),
        ("SW0105", 2),
        ("SW0106", 3),
        ("SW0105", 3),
        ("SW0203", 4),
        ("SW0112", 6),
    ]


def test_an_entry_that_cannot_be_read_does_not_move_the_places_of_others() -> None:
    (first, second) = problems_of("inbound:\n- {listen: 1}\n- {listen: 2, app: 10.0.0.1:1}\n")
    assert (first.code, second.code, second.line, second.path) == ("SW0106", "SW0203", 3, "inbound[1].app")


@pytest.mark.parametrize(
    "text",
    [
        "app: 1\nidentity: {allowTrustDomains: [x]}",
        "inbound: [{app: 1, capture: true}]",
        "inbound: [{app: 1, skipPorts: [1]}]",
        "inbound: [{app: 1, proxyProtocol: v2}]",
        "inbound: [{app: 1, listen: systemd:x}]",
        "outbound: [{to: a, unknown: refuse}]\nupstreams: {a: {dns: a:1, expect: a/a}}",
        "outbound: [{to: a}]\nupstreams: {a: {dns: a:1, expect: a/a, retry: {}}}",
        "outbound: [{to: a}]\nupstreams: {a: {dns: a:1, expect: a/a, health: {path: /}}}",
        "outbound: [{to: a}]\nupstreams: {a: {dns: a:1, expect: a/a, tls: off}}",
        "outbound: [{to: a}]\nupstreams: {a: {dns: a:1, expect: a/a, trafficPolicy: {outlierDetection: {a: 1}}}}",
        "app: 1\nsecrets: {a: {}}",
        "app: 1\nshutdown: {waitForApp: true}",
        "app: 1\ntelemetry: {metrics: {istioNames: true}}",
    ],
)
def test_what_comes_later_is_refused_by_name(text: str) -> None:
    (problem,) = problems_of(text)
    assert problem.code == "SW0120"
    assert "not supported yet" in problem.message or "not supported yet" in problem.hint


def test_the_order_is_command_line_then_environment_then_file_then_default() -> None:
    text = "app: 1\nshutdown: {drain: 10s}\nworkers: 2\nlog: info"
    env = {"SIDEWALL_SHUTDOWN__DRAIN": "20s", "SIDEWALL_WORKERS": "3"}
    config = load(text, env=env, overrides={"shutdown.drain": "30s"}).config
    assert (config.shutdown.drain, config.workers, config.log.level, config.tls.minimum) == (30, 3, "info", "1.3")
    origins = [config.origins[path] for path in ("shutdown.drain", "workers", "log.level", "tls.minimum")]
    assert origins == ["--set shutdown.drain", "env SIDEWALL_WORKERS", "sidewall.yaml:4", "default"]


def test_a_variable_reaches_into_lists_mappings_and_compound_words() -> None:
    env = {
        "SIDEWALL_INBOUND__0__APP": "9090",
        "SIDEWALL_INBOUND__1": "{listen: 1, app: 2}",
        "SIDEWALL_UPSTREAMS__MY_STOCK__DNS": "new:1",
        "SIDEWALL_TRUST_DOMAIN": "td",
        "SIDEWALL_LOG": "debug,proxy.upstream=info",
        "SIDEWALL_WORKLOAD": "a/b",
    }
    text = (
        "inbound: [{listen: 8443, app: 8080}]\n"
        "outbound: [{to: my-stock}]\nupstreams: {my-stock: {dns: a:1, expect: a/a}}"
    )
    config = load(text, env=env).config
    assert [item.app.port for item in config.inbound] == [9090, 2]
    assert str(config.upstreams["my-stock"].dns) == "new:1"
    assert (config.trust_domain, config.log.level, config.workload.name) == ("td", "debug,proxy.upstream=info", "b")


def test_variables_of_others_are_left_alone_and_misspelled_ones_are_warned_about() -> None:
    env = {
        "SIDEWALL_PORT": "tcp://10.0.0.1:80",
        "SIDEWALL_SERVICE_HOST": "10.0.0.1",
        "SIDEWALL_CA_PORT_15012_TCP_ADDR": "10.0.0.1",
        "SIDEWALL_ADMIN": "api",
        "SIDEWALL_WORKER": "3",
        "SIDEWALL_WORKERS": "",
    }
    (problem,) = load("app: 1", env=env).warnings
    assert (problem.code, problem.file, problem.hint) == ("SW0114", "env SIDEWALL_WORKER", "did you mean 'workers'?")


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("wokers", "1", "SW0114"),
        ("workers", "x", "SW0105"),
        ("inbound.5.app", "1", "SW0121"),
        ("workload.name", "x", "SW0103"),
    ],
)
def test_an_override_is_checked_like_the_file(key: str, value: str, code: str) -> None:
    (problem,) = problems_of("inbound: [{app: 1}]\nworkload: a/b", overrides={key: value})
    assert (problem.code, problem.file, problem.severity) == (code, f"--set {key}", "error")


def test_references_are_filled_in(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("secret-name\n")
    text = "app: ${PORT}\nworkload: ${NS:-shop}/${file:name}\ntrustDomain: ${EMPTY:-td}\nlog: ${LOG:-}"
    env = {"PORT": "8080", "EMPTY": ""}
    assert [p.code for p in problems_of(text, env=env, base=tmp_path)] == ["SW0105"]  # log: "" is no level
    config = load(text.replace("\nlog: ${LOG:-}", ""), env=env, base=tmp_path).config
    assert (config.inbound[0].app.port, config.trust_domain) == (8080, "td")
    assert (config.workload.namespace, config.workload.name) == ("shop", "secret-name")


def test_a_reference_cannot_change_the_structure() -> None:
    config = load("app: 1\nadmin: {socket: '${X}'}", env={"X": "a}\nworkers: 7"}).config
    assert (config.workers, config.admin.socket) == (1, NOWHERE / "a}\nworkers: 7")


def test_an_escaped_reference_is_plain_text() -> None:
    assert load("app: 1\nadmin: {socket: '/a/$${X}'}").config.admin.socket == Path("/a/${X}")


@pytest.mark.parametrize("text", ["${NOPE}", "${file:nope}", "${1X}", "${OPEN", "${}"])
def test_a_reference_that_cannot_be_filled_in_is_one_problem(text: str) -> None:
    assert codes_of(f"app: 1\ntrustDomain: '{text}'") == ["SW0111"]


def test_secrets_are_shown_as_stars_everywhere(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("very-secret")
    text = "app: 1\ntrustDomain: ${file:s}\nadmin: {socket: '/a/${MY_TOKEN}'}"
    config = load(text, base=tmp_path, env={"MY_TOKEN": "hush"}).config
    shown = config.flat()
    assert (shown["trustDomain"], shown["admin.socket"]) == ("***", "***")
    (problem,) = problems_of("app: 1\ntls: {minimum: '${MY_TOKEN}'}", env={"MY_TOKEN": "hush"})
    assert "hush" not in str(problem) + problem.hint + problem.snippet


def test_every_value_has_an_origin() -> None:
    config = load(TEN_LINES).config
    assert config.flat().keys() == dict(config.origins).keys()
    assert config.origins["workload.namespace"] == "sidewall.yaml:3"


def test_upstreams_and_listeners_must_fit_together() -> None:
    base = "upstreams: {stock: {dns: s:1, expect: a/s}}\n"
    (problem,) = problems_of(base + "outbound: [{to: stok}]")
    assert (problem.code, problem.hint, problem.note) == (
        "SW0201",
        "did you mean 'stock'?",
        "known upstreams: stock   (sidewall.yaml:1)",
    )


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("inbound: [{app: 1}, {app: 2}]", ["SW0202"]),
        ("inbound: [{listen: 10.0.0.1:8443, app: 1}, {listen: 8443, app: 2}]", ["SW0202"]),
        ("inbound: [{listen: 10.0.0.1:8443, app: 1}, {listen: 10.0.0.2:8443, app: 2}]", []),
        ("inbound: [{name: a, app: 1}, {name: a, listen: 2, app: 3}]", ["SW0202"]),
        ("inbound: [{app: 1}]\nadmin: {probes: 8443}", ["SW0202"]),
        ("inbound: [{app: 8443}]", ["SW0206"]),
        ("inbound: [{app: 10.0.0.1:1}]", ["SW0203"]),
        ("inbound: [{app: 'app:1'}]", ["SW0203"]),
        ("inbound: [{app: 'app:1', unsafeApp: true}]", []),
        ("app: 1\ninbound: [{app: 2}]", ["SW0206"]),
        ("outbound: [{to: a, listen: 0.0.0.0:1}]\nupstreams: {a: {dns: a:1, expect: a/a}}", ["SW0203"]),
        ("outbound: [{to: a, listen: 0.0.0.0:1, unsafeListen: true}]\nupstreams: {a: {dns: a:1, expect: a/a}}", []),
        ("outbound: [{to: a}]\nupstreams: {a: {dns: a:1}}", ["SW0204"]),
        ("outbound: [{to: a}]\nupstreams: {a: {dns: a:1, expect: []}}", ["SW0204"]),
        ("outbound: [{to: a}]\nupstreams: {a: {dns: a:1, expect: a/*}}", ["SW0105"]),
        ("outbound: [{to: a}]\nupstreams: {a: {expect: a/a}}", ["SW0106"]),
        ("outbound: [{to: a}]\nupstreams: {a: {endpoints: [1.1.1.1:1], dns: a:1, expect: a/a}}", ["SW0206"]),
        ("app: 1\nupstreams: {a: {dns: a:1, expect: a/a}}", ["SW0207"]),
        ("app: 1\nshutdown: {drain: 1s}", ["SW0206"]),
        ("app: 1\nlimits: {header: 128KiB}", ["SW0206"]),
        ("app: 1\nadmin: {listen: 0.0.0.0:1}", ["SW0203"]),
        ("app: 1\nadmin: {listen: off, socket: off}", []),
        ("app: 1\ntimeouts: {header: 0s}", ["SW0121"]),
        ("app: 1\ntimeouts: {request: 0s}", []),
        ("app: 1\ntelemetry: {accessLog: {filter: slow>250ms, format: text, to: stderr}}", []),
        ("app: 1\ntelemetry: {accessLog: {filter: sometimes}}", ["SW0105"]),
        ("app: 1\nlog: loud", ["SW0105"]),
        ("app: 'unix:" + "x" * 100 + "'", ["SW0105"]),
        ("app: 1\nadmin: {socket: /" + "x" * 110 + "}", ["SW0105"]),
        ("app: 1\npolicy: ./nope", ["SW0113"]),
        ("workers: 2", ["SW0208"]),
        ("just words", ["SW0103"]),
        ("app: 1\n---\napp: 2", ["SW0112"]),
    ],
)
def test_contradictions_are_found(text: str, codes: list[str]) -> None:
    assert codes_of(text) == codes


def test_a_section_is_complete_when_made_by_hand() -> None:
    config = Config(workload=Workload(name="api", namespace="shop"), inbound=(Inbound(app=Address("127.0.0.1", 80)),))
    assert config.inbound[0].timeouts.request == Timeouts().request == 15
    with pytest.raises(TypeError, match="app"):
        Inbound()


def test_without_a_file_the_reader_is_told_how_to_write_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("config.load.SEARCHED", (Path("sidewall.yaml"),))
    with pytest.raises(ConfigError, match="no configuration file"):
        load_all()
    (tmp_path / "sidewall.yaml").write_text("app: 1")
    assert load_all(env={}).path == Path("sidewall.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_all(tmp_path / "other.yaml", env={})


def test_the_digest_changes_with_everything_that_decides(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("td")
    text = "app: 1\ntrustDomain: ${file:f}\nlog: ${LEVEL:-info}"
    seen = {load(text, base=tmp_path).digest, load(text, base=tmp_path).digest}
    assert len(seen) == 1
    seen.add(load(text + " ", base=tmp_path).digest)
    seen.add(load(text, base=tmp_path, env={"LEVEL": "debug"}).digest)
    seen.add(load(text, base=tmp_path, env={"SIDEWALL_WORKERS": "2"}).digest)
    seen.add(load(text, base=tmp_path, overrides={"workers": "2"}).digest)
    (tmp_path / "f").write_text("td2")
    seen.add(load(text, base=tmp_path).digest)
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "a.yaml").write_text("# nothing\n")
    seen.add(load(text, base=tmp_path).digest)
    assert len(seen) == 7


def test_readiness_needs_a_source_of_policy(tmp_path: Path) -> None:
    assert not load("app: 1").has_policy
    assert load("app: 1\npolicy: {default: audit}").has_policy
    assert not load("app: 1", base=tmp_path).has_policy
    (tmp_path / "policy").mkdir()
    loaded = load("app: 1", base=tmp_path)
    assert loaded.has_policy
    assert tmp_path / "policy" in loaded.files


def test_a_policy_folder_that_is_not_there_yet_is_watched() -> None:
    assert NOWHERE / "policy" in load("app: 1").files


def test_workers_may_follow_the_machine() -> None:
    assert load("app: 1\nworkers: auto").config.workers >= 1


def test_the_log_goes_to_a_stream_or_to_a_path_beside_the_file(tmp_path: Path) -> None:
    for written, meant in (("stdout", "stdout"), ("stderr", "stderr"), ("a.log", str(tmp_path / "a.log"))):
        file = tmp_path / "sidewall.yaml"
        file.write_text(f"app: 1\ntelemetry: {{accessLog: {{to: {written}}}}}\n")
        assert load_config(file).telemetry.access_log.to == meant


def test_auto_workers_respect_the_quota_of_the_container(tmp_path: Path) -> None:
    quota, most = tmp_path / "cpu.max", len(os.sched_getaffinity(0))
    for text, cpus in (("100000 100000", 1), ("150000 100000", min(2, most)), ("max 100000", most), ("", most), ("1 0", most)):
        quota.write_text(text)
        assert _cpus(quota) == cpus
    assert _cpus(tmp_path / "none") == most


def test_an_identity_comes_from_a_running_ca() -> None:
    config = load("app: 1\nidentity: {ca: https://ca.shop.internal:15012}").config
    assert (config.identity.source, config.identity.ca.url) == ("ca", "https://ca.shop.internal:15012")
    assert config.identity.folder is not None
    whole = load("app: 1\nidentity: {ca: {url: 'unix:/run/ca.sock', tokenFile: /t, bundleFile: /b}}").config.identity
    assert (str(whole.ca.token_file), str(whole.ca.bundle_file), whole.ca_dir) == ("/t", "/b", None)


def test_an_identity_comes_from_a_workload_api() -> None:
    config = load("app: 1\nidentity: {workloadApi: 'unix:/run/spire/agent.sock'}").config
    assert (config.identity.source, config.identity.workload_api) == ("workloadApi", "unix:/run/spire/agent.sock")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("identity: {ca: http://x}", "SW0105"),
        ("identity: {ca: https://x/path}", "SW0105"),
        ("identity: {workloadApi: /run/x.sock}", "SW0105"),
        ("identity: {source: ca}", "SW0106"),
        ("identity: {source: workloadApi}", "SW0106"),
        ("identity: {ca: https://x, caDir: ./ca}", "SW0206"),
        ("identity: {ca: https://x, workloadApi: 'unix:/y'}", "SW0206"),
    ],
)
def test_sources_of_an_identity_that_cannot_be(text: str, code: str) -> None:
    (problem,) = problems_of(f"app: 1\n{text}")
    assert problem.code == code


def test_a_ca_that_runs_on_this_machine_is_used_without_being_named(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "ca.sock"))
        config = load("app: 1", env={"SIDEWALL_CA": str(tmp_path / "ca.sock")}).config
    assert config.identity.ca.url == f"unix:{tmp_path}/ca.sock"
    assert load("app: 1", env={"SIDEWALL_CA": "/nowhere"}).config.identity.source == "ca-folder"
