"""``policy explain`` and ``policy who-can``: questions about one request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.group import Problem
from proxy.cli.policy_source import OUTPUT, Default, Source, pairs, read_source, source_options, target, whole_name

if TYPE_CHECKING:
    from proxy.policy.engine import Decision
    from proxy.policy.explain import Explanation
    from proxy.policy.facts import WorkloadFacts
    from proxy.policy.reach import Caller
    from proxy.policy.suite_facts import Question


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The workload, the request and what else a policy can ask for."""
    for option in (
        click.option("--permissive", is_flag=True, help="The port accepts callers without a certificate."),
        click.option("--route", default="", metavar="NAME", help="The route taken to the workload."),
        click.option("--sni", default="", metavar="NAME", help="Server name of the TLS handshake."),
        click.option("--destination-ip", default="", metavar="ADDRESS"),
        click.option("--remote-ip", default="", metavar="ADDRESS", help="The client, as X-Forwarded-For tells."),
        click.option("--source-ip", default="", metavar="ADDRESS", help="The peer of the connection."),
        click.option("--claims", default="", metavar="JSON|@FILE", help="Claims of a verified token."),
        click.option("--header", "headers", multiple=True, metavar="NAME=VALUE"),
        click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="PORT"),
        click.option("--host", default="", help="Host or :authority, with its port if it has one."),
        click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the workload."),
        click.option("--to", metavar="NS/NAME", help="The workload; by default that of sidewall.yaml."),
        click.argument("request", nargs=-1, required=True),
    ):
        command = option(command)
    return command


@click.command()
@click.option("--from", "caller", required=True, metavar="WHO", help="NS/ACCOUNT, a SPIFFE ID, or none.")
@request_options
@source_options
@OUTPUT
def explain(
    caller: str,
    request: tuple[str, ...],
    to: str | None,
    labels: tuple[str, ...],
    files: tuple[Path, ...],
    config: Path | None,
    default: Default | None,
    trust_domain: str | None,
    normalization: str | None,
    output: str,
    **facts: Any,
) -> int:
    """Why a request is allowed or denied: each clause, the nearest miss, and the smallest edit that would allow it.

    REQUEST is METHOD PATH, package.Service/Method, or TCP. Exit code 0: allowed, 1: denied.

    \b
    sidewall policy explain --from shop/web --to shop/api GET /orders/17
    sidewall policy explain --from none --to shop/api shop.Stock/Reserve -o json
    sidewall policy explain --from shop/web --to shop/db --port 5432 TCP
    """
    from proxy.policy.engine import compile_policies
    from proxy.policy.explain import explain as why
    from proxy.policy.explain import render

    source = read_source(files, config, default, trust_domain, normalization)
    workload = _target(source, to, labels)
    question = _question(source, workload, whole_name(caller, source, workload), request, facts)
    if question.refused:
        return _refused(question, output)
    found = why(compile_policies(source.policies, workload, source.default), question.request)
    if output == "json":
        click.echo(json.dumps(_explanation(found, workload), indent=2))
    else:
        unicode = "utf" in (sys.stdout.encoding or "").lower()
        click.echo("\n".join(render(found, unicode=unicode)))
    return int(not _allowed(found.decision))


def _target(source: Source, to: str | None, labels: tuple[str, ...]) -> WorkloadFacts:
    return target(source, whole_name(to, source) if to is not None else None, labels)


def _question(
    source: Source, workload: WorkloadFacts, caller: str, request: Sequence[str], facts: dict[str, Any]
) -> Question:
    from proxy.policy.suite_facts import BadFact, Stated, request_of

    headers, claims = pairs(facts.pop("headers"), "--header"), _claims(facts.pop("claims"))
    permissive = facts.pop("permissive")
    try:
        stated = Stated(caller=caller, request=" ".join(request), headers=headers, claims=claims, **facts)
        return request_of(
            stated,
            trust_domain=source.trust_domain,
            workload=workload,
            permissive=permissive,
            normalization=source.normalization,
        )
    except BadFact as error:
        raise Problem(str(error), code=2) from None


def _claims(text: str) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        found = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except OSError as error:
        raise Problem(f"--claims {text}: {error.strerror}", code=2) from None
    except ValueError:
        raise Problem("--claims is not JSON", "e.g. --claims '{\"groups\": [\"ops\"]}'", code=2) from None
    if not isinstance(found, dict):
        raise Problem("--claims is not a JSON object", code=2)
    return found


def _refused(question: Question, output: str) -> int:
    if output == "json":
        data = {"allowed": False, "reason": question.refused, "request": question.request.canonical()}
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "PolicyExplanation", **data}, indent=2))
    else:
        click.echo(f"DENY   refused before any policy is asked: {question.refused}")
        if question.refused == "mtls_required":
            click.echo("\nto ask as if the port accepted callers without a certificate: --permissive")
    return 1


def _allowed(decision: Decision) -> bool:
    return decision.allowed and not decision.audited


def _explanation(found: Explanation, workload: WorkloadFacts) -> dict[str, Any]:
    from proxy.policy.analysis_report import decision_data

    policies = [
        {
            "policy": str(verdict.policy),
            "action": str(verdict.policy.action),
            "place": str(verdict.policy.place) if verdict.policy.place.line else "",
            "rules": [
                {
                    "index": rule.index,
                    "counted": rule.counted,
                    "clauses": [
                        {"field": c.label, "holds": c.holds, "text": c.text, "nearest": c.nearest}
                        for c in rule.clauses
                    ],
                }
                for rule in verdict.rules
            ],
        }
        for verdict in found.policies
    ]
    edits = [
        {"policy": str(edit.policy), "rule": edit.rule, "place": str(edit.place), "edit": str(edit)}
        for edit in found.edits
    ]
    return {
        "apiVersion": "sidewall.dev/v1",
        "kind": "PolicyExplanation",
        **decision_data(found.decision),
        "id": found.decision.id(found.request),
        "summary": found.summary,
        "to": {"namespace": workload.namespace, "name": workload.name, "labels": dict(workload.labels)},
        "request": found.request.canonical(),
        "policies": policies,
        "edits": edits,
        "advice": found.advice,
    }


# -- who-can ------------------------------------------------------------------------------------------------


@click.command("who-can")
@request_options
@source_options
@OUTPUT
def who_can(
    request: tuple[str, ...],
    to: str | None,
    labels: tuple[str, ...],
    files: tuple[Path, ...],
    config: Path | None,
    default: Default | None,
    trust_domain: str | None,
    normalization: str | None,
    output: str,
    **facts: Any,
) -> int:
    """Who may make a request: every way in, what else it needs, and one example each. Exit code 1: nobody.

    REQUEST is METHOD PATH, package.Service/Method, or TCP. Facts that are not given are left open.

    \b
    sidewall policy who-can DELETE /orders/17 --to shop/api
    sidewall policy who-can GET /admin/ --to shop/api --port 8080 -o json
    """
    from proxy.policy import reach
    from proxy.policy.analysis import TooComplex

    source = read_source(files, config, default, trust_domain, normalization)
    workload = _target(source, to, labels)
    stated = _stated(facts)
    if facts["headers"] or facts["claims"]:
        raise click.UsageError("headers and claims are left open here; each way in says which it needs")
    facts["permissive"] = True
    question = _question(source, workload, "none", request, facts)
    if question.refused:
        return _refused(question, output)
    try:
        found = reach.who_can(
            source.policies,
            workload,
            question.request,
            default=source.default,
            stated=stated,
            strict_paths=source.strict_paths,
        )
    except TooComplex as error:
        raise Problem(f"this cannot be answered exactly: {error}", code=1) from None
    click.echo(json.dumps(_callers(found), indent=2) if output == "json" else "\n".join(_render(found)))
    return int(not found)


def _stated(facts: dict[str, Any]) -> list[str]:
    from click.core import ParameterSource

    context = click.get_current_context()
    names = [name for name in ("host", "source_ip", "remote_ip", "destination_ip", "sni") if facts[name]]
    if context.get_parameter_source("port") is not ParameterSource.DEFAULT:
        names.append("port")
    return ["method", "path", *names]


def _callers(found: list[Caller]) -> dict[str, Any]:
    from proxy.policy.analysis_report import example_data

    items = [
        {
            "who": caller.who,
            "rule": str(caller.way or ""),
            "needs": list(caller.needs),
            "unless": list(caller.unless),
            "example": example_data(caller.example),
        }
        for caller in found
    ]
    return {"apiVersion": "sidewall.dev/v1", "kind": "CallerList", "items": items}


def _render(found: list[Caller]) -> list[str]:
    if not found:
        return ["nobody"]
    width = max(len(caller.who) for caller in found)
    lines = []
    for caller in found:
        place = ""
        if caller.way is not None:
            place = str(caller.way.policy.rules[caller.way.rule].place)
        lines.append(f"{caller.who:<{width}}   {caller.way or 'no ALLOW policy selects it'}   {place}".rstrip())
        lines += [f"    if {need}" for need in caller.needs]
        if caller.unless:
            lines.append(f"    unless denied by {', '.join(caller.unless)}")
    return lines
