"""The flow ledger on disk: what happened, for `policy replay`, `policy learn` and `sidewall explain ID`.

A folder (0700) of segments ``flows-NNNNNNNNNN[.WORKER].jsonl`` (0600). The thread of the telemetry adds up what it
sees and writes it every few seconds; when a segment is full a new one begins, and the oldest go as soon as all of
them together exceed the cap. Of what does not fit between two writes, or into a full disk, only the number is known.

What was denied is written at once and each exchange by itself, so that its decision id can be looked up: up to
``_DENIALS`` of them per write, the rest are added up like the others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from proxy.observe.accesslog import Record
from proxy.observe.flows import Flow, read_line, shape
from proxy.observe.record import ExchangeRecord

_KINDS: Final = 4096  # different flows between two writes
_DENIALS: Final = 256
_EVERY: Final = 5.0  # seconds
_SEGMENTS: Final = 8  # at least so many make up the cap
_SMALLEST: Final = 16 * 1024  # bytes of a segment
_LONGEST_FIELD: Final = 1024


class Ledger:
    """Writes. Belongs to one thread. ``cap``: bytes of the whole folder. ``exact``: paths as they are, not their
    shapes. ``sources``: keep the callers' addresses. ``dropped`` counts exchanges that are not in it."""

    def __init__(
        self,
        folder: Path,
        service: str,
        *,
        cap: int,
        worker: int | None = None,
        exact: bool = False,
        sources: bool = False,
    ) -> None:
        """Raises OSError when the folder cannot be made or is not ours alone."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise PermissionError(f"{folder} must belong to us and be open to nobody else (mode 0700)")
        self.folder = folder
        self.callee = ""
        self.exact = exact
        self.sources = sources
        self.dropped = 0
        self._service = service
        self._cap = cap
        self._suffix = "" if worker is None else f".{worker}"
        self._segment = max(cap // _SEGMENTS, _SMALLEST)
        self._open: dict[tuple[object, ...], Flow] = {}
        self._denials: list[Flow] = []
        self._written_at = 0.0
        self._number = max((_number(path) for path in segments(folder)), default=0)
        self._fd = -1
        self._size = 0

    def add(self, records: Iterable[Record], now: float) -> None:
        """Count what is about policy. ``now``: seconds of any clock. Raises OSError when it cannot be written."""
        for record in records:
            if isinstance(record, ExchangeRecord) and record.direction == "inbound" and record.decision is not None:
                self._count(self._flow(record))
        if self._denials or now - self._written_at >= _EVERY:
            self._written_at = now
            self.flush()

    def _count(self, flow: Flow) -> None:
        if flow.verdict != "allowed" and len(self._denials) < _DENIALS:
            self._denials.append(flow)
            return
        before = self._open.get(flow.key)
        if before is not None:
            self._open[flow.key] = before.and_(flow)
        elif len(self._open) < _KINDS:
            self._open[flow.key] = flow
        else:
            self.dropped += 1

    def _flow(self, record: ExchangeRecord) -> Flow:
        decision, peer, trace = record.decision, record.peer, record.trace
        path = _text(record.path)
        verdict = "allowed"
        if decision is not None and (decision.audited or not decision.allowed):
            verdict = "audited" if decision.allowed else "denied"
        return Flow(
            workload=self._service,
            caller=peer.principal if peer is not None else None,
            callee=self.callee,
            method=_text(record.method),
            host=_text(record.authority),
            path=path if self.exact else shape(path),
            template=not self.exact,
            port=record.port,
            route=record.route,
            source=record.peer_address.rpartition(":")[0] if self.sources else "",
            verdict=verdict,
            reason=decision.reason if decision is not None else "",
            policy=(decision.policy if decision is not None else None) or "",
            rule=decision.rule if decision is not None and decision.rule is not None else -1,
            status=record.status,
            first=record.started,
            last=record.started,
            decision_id=record.decision_id,
            trace_id=trace.trace_id.decode("ascii") if trace is not None else "",
        )

    # -- files ----------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what was added up. Raises OSError; it is lost then, and counted."""
        flows = [*self._denials, *self._open.values()]
        self._denials, self._open = [], {}
        try:
            for at in range(0, len(flows), 256):
                self._write(b"".join(flow.line() for flow in flows[at : at + 256]))
        except OSError:
            self.dropped += sum(flow.count for flow in flows)
            raise

    def _write(self, data: bytes) -> None:
        if self._fd < 0 or self._size + len(data) > self._segment:
            self._next()
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._size += len(data)

    def _next(self) -> None:
        self.close()
        self._number += 1
        path = self.folder / f"flows-{self._number:010d}{self._suffix}.jsonl"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._size = os.fstat(self._fd).st_size
        self._prune(keep=path)

    def _prune(self, keep: Path) -> None:
        """Room for one whole segment more, whoever of us wrote the old ones."""
        room = self._cap - self._segment
        for path in reversed(segments(self.folder)):
            with contextlib.suppress(FileNotFoundError):  # another worker was faster
                size = path.stat().st_size
                room -= size
                if room < 0 and path != keep:
                    path.unlink()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def segments(folder: Path) -> list[Path]:
    """The files of a ledger, oldest first."""
    return sorted(folder.glob("flows-*.jsonl"), key=lambda path: (_number(path), path.name))


def read(folder: Path, since: float = 0.0, problems: list[str] | None = None) -> Iterator[Flow]:
    """The flows whose last exchange was at ``since`` or later. What cannot be read is left out and told in
    ``problems`` (at most 20). Raises FileNotFoundError when there is no such folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no flow ledger at {folder}")
    for path in segments(folder):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            for number, line in enumerate(file, 1):
                flow = _read(line, path, number, problems)
                if flow is not None and flow.last >= since:
                    yield flow


def _read(line: bytes, path: Path, number: int, problems: list[str] | None) -> Flow | None:
    if not line.endswith(b"\n"):
        return None  # still being written, or cut by a crash
    try:
        return read_line(line)
    except ValueError as error:
        if problems is not None and len(problems) < 20:
            problems.append(f"{path.name}:{number}: {error}")
        return None


def _number(path: Path) -> int:
    digits = path.name.removeprefix("flows-")[:10]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def _text(data: bytes) -> str:
    return data[:_LONGEST_FIELD].decode("latin-1")

