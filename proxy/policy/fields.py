"""What a policy can ask for: each field of a source or an operation and each key of ``when``, with the fact of the
request it is about and the little language of its values. One line per fact; a further one is a line here, a line
in ``config/resources/authorization_values.py`` and an attribute of ``AccessRequest``.

A fact of None means that the request lacks it: the field is false then, its ``not`` twin true (AUTHZ 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple

from config.resources.authorization import Condition
from proxy.policy.facts import AccessRequest, fold, wire_text
from proxy.policy.match import Blocks, Globs, Names, Paths, Ports, Several, Strings, Tokens

Compile = Callable[[Iterable[str], str], Any]  # of values, in a policy of that namespace


class Field(NamedTuple):
    """``name``: of the fact, the same for a field and a key that ask for the same. ``is_permission``: about the call
    rather than the caller, where ``when`` must know (AUTHZ 1). ``is_caller``: about who calls, which is farther
    from being allowed than what is called."""

    name: str
    fact: Callable[[AccessRequest], Any]
    compile: Compile
    http_only: bool = False
    is_permission: bool = False
    is_caller: bool = False

    def is_strict(self, values: Iterable[str]) -> bool:
        """Whether there are texts that ``compile`` refuses (ValueError)."""
        return self.compile in _STRICT or (self.name == "paths" and any("{" in value for value in values))


def _of(kind: Callable[[Iterable[str]], Any]) -> Compile:
    return lambda values, namespace: kind(values)


def _filled(values: Iterable[str]) -> Strings:
    return Strings(map(wire_text, values), presence_is_filled=True)


def _present(values: Iterable[str]) -> Strings:
    return Strings(map(wire_text, values), presence_is_filled=False)


def _folded(values: Iterable[str]) -> Strings:
    return _present(fold(value) for value in values)


def _paths(values: Iterable[str]) -> Paths:
    return Paths(map(wire_text, values))


def _accounts(values: Iterable[str], namespace: str) -> Names:
    # The short form takes the namespace of the policy (AUTHZ 6.1).
    return Names(value if "/" in value else f"{namespace}/{value}" for value in values)


def _headers(values: Iterable[str]) -> Several:
    return Several(_present(values))


def _claims(values: Iterable[str]) -> Several:
    return Several(Strings(values, presence_is_filled=True))  # JSON: text on both sides


_BLOCKS: Final = _of(Blocks)
_PORTS: Final = _of(Ports)
_STRICT: Final = (_BLOCKS, _PORTS)


def _filled_fact(name: str) -> Callable[[AccessRequest], Any]:
    """"" is a fact that is not there."""
    get = attrgetter(name)
    return lambda request: get(request) or None


def _field(name: str, fact: str, compile: Compile, *, about: str = "", http_only: bool = False) -> Field:
    return Field(name, attrgetter(fact), compile, http_only, about == "call", about == "caller")


def _address(name: str, fact: str, *, about: str = "caller") -> Field:
    return Field(name, _filled_fact(fact), _BLOCKS, False, about == "call", about == "caller")


FIELDS: Final[Mapping[str, Field]] = {
    found.name: found
    for found in (
        _field("principals", "principal", _of(_filled), about="caller"),
        _field("namespaces", "namespace", _of(Globs), about="caller"),
        _field("serviceAccounts", "service_account", _accounts, about="caller"),
        _field("trustDomains", "trust_domain", _of(_filled), about="caller"),
        _field("requestPrincipals", "request_principal", _of(Tokens), about="caller", http_only=True),
        _address("ipBlocks", "source_ip"),
        _address("remoteIpBlocks", "remote_ip"),
        _field("hosts", "host", _of(_folded), about="call", http_only=True),
        _field("methods", "method", _of(_present), about="call", http_only=True),
        _field("paths", "path", _of(_paths), about="call", http_only=True),
        _field("ports", "port", _PORTS, about="call"),
        _field("targetRefs", "route", _of(Names), about="call", http_only=True),
    )
}

_KEYS: Final[Mapping[str, Field]] = {
    "source.ip": FIELDS["ipBlocks"],
    "remote.ip": FIELDS["remoteIpBlocks"],
    "source.namespace": FIELDS["namespaces"],
    "source.serviceAccount": FIELDS["serviceAccounts"],
    "source.trustDomain": FIELDS["trustDomains"],
    "source.principal": FIELDS["principals"],
    "request.auth.principal": FIELDS["requestPrincipals"],
    "destination.port": FIELDS["ports"],
    "destination.ip": _address("destination.ip", "destination_ip", about="call"),
    "connection.sni": Field("connection.sni", _filled_fact("sni"), _of(_filled), is_permission=True),
    "request.auth.audiences": _field("request.auth.audiences", "audiences", _of(_claims), http_only=True),
    "request.auth.presenter": _field("request.auth.presenter", "presenter", _of(_claims), http_only=True),
    # Case counts in these, other than in hosts (AUTHZ 6.4, 6.7).
    "request.headers[:authority]": _field("authority", "authority", _of(_present), http_only=True),
    "request.headers[host]": _field("authority", "authority", _of(_present), http_only=True),
    "request.headers[:method]": _field("methods", "method", _of(_present), http_only=True),
    "request.headers[:path]": _field("target", "target", _of(_present), http_only=True),
}


def field_named(fact: str) -> Field:
    """The field of a source or an operation. Raises ValueError: the parser refuses what is not known; here it must
    not become a rule that is wider than written."""
    found = FIELDS.get(fact)
    if found is None:
        raise ValueError(f"{fact} is not supported")
    return found


@lru_cache(maxsize=1024)
def asked_by(key: str) -> Field:
    """What a key of ``when`` asks for. Raises ValueError for a key that the parser refuses."""
    found = _KEYS.get(key)
    if found is not None:
        return found
    condition = Condition(key)
    names = condition.arguments
    if condition.name == "request.headers" and len(names) == 1 and key.endswith("]"):
        return Field("headers", lambda request: request.header(names[0]), _of(_headers), http_only=True)
    if condition.name == "request.auth.claims" and names and key.endswith("]"):
        return Field("claims", lambda request: request.claim(*names), _of(_claims), http_only=True)
    raise ValueError(f"{key} is not supported")


def header_asked_by(key: str) -> str | None:
    """The header that a key of ``when`` asks for, in lower case."""
    return Condition(key).arguments[0] if key and asked_by(key).name == "headers" else None
