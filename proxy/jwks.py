"""The keys of token issuers: fetched, kept fresh, and kept when the issuer is away.

One task for each place that keys come from. A place is a ``jwksUri``, or, for a rule that names an issuer only, the
issuer itself, whose discovery document (OpenID Connect Discovery 4) says where its keys are. The rules of all
listeners share places, and a reload keeps those that are still named.

    fetched       again every five minutes, give or take a tenth
    failed        again after 1, 2, 4 .. 60 seconds; the last good set stays, however old it is
    unknown key   a token named a key that is not in the set: asked for at once, but not twice within ten seconds
    never there   ``keys_of`` says None: whoever shows a token is refused, whoever shows none is not

Only https is asked, and this machine; anything else needs ``policy.unsafeJwks``. That is checked here again, for what
a discovery document names is the issuer's word and not the configuration's.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from config.resources.request_authentication import JwtRule, is_protected, split_uri
from proxy.net.fetch import FetchFailed, fetch
from proxy.policy.jwt_keys import MAX_SET, KeySet, UnusableSet, read_keys

REFRESH: Final = 300.0  # seconds
AGAIN: Final = 10.0  # seconds between two questions for an unknown key
_LONGEST_WAIT: Final = 60.0  # seconds between two tries while the issuer is away
_MAX_DISCOVERY: Final = 64 * 1024  # bytes

log = logging.getLogger("proxy.jwks")


class Fetch(Protocol):
    """``proxy.net.fetch.fetch``."""

    def __call__(self, uri: str, *, timeout: float, most: int) -> Awaitable[bytes]: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where keys come from: ``uri``, or ``issuer`` when that is "". ``timeout``: seconds, of each fetch."""

    uri: str
    issuer: str
    timeout: float

    @classmethod
    def of(cls, rule: JwtRule) -> Place:
        return cls(rule.jwks_uri, "" if rule.jwks_uri else rule.issuer, rule.timeout)

    def __str__(self) -> str:
        return self.uri or self.issuer


class Source:
    """One place: what is known of it, and the task that keeps it fresh."""

    def __init__(self, place: Place, jwks: Jwks) -> None:
        self.place = place
        self.keys: KeySet | None = None
        self.fetched_at = 0.0  # monotonic, of the last good set
        self.problem = ""  # why the last try failed
        self.tried = trio.Event()  # once, however it went
        self._asked_at = -AGAIN
        self._wake = trio.Event()
        self._jwks = jwks

    def ask(self) -> None:
        """A token names a key that we do not have."""
        if trio.current_time() - self._asked_at >= AGAIN:
            self._asked_at = trio.current_time()
            self._wake.set()

    async def refresh_forever(self) -> None:
        failures = 0
        while True:
            self._wake = trio.Event()
            failures = 0 if await self._refresh() else failures + 1
            self.tried.set()
            wait = min(2.0 ** min(failures - 1, 10), _LONGEST_WAIT) if failures else REFRESH
            with trio.move_on_after(wait * self._jwks.rng.uniform(0.9, 1.1)):
                await self._wake.wait()

    async def _refresh(self) -> bool:
        self._asked_at = trio.current_time()
        try:
            found = read_keys(await self._jwks.fetch_keys(self.place))
        except (FetchFailed, UnusableSet) as error:
            self._note_failure(str(error))
            return False
        if self.problem:
            log.info("keys of tokens are there again", extra={"event": "jwks.recovered", "source": str(self.place)})
        self.problem = ""
        self.fetched_at = trio.current_time()
        self._jwks.note_fetched(self)
        before, self.keys = self.keys, found
        if before is None or before.digest != found.digest:
            self._jwks.note_change(self)
        return True

    def _note_failure(self, problem: str) -> None:
        if problem != self.problem:
            extra = {"event": "jwks.failed", "source": str(self.place), "problem": problem}
            log.warning("keys of tokens cannot be fetched: %s: %s", self.place, problem, extra=extra)
        self.problem = problem

    @property
    def age(self) -> float:
        """Seconds since the last good set came; 0.0 when there was none."""
        return trio.current_time() - self.fetched_at if self.keys is not None else 0.0


class Jwks:
    """Every place. ``changed`` is called when a set is another than before: what is open is to be judged again."""

    def __init__(
        self,
        rng: random.Random,
        changed: Callable[[], None],
        *,
        added: Callable[[Source], None] | None = None,
        fetched: Callable[[Source], None] | None = None,
        fetch: Fetch = fetch,
    ) -> None:
        self.rng = rng
        self.sources: dict[Place, Source] = {}
        self.unprotected = False  # policy.unsafeJwks
        self._added = added
        self._fetched = fetched
        self._changed = changed
        self._fetch = fetch
        self._inline: dict[str, KeySet | None] = {}
        self._scopes: dict[Place, trio.CancelScope] = {}
        self._nursery: trio.Nursery | None = None

    # -- for rules (``proxy.policy.jwt.KeySource``) -----------------------------------------------------------

    def keys_of(self, rule: JwtRule) -> KeySet | None:
        if rule.jwks:
            return self._inline.get(rule.jwks)
        source = self.sources.get(Place.of(rule))
        return source.keys if source is not None else None

    def missing(self, rule: JwtRule) -> None:
        source = self.sources.get(Place.of(rule)) if not rule.jwks else None
        if source is not None:
            source.ask()

    # -- life -------------------------------------------------------------------------------------------------

    def use(self, rules: Iterable[JwtRule], *, unprotected: bool = False) -> None:
        """Know the keys of these rules, and of no others."""
        wanted = list(rules)
        texts, places = {rule.jwks for rule in wanted}, {Place.of(rule) for rule in wanted if not rule.jwks}
        self._inline = {text: found for text, found in self._inline.items() if text in texts}
        for place in [place for place in self.sources if place not in places]:
            del self.sources[place]
            if (scope := self._scopes.pop(place, None)) is not None:
                scope.cancel()
        self.add(wanted, unprotected=unprotected)

    def add(self, rules: Iterable[JwtRule], *, unprotected: bool = False) -> None:
        """Know the keys of these rules too."""
        self.unprotected = unprotected
        wanted = list(rules)
        self._inline |= {rule.jwks: _inline_set(rule.jwks) for rule in wanted if rule.jwks not in ("", *self._inline)}
        for place in {Place.of(rule) for rule in wanted if not rule.jwks} - self.sources.keys():
            source = self.sources[place] = Source(place, self)
            if self._added is not None:
                self._added(source)
            self._start(source)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Fetch until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for source in self.sources.values():
                    self._start(source)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    def _start(self, source: Source) -> None:
        if self._nursery is not None:
            scope = self._scopes[source.place] = trio.CancelScope()
            self._nursery.start_soon(self._keep_fresh, source, scope)

    async def _keep_fresh(self, source: Source, scope: trio.CancelScope) -> None:
        with scope:
            await source.refresh_forever()

    async def wait_tried(self) -> None:
        """Until each place was asked once, however it went."""
        for source in list(self.sources.values()):
            await source.tried.wait()

    def note_fetched(self, source: Source) -> None:
        if self._fetched is not None:
            self._fetched(source)

    def note_change(self, source: Source) -> None:
        keys = source.keys
        extra = {"event": "jwks.changed", "source": str(source.place), "keys": len(keys.keys) if keys else 0}
        log.info("keys of tokens have changed", extra=extra)
        self._changed()

    # -- fetching ---------------------------------------------------------------------------------------------

    async def fetch_keys(self, place: Place) -> bytes:
        """Raises FetchFailed."""
        uri = place.uri or await self._discover(place)
        return await self._get(uri, place.timeout, MAX_SET)

    async def _discover(self, place: Place) -> str:
        """The ``jwks_uri`` of an issuer. Its document must be about the issuer that was asked (Discovery 4.3)."""
        where = place.issuer.removesuffix("/") + "/.well-known/openid-configuration"
        try:
            found: Any = json.loads(await self._get(where, place.timeout, _MAX_DISCOVERY))
        except (ValueError, RecursionError):
            raise FetchFailed("the discovery document is not JSON") from None
        told: Mapping[str, Any] = found if isinstance(found, dict) else {}
        uri = told.get("jwks_uri")
        if told.get("issuer") != place.issuer:
            raise FetchFailed("the discovery document is about another issuer")
        if not isinstance(uri, str) or split_uri(uri) is None:
            raise FetchFailed("the discovery document names no jwks_uri")
        return uri

    async def _get(self, uri: str, timeout: float, most: int) -> bytes:
        if split_uri(uri) is None:
            raise FetchFailed("it names no http(s) URL")
        if not self.unprotected and not is_protected(uri):
            raise FetchFailed("keys are fetched by https only: anybody on the way could put in others")
        return await self._fetch(uri, timeout=timeout, most=most)

    def status(self) -> list[dict[str, object]]:
        """For people: each place, how many keys, how old, and what is wrong."""
        return [
            {
                "source": str(source.place),
                "keys": len(source.keys.keys) if source.keys is not None else 0,
                "ignored": source.keys.ignored if source.keys is not None else 0,
                "age": round(source.age, 3) if source.keys is not None else None,
                "problem": source.problem,
            }
            for source in self.sources.values()
        ]


def _inline_set(text: str) -> KeySet | None:
    try:
        return read_keys(text.encode("utf-8", "surrogatepass"))
    except UnusableSet:
        return None
