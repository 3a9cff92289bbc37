"""``identity fetch`` and ``identity why``: as a workload, ask the Workload API of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.group import Problem

if TYPE_CHECKING:
    from identity.rpc import RpcError
    from proxy.net.listener import Address

_SOCKET = click.option(
    "--socket", metavar="unix:/PATH", help="The Workload API; $SPIFFE_ENDPOINT_SOCKET, or the agent of this machine."
)
_OUTPUT = click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
_METADATA = {"workload.spiffe.io": "true"}


@click.command("fetch")
@click.option("--audience", "audiences", multiple=True, help="A JWT-SVID for this audience instead (repeatable).")
@click.option("--write", "folder", type=click.Path(path_type=Path), help="Write svid.pem, key.pem, bundle.pem there.")
@_SOCKET
@_OUTPUT
def fetch(audiences: tuple[str, ...], folder: Path | None, socket: str | None, output: str) -> None:
    """What identity this process gets from the Workload API.

    \b
    sidewall identity fetch
    sidewall identity fetch --write ./tls
    sidewall identity fetch --audience api.shop

    Exit codes: 69 nobody answers, 77 there is no identity for this process.
    """
    if audiences:
        _show_tokens(_tokens(_address(socket), audiences), output)
        return
    response = _svids(_address(socket))
    if folder is not None:
        _write(folder, response)
    _show_svids(response, output)


def _address(text: str | None) -> Address:
    from config.resolve import Surroundings
    from proxy.rpc.endpoint import parse_endpoint

    told = text or os.environ.get("SPIFFE_ENDPOINT_SOCKET")
    try:
        return parse_endpoint(told or f"unix:{Surroundings.here(os.environ, Path()).sockets / 'agent.sock'}")
    except ValueError as error:
        raise Problem(str(error), code=2) from None


def _call(address: Address, method: str, request: bytes, *, metadata: dict[str, str], stream: bool) -> bytes:
    """One reply. Raises Problem."""
    import trio

    from identity.rpc import RpcError
    from proxy.rpc.client import open_channel

    async def ask() -> bytes:
        async with open_channel(address) as channel:
            if not stream:
                return await channel.unary(method, request, metadata=metadata)
            async with channel.stream(method, request, metadata=metadata) as replies:
                async for reply in replies:
                    return reply
        raise AssertionError("a stream ends with an error")

    try:
        return trio.run(ask)
    except RpcError as error:
        raise _problem(address, error) from None


def _problem(address: Address, error: RpcError) -> Problem:
    from identity.rpc import Status

    if error.status is Status.PERMISSION_DENIED:
        return Problem(error.message, "sidewall identity why says what was looked for", code=77)
    hint = "is `sidewall agent` running, and has it an identity itself?"
    return Problem(f"{address}: {error.message}", hint, code=69)


def _svids(address: Address) -> Any:
    from identity.protos import parse, workload
    from identity.workload_source import FETCH

    return parse(workload.X509SVIDResponse, _call(address, FETCH, b"", metadata=_METADATA, stream=True))


def _tokens(address: Address, audiences: tuple[str, ...]) -> Any:
    from identity.protos import parse, workload

    request = workload.JWTSVIDRequest(audience=audiences).SerializeToString()
    reply = _call(address, "/SpiffeWorkloadAPI/FetchJWTSVID", request, metadata=_METADATA, stream=False)
    return parse(workload.JWTSVIDResponse, reply)


def _show_tokens(response: Any, output: str) -> None:
    if output == "json":
        items = [{"spiffeId": one.spiffe_id, "token": one.svid, "hint": one.hint} for one in response.svids]
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "JwtSvidList", "items": items}, indent=2))
        return
    for one in response.svids:
        click.echo(f"{one.spiffe_id}\n{one.svid}")


def _show_svids(response: Any, output: str) -> None:
    from datetime import UTC, datetime

    from identity.workload_source import read_svid

    items = []
    for one in response.svids:
        svid, bundle = read_svid(one)
        ends = datetime.fromtimestamp(svid.not_after, UTC)
        items.append(
            {
                "spiffeId": str(svid.id),
                "serial": f"{svid.leaf.serial_number:x}",
                "notAfter": ends.isoformat(),
                "hint": one.hint,
                "authorities": len(bundle.authorities),
            }
        )
    if output == "json":
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "X509SvidList", "items": items}, indent=2))
        return
    for item in items:
        line = f"  ends {item['notAfter']}   serial {item['serial']}   {item['hint']}"
        click.echo(f"{item['spiffeId']}\n{line.rstrip()}")
    others = sorted(response.federated_bundles)
    if others:
        click.echo(f"trusts also {', '.join(others)}")


def _write(folder: Path, response: Any) -> None:
    from identity.disk import IdentityFileError, make_private_folder, write_private
    from identity.files import certificates_pem, key_pem
    from identity.workload_source import read_svid

    svid, bundle = read_svid(response.svids[0])
    try:
        make_private_folder(folder, must_be_empty=False)
        write_private(folder / "bundle.pem", certificates_pem(bundle.authorities))
        write_private(folder / "key.pem", key_pem(svid.key))
        write_private(folder / "svid.pem", certificates_pem(svid.chain))
    except IdentityFileError as error:
        raise Problem(f"{error.path}: {error.problem}", error.hint, code=73) from None
    click.echo(f"written to {folder}: svid.pem, key.pem, bundle.pem", err=True)


@click.command("why")
@_SOCKET
@_OUTPUT
def why(socket: str | None, output: str) -> int:
    """Why this process gets the identities it gets, or none: its selectors, and the entries that came near.

    \b
    sudo -u ledger sidewall identity why

    Exit code 1 when there is none.
    """
    from identity.ca_api import api
    from identity.protos import parse
    from proxy.agent.service import WHY

    reply = _call(_address(socket), WHY, b"", metadata={}, stream=False)
    found = json.loads(parse(api.AdminReply, reply).json)
    if output == "json":
        click.echo(json.dumps({"apiVersion": "sidewall.dev/v1", "kind": "WhyIdentity", **found}, indent=2))
        return int(not found["identities"])
    click.echo(f"node       {found['node'] or 'has no identity itself'}")
    click.echo("selectors  " + ("\n           ".join(found["selectors"]) or "none"))
    for one in found["identities"]:
        click.echo(f"gets       {one['spiffeId']}   by entry {one['entry']}: {' '.join(one['selectors'])}")
    if not found["identities"]:
        click.echo("gets       nothing")
    for miss in found["near"]:
        lacks = f"lacks {' '.join(miss['missing'])}" if miss["missing"] else miss["why"]
        click.echo(f"near       {miss['spiffeId']}   entry {miss['entry']} {lacks}")
    return int(not found["identities"])
