"""An authority per test: a copy of one that was made once, because making one waits for the disk a dozen times."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from identity.ca.service import CaService
from tests.support.ca import NOW, SHORT, in_memory, new_ca


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as path:
        yield path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    new_ca(folder / "ca").close()
    new_ca(folder / "brief", settings=SHORT).close()
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the authority is, or will be."""
    return tmp_path / "ca"


@pytest.fixture
def ca(made: Path, folder: Path) -> Iterator[CaService]:
    shutil.copytree(made / "ca", folder)
    with CaService.open(folder, now=NOW) as found:
        yield found


@pytest.fixture
def brief(made: Path, folder: Path) -> Iterator[CaService]:
    """One with lives of minutes."""
    shutil.copytree(made / "brief", folder)
    with CaService.open(folder, now=NOW) as found:
        yield found
