"""The compiled build of this tree, made once per state of its sources.

    python -m benchmarks.compiled       builds it and prints its folder

It is what a production image or package holds: the wheel that `HATCH_BUILD_HOOK_ENABLE_MYPYC=1 pip wheel .` makes,
unpacked. Needs a C compiler and the package index. The folder is `build/compiled-<digest of the sources>`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

from benchmarks.process import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("proxy", "identity", "config")


def missing() -> str | None:
    """Why it cannot be built here, or None."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return None if found else "no C compiler for the compiled build"


def is_built() -> bool:
    """Whether `build` would return at once: this state of the sources was built before."""
    return _folder().is_dir()


@cache
def build() -> Path:
    """The folder to put on PYTHONPATH. Takes minutes the first time. Raises BenchmarkError."""
    folder = _folder()
    if folder.is_dir():
        return folder
    print("building the compiled wheel (some minutes, once) ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        _wheel(Path(scratch))
        (wheel,) = Path(scratch).glob("sidewall-*.whl")
        half = folder.with_suffix(".part")
        shutil.rmtree(half, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(half)
    half.rename(folder)
    return folder


def _wheel(target: Path) -> None:
    # From a copy: the build leaves its libraries beside the sources, where the next one would pick them up.
    tree = target / "tree"
    for name in _PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(tree)]
    environ = {**os.environ, "HATCH_BUILD_HOOK_ENABLE_MYPYC": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the compiled build failed: {done.stderr[-2000:]}")


def _folder() -> Path:
    return ROOT / "build" / f"compiled-{_digest()}"


def _digest() -> str:
    whole = hashlib.sha256(sys.version.encode())
    for path in [ROOT / "pyproject.toml", *sorted(p for name in _PACKAGES for p in (ROOT / name).rglob("*.py"))]:
        whole.update(f"{path.relative_to(ROOT)}\0".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()[:12]


if __name__ == "__main__":
    try:
        print(build())
    except BenchmarkError as error:
        sys.exit(str(error))
