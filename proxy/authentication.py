"""From the documents that say who must prove what (PeerAuthentication, RequestAuthentication) to listeners."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from config import model
from config.load import Loaded
from config.problems import Problem, Problems
from config.resources.peer_authentication import Mode, Protected, mtls_mode
from config.resources.request_authentication import Guarded, JwtRule, jwt_rules
from proxy.jwks import Jwks, Source
from proxy.policy.jwt import KeySource, Tokens
from proxy.policy.jwt_keys import UnusableSet, read_keys

if TYPE_CHECKING:
    from proxy.app import Process

# -- who calls ------------------------------------------------------------------------------------------------


def mtls_of(loaded: Loaded, item: model.Inbound) -> Mode:
    """What callers of a listener must show."""
    workload = loaded.config.workload
    protected = Protected(workload.namespace, workload.labels)
    return mtls_mode(loaded.documents.peers, protected, workload_port(item), Mode(item.mtls))


def workload_port(item: model.Inbound) -> int:
    """What policies call the port: the app's."""
    return item.app.port or item.listen.port


# -- whose tokens -------------------------------------------------------------------------------------------


def token_rules(loaded: Loaded) -> dict[str, tuple[JwtRule, ...]]:
    """By inbound listener: the rules for tokens, of the listeners that have any."""
    workload = loaded.config.workload
    found = {}
    for item in loaded.config.inbound:
        guarded = Guarded(workload.namespace, workload.labels, workload.name, item.name)
        if rules := jwt_rules(loaded.documents.requests, guarded):
            found[item.name] = rules
    return found


def make_tokens(loaded: Loaded, keys: KeySource) -> dict[str, Tokens]:
    return {name: Tokens(rules, keys) for name, rules in token_rules(loaded).items()}


def make_jwks(process: Process) -> Jwks:
    """The keys of tokens, with a gauge for each place they come from."""
    ages = process.telemetry.registry.gauge(
        "sidewall_jwks_last_success_timestamp_seconds", "When keys of tokens last came; 0 = never.", "source"
    )

    def added(source: Source) -> None:
        ages.labels(str(source.place)).value = 0.0

    def fetched(source: Source) -> None:
        ages.labels(str(source.place)).value = process.poller.wall()

    rng = random.Random(random.SystemRandom().getrandbits(128))  # noqa: S311 (jitter, not secrets)

    def changed() -> None:
        process.worker.judge_again()  # there is a worker by the time the first keys come

    jwks = Jwks(rng, changed, added=added, fetched=fetched)
    use_keys(jwks, process.loaded)
    return jwks


def _all_rules(loaded: Loaded) -> Iterable[JwtRule]:
    return [rule for rules in token_rules(loaded).values() for rule in rules]


def use_keys(jwks: Jwks, loaded: Loaded) -> None:
    jwks.use(_all_rules(loaded), unprotected=loaded.config.policy.unsafe_jwks)


async def prepare_keys(jwks: Jwks, loaded: Loaded) -> None:
    """Fetch what ``loaded`` needs and nobody has yet, so that the change of rules refuses no good token."""
    jwks.add(_all_rules(loaded), unprotected=loaded.config.policy.unsafe_jwks)
    await jwks.wait_tried()


def check_keys(loaded: Loaded) -> None:
    """Keys that stand in a document must be usable. Raises ConfigError."""
    problems = Problems()
    for document in loaded.documents.requests:
        for rule in document.rules:
            try:
                if rule.jwks:
                    read_keys(rule.jwks.encode("utf-8", "surrogatepass"))
            except UnusableSet as error:
                place, subject = rule.place, f"RequestAuthentication {document}"
                problem = Problem("SW0105", f"jwks: {error}", "error", place.file, place.line, place.column)
                problems.add(replace(problem, subject=subject))
    problems.raise_errors()
