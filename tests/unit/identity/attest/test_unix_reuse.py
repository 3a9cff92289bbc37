"""A pid that is used again between connect and check never gets the other's identity (C-9), with real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

ROUNDS = 25  # for each of 5 moments, 2 kinds of kernel and 2 kinds of better process: 500 reuses
UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc"]


def namespace() -> list[str]:
    """The command that makes a pid namespace here, as root or through a user namespace; skips when there is none."""
    for command in (UNSHARE, [*UNSHARE, "--user", "--map-root-user"]):
        try:
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return command
        except OSError:
            break
    pytest.skip("no pid namespace may be made here: run as root, or allow user namespaces")


@pytest.mark.slow
@pytest.mark.parametrize("other_user", ["", "1"], ids=["same user", "other user"])
def test_a_reused_pid_never_gets_the_others_identity(other_user: str) -> None:
    command = namespace()
    if other_user and "--user" in command:
        pytest.skip("another user needs root: run as root")
    ran = subprocess.run(
        [*command, sys.executable, "-m", "tests.support.pid_reuse", str(ROUNDS)],
        capture_output=True,
        text=True,
        env={**os.environ, "OTHER_USER": other_user},
    )
    assert ran.returncode == 0, ran.stderr
    counts = [count for moments in json.loads(ran.stdout).values() for count in moments.values()]
    total = {name: sum(count[name] for count in counts) for name in ("reused", "refused", "fooled")}
    print(f"pids reused {total['reused']}, refused {total['refused']}, believed {total['fooled']}")
    assert total == {"reused": 10 * ROUNDS, "refused": 10 * ROUNDS, "fooled": 0}
