"""Which machine this is, so that a copied disk is noticed.

A machine that has joined keeps its key in a file. Whoever copies the disk, and every template that was made of a
joined machine does so, has the key twice, and two machines are one identity. What a copy has in common is the
``machine-id`` and the root file system; what it has not is the hardware around it: the DMI product UUID, which the
hypervisor gives, and the addresses of its network cards. What changes on one and the same machine must not alarm:
the boot id at each start, a network card now and then.

Nothing leaves the machine as it is. ``machine-id`` is confidential (man 5 machine-id): it is the key of an HMAC over
an application's constant, as ``sd_id128_get_machine_app_specific`` does. The others are hashed with the constant as
the key; those of network addresses are cut to 32 bits, so that each stands for 65 536 addresses and still tells two
machines apart. ``judge`` is pure; only ``MachineFacts.read`` looks at files.
"""

from __future__ import annotations

import hmac
import os
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

_APPLICATION: Final = bytes.fromhex("6c1f0f3b6a0e4b7ea6d1f4f0a9c25e83")  # never to be changed: all would be new
_VERSION: Final = "m1"
MAX_TEXT: Final = 200  # characters of ``MachineFacts.text``
MAX_CARDS: Final = 8
_LONG: Final = 16  # bytes of a hash
_SHORT: Final = 4
_PART: Final = re.compile(r"[A-Za-z0-9_-]{0,22}")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAC: Final = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
# What boards tell whose maker has not bothered.
_NOBODYS: Final = frozenset(
    {
        "03000200-0400-0500-0006-000700080009",
        "12345678-1234-5678-90ab-cddeefaabbcc",
        "fefefefe-fefe-fefe-fefe-fefefefefefe",
    }
)


_Hardware = Literal["same", "changed", "other", "unknown"]


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Hashes, base64url; "" or empty is what could not be read (as ``board`` by others than root).

    machine_id: of the installed system, stable for its life. board: of the hardware or virtual machine. root: of the
    root file system. boot: of this start. cards: of the physical network cards.
    """

    machine_id: str = ""
    board: str = ""
    root: str = ""
    boot: str = ""
    cards: frozenset[str] = frozenset()

    @classmethod
    def read(cls, root: str = "/") -> MachineFacts:
        """Of this machine. Blocks for a moment; never raises. ``root``: where /etc, /sys, /proc and /dev are."""
        base = Path(root)
        return cls(
            _own(_machine_id(base)),
            _hash("board", _board(base), _LONG),
            _hash("root", _root_uuid(base), _LONG),
            _hash("boot", _line(base / "proc/sys/kernel/random/boot_id"), _LONG),
            frozenset(_hash("card", address, _SHORT) for address in _cards(base)),
        )

    @property
    def text(self) -> str:
        """All in one line, at most ``MAX_TEXT`` characters. ``parse`` reads it."""
        return ".".join([_VERSION, self.machine_id, self.board, self.root, self.boot, *sorted(self.cards)])

    @classmethod
    def parse(cls, text: str) -> MachineFacts:
        """Raises ValueError."""
        version, *parts = text.split(".") if len(text) <= MAX_TEXT else [""]
        if version != _VERSION or not 4 <= len(parts) <= 4 + MAX_CARDS:
            raise ValueError("not what a machine tells of itself")
        if not all(_PART.fullmatch(part) for part in parts) or "" in parts[4:]:
            raise ValueError("not what a machine tells of itself")
        machine_id, board, root, boot, *cards = parts
        return cls(machine_id, board, root, boot, frozenset(cards))


@dataclass(frozen=True, slots=True)
class Verdict:
    """same: go on. moved: the same system on other hardware, or the other way round; tell somebody. clone: the key is
    on two machines, or on another one than it was given to; do not renew, have both join anew."""

    kind: Literal["same", "moved", "clone"]
    reasons: tuple[str, ...] = ()


def judge(known: MachineFacts, seen: MachineFacts) -> Verdict:
    """What it means that the machine recorded as ``known`` when it joined now shows its key as ``seen``."""
    hardware, reasons = _hardware(known, seen)
    system = _compare(known.machine_id, seen.machine_id)
    if system == "other":
        reasons = ("another machine-id", *reasons)
        return Verdict("moved" if hardware == "same" else "clone", reasons)
    if hardware == "other":
        return Verdict("clone", (*reasons, *_of_a_copy(known, seen)))
    if hardware == "changed":
        return Verdict("moved", reasons)
    return Verdict("same", reasons)


def _hardware(known: MachineFacts, seen: MachineFacts) -> tuple[_Hardware, tuple[str, ...]]:
    """The board says it; the cards help when it cannot, and when they speak against it."""
    board, cards = _compare(known.board, seen.board), _compare_cards(known.cards, seen.cards)
    told = tuple(
        what
        for what, found in (("another DMI product UUID", board), ("other network cards, all of them", cards))
        if found == "other"
    )
    if board == "unknown" and cards == "unknown":
        return "unknown", ("nothing of the hardware is known",)
    if "same" in (board, cards):
        return ("changed" if told else "same"), told
    return "other", told


def _of_a_copy(known: MachineFacts, seen: MachineFacts) -> tuple[str, ...]:
    found = []
    if _compare(known.root, seen.root) == "same":
        found.append("the same root file system: the disk is a copy")
    if _compare(known.boot, seen.boot) == "same":
        found.append("the same boot id: it was copied while it ran")
    return tuple(found)


def _compare(known: str, seen: str) -> Literal["same", "other", "unknown"]:
    if not known or not seen:
        return "unknown"
    return "same" if hmac.compare_digest(known, seen) else "other"


def _compare_cards(known: frozenset[str], seen: frozenset[str]) -> Literal["same", "other", "unknown"]:
    if not known or not seen:
        return "unknown"
    return "same" if known & seen else "other"


# -- reading ------------------------------------------------------------------------------------------------


def _own(machine_id: str) -> str:
    return _encode(hmac.digest(bytes.fromhex(machine_id), _APPLICATION, "sha256")[:_LONG]) if machine_id else ""


def _hash(what: str, value: str, size: int) -> str:
    return _encode(hmac.digest(_APPLICATION, f"{what}:{value}".encode(), "sha256")[:size]) if value else ""


def _encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(200).decode("ascii", "replace").strip().lower()
    except OSError:
        return ""


def _machine_id(base: Path) -> str:
    found = _line(base / "etc/machine-id")
    return found if _MACHINE_ID.fullmatch(found) and set(found) != {"0"} else ""


def _board(base: Path) -> str:
    """The hypervisor's or the board's UUID; on machines without DMI the device tree's serial number."""
    found = _line(base / "sys/class/dmi/id/product_uuid")
    if _UUID.fullmatch(found):
        return found if found not in _NOBODYS and len(set(found) - {"-"}) > 1 else ""
    return _line(base / "proc/device-tree/serial-number").strip("\0")


def _cards(base: Path) -> list[str]:
    """Permanent addresses of physical or virtual cards; bridges, tunnels and containers' ends have no device."""
    folder = base / "sys/class/net"
    found = set()
    for name in _names(folder):
        card = folder / name
        address = _line(card / "address")
        is_own = (card / "device").exists() and _line(card / "addr_assign_type") in ("", "0")
        if is_own and _MAC.fullmatch(address) and len(set(address) - {":"}) > 1:
            found.add(address)
    return sorted(found)[:MAX_CARDS]


def _root_uuid(base: Path) -> str:
    """The name in /dev/disk/by-uuid whose device is that of "/"."""
    device = _root_device(base)
    folder = base / "dev/disk/by-uuid"
    for name in _names(folder) if device else []:
        target = os.path.basename(os.path.realpath(folder / name))
        if _line(base / "sys/class/block" / target / "dev") == device:
            return name.lower()
    return ""


def _root_device(base: Path) -> str:
    """``major:minor`` of "/" (man 5 proc, mountinfo)."""
    try:
        mounts = (base / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    fields = [line.split(" ") for line in mounts]
    return next((one[2] for one in reversed(fields) if len(one) > 4 and one[4] == "/"), "")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))[:1000]
    except OSError:
        return []
