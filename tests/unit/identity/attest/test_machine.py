"""Copied disks are noticed, reboots and new network cards are not taken for copies, and no raw id leaves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from identity.attest.machine import MAX_TEXT, MachineFacts, judge

KNOWN = MachineFacts("system", "board", "root", "boot", frozenset({"one", "two"}))
NONE: frozenset[str] = frozenset()


def seen(**changes: object) -> MachineFacts:
    return replace(KNOWN, **changes)  # type: ignore[arg-type]


OTHERS = frozenset({"three"})
CASES: dict[str, tuple[MachineFacts, MachineFacts, str, str]] = {
    # what happens to one machine
    "nothing has changed": (KNOWN, KNOWN, "same", ""),
    "a reboot": (KNOWN, seen(boot="next"), "same", ""),
    "a network card was replaced": (KNOWN, seen(cards=frozenset({"two", "three"})), "same", ""),
    "a network card was added": (KNOWN, seen(cards=KNOWN.cards | OTHERS), "same", ""),
    "another root file system on the same machine": (KNOWN, seen(root="new"), "same", ""),
    "the agent may not read the board": (KNOWN, seen(board=""), "same", ""),
    "cards cannot be read": (KNOWN, seen(cards=NONE), "same", ""),
    "joined before the board could be read": (seen(board=""), KNOWN, "same", ""),
    "no machine-id": (seen(machine_id=""), KNOWN, "same", ""),
    "a container: nothing can be read": (KNOWN, MachineFacts(), "same", "nothing of the hardware"),
    "nothing was known": (MachineFacts(), KNOWN, "same", "nothing of the hardware"),
    # moved
    "all network cards are new": (KNOWN, seen(cards=OTHERS, boot="next"), "moved", "other network cards"),
    "restored under another UUID with its cards": (KNOWN, seen(board="new"), "moved", "another DMI"),
    "installed anew, the key was kept": (KNOWN, seen(machine_id="new", root="new"), "moved", "another machine-id"),
    # copied
    "a copied disk": (KNOWN, seen(board="new", cards=OTHERS, boot="next"), "clone", "the disk is a copy"),
    "a copied disk, file system made anew": (
        KNOWN,
        seen(board="new", cards=OTHERS, root="new"),
        "clone",
        "another DMI",
    ),
    "a copied disk, cards unreadable": (KNOWN, seen(board="new", cards=NONE), "clone", "another DMI"),
    "a copied disk, board unreadable": (KNOWN, seen(board="", cards=OTHERS), "clone", "other network cards"),
    "a copy of a running machine": (KNOWN, seen(board="new", cards=OTHERS), "clone", "copied while it ran"),
    "a template that makes itself a new machine-id": (
        KNOWN,
        MachineFacts("new", "new", "root", "next", OTHERS),
        "clone",
        "another machine-id",
    ),
    "the key alone was copied": (KNOWN, MachineFacts("new", "new", "new", "new", OTHERS), "clone", "another DMI"),
    "the key alone, to where nothing is readable": (KNOWN, MachineFacts("new"), "clone", "another machine-id"),
    "a new machine-id and all cards, same board": (
        KNOWN,
        seen(machine_id="new", cards=OTHERS),
        "clone",
        "machine-id",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_change_around_the_key_means(name: str) -> None:
    known, found, kind, reason = CASES[name]
    verdict = judge(known, found)
    assert verdict.kind == kind
    assert reason in "; ".join(verdict.reasons)
    assert (kind == "same") or verdict.reasons


# -- reading ------------------------------------------------------------------------------------------------

MACHINE_ID = "0123456789abcdef0123456789abcdef"
BOARD = "4c4c4544-0042-3510-8052-b4c04f4d3132"
CARD = "52:54:00:12:34:56"
ROOT = "5d0d4ac2-7f7e-4b0e-9a4f-9a9b3c1c2d3e"


class Disk:
    """The files of a machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("etc/machine-id", MACHINE_ID + "\n")
        self.write("sys/class/dmi/id/product_uuid", BOARD.upper() + "\n")
        self.write("proc/sys/kernel/random/boot_id", "b1\n")
        self.write("proc/self/mountinfo", "1 0 0:1 / /proc rw - proc proc rw\n2 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
        self.write("sys/class/block/sda1/dev", "8:1\n")
        self.write("dev/sda1", "")
        self.write("dev/disk/by-uuid/x", "")
        (folder / "dev/disk/by-uuid" / ROOT).symlink_to("../../sda1")
        self.card("eth0", CARD)

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def card(self, name: str, address: str, *, device: bool = True, assigned: str = "0") -> None:
        self.write(f"sys/class/net/{name}/address", address + "\n")
        self.write(f"sys/class/net/{name}/addr_assign_type", assigned + "\n")
        if device:
            self.write(f"sys/class/net/{name}/device/vendor", "x")

    def read(self) -> MachineFacts:
        return MachineFacts.read(str(self.folder))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def test_all_facts_are_read(disk: Disk) -> None:
    facts = disk.read()
    assert all((facts.machine_id, facts.board, facts.root, facts.boot, facts.cards))
    assert facts == disk.read()


def test_nothing_leaves_as_it_is(disk: Disk) -> None:
    facts = disk.read()
    told = (repr(facts) + facts.text).lower()
    for raw in (MACHINE_ID, BOARD, CARD, ROOT):
        assert raw not in told
        assert raw.replace("-", "").replace(":", "") not in told


def test_the_machine_id_is_hashed_with_itself_as_the_key(disk: Disk) -> None:
    """Known answer: HMAC-SHA256(machine-id, application), cut to 128 bits. It never changes."""
    assert disk.read().machine_id == "uHBqjnzJu3PmLWAFs3QjDw"


def test_a_reboot_changes_only_the_boot(disk: Disk) -> None:
    before = disk.read()
    disk.write("proc/sys/kernel/random/boot_id", "b2\n")
    after = disk.read()
    assert after.boot != before.boot
    assert replace(after, boot=before.boot) == before
    assert judge(before, after).kind == "same"


def test_a_copied_disk_is_noticed_by_what_is_read(disk: Disk) -> None:
    before = disk.read()
    disk.write("sys/class/dmi/id/product_uuid", BOARD.replace("4c", "5d"))
    disk.card("eth0", "52:54:00:aa:bb:cc")
    disk.write("proc/sys/kernel/random/boot_id", "b2\n")
    assert judge(before, disk.read()).kind == "clone"


def test_only_the_permanent_addresses_of_cards_count(disk: Disk) -> None:
    before = disk.read()
    disk.card("docker0", "02:42:00:00:00:01", device=False)
    disk.card("veth1", "02:42:00:00:00:02", device=False)
    disk.card("eth1", "02:42:00:00:00:03", assigned="1")  # random at each start
    disk.card("bond0", "02:42:00:00:00:04", assigned="3")  # set by somebody
    disk.card("lo", "00:00:00:00:00:00")
    disk.card("ib0", "not an address")
    assert disk.read() == before
    disk.card("eth2", "52:54:00:12:34:57")
    assert len(disk.read().cards) == 2


@pytest.mark.parametrize(
    "nobodys",
    [
        "00000000-0000-0000-0000-000000000000",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "03000200-0400-0500-0006-000700080009",
        "Not Settable",
    ],
)
def test_a_uuid_that_many_boards_have_is_none(disk: Disk, nobodys: str) -> None:
    disk.write("sys/class/dmi/id/product_uuid", nobodys)
    assert disk.read().board == ""


@pytest.mark.parametrize("text", ["", "uninitialized", "0" * 32, MACHINE_ID[:-1], MACHINE_ID + "0", "\xff"])
def test_a_machine_id_that_is_none_is_not_known(disk: Disk, text: str) -> None:
    disk.write("etc/machine-id", text)
    assert disk.read().machine_id == ""


def test_a_machine_without_any_of_it_is_read_too(tmp_path: Path) -> None:
    assert MachineFacts.read(str(tmp_path)) == MachineFacts()
    assert MachineFacts.read() == MachineFacts.parse(MachineFacts.read().text)


# -- text ---------------------------------------------------------------------------------------------------


def test_text_is_read_back_and_fits_into_its_field(disk: Disk) -> None:
    for number in range(20):
        disk.card(f"eth{number}", f"52:54:00:00:00:{number:02x}")
    facts = disk.read()
    assert len(facts.text) <= MAX_TEXT
    assert MachineFacts.parse(facts.text) == facts
    assert MachineFacts.parse(MachineFacts().text) == MachineFacts()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "m1",
        "m2.a.b.c.d",
        "m1.a.b.c",
        "m1.a.b.c.d.",
        "m1.a.b.c.d..e",
        "m1.a b.b.c.d",
        "m1.\n.b.c.d",
        "\ud800",
        f"m1.{'a' * 23}.b.c.d",
        f"m1.a.b.c.d{'.e' * 9}",
        f"m1.a.b.c.d{'e' * MAX_TEXT}",
    ],
)
def test_text_of_another_make_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not what a machine tells"):
        MachineFacts.parse(text)
