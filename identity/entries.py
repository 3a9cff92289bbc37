"""Registration entries: which callers get which identity (IDENTITY 6; the field names are SPIRE's).

    spiffeId: spiffe://shop.internal/ns/shop/sa/api      parentId: spiffe://shop.internal/host/vm7
    selectors: [unix:uid:1001, unix:path:/usr/bin/api]   x509SvidTtl: 3600    hint: internal ...

A caller gets every entry below its parent whose selectors are all among the caller's own; which those are is decided
by attestation alone. An entry without selectors would be everybody's and does not exist.

A SPIFFE ID may hold ``{ns}`` and ``{sa}`` as whole segments: then the entry is a pattern, and the caller's attested
``k8s:ns:`` and ``k8s:sa:`` stand in for them. Patterns are for pods only, and a namespace opts in by name: a pattern
with ``{ns}`` is refused unless a ``k8s:ns:`` selector says which one, so that a new namespace gets nothing by itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from identity.spiffe import SpiffeId, SpiffeIdError, check_trust_domain

MIN_TTL: Final = 60.0  # seconds [C-5]
MAX_TTL: Final = 86400.0
_MAX_SELECTORS: Final = 64
_MAX_SELECTOR: Final = 1024  # characters
_MAX_DNS_NAMES: Final = 20
_MAX_FEDERATED: Final = 100
_MAX_HINT: Final = 1024
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DNS_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_SELECTOR_TYPE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PLACES: Final = {"{ns}": "k8s:ns:", "{sa}": "k8s:sa:"}

# JSON name -> attribute. The order is the one people read.
FIELDS: Final = {
    "id": "id",
    "spiffeId": "spiffe_id",
    "parentId": "parent_id",
    "selectors": "selectors",
    "x509SvidTtl": "x509_svid_ttl",
    "jwtSvidTtl": "jwt_svid_ttl",
    "dnsNames": "dns_names",
    "federatesWith": "federates_with",
    "hint": "hint",
    "admin": "admin",
    "downstream": "downstream",
    "expiresAt": "expires_at",
    "revisionNumber": "revision_number",
}
_IGNORED: Final = frozenset({"createdAt"})  # what other tools write and we do not keep apart


class EntryError(ValueError):
    """An entry that cannot be. ``field``: its JSON name, "" when it is about the whole."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry, checked. Times to live in seconds, 0 = the authority's default; ``expires_at`` in seconds of the
    epoch, 0 = never. ``spiffe_id`` may be a pattern; ``federates_with`` names trust domains."""

    spiffe_id: str
    parent_id: str
    selectors: tuple[str, ...]
    x509_svid_ttl: float = 0.0
    jwt_svid_ttl: float = 0.0
    dns_names: tuple[str, ...] = ()
    federates_with: tuple[str, ...] = ()
    hint: str = ""
    admin: bool = False
    downstream: bool = False
    expires_at: float = 0.0
    revision_number: int = 0
    id: str = ""

    @property
    def is_pattern(self) -> bool:
        return "{" in self.spiffe_id

    def fits(self, selectors: frozenset[str] | set[str], now: float) -> bool:
        """Whether a caller with ``selectors`` gets this entry at ``now`` (seconds of the epoch)."""
        if self.expires_at and now >= self.expires_at:
            return False
        return selectors.issuperset(self.selectors)

    def resolve(self, selectors: Iterable[str]) -> SpiffeId | None:
        """The SPIFFE ID for a caller; of a pattern None when the caller's selectors do not fill it, each place with
        exactly one value."""
        if not self.is_pattern:
            return SpiffeId.parse(self.spiffe_id)
        text = self.spiffe_id
        for place, prefix in _PLACES.items():
            if place in text:
                values = {one.removeprefix(prefix) for one in selectors if one.startswith(prefix)}
                if len(values) != 1 or "/" in next(iter(values)):
                    return None  # one segment for one place
                text = text.replace(place, values.pop())
        try:
            return SpiffeId.parse(text)
        except SpiffeIdError:
            return None  # a name that no SPIFFE ID can hold

    def document(self) -> dict[str, Any]:
        """As JSON, with SPIRE's names; what has its default is left out, but for the three that make an entry."""
        found: dict[str, Any] = {}
        for name, attribute in FIELDS.items():
            value = getattr(self, attribute)
            if value or name in ("spiffeId", "parentId", "selectors"):
                found[name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_document(cls, document: Mapping[str, Any], trust_domain: str = "") -> Entry:
        """Check one document. ``trust_domain``: the one that issues, "" when any will do. Raises EntryError for the
        first problem; ``problems`` gives all of them."""
        found = problems(document, trust_domain)
        if found:
            raise found[0]
        return _made(document)


@dataclass(frozen=True, slots=True)
class Identity:
    """What an entry gives to one caller."""

    spiffe_id: SpiffeId
    entry: Entry


@dataclass(frozen=True, slots=True)
class NearMiss:
    """An entry that a caller does not get. ``missing``: selectors that the caller lacks; ``why``: other reasons."""

    entry: Entry
    missing: tuple[str, ...]
    why: str = ""


def matching(entries: Iterable[Entry], selectors: frozenset[str] | set[str], now: float) -> list[Identity]:
    """What a caller gets, the entry with the most selectors first, then by id: the same order each time. Of two
    entries that give the same ID the first counts."""
    fitting = [entry for entry in entries if entry.fits(selectors, now)]
    fitting.sort(key=lambda entry: (-len(entry.selectors), entry.id, entry.spiffe_id))
    found: dict[str, Identity] = {}
    for entry in fitting:
        spiffe_id = entry.resolve(selectors)
        if spiffe_id is not None:
            found.setdefault(str(spiffe_id), Identity(spiffe_id, entry))
    return list(found.values())


def explain_miss(
    entries: Iterable[Entry], selectors: frozenset[str] | set[str], now: float, limit: int = 5
) -> list[NearMiss]:
    """The entries that came nearest to a caller who does not get them, nearest first."""
    missed = []
    for entry in entries:
        lacking = tuple(one for one in entry.selectors if one not in selectors)
        why = "it has expired" if entry.expires_at and now >= entry.expires_at else ""
        if not lacking and not why and entry.resolve(selectors) is None:
            why = "the caller's namespace and service account do not fill its pattern"
        if lacking or why:
            missed.append(NearMiss(entry, lacking, why))
    missed.sort(key=lambda miss: (len(miss.missing), -len(miss.entry.selectors), miss.entry.id))
    return missed[:limit]


# -- checking ---------------------------------------------------------------------------------------------------


def problems(document: Mapping[str, Any], trust_domain: str = "") -> list[EntryError]:
    """All that is wrong with one document, in the order of its fields."""
    found = [_unknown(name) for name in document if name not in FIELDS and name not in _IGNORED]
    for name in FIELDS:
        if name in document or name in ("spiffeId", "parentId", "selectors"):
            try:
                _CHECKS[name](name, document.get(name), trust_domain)
            except EntryError as error:
                found.append(error)
    if not found:
        found += _check_pattern(document)
    return found


def _unknown(name: str) -> EntryError:
    near = difflib.get_close_matches(str(name), FIELDS, 1)
    return EntryError(str(name)[:100], f"unknown field{f'; did you mean {near[0]}?' if near else ''}")


def _check_spiffe_id(name: str, value: Any, trust_domain: str) -> None:
    text = value if isinstance(value, str) else ""
    for place in _PLACES:
        text = re.sub(rf"(?<=/){re.escape(place)}(?=/|\Z)", "x", text)
    _check_id(name, text, trust_domain)


def _check_id(name: str, value: Any, trust_domain: str) -> None:
    if not isinstance(value, str) or not value:
        raise EntryError(name, "missing; e.g. spiffe://shop.internal/ns/shop/sa/api")
    try:
        found = SpiffeId.parse(value)
    except SpiffeIdError as error:
        raise EntryError(name, f"{value[:200]!a} is not a SPIFFE ID: {error}") from None
    if not found.path:
        raise EntryError(name, f"{value!a} names a trust domain and nobody in it")
    if trust_domain and found.trust_domain != trust_domain:
        raise EntryError(name, f"{value!a} is not of the trust domain {trust_domain}")


def _check_selectors(name: str, value: Any, trust_domain: str) -> None:
    if not isinstance(value, list | tuple) or not value:
        raise EntryError(name, "missing; an entry without selectors would be everybody's, e.g. [unix:uid:1001]")
    if len(value) > _MAX_SELECTORS:
        raise EntryError(name, f"more than {_MAX_SELECTORS} selectors")
    for one in value:
        if isinstance(one, Mapping) and set(one) == {"type", "value"}:
            raise EntryError(name, f"write {one['type']}:{one['value']} as one text")
        if not isinstance(one, str) or not _is_selector(one):
            raise EntryError(name, f"{str(one)[:100]!a} is not TYPE:VALUE, e.g. unix:uid:1001 or k8s:ns:shop")
    if len(set(value)) != len(value):
        raise EntryError(name, "a selector is there twice")


def _is_selector(text: str) -> bool:
    kind, _, rest = text.partition(":")
    return bool(rest and _SELECTOR_TYPE.fullmatch(kind)) and len(text) <= _MAX_SELECTOR and text.isprintable()


def _check_ttl(name: str, value: Any, trust_domain: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EntryError(name, "not a number of seconds")
    if value and not MIN_TTL <= value <= MAX_TTL:
        raise EntryError(name, f"{value:g} s is not between {MIN_TTL:g} and {MAX_TTL:g} (0: the default)")


def _check_dns_names(name: str, value: Any, trust_domain: str) -> None:
    for one in _texts(name, value, _MAX_DNS_NAMES):
        if not _DNS_NAME.fullmatch(one):
            raise EntryError(name, f"{one[:100]!a} is not a DNS name in lower case, without a wildcard")


def _check_federates(name: str, value: Any, trust_domain: str) -> None:
    for one in _texts(name, value, _MAX_FEDERATED):
        try:
            found = check_trust_domain(one.removeprefix("spiffe://"))
        except SpiffeIdError as error:
            raise EntryError(name, f"{one[:100]!a} is not a trust domain: {error}") from None
        if found == trust_domain:
            raise EntryError(name, f"{found} is our own trust domain")


def _texts(name: str, value: Any, most: int) -> Sequence[str]:
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise EntryError(name, "not a list of texts")
    if len(value) > most:
        raise EntryError(name, f"more than {most}")
    return value


def _check_text(name: str, value: Any, trust_domain: str) -> None:
    if not isinstance(value, str) or len(value) > _MAX_HINT or (value and not value.isprintable()):
        raise EntryError(name, f"not one line of at most {_MAX_HINT} characters")


def _check_flag(name: str, value: Any, trust_domain: str) -> None:
    if not isinstance(value, bool):
        raise EntryError(name, "write true or false")


def _check_time(name: str, value: Any, trust_domain: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise EntryError(name, "not a time in seconds of the epoch (0: never)")


def _check_count(name: str, value: Any, trust_domain: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise EntryError(name, "not a number")


def _check_pattern(document: Mapping[str, Any]) -> list[EntryError]:
    text, selectors = document["spiffeId"], document["selectors"]
    named = any(one.startswith("k8s:ns:") for one in selectors)
    if "{ns}" in text and not named:
        return [EntryError("selectors", "a pattern with {ns} needs a k8s:ns: selector: namespaces opt in by name")]
    if "{sa}" in text and not named:
        return [EntryError("selectors", "a pattern with {sa} needs a k8s:ns: selector: it is for a namespace's pods")]
    if ("{ns}" in text or "{sa}" in text) and document.get("admin"):
        return [EntryError("admin", "a pattern cannot make administrators")]
    return []


_CHECKS: Final = {
    "id": _check_text,
    "spiffeId": _check_spiffe_id,
    "parentId": _check_id,
    "selectors": _check_selectors,
    "x509SvidTtl": _check_ttl,
    "jwtSvidTtl": _check_ttl,
    "dnsNames": _check_dns_names,
    "federatesWith": _check_federates,
    "hint": _check_text,
    "admin": _check_flag,
    "downstream": _check_flag,
    "expiresAt": _check_time,
    "revisionNumber": _check_count,
}


def _made(document: Mapping[str, Any]) -> Entry:
    values = {FIELDS[name]: value for name, value in document.items() if name in FIELDS}
    for name in ("selectors", "dns_names", "federates_with"):
        values[name] = tuple(values.get(name, ()))
    values["federates_with"] = tuple(one.removeprefix("spiffe://") for one in values["federates_with"])
    return Entry(**values)
