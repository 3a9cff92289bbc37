"""The folder of keys, and the watchdog over conversations that hang."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from identity.authority import new_key
from identity.ca.keys import KeyFolder, authority_id, key_hash
from identity.ca.model import StoreUnavailable
from identity.ca.watchdog import Watchdog
from tests.support.ca import NOW

AT = NOW.timestamp()
ID = "ab" * 20


@pytest.fixture
def keys(tmp_path: Path) -> KeyFolder:
    made = KeyFolder(tmp_path)
    made.make()
    return made


def write(keys: KeyFolder, name: str, age: float) -> Path:
    path = keys.path / name
    path.write_bytes(b"x")
    os.utime(path, (AT - age, AT - age))
    return path


def test_a_key_comes_back_as_it_was_also_for_another_replica(keys: KeyFolder, tmp_path: Path) -> None:
    key = new_key()
    keys.put(authority_id(key.public_key()), key)
    again = KeyFolder(tmp_path).get(authority_id(key.public_key()))
    assert key_hash(again.public_key()) == key_hash(key.public_key())
    assert keys.ids() == [authority_id(key.public_key())]


def test_a_destroyed_key_is_gone_from_memory_too(keys: KeyFolder) -> None:
    keys.put(ID, new_key())
    keys.get(ID)
    keys.destroy(ID)
    keys.destroy(ID)
    assert not keys.has(ID)
    with pytest.raises(StoreUnavailable, match="is not in"):
        keys.get(ID)


def test_old_keys_that_no_row_speaks_of_are_swept_and_young_ones_are_not(keys: KeyFolder) -> None:
    old, young, known = (f"{n}" * 40 for n in "123")
    for name, age in ((old, 3601.0), (young, 3599.0), (known, 1e6)):
        write(keys, f"{name}.key", age)
    assert keys.sweep({known}, AT) == [old]
    assert keys.ids() == [young, known]


def test_what_a_crash_has_left_half_written_is_swept_without_a_word(keys: KeyFolder) -> None:
    half, young = write(keys, f".{ID}.key.{'0' * 16}", 3601.0), write(keys, f".{ID}.key.{'1' * 16}", 10.0)
    other = write(keys, "README", 1e6)
    assert keys.sweep(set(), AT) == []
    assert [path.exists() for path in (half, young, other)] == [False, True, True]


@pytest.mark.parametrize("name", ["", "..", "../../etc/passwd", "x" * 40, "AB" * 20, ID + "/x"])
def test_only_the_id_of_an_authority_names_a_file(keys: KeyFolder, name: str) -> None:
    with pytest.raises(ValueError, match="not the id"):
        keys.has(name)


@pytest.mark.slow
def test_a_conversation_that_hangs_is_ended_and_one_that_does_not_is_left_alone() -> None:
    near, far = socket.socketpair()
    watchdog = Watchdog()
    with near, far:
        with watchdog.watching(near.fileno(), 60.0):
            far.sendall(b"x")
            assert near.recv(1) == b"x"
        with watchdog.watching(near.fileno(), 0.01):
            assert near.recv(1) == b""  # nobody has said anything: this is the watchdog
    watchdog.close()
    assert not any(thread.name == "ca-watchdog" for thread in threading.enumerate())
