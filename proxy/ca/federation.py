"""Fetching the bundles of trust domains that are followed (``admin_federation``), each as often as it asks for.

What is fetched is held against what we have: it must be whole, and may not go back (``identity.bundle.accept``,
C-16). A document that is refused, or a server that is not the right one, leaves the old bundle in force and is said
in the log once for each new reason; the next attempt comes after a pause that grows to a minute, so that a server
which is back is noticed. Each replica follows by itself; one that finds the others' result has nothing to write.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import trio

from identity.bundle import DEFAULT_REFRESH, Bundle, BundleError, accept, same
from identity.ca.model import ITSELF, CaError, Federated
from identity.ca.service import CaService
from identity.disk import IdentityFileError
from identity.renewal import backoff
from identity.svid import TrustBundle
from proxy.ca.admin_federation import held
from proxy.ca.fetching import FetchFailed, fetch_spiffe, fetch_web
from proxy.ca.work import now
from proxy.net.poller import Poller

log = logging.getLogger("proxy.ca")

_LOOK: Final = 1.0  # seconds between looks at what is due
_SHORTEST: Final = 5.0  # whatever a bundle asks for
_LONGEST: Final = 86400.0


@dataclass
class _Course:
    """How following one trust domain goes. ``at``: seconds of trio's clock."""

    settings: Mapping[str, Any]
    at: float = 0.0
    failures: int = 0
    problem: str = ""


class Federation:
    """See the module. ``problems``: what is wrong now, by trust domain."""

    def __init__(self, service: CaService, poller: Poller, rng: random.Random | None = None) -> None:
        self._service = service
        self._poller = poller
        self._rng = rng or random.SystemRandom()
        self._limiter = trio.CapacityLimiter(1)
        self._courses: dict[str, _Course] = {}

    @property
    def problems(self) -> dict[str, str]:
        return {name: course.problem for name, course in self._courses.items() if course.problem}

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                known = await trio.to_thread.run_sync(self._service.federated, limiter=self._limiter)
                await self._follow(known)
            except (CaError, IdentityFileError) as error:
                log.error("federation cannot be followed", extra={"event": "ca.trouble", "problem": str(error)})
            await trio.sleep(_LOOK)

    async def _follow(self, known: Mapping[str, Federated]) -> None:
        followed = {name: found for name, found in known.items() if found.settings.get("url")}
        for name in [name for name in self._courses if name not in followed]:
            del self._courses[name]
        async with trio.open_nursery() as nursery:
            for name, found in followed.items():
                course = self._courses.get(name)
                if course is None or course.settings != found.settings:
                    course = self._courses[name] = _Course(found.settings)
                if trio.current_time() >= course.at:
                    nursery.start_soon(self._refresh, found, known, course)

    async def _refresh(self, found: Federated, known: Mapping[str, Federated], course: _Course) -> None:
        name = found.trust_domain
        try:
            before = held(name, found.document)
            document = await self._fetch(found.settings, known)
            offered = accept(before, document, name)
            if before is None or offered.sequence != before.sequence or not same(offered, before):
                await self._keep(found, document, offered)
        except (FetchFailed, BundleError, CaError, IdentityFileError, ValueError) as error:
            self._failed(name, course, str(error))
            return
        if course.problem:
            log.info("the bundle is fetched again", extra={"event": "ca.federation", "trust_domain": name})
        course.failures, course.problem = 0, ""
        hint = offered.refresh_hint or DEFAULT_REFRESH
        course.at = trio.current_time() + min(max(hint, _SHORTEST), _LONGEST)

    def _failed(self, name: str, course: _Course, problem: str) -> None:
        course.failures += 1
        course.at = trio.current_time() + backoff(course.failures, self._rng)
        if problem != course.problem:
            course.problem = problem
            facts = {"event": "ca.federation", "trust_domain": name, "problem": problem}
            log.warning("no newer bundle; the old one stays in force", extra=facts)

    async def _fetch(self, settings: Mapping[str, Any], known: Mapping[str, Federated]) -> bytes:
        """Raises FetchFailed, ValueError."""
        url = str(settings["url"])
        if settings.get("profile") == "https_web":
            return await fetch_web(url)
        server = str(settings["endpoint_spiffe_id"])
        return await fetch_spiffe(self._poller, url, server, await self._vouching(server, known))

    async def _vouching(self, server: str, known: Mapping[str, Federated]) -> dict[str, TrustBundle]:
        """The bundle by which the endpoint's server is judged: of its own trust domain and of no other."""
        domain = server.removeprefix("spiffe://").partition("/")[0]
        if domain == self._service.trust_domain:
            own = await trio.to_thread.run_sync(self._service.bundle, limiter=self._limiter)
            return {domain: own.trust_bundle}
        found = held(domain, known[domain].document) if domain in known else None
        if found is None:
            raise FetchFailed(f"no bundle of {domain} vouches for {server}: set one with `ca bundle set`")
        return {domain: found.trust_bundle}

    async def _keep(self, found: Federated, document: bytes, offered: Bundle) -> None:
        moment = now()
        await trio.to_thread.run_sync(self._write, found, document, offered, moment, limiter=self._limiter)
        facts = {"event": "ca.federation", "trust_domain": found.trust_domain, "sequence": offered.sequence}
        log.info("a newer bundle", extra=facts)

    def _write(self, found: Federated, document: bytes, offered: Bundle, moment: datetime) -> None:
        """Raises Conflict when another replica was faster with a still newer one."""
        self._service.set_federated(
            found.trust_domain, document, offered.sequence, found.settings, now=moment, caller=ITSELF
        )
