"""Where things are, and whose."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from proxy.ca.places import default_folder, default_socket, is_strangers


def test_a_state_home_that_is_named_counts(tmp_path: Path) -> None:
    assert default_folder({"XDG_STATE_HOME": str(tmp_path)}) == tmp_path / "sidewall" / "ca"


def test_the_socket_may_be_named() -> None:
    assert default_socket({"SIDEWALL_CA": "unix:/run/x.sock"}) == Path("/run/x.sock")
    assert default_socket({}).name == "ca.sock"


def test_a_folder_into_which_others_may_write_is_a_strangers(tmp_path: Path) -> None:
    assert not is_strangers(tmp_path)
    assert not is_strangers(tmp_path / "none")
    assert not is_strangers(Path("/tmp"))  # sticky: what is ours there stays ours
    tmp_path.chmod(0o777)
    assert is_strangers(tmp_path)
    tmp_path.chmod(0o700)
    (tmp_path / "link").symlink_to(tmp_path)
    assert is_strangers(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_a_strangers(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    assert is_strangers(tmp_path)
    os.chown(tmp_path, 0, 0)
