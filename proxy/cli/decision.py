"""``sidewall explain ID``: a decision that a running proxy made, clause by clause, and derived again on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from proxy.cli.admin_client import ask_all
from proxy.cli.group import Problem

if TYPE_CHECKING:
    from proxy.policy.engine import CompiledPolicies
    from proxy.policy.facts import AccessRequest


def explain_decision(
    decision: str, target: str | None, files: Sequence[Path], *, verify: bool, output: str
) -> int:
    """Find the decision at the local proxies and explain it by the policy files as they are now. Raises Problem."""
    proxy, item = _find(decision, target)
    policies, request = _compile(proxy, files), _request(item)
    from proxy.policy.engine import decide

    again = decide(policies, request)
    same = again.id(request) == decision
    if output == "json":
        facts = {**item, "workload": proxy["workload"], "derived_again": {"id": again.id(request), "same": same}}
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "Decision", **facts}, indent=2))
    else:
        _show(proxy, item, policies, request)
        _show_verdict(item, same, verify)
    return int(verify and not same)


def _find(decision: str, target: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    answers, _ = ask_all(target, "GET", f"/decisions?id={decision}", "items", "workload")
    for _, answer in answers:
        if answer["items"]:
            return answer, answer["items"][0]
    hint = "it was made elsewhere, or too long ago: look for decision_id in the access log"
    raise Problem(f"no local proxy remembers the decision {decision}", hint, code=69)


def _compile(proxy: dict[str, Any], files: Sequence[Path]) -> CompiledPolicies:
    from config.documents import load_documents
    from config.problems import ConfigError, render
    from proxy.policy.engine import compile_policies
    from proxy.policy.facts import WorkloadFacts

    workload = proxy["workload"]
    try:
        documents, _ = load_documents(files or [Path(path) for path in proxy["policy"]])
    except ConfigError as error:
        click.echo(render(error.problems, files=error.files, documents=error.documents), err=True)
        raise click.exceptions.Exit(78) from None
    facts = WorkloadFacts(workload["namespace"], workload["labels"], name=workload["name"])
    return compile_policies(documents.policies, facts, _default(proxy["default"]))


def _default(text: str) -> Literal["deny", "istio", "audit"]:
    return "istio" if text == "istio" else "audit" if text == "audit" else "deny"


def _request(item: dict[str, Any]) -> AccessRequest:
    from proxy.policy.facts import AccessRequest

    if item["facts"] is None:
        raise Problem(f"the facts of {item['id']} are not known any more", code=69)
    return AccessRequest.from_canonical(item["facts"])


def _show(
    proxy: dict[str, Any], item: dict[str, Any], policies: CompiledPolicies, request: AccessRequest
) -> None:
    from proxy.policy.explain import explain, render

    at = datetime.fromtimestamp(item["at"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    workload = f"{proxy['workload']['namespace']}/{proxy['workload']['name']}"
    click.echo(f"{item['id']}  {at}  {workload}  generation {item['generation']}  trace {item['trace_id'] or '-'}")
    if item["reason"] == "quarantined":
        click.echo(f"refused by {item['policy']}, which stands above all policies (sidewall quarantine --list)")
        return
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    click.echo("\n".join(render(explain(policies, request), unicode=unicode)))


def _show_verdict(item: dict[str, Any], same: bool, verify: bool) -> None:
    if same:
        if verify:
            click.echo("verified: these policies and these facts give this decision, and no other has its id")
        return
    if item["reason"] != "quarantined":
        click.echo("note: the policies have changed since: above stands what they say now, not what was decided then")
