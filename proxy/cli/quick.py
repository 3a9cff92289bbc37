"""``protect`` and ``reach``: a proxy without a file. Both write the file they stand for, and run it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from proxy.cli.group import Problem

_CA = click.option(
    "--ca", "folder", type=click.Path(path_type=Path), help="Folder of a local CA; by default the CA that runs here."
)
_PRINT = click.option("--print-config", is_flag=True, help="Print the sidewall.yaml this stands for, and end.")


def _default_ca() -> Path:
    """./ca when it is one, else the one of this user."""
    if Path("ca/ca.json").exists():
        return Path("ca")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "sidewall" / "ca"


@dataclass(frozen=True)
class _Authority:
    """Where the identity comes from (``identity`` of the configuration), and the trust domain."""

    identity: dict[str, str]
    trust_domain: str


def _authority(folder: Path | None, *, make: bool) -> _Authority:
    """A CA that runs on this machine, unless a folder is named or lies here; else the folder of a local CA. With
    ``make`` one of the trust domain ``local`` is made where there is none. Raises Problem."""
    from config.resolve import Surroundings
    from proxy.cli.ca_client import reach as reach_ca

    here = Surroundings.here(os.environ, Path())
    if folder is None and here.ca is not None and not Path("ca/ca.json").exists():
        with reach_ca(str(here.ca), None) as running:
            trust_domain = str(running.ask("Status")["trust_domain"])
        return _Authority({"ca": f"unix:{here.ca}"}, trust_domain)
    path = (folder or _default_ca()).absolute()
    if make and not (path / "ca.json").exists():
        _make_ca(path)
    return _Authority({"caDir": str(path)}, _trust_domain(path))


def _make_ca(path: Path) -> None:
    from identity.disk import IdentityFileError
    from identity.files import create_ca

    if (path / "store.json").exists():
        hint = "start it (sidewall ca serve), or name another folder with --ca"
        raise Problem(f"{path} is the folder of a CA that serves, and does not run", hint, code=69)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        create_ca(path, "local", now=datetime.now(UTC))
    except (IdentityFileError, OSError) as error:
        raise Problem(str(error), "name another folder with --ca", code=73) from None
    click.echo(f"a local CA was made in {path} (trust domain: local)", err=True)


def _trust_domain(path: Path) -> str:
    import json

    try:
        return str(json.loads((path / "ca.json").read_text())["trust_domain"])
    except (OSError, ValueError, KeyError):
        return "local"


def _name(text: str, namespace: str = "default") -> str:
    return text if "/" in text else f"{namespace}/{text}"


@click.command()
@click.argument("app")
@click.option("--as", "name", default="default/app", show_default=True, metavar="NS/NAME", help="Who the app is.")
@click.option("--listen", default="8443", show_default=True, help="Where callers connect.")
@click.option("--allow", multiple=True, metavar="WHO", help="ns/name, spiffe://... or any; repeatable.")
@click.option("--unsafe-app", is_flag=True, help="Let APP be on another machine.")
@_CA
@_PRINT
def protect(
    app: str,
    name: str,
    listen: str,
    allow: tuple[str, ...],
    unsafe_app: bool,
    folder: Path | None,
    print_config: bool,
) -> int:
    """Put a mutual-TLS front on one local app.

    \b
    sidewall protect 8080 --as shop/api --allow shop/web
    sidewall protect unix:/run/app.sock --listen 127.0.0.1:8443 --allow any
    """
    ca = _authority(folder, make=not print_config)
    inbound: dict[str, Any] = {"listen": listen, "app": app}
    if unsafe_app:
        inbound["unsafeApp"] = True
    config = {**_common(name, ca), "inbound": [inbound]}
    documents = [config, _policy(_name(name), allow, ca.trust_domain)]
    return _run(documents, print_config=print_config)


@click.command()
@click.argument("what", metavar="NAME=ADDR")
@click.option("--listen", default="127.0.0.1:15001", show_default=True, help="Where your program connects.")
@click.option("--as", "name", default="default/client", show_default=True, metavar="NS/NAME", help="Who we are.")
@click.option("--expect", multiple=True, metavar="WHO", help="Who must answer; NAME in our namespace by default.")
@_CA
@_PRINT
def reach(
    what: str, listen: str, name: str, expect: tuple[str, ...], folder: Path | None, print_config: bool
) -> int:
    """Open a local port that leads to a remote service over mutual TLS.

    \b
    sidewall reach shop/api=10.20.0.9:8443 --as shop/web --listen 127.0.0.1:8001
    curl http://127.0.0.1:8001/
    """
    who, equals, address = what.partition("=")
    if not equals or not who or not address:
        raise click.UsageError("write NAME=ADDR, e.g. shop/api=10.20.0.9:8443")
    ca = _authority(folder, make=not print_config)
    upstream = who.rpartition("/")[2]
    expected = list(expect) or [_name(who, _name(name).partition("/")[0])]
    config = {
        **_common(name, ca),
        "outbound": [{"listen": listen, "to": upstream}],
        "upstreams": {upstream: {"endpoints": [address], "expect": expected}},
    }
    return _run([config], print_config=print_config)


def _common(name: str, ca: _Authority) -> dict[str, Any]:
    return {"workload": _name(name), "identity": ca.identity, "admin": {"listen": "off"}}


def _policy(name: str, allow: tuple[str, ...], trust_domain: str) -> dict[str, Any]:
    """The AuthorizationPolicy that ``--allow`` stands for; without any it allows nobody."""
    namespace, _, account = name.partition("/")
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "allow-from-command-line", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": account}},
            "action": "ALLOW",
            **({"rules": _rules(allow, trust_domain)} if allow else {}),
        },
    }


def _rules(allow: tuple[str, ...], trust_domain: str) -> list[dict[str, Any]]:
    if "any" in allow:
        return [{"from": [{"source": {"principals": ["*"]}}]}]
    principals = []
    for who in allow:
        if who.startswith("spiffe://"):
            principals.append(who.removeprefix("spiffe://"))
        else:
            namespace, _, account = _name(who).partition("/")
            principals.append(f"{trust_domain}/ns/{namespace}/sa/{account}")
    return [{"from": [{"source": {"principals": principals}}]}]


def _run(documents: list[dict[str, Any]], *, print_config: bool) -> int:
    import yaml

    text = "---\n".join(yaml.safe_dump(document, sort_keys=False) for document in documents)
    if print_config:
        click.echo(text, nl=False)
        return 0
    from proxy.app import serve

    return serve(text=text)
