"""Where the ``policy`` commands find policies and what they are about: files, a folder, or sidewall.yaml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from proxy.cli.group import Problem

if TYPE_CHECKING:
    from config.problems import ConfigError
    from config.problems import Problem as Problem_
    from config.resources.authorization import AuthorizationPolicy
    from proxy.policy.facts import WorkloadFacts

STRICT = "strict"  # or one of proxy.wire.path.NORMALIZATIONS, named here so that --help needs not read it
NORMALIZATION = click.option(
    "--path-normalization", "normalization", help="policy.pathNormalization of the proxy; as in sidewall.yaml.",
    type=click.Choice([STRICT, "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"]),
)  # fmt: skip
Default = Literal["deny", "istio", "audit"]

FOLDER = Path("policy")
OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
DEFAULT = click.option(
    "--default", "default", type=click.Choice(["deny", "istio", "audit"]),
    help="policy.default of the proxy; as in sidewall.yaml, or deny.",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What was read. ``workload``: whom sidewall.yaml protects, None when only documents were read; ``flows``: where
    it keeps the flow ledger. ``count``: documents."""

    policies: tuple[AuthorizationPolicy, ...]
    default: Default
    trust_domain: str
    workload: WorkloadFacts | None
    warnings: tuple[Problem_, ...]
    paths: tuple[Path, ...]
    count: int
    flows: Path | None = None
    normalization: str = STRICT

    @property
    def strict_paths(self) -> bool:
        return self.normalization == STRICT


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which policies, and how the proxy asks them."""
    for option in (
        click.option("--trust-domain", metavar="NAME", help="Of callers written as namespace/account."),
        NORMALIZATION,
        DEFAULT,
        click.option("-c", "--config", type=click.Path(path_type=Path), help="The sidewall.yaml to read."),
        click.option(
            "-f", "--file", "files", multiple=True, type=click.Path(path_type=Path),
            help="A file or folder of policies; by default what sidewall.yaml names, or ./policy.",
        ),
    ):
        command = option(command)
    return command


def read_source(
    files: Sequence[Path],
    config: Path | None,
    default: Default | None,
    trust_domain: str | None,
    normalization: str | None = None,
) -> Source:
    """Read policies. Exits with 78, and every problem on stderr, when a file is wrong; 2 when none is named."""
    from config.problems import ConfigError

    try:
        return load_source(files, config, default, trust_domain, normalization)
    except ConfigError as error:
        refuse(error)
        raise


def load_source(
    files: Sequence[Path],
    config: Path | None,
    default: Default | None,
    trust_domain: str | None,
    normalization: str | None = None,
) -> Source:
    """The same, raising ConfigError when a file is wrong."""
    from config.load import SEARCHED

    if files and config is not None:
        raise click.UsageError("-f names policies, -c a sidewall.yaml that names them: give one of them")
    if not files and (config is not None or any(path.exists() for path in SEARCHED)):
        found = _from_config(config, default, trust_domain)
        return replace(found, normalization=normalization or found.normalization)
    if not files and not FOLDER.is_dir():
        hint = "name a file or folder with -f, or stand where sidewall.yaml is"
        raise Problem("no policies named", hint, code=2)
    return replace(_from_files(files or (FOLDER,), default, trust_domain), normalization=normalization or STRICT)


def refuse(error: ConfigError) -> None:
    """Print what is wrong and exit with 78."""
    from config.problems import render

    click.echo(render(error.problems, files=error.files, documents=error.documents), err=True)
    raise click.exceptions.Exit(78) from None


def _from_config(path: Path | None, default: Default | None, trust_domain: str | None) -> Source:
    from config.load import load_all
    from proxy.policy.facts import WorkloadFacts

    loaded = load_all(path)
    config, policies = loaded.config, loaded.documents.policies
    workload = config.workload
    return Source(
        policies,
        default or _default(config.policy.default),
        trust_domain or config.trust_domain or _trust_domain(policies),
        WorkloadFacts(workload.namespace, workload.labels, name=workload.name),
        loaded.warnings,
        tuple(config.policy.from_),
        loaded.documents.count,
        config.telemetry.flows.to,
        config.policy.path_normalization,
    )


def _default(text: str) -> Default:
    return "istio" if text == "istio" else "audit" if text == "audit" else "deny"


def _from_files(files: Sequence[Path], default: Default | None, trust_domain: str | None) -> Source:
    from config.documents import load_documents

    documents, warnings = load_documents(files)
    domain = trust_domain or _trust_domain(documents.policies)
    return Source(documents.policies, default or "deny", domain, None, warnings, tuple(files), documents.count)


def _trust_domain(policies: Sequence[AuthorizationPolicy]) -> str:
    from proxy.policy.suite_facts import likely_trust_domain

    return likely_trust_domain(policies)


def target(source: Source, to: str | None, labels: Sequence[str]) -> WorkloadFacts:
    """The workload of ``--to`` and ``--label``; without them that of sidewall.yaml. Exits with 2 otherwise."""
    from proxy.policy.suite_facts import BadFact, workload_of

    if to is None:
        if source.workload is None:
            raise Problem("which workload?", "name it with --to, e.g. --to shop/api", code=2)
        return source.workload
    if source.workload is not None and not labels and to in (str(source.workload), source.workload.name):
        return source.workload
    try:
        return workload_of(to, pairs(labels, "--label"))
    except BadFact as error:
        raise Problem(str(error), code=2) from None


def workload_named(text: str) -> tuple[str, WorkloadFacts]:
    """``NS/NAME[,KEY=VALUE..]`` of --workload: the name and the workload. Exits with 2."""
    from proxy.policy.suite_facts import BadFact, workload_of

    name, *labels = text.split(",")
    try:
        return name, workload_of(name, pairs(labels, "--workload NS/NAME,"))
    except BadFact as error:
        raise Problem(str(error), code=2) from None


def whole_name(name: str, source: Source | None, workload: WorkloadFacts | None = None) -> str:
    """``web`` in the namespace that is meant: that of ``workload``, of sidewall.yaml, or the only one that policies
    are of. Exits with 2."""
    if "/" in name or name == "none":
        return name
    spaces = {policy.namespace for policy in source.policies} if source is not None else set()
    near = workload or (source.workload if source is not None else None)
    if near is not None:
        return f"{near.namespace}/{name}"
    if len(spaces) == 1:
        return f"{spaces.pop()}/{name}"
    raise Problem(f"{name}: of which namespace?", f"write NAMESPACE/{name}", code=2)


def pairs(options: Sequence[str], name: str) -> dict[str, str]:
    """``key=value`` options. Exits with 2."""
    found = {}
    for text in options:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise Problem(f"{name} {text}: write {name} KEY=VALUE", code=2)
        found[key] = value
    return found
