"""Reading the JSON of an administrative request: each field of its kind, or ValueError with its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from identity.spiffe import SpiffeId

_LARGEST: Final = 2**53


class Request:
    """See the module. Unknown fields are ignored; an absent one is its kind's zero unless it is needed."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts

    def text(self, name: str) -> str:
        found = self._facts.get(name)
        if found is None:
            return ""
        if not isinstance(found, str):
            raise _wrong(name, "a text")
        return found

    def needed(self, name: str) -> str:
        found = self.text(name)
        if not found:
            raise ValueError(f"{name} is missing")
        return found

    def texts(self, name: str) -> list[str]:
        found = self._facts.get(name) or []
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise _wrong(name, "a list of texts")
        return found

    def flag(self, name: str) -> bool:
        found = self._facts.get(name, False)
        if not isinstance(found, bool):
            raise _wrong(name, "true or false")
        return found

    def number(self, name: str, default: int) -> int:
        found = self._facts.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found <= _LARGEST:
            raise _wrong(name, "a whole number")
        return found

    def seconds(self, name: str, default: float) -> float:
        found = self._facts.get(name, default)
        if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
            raise _wrong(name, "a number of seconds")
        return float(found)

    def document(self, name: str) -> dict[str, Any]:
        found = self._facts.get(name)
        if not isinstance(found, dict):
            raise _wrong(name, "an object")
        return found

    def documents(self, name: str) -> list[dict[str, Any]]:
        found = self._facts.get(name)
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise _wrong(name, "a list of objects")
        return found

    def spiffe_id(self, name: str) -> SpiffeId:
        return SpiffeId.parse(self.needed(name))  # SpiffeIdError is a ValueError


def _wrong(name: str, what: str) -> ValueError:
    return ValueError(f"{name} must be {what}")
