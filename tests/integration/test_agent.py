"""Nodes of a real authority: attested, renewed, followed, over restarts of either side."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from config.live import Live
from identity.attest.join import JoinString
from identity.disk import IdentityFileError
from identity.svid import X509Context
from proxy.agent import calls
from proxy.agent.calls import Proof
from proxy.agent.memory import NodeFacts, NodeFolder
from proxy.agent.source import CaSource
from proxy.agent.way import Way, as_stranger, connected, find_root
from tests.support.authority import REPOSITORY, TD, RunningCa

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

WEB = f"spiffe://{TD}/ns/shop/sa/web"
VM = f"spiffe://{TD}/ns/legacy/sa/ledger"


@pytest.fixture
def ca() -> Iterator[RunningCa]:
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        running = RunningCa(Path(folder)).start()
        try:
            yield running
        finally:
            if running.process is not None:
                running.stop(signal.SIGKILL)


class Node:
    """A source at work, and all that it has told."""

    def __init__(self, way: Way, proof: Any, **more: Any) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.live: Live[X509Context | None] = Live(None)
        self.changes = 0
        self.source = CaSource(way, proof, on_event=self._told, changed=self._changed, **more)

    def _told(self, name: str, facts: Any) -> None:
        self.events.append((name, dict(facts)))

    def _changed(self) -> None:
        self.changes += 1

    async def until(self, is_so: Any, seconds: float = 15.0) -> None:
        with trio.move_on_after(seconds):
            while not is_so():
                await trio.sleep(0.02)
            return
        raise AssertionError(f"it did not become so; events: {self.events}")

    @property
    def context(self) -> X509Context:
        assert self.live.value is not None, self.events
        return self.live.value


def local(ca: RunningCa) -> Node:
    return Node(Way.parse(f"unix:{ca.socket}"), lambda: Proof(unix_peer=True, wish=WEB))


async def test_a_process_of_the_authoritys_user_needs_no_token(ca: RunningCa, nursery: trio.Nursery) -> None:
    node = local(ca)
    await nursery.start(node.source.run, node.live)
    assert str(node.context.id) == WEB
    first = node.context.svid.leaf.serial_number
    await node.until(lambda: node.changes)
    await ca.ask("CreateEntry", entry={"spiffeId": f"{WEB}/x", "parentId": WEB, "selectors": ["unix:uid:7"]})
    await node.until(lambda: len(node.source.entries) == 1)
    node.source._due = 0.0
    node.source.poke()
    await node.until(lambda: node.context.svid.leaf.serial_number != first)
    assert node.source.lapse > 0


async def test_what_signed_it_is_tainted_and_it_renews(ca: RunningCa, nursery: trio.Nursery) -> None:
    node = local(ca)
    await nursery.start(node.source.run, node.live)
    await node.until(lambda: node.changes)
    before = node.context.svid
    roots = len(node.source.bundle.roots) if node.source.bundle is not None else 0
    await ca.ask("Rotate", step="prepare", kind="x509-root")
    await node.until(lambda: node.source.bundle is not None and len(node.source.bundle.roots) == roots + 1)
    assert len(node.context.bundles[TD].authorities) == roots + 1, "handshakes from now on trust the next one"
    await ca.ask("Rotate", step="prepare", kind="x509-issuing", force=True)
    await ca.ask("Rotate", step="activate", kind="x509-issuing", force=True)
    await ca.ask("Rotate", step="taint", kind="x509-issuing", force=True)
    await node.until(lambda: node.source._due < before.not_after - 1800 or node.context.svid is not before)
    node.source._due = min(node.source._due, 0.0)  # the jitter of an hour's SVID is minutes
    node.source.poke()
    await node.until(lambda: node.context.svid is not before)
    assert node.context.svid.chain[1].serial_number != before.chain[1].serial_number


async def test_an_authority_that_is_away_costs_nothing_and_is_found_again(
    ca: RunningCa, nursery: trio.Nursery
) -> None:
    node = local(ca)
    await nursery.start(node.source.run, node.live)
    await node.until(lambda: node.changes)
    before = node.context
    ca.stop(signal.SIGKILL)
    node.source._due = 0.0
    node.source.poke()
    await node.until(lambda: any(name == "identity_refused" for name, _ in node.events))
    assert node.context is before
    ca.start()
    await node.until(lambda: node.context is not before, 30)
    assert str(node.context.id) == WEB


async def join(ca: RunningCa, folder: NodeFolder) -> JoinString:
    """What `sidewall join` does."""
    made = await ca.ask("CreateToken", spiffe_id=VM)
    text = JoinString((("127.0.0.1", ca.port),), TD, made["fingerprint"], made["secret"])
    way = Way(*text.addresses[0])
    root = await find_root(way, text.pin, text.trust_domain)
    async with connected(way, as_stranger(root), root.trust_domain) as channel:
        got = await calls.attest(channel, Proof(join_token=text.secret), calls.new_key(), now=calls_now())
    facts = NodeFacts(str(got.svid.id), root.trust_domain, str(way))
    folder.create(facts, got.svid, got.bundle)
    return text


def calls_now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)


async def test_a_machine_that_joined_is_still_itself_after_a_restart(
    ca: RunningCa, nursery: trio.Nursery, tmp_path: Path
) -> None:
    folder = NodeFolder(tmp_path / "identity")
    text = await join(ca, folder)
    assert {path.stat().st_mode & 0o777 for path in folder.path.iterdir()} == {0o600}
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert text.secret not in "".join(path.read_text() for path in folder.path.iterdir())
    serials = []
    for _ in range(2):
        node = Node(Way.parse(folder.facts().url), lambda: None, folder=NodeFolder(folder.path))
        async with trio.open_nursery() as life:
            await life.start(node.source.run, node.live)
            assert str(node.context.id) == VM
            node.source._due = 0.0
            node.source.poke()
            await node.until(lambda node=node: sum(name == "identity_updated" for name, _ in node.events) == 2)
            await node.until(lambda: folder.load().svid.leaf == node.context.svid.leaf)  # noqa: B023
            serials.append(node.context.svid.leaf.serial_number)
            life.cancel_scope.cancel()
    assert len(set(serials)) == 2


async def test_a_wrong_fingerprint_is_refused_before_the_token_is_sent(ca: RunningCa, tmp_path: Path) -> None:
    from identity.rpc import RpcError

    with pytest.raises(RpcError, match="does not show the root"):
        await find_root(Way.parse(f"https://127.0.0.1:{ca.port}"), "sha256:" + "0" * 64, TD)


async def test_a_revocation_reaches_the_node(ca: RunningCa, nursery: trio.Nursery) -> None:
    node = local(ca)
    await nursery.start(node.source.run, node.live)
    await node.until(lambda: node.changes)
    other = f"spiffe://{TD}/ns/shop/sa/other"
    await ca.ask("Revoke", what=other, reason="stolen")
    await node.until(
        lambda: node.source.revocations is not None
        and any(entry.what == other for entry in node.source.revocations.entries),
        2.0,
    )


def test_a_damaged_memory_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = NodeFolder(tmp_path / "id")
    folder.path.mkdir(mode=0o700)
    (folder.path / "node.json").write_text("{")
    os.chmod(folder.path / "node.json", 0o600)
    with pytest.raises(IdentityFileError) as refused:
        folder.load()
    assert "join this machine again" in refused.value.hint


# -- commands and the agent -------------------------------------------------------------------------------------


def sidewall(*arguments: str, text: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **env},
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def token_for(ca: RunningCa, name: str) -> str:
    made = ca.command("token", name, "--url", f"https://127.0.0.1:{ca.port}")
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def entry_for_app(ca: RunningCa, *more: str) -> None:
    made = ca.command(
        *("entry", "create", f"spiffe://{TD}/app", "--parent", f"spiffe://{TD}/ns/legacy/sa/ledger"),
        *("--selector", f"unix:uid:{os.geteuid()}", *more),
    )
    assert made.returncode == 0, made.stderr


@contextlib.contextmanager
def running_agent(ca: RunningCa, folder: Path) -> Iterator[Path]:
    path = ca.folder / "agent.sock"
    with (ca.folder / "agent.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "agent", "--dir", str(folder), "--socket", str(path)],
            cwd=REPOSITORY,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 20
        while not path.exists():
            assert process.poll() is None, (ca.folder / "agent.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield path
    finally:
        process.terminate()
        process.wait(10)


def eventually(action: Any, seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while (found := action()).returncode:
        assert time.monotonic() < deadline, found.stderr + found.stdout
        time.sleep(0.1)
    return found


def test_a_machine_joins_with_one_command_and_gives_its_workloads_identities(ca: RunningCa, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    joined = sidewall("join", "-", "--dir", str(folder), text=token_for(ca, "legacy/ledger") + "\n")
    assert joined.returncode == 0, joined.stderr
    assert f"enrolled as spiffe://{TD}/ns/legacy/sa/ledger" in joined.stdout
    again = sidewall("join", token_for(ca, "legacy/ledger"), "--dir", str(folder))
    assert (again.returncode, "has joined already" in again.stderr) == (78, True)
    entry_for_app(ca)
    with running_agent(ca, folder) as path:
        endpoint = f"unix://{path}"
        got = eventually(lambda: sidewall("identity", "fetch", "--socket", endpoint, "--write", str(tmp_path / "tls")))
        assert f"spiffe://{TD}/app" in got.stdout
        assert (tmp_path / "tls" / "key.pem").stat().st_mode & 0o777 == 0o600
        why = sidewall("identity", "why", "--socket", endpoint)
        assert f"unix:uid:{os.geteuid()}" in why.stdout
        token = sidewall("identity", "fetch", "--audience", "api", SPIFFE_ENDPOINT_SOCKET=endpoint)
        assert token.stdout.splitlines()[0] == f"spiffe://{TD}/app"
        spiffe_client_agrees(endpoint)
    left = sidewall("leave", "--yes", "--dir", str(folder))
    assert left.returncode == 0, left.stderr
    assert list(folder.iterdir()) == []
    assert sidewall("leave", "--yes", "--dir", str(folder)).returncode == 78


def spiffe_client_agrees(endpoint: str) -> None:
    """The standard's own client takes what the agent gives."""
    spiffe = pytest.importorskip("spiffe", reason="the spiffe package is not installed")
    with spiffe.WorkloadApiClient(endpoint) as client:
        svid = client.fetch_x509_svid()
        assert str(svid.spiffe_id) == f"spiffe://{TD}/app"
        jwt_svid = client.fetch_jwt_svid(audience={"api"})
        assert str(client.validate_jwt_svid(jwt_svid.token, "api").spiffe_id) == f"spiffe://{TD}/app"


def test_a_process_without_an_entry_is_told_which_came_near(ca: RunningCa, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    assert sidewall("join", token_for(ca, "legacy/ledger"), "--dir", str(folder)).returncode == 0
    entry_for_app(ca, "--selector", "unix:path:/no/such/program")
    with running_agent(ca, folder) as path:

        def why() -> subprocess.CompletedProcess[str]:
            found = sidewall("identity", "why", "--socket", f"unix:{path}")
            found.returncode = 0 if "near" in found.stdout else 1
            return found

        assert "lacks unix:path:/no/such/program" in eventually(why).stdout
        refused = sidewall("identity", "fetch", "--socket", f"unix:{path}")
        assert (refused.returncode, "no identity issued" in refused.stderr) == (77, True)


def test_a_wrong_token_leaves_nothing_behind(ca: RunningCa, tmp_path: Path) -> None:
    text = token_for(ca, "legacy/ledger")
    assert sidewall("join", text, "--dir", str(tmp_path / "one")).returncode == 0
    used = sidewall("join", text, "--dir", str(tmp_path / "two"))
    assert used.returncode == 77
    assert text not in used.stderr
    assert not (tmp_path / "two").exists()
    assert sidewall("join", "nonsense", "--dir", str(tmp_path / "two")).returncode == 2


async def test_a_sidecar_gives_its_own_app_its_identity(ca: RunningCa, nursery: trio.Nursery) -> None:
    from proxy.agent import own
    from proxy.net.poller import Poller

    node, poller, path = local(ca), Poller(), ca.folder / "app.sock"
    await nursery.start(node.source.run, node.live)
    await nursery.start(poller.serve)
    source = own.OwnIdentity(lambda: {TD: node.source.bundle} if node.source.bundle is not None else {})
    nursery.start_soon(own.serve, poller, str(path), node.live, source)
    await node.until(path.exists)
    assert path.stat().st_mode & 0o777 == 0o660
    got = await trio.to_thread.run_sync(lambda: sidewall("identity", "fetch", "--socket", f"unix:{path}"))
    assert WEB in got.stdout, got.stderr
    refused = await trio.to_thread.run_sync(
        lambda: sidewall("identity", "fetch", "--audience", "x", "--socket", f"unix:{path}")
    )
    assert (refused.returncode, "JWT-SVIDs" in refused.stderr) == (77, True)
    nursery.cancel_scope.cancel()


async def test_a_proxy_takes_its_identity_from_a_workload_api(
    ca: RunningCa, nursery: trio.Nursery, tmp_path: Path
) -> None:
    """The same socket that SPIRE's agent offers: here it is ours."""
    folder = tmp_path / "identity"
    joined = await trio.to_thread.run_sync(
        lambda: sidewall("join", token_for(ca, "legacy/ledger"), "--dir", str(folder))
    )
    assert joined.returncode == 0, joined.stderr
    entry_for_app(ca)
    with running_agent(ca, folder) as path:
        from identity.workload_source import WorkloadSource
        from proxy.rpc.endpoint import parse_endpoint, x509_stream

        live: Live[X509Context | None] = Live(None)
        events: list[str] = []
        source = WorkloadSource(
            x509_stream(parse_endpoint(f"unix:{path}")), str(path), on_event=lambda name, facts: events.append(name)
        )
        nursery.start_soon(source.run, live)
        with trio.fail_after(20):
            while live.value is None:
                await trio.sleep(0.05)
        assert str(live.value.id) == f"spiffe://{TD}/app"
        nursery.cancel_scope.cancel()
