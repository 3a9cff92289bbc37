"""Every version pair, as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.apps import EchoApp
from tests.support.mesh import Mesh, open_mesh

PAIRS = [(False, False), (False, True), (True, False), (True, True)]
NAMES = ["h1-h1", "h1-h2", "h2-h1", "h2-h2"]


@pytest.fixture(params=PAIRS, ids=NAMES)
def pair(request: pytest.FixtureRequest) -> tuple[bool, bool]:
    """(the client speaks HTTP/2, the app speaks HTTP/2)."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
async def app(nursery: trio.Nursery, pair: tuple[bool, bool]) -> EchoApp:
    made = EchoApp(http2=pair[1])
    await nursery.start(made.run)
    return made


@pytest.fixture
async def mesh(app: EchoApp, pair: tuple[bool, bool], tmp_path: Path) -> AsyncIterator[Mesh]:
    """Two sidecars between a client and ``app``."""
    more: dict[str, Any] = {"cluster": {"protocol": "h2" if pair[1] else "http1"}}
    async with open_mesh(tmp_path, app.port, api=more) as made:
        yield made
