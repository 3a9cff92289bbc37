"""When to renew, and the two tasks that do it. Trio's clock jumps; the wall clock is the test's."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

from identity import disk, renewal
from identity.files import certificates_pem, create_ca, key_pem
from identity.renewal import FileSource, LocalCaSource, alarm_at, backoff, renew_at
from identity.spiffe import SpiffeId
from identity.svid import X509Context
from tests.unit.identity.pki import DAY, HOUR, NOW, issuing, key, leaf, root

Clock = trio.testing.MockClock
WEB = SpiffeId("td", "/ns/a/sa/web")
START = NOW.timestamp()


class FakeLive:
    """As much of config.live.Live as the sources use."""

    def __init__(self) -> None:
        self.value: X509Context | None = None
        self.history: list[X509Context] = []

    def set(self, value: X509Context) -> None:
        self.value = value
        self.history.append(value)


class Scene:
    """A source at work: its live value, its events, and a wall clock that follows trio's."""

    def __init__(self) -> None:
        self.live = FakeLive()
        self.events: list[tuple[str, Mapping[str, object]]] = []
        self.offset = 0.0
        self._begin = trio.current_time()

    def wall(self) -> float:
        return START + trio.current_time() - self._begin + self.offset

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.wall(), UTC)

    def on_event(self, name: str, fields: Mapping[str, object]) -> None:
        self.events.append((name, fields))

    def names(self) -> list[str]:
        return [name for name, _ in self.events]

    async def until(self, wanted: Callable[[], bool], step: float = 0.25) -> None:
        """Let (virtual) time pass until ``wanted``. A bound, so that a broken source fails and does not hang."""
        for _ in range(20_000):
            if wanted():
                return
            await trio.sleep(step)
        raise AssertionError(f"it never happened; events: {self.events}")

    async def serials(self, count: int, step: float = 0.25) -> list[int]:
        await self.until(lambda: len(self.live.history) >= count, step)
        return [context.svid.leaf.serial_number for context in self.live.history]


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time must not run while a thread works."""

    async def at_once(act: Callable[[], object], *, abandon_on_cancel: bool) -> object:
        assert abandon_on_cancel
        await trio.lowlevel.checkpoint()
        return act()

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


@pytest.fixture
async def scene() -> Scene:
    return Scene()


# -- pure ---------------------------------------------------------------------------------------------------


def test_an_svid_is_renewed_at_half_of_its_life_give_or_take_a_tenth() -> None:
    rng = random.Random(3)
    moments = [renew_at(1000.0, 5000.0, rng) for _ in range(500)]
    assert min(moments) >= 1000 + 4000 * 0.45
    assert max(moments) <= 1000 + 4000 * 0.55
    assert max(moments) - min(moments) > 4000 * 0.09
    assert sum(moments) / 500 == pytest.approx(3000, rel=0.01)


def test_retries_back_off_from_a_second_to_a_minute_with_jitter() -> None:
    rng = random.Random(3)
    for failures, step in [(0, 1), (1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (10_000, 60)]:
        waits = [backoff(failures, rng) for _ in range(200)]
        assert step * 0.5 <= min(waits) < step * 0.6
        assert step * 1.4 < max(waits) <= step * 1.5


def test_the_alarm_is_at_a_quarter_of_the_life() -> None:
    assert alarm_at(1000.0, 5000.0) == 4000.0


# -- files --------------------------------------------------------------------------------------------------


def write(folder: Path, cert: x509.Certificate, key_name: str = "leaf") -> None:
    disk.write_private(folder / "bundle.pem", certificates_pem([root()]))
    disk.write_private(folder / "key.pem", key_pem(key(key_name)))
    disk.write_private(folder / "svid.pem", certificates_pem([cert, issuing()]))


def source(folder: Path, scene: Scene) -> FileSource:
    return FileSource(
        folder / "svid.pem",
        folder / "key.pem",
        folder / "bundle.pem",
        on_event=scene.on_event,
        wall=scene.wall,
        rng=random.Random(1),
    )


Act = Callable[[], Awaitable[None]]


async def running(made: FileSource | LocalCaSource, scene: Scene, act: Act) -> None:
    """Run ``act`` beside a started source."""
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda *, task_status: made.run(scene.live, task_status=task_status))
        await act()
        nursery.cancel_scope.cancel()


async def test_files_are_in_use_once_the_source_has_started(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    write(tmp_path, leaf(serial=1))

    async def act() -> None:
        assert await scene.serials(1) == [1]
        assert scene.events == [
            (
                "identity_updated",
                {
                    "spiffe_id": "spiffe://td/ns/a/sa/b",
                    "serial": "1",
                    "not_after": (NOW + HOUR).timestamp(),
                },
            )
        ]

    await running(source(tmp_path, scene), scene, act)


async def test_changed_files_are_taken_within_a_second(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    write(tmp_path, leaf(serial=1))

    async def act() -> None:
        write(tmp_path, leaf(serial=2, public_key=key("second").public_key()), "second")
        began = trio.current_time()
        assert await scene.serials(2) == [1, 2]
        assert trio.current_time() - began <= 1.25

    await running(source(tmp_path, scene), scene, act)


async def test_a_poke_makes_it_look_at_once(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    write(tmp_path, leaf(serial=1))
    made = source(tmp_path, scene)

    async def act() -> None:
        write(tmp_path, leaf(serial=2))
        made.poke()
        began = trio.current_time()
        await scene.until(lambda: len(scene.live.history) == 2)
        assert trio.current_time() - began <= 0.25

    await running(made, scene, act)


async def test_equal_contents_change_nothing(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    write(tmp_path, leaf(serial=1))

    async def act() -> None:
        for _ in range(5):
            write(tmp_path, leaf(serial=1))
            await trio.sleep(1)
        assert len(scene.live.history) == 1

    await running(source(tmp_path, scene), scene, act)


async def test_a_swapped_kubernetes_volume_is_noticed(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    for name, serial in (("..one", 1), ("..two", 2)):
        (tmp_path / name).mkdir()
        write(tmp_path / name, leaf(serial=serial))
    (tmp_path / "..data").symlink_to("..one")
    for name in ("svid.pem", "key.pem", "bundle.pem"):
        (tmp_path / name).symlink_to(f"..data/{name}")

    async def act() -> None:
        (tmp_path / "..data_tmp").symlink_to("..two")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        assert await scene.serials(2) == [1, 2]

    await running(source(tmp_path, scene), scene, act)


async def test_a_half_written_renewal_keeps_the_old_identity_and_says_so_once(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    write(tmp_path, leaf(serial=1))

    async def act() -> None:
        disk.write_private(tmp_path / "key.pem", key_pem(key("second")))
        await trio.sleep(5)
        assert [context.svid.leaf.serial_number for context in scene.live.history] == [1]
        assert scene.names() == ["identity_updated", "identity_refused"]
        fields = scene.events[-1][1]
        assert fields["path"] == str(tmp_path / "key.pem")
        assert fields["problem"] == "the private key does not belong to the certificate"
        write(tmp_path, leaf(serial=2, public_key=key("second").public_key()), "second")
        assert await scene.serials(2) == [1, 2]

    await running(source(tmp_path, scene), scene, act)


@pytest.mark.parametrize("name", ["svid.pem", "key.pem", "bundle.pem"])
async def test_a_missing_file_keeps_the_old_identity(
    autojump_clock: Clock, scene: Scene, tmp_path: Path, name: str
) -> None:
    write(tmp_path, leaf(serial=1))

    async def act() -> None:
        (tmp_path / name).unlink()
        await trio.sleep(3)
        assert len(scene.live.history) == 1
        assert scene.events[-1][1]["problem"] == "it does not exist"

    await running(source(tmp_path, scene), scene, act)


async def test_an_expired_svid_never_replaces_one_that_lives(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    write(tmp_path, leaf(serial=1))

    async def act() -> None:
        write(tmp_path, leaf(serial=2, not_after=NOW - HOUR / 2))
        await trio.sleep(3)
        assert len(scene.live.history) == 1
        assert "expired" in str(scene.events[-1][1]["problem"])

    await running(source(tmp_path, scene), scene, act)


async def test_the_source_starts_without_files_and_takes_them_later(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    async def act() -> None:
        assert scene.live.value is None
        assert scene.names() == ["identity_refused"]
        write(tmp_path, leaf(serial=1))
        assert await scene.serials(1) == [1]

    await running(source(tmp_path, scene), scene, act)


async def test_a_failure_that_comes_back_is_reported_again(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    write(tmp_path, leaf(serial=1))

    async def act() -> None:
        pem = (tmp_path / "key.pem").read_bytes()
        for _ in range(2):
            (tmp_path / "key.pem").unlink()
            await trio.sleep(3)
            disk.write_private(tmp_path / "key.pem", pem)
            await trio.sleep(3)
        assert scene.names() == ["identity_updated", "identity_refused", "identity_refused"]

    await running(source(tmp_path, scene), scene, act)


async def test_files_that_nobody_renews_raise_the_alarm_and_then_expire(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    write(tmp_path, leaf(serial=1, not_before=NOW - HOUR / 60, not_after=NOW + HOUR / 60))

    async def act() -> None:
        await trio.sleep(25)
        assert scene.names() == ["identity_updated"]
        await trio.sleep(10)  # 35 s of the minute left are over: a quarter of the two minutes remains
        assert scene.names() == ["identity_updated", "identity_expiring"]
        await trio.sleep(30)
        assert scene.names() == ["identity_updated", "identity_expiring", "identity_expired"]
        assert len(scene.live.history) == 1  # the users of the value refuse it

    await running(source(tmp_path, scene), scene, act)


async def test_an_unexpected_error_does_not_end_the_source(
    autojump_clock: Clock, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, leaf(serial=1))
    make = renewal.files.make_x509_context

    def broken(*_args: object, **_kwargs: object) -> X509Context:
        raise MemoryError

    async def act() -> None:
        monkeypatch.setattr(renewal.files, "make_x509_context", broken)
        write(tmp_path, leaf(serial=2))
        await trio.sleep(3)
        assert scene.events[-1][1]["problem"] == "MemoryError()"
        monkeypatch.setattr(renewal.files, "make_x509_context", make)
        assert await scene.serials(2) == [1, 2]

    await running(source(tmp_path, scene), scene, act)


# -- a local CA ---------------------------------------------------------------------------------------------


def local(folder: Path, scene: Scene, ttl: timedelta = HOUR) -> LocalCaSource:
    create_ca(folder, "td", now=NOW, rng=random.Random(1))
    return LocalCaSource(folder, WEB, ttl, on_event=scene.on_event, wall=scene.wall, rng=random.Random(1))


def public(context: X509Context) -> object:
    return context.svid.leaf.public_key().public_numbers()  # type: ignore[union-attr]


async def test_a_local_ca_renews_at_half_life_with_a_new_key_each_time(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    async def act() -> None:
        began = scene.wall()
        moments = []
        for count in range(1, 6):
            await scene.serials(count, step=5)
            moments.append(scene.wall())
        assert moments[0] == began
        gaps = [after - before for before, after in pairwise(moments)]
        assert all(0.45 * 3600 - 5 <= gap <= 0.55 * 3600 + 5 for gap in gaps)
        assert len({str(public(context)) for context in scene.live.history}) == 5
        assert len(set(await scene.serials(5))) == 5
        assert scene.names() == ["identity_updated"] * 5

    await running(local(tmp_path / "ca", scene), scene, act)


async def test_the_shortest_life_does_not_make_it_spin(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    async def act() -> None:
        await trio.sleep(600)
        assert 600 / 33 - 1 <= len(scene.live.history) <= 600 / 27 + 1
        assert set(scene.names()) == {"identity_updated"}

    await running(local(tmp_path / "ca", scene, timedelta(seconds=60)), scene, act)


async def test_a_ca_that_is_away_is_retried_and_the_old_svid_stays(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    async def act() -> None:
        (tmp_path / "ca").rename(tmp_path / "away")
        await trio.sleep(3600 * 0.7)
        assert len(scene.live.history) == 1
        assert scene.names() == ["identity_updated", "identity_refused"]
        await trio.sleep(3600 * 0.5)
        assert scene.names() == [
            "identity_updated",
            "identity_refused",
            "identity_expiring",
            "identity_expired",
        ]
        (tmp_path / "away").rename(tmp_path / "ca")
        began = trio.current_time()
        await scene.serials(2)
        assert trio.current_time() - began <= 91  # the last back-off is 60 s + 50 %

    await running(local(tmp_path / "ca", scene), scene, act)


async def test_it_starts_without_a_ca(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    made = local(tmp_path / "ca", scene)
    (tmp_path / "ca").rename(tmp_path / "away")

    async def act() -> None:
        assert scene.live.value is None
        (tmp_path / "away").rename(tmp_path / "ca")
        await scene.serials(1)

    await running(made, scene, act)


async def test_a_poke_issues_at_once(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    made = local(tmp_path / "ca", scene)

    async def act() -> None:
        made.poke()
        await trio.sleep(0.25)
        assert len(scene.live.history) == 2

    await running(made, scene, act)


async def test_after_a_sleep_of_the_machine_it_renews_within_seconds(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    async def act() -> None:
        await scene.serials(1)
        scene.offset += 3 * 3600  # the wall clock went on, trio's did not
        began = trio.current_time()
        await scene.serials(2)
        assert trio.current_time() - began <= 10.25
        assert scene.live.value is not None
        assert scene.live.value.not_after > scene.wall()

    await running(local(tmp_path / "ca", scene), scene, act)


async def test_a_clock_set_back_before_the_svid_began_makes_a_new_one(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    async def act() -> None:
        await scene.serials(1)
        await trio.sleep(600)
        scene.offset -= 1000  # the CA of this test began at START, one minute backdated
        await trio.sleep(15)
        assert "not_yet_valid" in str(scene.events[-1][1]["problem"])
        scene.offset += 1000
        await trio.sleep(120)
        assert scene.live.value is not None

    await running(local(tmp_path / "ca", scene), scene, act)


async def test_a_renewed_ca_is_taken_up(autojump_clock: Clock, scene: Scene, tmp_path: Path) -> None:
    made = local(tmp_path / "ca", scene)

    async def act() -> None:
        (tmp_path / "ca").rename(tmp_path / "old")
        create_ca(tmp_path / "ca", "td", now=scene.now(), rng=random.Random(9))
        made.poke()
        await scene.serials(2)
        first, second = (context.bundles["td"].digest for context in scene.live.history)
        assert first != second

    await running(made, scene, act)


async def test_an_authority_near_its_end_gives_shorter_lives(
    autojump_clock: Clock, scene: Scene, tmp_path: Path
) -> None:
    made = local(tmp_path / "ca", scene)
    scene.offset = timedelta(days=365).total_seconds() - 600

    async def act() -> None:
        await scene.serials(1)
        assert scene.live.value is not None
        assert scene.live.value.not_after == (NOW + 365 * DAY).timestamp()

    await running(made, scene, act)
