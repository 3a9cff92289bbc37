"""The files are real; the half seconds between looks pass at once (autojump clock)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trio
import trio.testing

from config import watch as module
from config.watch import watch

Clock = trio.testing.MockClock


@pytest.fixture(autouse=True)
def looks_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an autojump clock, time would pass while a thread works."""

    async def at_once(work: Callable[[object], object], argument: object, **_: object) -> object:
        await trio.lowlevel.checkpoint()
        return work(argument)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)
    monkeypatch.setattr(module, "_RECENT", -1.0)


class Seen:
    """Counts what a watch yields."""

    def __init__(self, *paths: Path) -> None:
        self.paths: Iterable[Path] = paths
        self.count = 0
        self.at = 0.0

    async def run(self) -> None:
        async for _ in watch(lambda: self.paths):
            self.count += 1
            self.at = trio.current_time()

    async def after(self, change: Callable[[], object]) -> int:
        """How many changes were seen within a second of ``change``."""
        before, began = self.count, trio.current_time()
        change()
        await trio.sleep(1.0)
        assert self.count == before or self.at - began <= 1.0
        await trio.sleep(5.0)
        return self.count - before


async def start(nursery: trio.Nursery, *paths: Path) -> Seen:
    seen = Seen(*paths)
    nursery.start_soon(seen.run)
    await trio.sleep(0.1)
    return seen


async def test_a_change_of_a_file_is_seen_within_a_second(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("one")
    seen = await start(nursery, file)
    assert await seen.after(lambda: None) == 0
    assert await seen.after(lambda: file.write_text("two")) == 1


async def test_the_same_content_is_no_change(tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("one")
    seen = await start(nursery, file)
    assert await seen.after(lambda: os.utime(file, (1, 1))) == 0
    file.unlink()
    assert await seen.after(lambda: file.write_text("one")) == 0


async def test_a_file_may_come_go_and_come_back(tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    file = tmp_path / "a.yaml"
    seen = await start(nursery, file)
    assert await seen.after(lambda: file.write_text("one")) == 1
    assert await seen.after(file.unlink) == 1
    assert await seen.after(lambda: file.write_text("two")) == 1


async def test_files_of_a_folder_are_seen_and_others_are_not(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    folder = tmp_path / "policy"
    seen = await start(nursery, folder)
    assert await seen.after(folder.mkdir) == 1
    assert await seen.after(lambda: (folder / "a.yaml").write_text("one")) == 1
    assert await seen.after(lambda: (folder / "a.yaml").rename(folder / "b.yaml")) == 1
    assert await seen.after(lambda: (folder / "a.test.yaml").write_text("x")) == 0
    assert await seen.after(lambda: (folder / "notes.md").write_text("x")) == 0
    assert await seen.after(lambda: (folder / "b.yaml").unlink()) == 1


async def test_the_swap_of_a_kubernetes_volume_is_one_change(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    for name, text in (("..1", "one"), ("..2", "two"), ("..3", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    seen = await start(nursery, tmp_path)

    def swap(target: str) -> None:
        (tmp_path / "..tmp").symlink_to(target)
        (tmp_path / "..tmp").rename(tmp_path / "..data")

    assert await seen.after(lambda: swap("..2")) == 1
    assert await seen.after(lambda: swap("..3")) == 0


async def test_a_file_that_is_being_written_is_waited_for(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("")
    seen = await start(nursery, file)
    await trio.sleep(0.39)
    for length in range(1, 4):
        file.write_text("x" * length)
        await trio.sleep(0.06)
    assert seen.count == 0
    assert await seen.after(lambda: None) == 1


async def test_a_file_that_is_written_without_end_is_seen_all_the_same(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("")
    seen = await start(nursery, file)
    for length in range(60):
        file.write_text("x" * length)
        await trio.sleep(0.05)
    assert seen.count >= 2


async def test_the_files_are_asked_for_anew_each_time(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    second.write_text("2")
    seen = await start(nursery, first)
    assert await seen.after(lambda: setattr(seen, "paths", [first, second])) == 1
    assert await seen.after(lambda: second.write_text("3")) == 1


async def test_what_was_written_a_moment_ago_is_read_once_more(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, autojump_clock: Clock
) -> None:
    monkeypatch.setattr(module, "_RECENT", 10.0)
    (tmp_path / "a").write_text("1")
    seen = await start(nursery, tmp_path / "a")
    assert seen.count == 1
    assert await seen.after(lambda: None) == 0


async def test_a_change_while_the_reader_is_busy_is_not_lost(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock
) -> None:
    file, counts = tmp_path / "a", []
    file.write_text("0")

    async def busy() -> None:
        async for _ in watch(lambda: [file]):
            counts.append(file.read_text())
            await trio.sleep(10)

    nursery.start_soon(busy)
    await trio.sleep(0.1)
    file.write_text("1")
    await trio.sleep(5)
    file.write_text("2")
    await trio.sleep(20)
    assert counts == ["1", "2"]


async def test_odd_files_do_not_stop_the_watch(tmp_path: Path, nursery: trio.Nursery, autojump_clock: Clock) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    file = tmp_path / "a.yaml"
    seen = await start(nursery, tmp_path)
    assert await seen.after(lambda: file.write_text("x")) == 1


def test_content_beyond_the_bound_is_told_from_content_within(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_TOTAL", 10)
    file = tmp_path / "a"
    file.write_text("x" * 10)
    small = module._digest(module._stats([file]))
    file.write_text("x" * 11)
    assert module._digest(module._stats([file])) != small
