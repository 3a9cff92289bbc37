"""`sidewall ca serve` as a process, with real sockets, real TLS and the commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.hashes import SHA256

from identity.ca.revocation import verify
from identity.ca_api import ADMIN, ATTEST, RENEW, WATCH, api, own_parent
from identity.files import create_ca
from identity.rpc import RpcError, Status
from identity.svid import TrustBundle
from proxy.ca.work import now
from tests.support.authority import REPOSITORY, TD, RunningCa, csr, free_port, new_key

pytestmark = pytest.mark.slow

NODE = f"spiffe://{TD}/vm7"
WEB = f"spiffe://{TD}/ns/shop/sa/web"
NOBODY = 65534


@pytest.fixture
def ca() -> Iterator[RunningCa]:
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        os.chmod(folder, 0o755)  # another user must reach the socket
        running = RunningCa(Path(folder)).start()
        try:
            yield running
        finally:
            if running.process is not None:
                running.stop(signal.SIGKILL)


async def test_a_machine_joins_renews_and_gets_identities_for_its_workloads(ca: RunningCa) -> None:
    node, roots = await ca.join(NODE)
    entry = await ca.ask("CreateEntry", entry={"spiffeId": WEB, "parentId": NODE, "selectors": ["unix:uid:7"]})

    async with ca.node(node, roots) as channel:
        renewed = await ca.renew(channel)
    async with ca.node(renewed, roots) as channel:
        web = await ca.issue(channel, entry["id"])

    assert web.svid.spiffe_id == WEB
    assert web.chain[0].public_key() == web.key.public_key()
    listed = await ca.ask("Issued", spiffe_id=WEB)
    assert [one["serial"] for one in listed] == [web.svid.serial]
    assert (await ca.ask("VerifyLog"))["ok"]


async def test_a_token_is_refused_the_second_time(ca: RunningCa) -> None:
    token = await ca.ask("CreateToken", spiffe_id=NODE)
    async with ca.stranger(ca.pinned(token["fingerprint"])) as channel:
        await ca.attest(channel, join_token=token["secret"])
        with pytest.raises(RpcError) as caught:
            await ca.attest(channel, join_token=token["secret"])
    assert caught.value.status == Status.PERMISSION_DENIED


async def test_a_stranger_gets_nothing_but_attestation(ca: RunningCa) -> None:
    token = await ca.ask("CreateToken", spiffe_id=NODE)
    async with ca.stranger(ca.pinned(token["fingerprint"])) as channel:
        for method, status in ((RENEW, Status.UNAUTHENTICATED), (ADMIN + "Status", Status.PERMISSION_DENIED)):
            with pytest.raises(RpcError) as caught:
                await channel.unary(method, b"")
            assert caught.value.status == status


async def test_a_workload_of_a_node_is_no_node(ca: RunningCa) -> None:
    node, roots = await ca.join(NODE)
    entry = await ca.ask("CreateEntry", entry={"spiffeId": WEB, "parentId": NODE, "selectors": ["unix:uid:7"]})
    async with ca.node(node, roots) as channel:
        web = await ca.issue(channel, entry["id"])
    async with ca.node(web, roots) as channel:
        with pytest.raises(RpcError) as caught:
            await ca.renew(channel)
    assert caught.value.status == Status.PERMISSION_DENIED


async def test_a_watcher_hears_of_an_entry_and_of_a_revocation_within_a_second(ca: RunningCa) -> None:
    node, roots = await ca.join(NODE)
    async with ca.node(node, roots) as channel, channel.stream(WATCH, b"") as replies:
        assert not api.State.FromString(await anext(replies)).entries
        with trio.fail_after(1):
            await ca.ask("CreateEntry", entry={"spiffeId": WEB, "parentId": NODE, "selectors": ["unix:uid:7"]})
            state = api.State.FromString(await anext(replies))
        assert [json.loads(entry)["spiffeId"] for entry in state.entries] == [WEB]
        with trio.fail_after(1):
            await ca.ask("Revoke", what=WEB, reason="leaked")
            state = api.State.FromString(await anext(replies))
        assert [one.what for one in verify(state.revocations, roots, now=now()).entries] == [WEB]


async def test_the_connection_of_a_revoked_node_ends_within_a_second(ca: RunningCa) -> None:
    node, roots = await ca.join(NODE)
    async with ca.node(node, roots) as channel, channel.stream(WATCH, b"") as replies:
        await anext(replies)
        with trio.fail_after(1):
            await ca.ask("Ban", spiffe_id=NODE, reason="copied disk")
            with pytest.raises(RpcError):
                async for _ in replies:
                    pass
    with pytest.raises(RpcError) as caught:
        async with ca.node(node, roots) as channel:
            await ca.renew(channel)
    assert caught.value.status in (Status.PERMISSION_DENIED, Status.UNAVAILABLE)


async def test_administration_over_tls_needs_an_admin_entry(ca: RunningCa) -> None:
    node, roots = await ca.join(NODE)
    operator = f"spiffe://{TD}/operator"
    document = {"spiffeId": operator, "parentId": NODE, "selectors": ["unix:uid:0"]}
    entry = await ca.ask("CreateEntry", entry=document)
    async with ca.node(node, roots) as channel:
        held = await ca.issue(channel, entry["id"])
    async with ca.node(held, roots) as channel:
        with pytest.raises(RpcError) as caught:
            await channel.unary(ADMIN + "Nodes", b"")
        assert caught.value.status == Status.PERMISSION_DENIED
        await ca.ask("UpdateEntry", id=entry["id"], change={"admin": True})
        nodes = json.loads(api.AdminReply.FromString(await channel.unary(ADMIN + "Nodes", b"")).json)
    assert [one["spiffe_id"] for one in nodes] == [NODE]


_AS_NOBODY = """
import os, sys
from pathlib import Path
import trio
from identity.ca_api import ATTEST, api
from proxy.cli.ca_client import _Server
from proxy.cli.group import Problem
from proxy.net.listener import Address
from proxy.rpc.client import open_channel
from tests.support.authority import csr, new_key

server = _Server(Path(sys.argv[1]))
server.ask("Bundle")  # whatever is imported lazily is imported now
request = api.AttestRequest(csr=csr(new_key()), unix_peer=True).SerializeToString()
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    server.ask("Status")
except Problem as problem:
    print(problem.code, problem.message)

async def attest():
    async with open_channel(Address(path=sys.argv[1])) as channel:
        print(api.AttestReply.FromString(await channel.unary(ATTEST, request)).svid.spiffe_id)

trio.run(attest)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_another_user_may_attest_by_an_entry_but_not_administer(ca: RunningCa) -> None:
    document = {"spiffeId": WEB, "parentId": own_parent(TD), "selectors": [f"unix:uid:{NOBODY}"]}
    await ca.ask("CreateEntry", entry=document)

    done = await trio.run_process(
        [sys.executable, "-c", _AS_NOBODY, str(ca.socket)], cwd=REPOSITORY, capture_stdout=True
    )

    refusal, spiffe_id = done.stdout.decode().splitlines()
    assert refusal == "77 only root and the authority's own user may administer it"
    assert spiffe_id == WEB
    denied = [one for one in await ca.ask("Log") if one["kind"] == "denied"]
    assert f"uid={NOBODY}" in denied[-1]["caller"]["detail"]


async def test_a_process_of_the_owner_attests_on_the_socket_as_whom_it_likes(ca: RunningCa) -> None:
    async with ca.local() as channel:
        held = await ca.attest(channel, unix_peer=True, spiffe_id=WEB)
    assert held.svid.spiffe_id == WEB
    assert held.url == f"https://127.0.0.1:{ca.port}"  # and goes on there, with its SVID


async def test_sigterm_ends_it_cleanly_and_sigkill_loses_nothing(ca: RunningCa) -> None:
    node, roots = await ca.join(NODE)
    assert ca.stop(signal.SIGKILL) == -signal.SIGKILL

    ca.start()  # takes the stale socket over
    async with ca.node(node, roots) as channel:
        renewed = await ca.renew(channel)
    assert (await ca.ask("VerifyLog"))["ok"]
    assert ca.stop() == 0
    assert not ca.socket.exists()

    ca.start()
    async with ca.node(renewed, roots) as channel:
        assert await ca.renew(channel)


async def test_what_was_answered_is_durable_when_it_is_killed_under_load(ca: RunningCa) -> None:
    node, roots = await ca.join(NODE)
    entry = await ca.ask("CreateEntry", entry={"spiffeId": WEB, "parentId": NODE, "selectors": ["unix:uid:7"]})
    answered: list[str] = []

    async def ask_on(roots: TrustBundle) -> None:
        try:
            async with ca.node(node, roots) as channel:
                while True:
                    answered.append((await ca.issue(channel, entry["id"])).svid.serial)
        except RpcError:
            pass

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask_on, roots)
        while len(answered) < 10:
            await trio.sleep(0.01)
        await trio.to_thread.run_sync(ca.stop, signal.SIGKILL)
    ca.start()

    listed = {one["serial"] for one in await ca.ask("Issued", spiffe_id=WEB, limit=10_000)}
    assert set(answered) <= listed
    assert (await ca.ask("VerifyLog"))["ok"]


async def test_the_pages_say_whether_it_is_ready_and_when_the_first_svid_lapses(ca: RunningCa) -> None:
    await ca.join(NODE)

    def page(path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{ca.http}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    assert page("/ready") == "ready\n"
    assert page("/live") == "live\n"
    with trio.fail_after(10):
        while "sidewall_ca_live_svids 0" in page("/metrics"):
            await trio.sleep(0.1)
    (line,) = [line for line in page("/metrics").splitlines() if line.startswith("sidewall_ca_first_lapse_seconds ")]
    assert 0 < float(line.split()[1]) <= 3600
    with pytest.raises(urllib.error.HTTPError):
        page("/status")


async def test_a_replayed_request_over_another_connection_is_refused_by_name(ca: RunningCa) -> None:
    token = await ca.ask("CreateToken", spiffe_id=NODE)
    roots = ca.pinned(token["fingerprint"])
    request = api.AttestRequest(csr=csr(new_key()), join_token=token["secret"]).SerializeToString()
    won: list[bytes] = []
    lost: list[Status] = []

    async def attempt() -> None:
        async with ca.stranger(roots) as channel:
            try:
                won.append(await channel.unary(ATTEST, request))
            except RpcError as error:
                lost.append(error.status)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(attempt)
    assert len(won) == 1
    assert lost == [Status.PERMISSION_DENIED] * 3


# -- starting -----------------------------------------------------------------------------------------------


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to come up."""
    command = [sys.executable, "-m", "proxy", "ca", "serve", "--log-format", "text", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def test_a_folder_of_ca_init_is_taken_over_with_its_root(tmp_path: Path) -> None:
    made = create_ca(tmp_path / "ca", TD, now=now())
    running = RunningCa(tmp_path).start()
    try:
        (shown,) = made.bundle.authorities
        pin = f"sha256:{shown.fingerprint(SHA256()).hex()}"
        assert running.pinned(pin).authorities == (shown,)
        assert json.loads(running.command("status", "-o", "json").stdout)["trust_domain"] == TD
    finally:
        assert running.stop() == 0


def test_what_stands_in_the_way_of_a_start_is_said_with_its_code(tmp_path: Path, ca: RunningCa) -> None:
    common = ("--socket", str(tmp_path / "s"), "--dir", str(tmp_path / "ca"))
    taken = serve(*common, "--listen", f"127.0.0.1:{ca.port}")
    assert (taken.returncode, "cannot listen on 127.0.0.1" in taken.stderr) == (73, True)

    answered = serve(
        "--socket", str(ca.socket), "--dir", str(tmp_path / "ca"), "--listen", f"127.0.0.1:{free_port()}"
    )
    assert answered.returncode in (73, 77)

    (tmp_path / "ca").chmod(0o755)
    assert serve(*common, "--listen", f"127.0.0.1:{free_port()}").returncode == 73
    (tmp_path / "ca").chmod(0o700)
    database = tmp_path / "ca" / "ca.db"
    database.write_bytes(b"not a database" * 1000)
    broken = serve(*common, "--listen", f"127.0.0.1:{free_port()}")
    assert broken.returncode == 78, broken.stderr
    assert "backup" in broken.stderr

    nowhere = serve("--dir", "/proc/none/ca", "--socket", str(tmp_path / "s"), "--listen", f"127.0.0.1:{free_port()}")
    assert nowhere.returncode == 73


def test_the_process_leaves_no_core_and_lets_nobody_look(ca: RunningCa) -> None:
    assert ca.process is not None
    limits = Path(f"/proc/{ca.process.pid}/limits").read_text()
    (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
    assert line.split()[4:6] == ["0", "0"]
