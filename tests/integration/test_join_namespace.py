"""A machine with nothing but the program joins over a network, is rebooted, and is still itself.

Two network namespaces, joined by a cable: the authority in one, the machine in the other with a fresh state folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.authority import REPOSITORY, TD

_MISSING = "root and iproute2 are needed" if os.geteuid() or not shutil.which("ip") else ""
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(_MISSING), reason=_MISSING or "-")]

NAME = f"swj{os.getpid() % 100_000}"
CA, VM = f"{NAME}a", f"{NAME}b"
ADDRESS = "10.77.0.1"


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")


@pytest.fixture
def cable() -> Iterator[None]:
    made = []
    try:
        for space in (CA, VM):
            ip("netns", "add", space)
            made.append(space)
        ip("link", "add", CA, "type", "veth", "peer", "name", VM)
        for space, address in ((CA, ADDRESS), (VM, "10.77.0.2")):
            ip("link", "set", space, "netns", space)
            ip("-n", space, "addr", "add", f"{address}/24", "dev", space)
            ip("-n", space, "link", "set", space, "up")
            ip("-n", space, "link", "set", "lo", "up")
        yield
    finally:
        for space in made:
            subprocess.run(["ip", "netns", "del", space], check=False, timeout=20)


def command(space: str, *arguments: str) -> list[str]:
    return ["ip", "netns", "exec", space, sys.executable, "-m", "proxy", *arguments]


def run(space: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(space, *arguments),
        cwd=REPOSITORY,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def eventually(space: str, *arguments: str, **env: str) -> str:
    deadline = time.monotonic() + 20
    while (found := run(space, *arguments, **env)).returncode:
        assert time.monotonic() < deadline, found.stderr
        time.sleep(0.1)
    return found.stdout


def test_a_machine_joins_with_one_command_reboots_and_is_still_itself(cable: None) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def start(space: str, *arguments: str) -> subprocess.Popen[bytes]:
        children.append(subprocess.Popen(command(space, *arguments), cwd=REPOSITORY, stderr=subprocess.DEVNULL))
        return children[-1]

    with tempfile.TemporaryDirectory(prefix="sw") as made:
        folder = Path(made)
        socket, state, asked = folder / "ca.sock", folder / "vm" / "identity", str(folder / "agent.sock")
        ca = {"SIDEWALL_CA": str(socket)}
        try:
            serve = ("ca", "serve", "--dir", str(folder / "ca"), "--trust-domain", TD)
            start(CA, *serve, "--listen", f"{ADDRESS}:15012", "--socket", str(socket))
            eventually(CA, "ca", "status", **ca)
            token = run(CA, "ca", "token", "legacy/ledger", "--url", f"https://{ADDRESS}:15012", **ca).stdout.strip()
            joined = run(VM, "join", token, "--dir", str(state))
            assert joined.returncode == 0, joined.stderr
            node = f"spiffe://{TD}/ns/legacy/sa/ledger"
            made_entry = run(
                *(CA, "ca", "entry", "create", f"spiffe://{TD}/app", "--parent", node),
                *("--selector", f"unix:uid:{os.geteuid()}"),
                **ca,
            )
            assert made_entry.returncode == 0, made_entry.stderr
            for _ in range(2):  # the second time after a reboot: no token, no memory but the folder
                agent = start(VM, "agent", "--dir", str(state), "--socket", asked)
                got = eventually(VM, "identity", "fetch", "--socket", f"unix:{asked}")
                assert f"spiffe://{TD}/app" in got
                assert node in run(VM, "identity", "why", "--socket", f"unix:{asked}").stdout
                agent.send_signal(signal.SIGKILL)
                agent.wait()
        finally:
            for child in children:
                child.kill()
                child.wait()
