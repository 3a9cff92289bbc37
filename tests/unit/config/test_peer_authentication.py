from __future__ import annotations

import pytest

from config.nodes import parse_yaml
from config.problems import Problem, Problems
from config.resources.peer_authentication import (
    Mode,
    PeerAuthentication,
    Protected,
    mtls_mode,
    parse_peer_authentication,
)

HEAD = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\n"
API = Protected("shop", {"app": "api"})
SELECTOR = (("app", "api"),)


def read(text: str) -> tuple[PeerAuthentication | None, list[Problem]]:
    problems = Problems()
    (document,) = parse_yaml(text, "peer.yaml", problems)
    return parse_peer_authentication(document, "default"), list(problems)


def spec(text: str) -> tuple[PeerAuthentication | None, list[Problem]]:
    return read(f"{HEAD}spec: {text}\n")


def of(
    namespace: str,
    mode: Mode,
    *,
    name: str = "a",
    selector: tuple[tuple[str, str], ...] = (),
    created: float = 0.0,
    ports: tuple[tuple[int, Mode], ...] = (),
) -> PeerAuthentication:
    return PeerAuthentication(name, namespace, mode, ports, selector, created)


# -- reading --------------------------------------------------------------------------------------------------


def test_a_document_is_read_whole() -> None:
    text = (
        "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\n"
        "metadata: {name: api, creationTimestamp: '2026-01-31T12:00:00Z'}\n"
        "spec:\n  selector: {matchLabels: {app: api}}\n  mtls: {mode: STRICT}\n"
        "  portLevelMtls: {8080: {mode: DISABLE}, '9090': {mode: UNSET}}\n"
    )
    found, problems = read(text)
    assert problems == []
    ports = ((8080, Mode.DISABLE), (9090, Mode.UNSET))
    assert found == PeerAuthentication("api", "default", Mode.STRICT, ports, SELECTOR, 1769860800.0)
    assert str(found) == "default/api"


@pytest.mark.parametrize("text", ["{}", "{mtls: {}}", "{mtls: {mode: UNSET}}"])
def test_what_says_nothing_is_unset(text: str) -> None:
    found, problems = spec(text)
    assert problems == []
    assert found is not None
    assert found.mode == Mode.UNSET


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{mtls: {mode: STRICTLY}}", "SW0104"),
        ("{mtls: {mode: strict}}", "SW0104"),
        ("{mtls: {mode: }}", "SW0106"),
        ("{mtls: }", "SW0106"),
        ("{mtls: {modus: STRICT}}", "SW0101"),
        ("{mtlss: {mode: STRICT}}", "SW0101"),
        ("{targetRefs: [{kind: Service, name: api}]}", "SW0120"),
        ("{targetRef: {kind: Service, name: api}}", "SW0120"),
        ("{portLevelMtls: {80: {mode: STRICT}}}", "SW0106"),
        ("{selector: {matchLabels: {}}, portLevelMtls: {80: {mode: STRICT}}}", "SW0106"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {}}", "SW0106"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: STRICT}}}", "SW0105"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {65536: {mode: STRICT}}}", "SW0105"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}", "SW0105"),
        ("{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: STRICT}, '080': {}}}", "SW0106"),
        ("{selector: {matchLabels: {a: '*'}}}", "SW0105"),
        ("{selector: {matchExpressions: []}}", "SW0101"),
    ],
)
def test_what_cannot_be_meant_is_an_error_with_its_place(text: str, code: str) -> None:
    found, problems = spec(text)
    assert found is None
    errors = [problem for problem in problems if problem.severity == "error"]
    assert [problem.code for problem in errors] == [code]
    assert errors[0].line == 4
    assert errors[0].column > 6


def test_every_problem_is_reported_at_once() -> None:
    text = (
        "apiVersion: security.istio.io/v9\nkind: PeerAuthentication\n"
        "metadata: {name: Bad_Name, creationTimestamp: yesterday, annotations: {istio.io/dry-run: 'true'}}\n"
        "spec: {mtls: {mode: LAX}, portLevelMtls: {x: {mode: STRICT}}}\n"
    )
    found, problems = read(text)
    assert found is None
    codes = [problem.code for problem in problems]
    assert codes == ["SW0105", "SW0105", "SW0104", "SW0105", "SW0104", "SW0106", "SW0105"]


# -- meaning --------------------------------------------------------------------------------------------------


def test_without_a_document_the_default_holds() -> None:
    assert mtls_mode([], API, 8080) == Mode.PERMISSIVE
    assert mtls_mode([], API, 8080, Mode.STRICT) == Mode.STRICT


def test_the_narrower_level_replaces_the_wider_one() -> None:
    root = of("istio-system", Mode.STRICT)
    namespace = of("shop", Mode.PERMISSIVE)
    workload = of("shop", Mode.DISABLE, name="b", selector=SELECTOR)
    assert mtls_mode([root], API, 1) == Mode.STRICT
    assert mtls_mode([namespace, root], API, 1) == Mode.PERMISSIVE
    assert mtls_mode([workload, namespace, root], API, 1) == Mode.DISABLE


def test_unset_takes_what_the_level_above_says() -> None:
    documents = [of("istio-system", Mode.STRICT), of("shop", Mode.UNSET), of("shop", Mode.UNSET, selector=SELECTOR)]
    assert mtls_mode(documents, API, 1) == Mode.STRICT


def test_other_namespaces_and_labels_say_nothing() -> None:
    other = of("pay", Mode.DISABLE)
    label = of("shop", Mode.DISABLE, selector=(("app", "web"),))
    assert mtls_mode([other, label], API, 1, Mode.STRICT) == Mode.STRICT


def test_a_selector_in_the_root_namespace_selects_nothing() -> None:
    document = of("istio-system", Mode.DISABLE, selector=SELECTOR)
    assert mtls_mode([document], API, 1, Mode.STRICT) == Mode.STRICT
    assert mtls_mode([document], Protected("istio-system", {"app": "api"}), 1, Mode.STRICT) == Mode.STRICT


def test_the_oldest_wins_alone_and_ties_go_by_name() -> None:
    old = of("shop", Mode.STRICT, name="z", created=10.0)
    new = of("shop", Mode.DISABLE, name="a", created=20.0)
    assert mtls_mode([new, old], API, 1) == Mode.STRICT
    assert mtls_mode([of("shop", Mode.DISABLE, name="b"), of("shop", Mode.STRICT, name="a")], API, 1) == Mode.STRICT
    unset = of("shop", Mode.UNSET, name="a", created=5.0)
    assert mtls_mode([unset, old], API, 1, Mode.PERMISSIVE) == Mode.PERMISSIVE


def test_ports_count_only_in_the_workload_document_that_wins() -> None:
    winner = of("shop", Mode.STRICT, selector=SELECTOR, created=1.0, ports=((80, Mode.DISABLE), (81, Mode.UNSET)))
    loser = of("shop", Mode.STRICT, name="b", selector=SELECTOR, created=2.0, ports=((82, Mode.DISABLE),))
    modes = [mtls_mode([loser, winner], API, port) for port in (80, 81, 82, 83)]
    assert modes == [Mode.DISABLE, Mode.STRICT, Mode.STRICT, Mode.STRICT]
