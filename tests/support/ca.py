"""An authority for tests: made in a folder, at a fixed time, with short lives where a test asks for them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from identity.authority import new_key
from identity.ca.model import CallerFacts, CaSettings, Issued
from identity.ca.service import CaService
from identity.spiffe import SpiffeId

NOW = datetime(2030, 6, 1, 12, 0, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

TD = "td"
AGENT = CallerFacts("agent", f"spiffe://{TD}/host/1", "192.0.2.1:4711", "pid=12 uid=1000")

# Lives of minutes: a whole rotation in an hour of made-up time.
SHORT = CaSettings(
    svid_ttl=60.0,
    max_ttl=120.0,
    root_life=4 * 3600.0,
    issuing_life=3600.0,
    jwt_life=3600.0,
    jwt_ttl=60.0,
    max_jwt_ttl=60.0,
    refresh_hint=30.0,
    old_grace=60.0,
)


@contextlib.contextmanager
def in_memory(instead: Path) -> Iterator[Path]:
    """A folder in memory where the machine has such a place, else ``instead``. Every act of an authority waits for the
    disk; tests need not, unless they are about the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield instead
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def new_ca(folder: Path, **arguments: Any) -> CaService:
    """``CaService.create`` with everything given that a test does not care for."""
    return CaService.create(folder, TD, **{"now": NOW, **arguments})


def spiffe_id(path: str = "/ns/a/sa/web") -> SpiffeId:
    return SpiffeId.of(TD, path)


def issue(ca: CaService, path: str = "/ns/a/sa/web", key: Any = None, **arguments: Any) -> Issued:
    """A certificate for ``path``; ``key``: a private key, new when None."""
    wanted = {"caller": AGENT, "now": NOW, **arguments}
    return ca.issue_x509(spiffe_id(path), (key or new_key()).public_key(), **wanted)


def entry(path: str = "/ns/a/sa/web", *selectors: str, parent: str = "/host/1", **more: Any) -> dict[str, Any]:
    """A registration entry as a document."""
    return {
        "spiffeId": f"spiffe://{TD}{path}",
        "parentId": f"spiffe://{TD}{parent}",
        "selectors": list(selectors or ("unix:uid:1000",)),
        **more,
    }


def attest(ca: CaService, path: str, *, now: datetime = NOW, life: timedelta = DAY, machine: str = "") -> None:
    """A node that lives until ``now + life``."""
    ca.record_node(
        spiffe_id(path), "join-token", ("machine:a",), key_hash="ab" * 32, machine_id=machine,
        expires_at=(now + life).timestamp(), now=now, caller=replace(AGENT, kind="token"),
    )  # fmt: skip


def of_kind(ca: CaService, kind: str, state: str) -> list[str]:
    """The ids of the authorities of a kind in a state."""
    return [view.id for view in ca.authorities() if (view.kind, view.state) == (kind, state)]


def kinds(ca: CaService, since: int = 0) -> list[str]:
    """The journal as a list of its records' kinds."""
    return [record.kind for record in ca.log(since=since)]
