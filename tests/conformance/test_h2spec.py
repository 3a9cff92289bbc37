"""h2spec against our outbound listener (h2c with prior knowledge, an HTTP/1.1 app behind), with both engines.

h2spec is built by Go into the user's cache on the first run; without Go, or without a way to its module, the
test is skipped and says so. Its cases are also restated as conversation tests of our own, which always run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.apps import EchoApp
from tests.support.client import call
from tests.support.mesh import open_mesh

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

MODULE = "github.com/summerwind/h2spec/cmd/h2spec@latest"

# Cases that we answer otherwise than h2spec wants, and why. Key: (section, beginning of the description).
_ALWAYS = {
    ("http2/3.5", "Sends invalid connection preface"): (
        "The listener serves HTTP/1.1 too: what is no preface is read as that, answered 400 or 505, and closed."
    ),
}
_CLOSED = (
    "RFC 9113 5.1 made this a MAY (RFC 7540: MUST). nghttp2 keeps no memory of closed streams: the frame is "
    "counted, its window given back, and dropped."
)
_ONLY_NGH2 = {
    ("http2/5.1", "closed: Sends a DATA frame after sending RST_STREAM frame"): _CLOSED,
    ("http2/5.1", "closed: Sends a HEADERS frame after sending RST_STREAM frame"): _CLOSED,
    ("http2/5.1", "closed: Sends a DATA frame"): _CLOSED,
    ("http2/5.1", "closed: Sends a HEADERS frame"): _CLOSED,
    ("http2/5.1.1", "Sends stream identifier that is numerically smaller than previous"): (
        "A skipped identifier is a closed stream (RFC 9113 5.1.1), and frames on those are dropped, see 5.1."
    ),
    ("http2/5.3.1", "Sends PRIORITY frame that depend on itself"): (
        "RFC 9113 5.3 deprecates priorities; they are counted (L-13) and not read."
    ),
    ("http2/6.9.1", "Sends multiple WINDOW_UPDATE frames increasing the flow control window to above 2^31-1 on a"): (
        "RFC 9113 6.9.1 lets the receiver end the stream or the connection; nghttp2 ends the connection."
    ),
}
EXCEPTIONS = {"h2": _ALWAYS, "ngh2": {**_ALWAYS, **_ONLY_NGH2}}


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sidewall-tests" / "bin"


@pytest.fixture(scope="module")
def h2spec() -> str:
    """The program; built when it is not there yet."""
    found = shutil.which("h2spec", path=f"{cache_folder()}{os.pathsep}{os.environ.get('PATH', '')}")
    if found:
        return found
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}{os.pathsep}/usr/local/go/bin")
    if go is None:
        pytest.skip("h2spec is not installed, and there is no Go to build it with")
    environ = {**os.environ, "GOBIN": str(cache_folder()), "GOTOOLCHAIN": "local"}
    try:
        built = subprocess.run([go, "install", MODULE], env=environ, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("h2spec could not be built: Go did not finish in five minutes")
    if built.returncode:
        pytest.skip(f"h2spec could not be built: {built.stderr.strip()[-300:]}")
    return str(cache_folder() / "h2spec")


def failures(report: Path) -> tuple[int, dict[tuple[str, str], str]]:
    """(number of cases, what failed: (section, description) -> what was expected and seen)."""
    cases = list(ET.parse(report).getroot().iter("testcase"))
    failed = {}
    for case in cases:
        for kind in ("failure", "error"):
            if (found := case.find(kind)) is not None:
                failed[case.get("package", ""), case.get("classname", "")] = (found.text or "").strip()
    return len(cases), failed


def exception_for(engine: str, case: tuple[str, str]) -> tuple[str, str] | None:
    """The row of the table that a failed case falls under."""
    return max((row for row in EXCEPTIONS[engine] if row[0] == case[0] and case[1].startswith(row[1])), default=None)


@pytest.mark.parametrize("engine", ["ngh2", "h2"])
async def test_every_case_of_h2spec_passes(nursery: trio.Nursery, tmp_path: Path, h2spec: str, engine: str) -> None:
    app = EchoApp()
    await nursery.start(app.run)
    report = tmp_path / "report.xml"
    web: dict[str, Any] = {"settings": {"http2_engine": engine}}
    async with open_mesh(tmp_path, app.port, web=web) as mesh:
        command = [h2spec, "--strict", "-h", "127.0.0.1", "-p", str(mesh.port), "-o", "2", "-j", str(report)]
        with trio.fail_after(300):
            await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
        count, failed = failures(report)
        after = await call(mesh.port, "GET", "/", http2=True)
    assert count > 140
    rows = {case: exception_for(engine, case) for case in failed}
    assert {case: failed[case] for case, row in rows.items() if row is None} == {}
    assert set(EXCEPTIONS[engine]) == set(rows.values()), "an exception that is none any more"
    assert after.status == 200
