"""The proxies that are compared: one class each, all with the same duties.

Duties, for every one of them: terminate mutual TLS 1.3 without session resumption, with a client
certificate from the run's root; let through GET and POST below /v1/ and /bench. for the caller `web`
only, and refuse everything else; set `x-forwarded-client-cert` and overwrite what the caller sent under
that name; write an access-log line with about the same fields for each request to a file; keep statistics
and offer them on an admin port. One worker with one thread does the work.

Where a rival cannot do a duty, `note` says what it does instead.
"""

from __future__ import annotations

from benchmarks.rivals.envoy import Envoy, start_originator
from benchmarks.rivals.haproxy import Haproxy
from benchmarks.rivals.nginx import Nginx
from benchmarks.rivals.rival import Rival, Setup, caller_context, get_once, new_setup
from benchmarks.rivals.sidewall import Interpreted, Sidewall

__all__ = ["ALL", "Rival", "Setup", "caller_context", "get_once", "new_setup", "start_originator"]

ALL: tuple[Rival, ...] = (Sidewall(), Interpreted(), Envoy(), Haproxy(), Nginx())
