from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.unit.ca_server.authority import House, house


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[House]:
    with house(tmp_path) as made:
        await made.look()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.desk.batches.run)
            yield made
            nursery.cancel_scope.cancel()
