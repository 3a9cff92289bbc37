"""The version, in one place; the package metadata is built from pyproject.toml and a test compares both."""

from importlib.util import find_spec

VERSION = "0.1.0"


def is_compiled() -> bool:
    """Whether the per-request modules are compiled (ARCHITECTURE.md, Decisions). What they do is the same."""
    spec = find_spec("proxy.wire.events")
    return spec is not None and not (spec.origin or "").endswith(".py")
