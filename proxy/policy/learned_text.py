"""A learned policy as YAML, with the call beside each value that needs it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from proxy.policy.explain import plain
from proxy.policy.facts import HTTP, WorkloadFacts
from proxy.policy.flows import FlowRecord

Witness = tuple[int, FlowRecord]  # how many calls, and one of them

_PLAIN: Final = re.compile(r"/[A-Za-z0-9/_.~-]*|[A-Z]+|[a-z0-9.-]+/[A-Za-z0-9/_.-]+|[a-z][a-z-]*[a-z0-9]")
_WORDS: Final = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")  # something else to YAML, in any case
_LONGEST: Final = 100  # characters of a path in a comment


@dataclass(frozen=True, slots=True)
class Operation:
    """One ``operation``, each value with its witness. Without methods and paths: bytes on these ports."""

    methods: Mapping[str, Witness]
    paths: Mapping[str, Witness]
    ports: Mapping[int, Witness]


@dataclass(frozen=True, slots=True)
class RuleText:
    """One rule. The caller None has no certificate, and a rule of its own."""

    callers: Mapping[str | None, Witness]
    operations: Sequence[Operation]


def render(name: str, workload: WorkloadFacts, rules: Sequence[RuleText], said: Sequence[str]) -> str:
    """The document, ending with a line end. ``said``: comments at its top."""
    lines = [f"# {_comment(line)}" for line in said]
    lines += ["apiVersion: security.istio.io/v1", "kind: AuthorizationPolicy", "metadata:"]
    lines += [f"  name: {scalar(name)}", f"  namespace: {scalar(workload.namespace)}", "spec:"]
    lines += ["  selector:", "    matchLabels:"]
    lines += [f"      {scalar(key)}: {scalar(value)}" for key, value in workload.labels.items()]
    lines += ["  action: ALLOW", "  rules:"]
    for rule in rules:
        lines += _rule(rule)
    return "\n".join(lines) + "\n"


def _rule(rule: RuleText) -> Iterator[str]:
    yield "  - from:"
    yield "    - source:"
    if None in rule.callers:
        yield "        notPrincipals:"
        yield f'        - "*"  # callers without a certificate: {cited(rule.callers[None])}'
    else:
        yield "        principals:"
        for caller, witness in rule.callers.items():
            yield f"        - {scalar(caller or '')}  # {cited(witness)}"
    yield "    to:"
    for operation in rule.operations:
        yield "    - operation:"
        yield from _values("methods", operation.methods)
        yield from _values("paths", operation.paths)
        yield from _values("ports", {str(port): witness for port, witness in operation.ports.items()})


def _values(field: str, values: Mapping[str, Witness]) -> Iterator[str]:
    if values:
        yield f"        {field}:"
        for value, witness in values.items():
            yield f"        - {scalar(value)}  # {cited(witness)}"


def cited(witness: Witness) -> str:
    """``1180 calls, e.g. GET /orders/17 on 2026-11-20 08:15, trace 4bf9``."""
    count, flow = witness
    what = f"{flow.method} {flow.path}" if flow.protocol == HTTP else f"TCP to port {flow.port}"
    if len(what) > _LONGEST:
        what = f"{what[:_LONGEST]}.."
    when = f" on {datetime.fromtimestamp(flow.last, UTC):%Y-%m-%d %H:%M}" if flow.last else ""
    trace = f", trace {flow.trace_id}" if flow.trace_id else ""
    return _comment(f"{calls_text(count)}, e.g. {what}{when}{trace}")


def calls_text(number: int) -> str:
    return f"{number} call{'s' if number != 1 else ''}"


def _comment(text: str) -> str:
    return plain(text)


def scalar(text: str) -> str:
    """A text in YAML that is read as this text."""
    return text if _PLAIN.fullmatch(text) and text.lower() not in _WORDS else json.dumps(text)
