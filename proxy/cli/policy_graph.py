"""``policy graph``: who may reach whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.group import Problem
from proxy.cli.policy_source import Default, Source, read_source, source_options, workload_named

if TYPE_CHECKING:
    from proxy.policy.facts import WorkloadFacts
    from proxy.policy.reach import Edge, Hop, Node, Reach


@click.command()
@click.option("--from", "start", metavar="WHO", help="What this identity reaches, over others as well.")
@click.option("--workload", "workloads", multiple=True, metavar="NS/NAME[,KEY=VALUE..]", help="A workload there is.")
@source_options
@click.option(
    "-o", "--output", type=click.Choice(["table", "json", "dot", "svg"]), default="table", show_default=True
)  # fmt: skip
def graph(
    start: str | None,
    workloads: tuple[str, ...],
    files: tuple[Path, ...],
    config: Path | None,
    default: Default | None,
    trust_domain: str | None,
    normalization: str | None,
    output: str,
) -> None:
    """Who may reach whom; with --from the blast radius of one identity.

    Workloads are those that policies speak of (a selector with app, a principal of the form td/ns/NS/sa/NAME) and
    those named with --workload. NS/NAME calls as td/ns/NS/sa/NAME.

    \b
    sidewall policy graph -f policy/ --from shop/web
    sidewall policy graph -f policy/ -o svg > reach.svg
    """
    from proxy.policy.analysis import TooComplex
    from proxy.policy.reach import Reach, anyone, nodes_of

    source = read_source(files, config, default, trust_domain, normalization)
    nodes = nodes_of(source.policies, _known(source, workloads), source.trust_domain)
    nodes = [*anyone(source.trust_domain), *nodes]
    reach = Reach(source.policies, nodes, default=source.default, strict_paths=source.strict_paths)
    try:
        if start is not None:
            node = _find(reach.nodes, start)
            _show_radius(reach, node, output)
        else:
            _show_edges(reach, output)
    except TooComplex as error:
        raise Problem(f"this cannot be answered exactly: {error}", code=1) from None


def _known(source: Source, workloads: tuple[str, ...]) -> dict[str, WorkloadFacts]:
    found = {str(source.workload): source.workload} if source.workload is not None else {}
    return found | dict(workload_named(text) for text in workloads)


def _find(nodes: tuple[Node, ...], text: str) -> Node:
    import difflib

    text = text.removeprefix("spiffe://")
    named = [node for node in nodes if text in (node.name, node.principal)]
    named = named or [node for node in nodes if node.name.endswith(f"/{text}")]
    if len(named) == 1:
        return named[0]
    near = difflib.get_close_matches(text, [node.name for node in nodes], 1)
    hint = f"did you mean {near[0]!r}?" if near else "name it with --workload"
    raise Problem(f"no policy speaks of {text!r}" if not named else f"{text!r} may be several", hint, code=2)


def _show_radius(reach: Reach, start: Node, output: str) -> None:
    from proxy.policy import graph as pictures

    hops = reach.blast_radius(start)
    if output == "json":
        items = [{"node": hop.node.name, "distance": hop.distance, **_edge(hop.edge)} for hop in hops]
        _print_json("BlastRadius", {"from": start.name, "items": items})
        return
    reached = [start, *(hop.node for hop in hops)]
    edges = [edge for node in reached for edge in reach.edges_of(node)]
    if output != "table":
        click.echo(pictures.dot(reached, edges) if output == "dot" else pictures.svg(reached, edges, start))
        return
    for line in _radius_lines(start, hops):
        click.echo(line)


def _radius_lines(start: Node, hops: list[Hop]) -> list[str]:
    if not hops:
        return [f"{start.name} reaches nobody"]
    width = max(len(hop.node.name) for hop in hops)
    lines = [f"{start.name} reaches {len(hops)}, {sum(hop.distance == 1 for hop in hops)} of them directly"]
    for hop in hops:
        via = "directly" if hop.distance == 1 else f"via {hop.edge.caller.name}"
        lines.append(f"  {hop.distance}  {hop.node.name:<{width}}  {via}   {hop.edge.rule}")
    return lines


def _show_edges(reach: Reach, output: str) -> None:
    from proxy.policy import graph as pictures

    edges = reach.edges()
    shown = {edge.caller.name for edge in edges} | {edge.callee.name for edge in edges}
    nodes = [node for node in reach.nodes if node.name in shown or node.workload is not None]
    if output == "json":
        _print_json("PolicyGraph", {"nodes": [node.name for node in nodes], "edges": list(map(_edge, edges))})
    elif output == "dot":
        click.echo(pictures.dot(nodes, edges))
    elif output == "svg":
        click.echo(pictures.svg(nodes, edges))
    elif not edges:
        click.echo("nobody may call anybody")
    else:
        width = max(len(edge.caller.name) for edge in edges)
        across = max(len(edge.callee.name) for edge in edges)
        for edge in edges:
            click.echo(f"{edge.caller.name:<{width}}  ->  {edge.callee.name:<{across}}   {edge.rule}")


def _edge(edge: Edge) -> dict[str, Any]:
    from proxy.policy.analysis_report import example_data

    return {
        "caller": edge.caller.name,
        "callee": edge.callee.name,
        "rule": edge.rule,
        "example": example_data(edge.example),
    }


def _print_json(kind: str, data: dict[str, Any]) -> None:
    click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": kind, **data}, indent=2))
