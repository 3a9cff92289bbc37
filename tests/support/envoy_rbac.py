"""AuthorizationPolicy documents as configuration of Envoy's RBAC filters, as Istio's control plane makes it. For tests:
Envoy then judges requests in place of ``decide``. Works on documents as data and shares no code with the product."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

Json = dict[str, Any]

_RULES = "type.googleapis.com/envoy.extensions.filters.{}.rbac.v3.RBAC"
_JWT = "envoy.filters.http.jwt_authn"
_PAYLOAD = "payload"
_HTTP_ONLY = {"hosts", "methods", "paths", "requestPrincipals"}
_PERMISSION_KEYS = {"destination.ip", "destination.port", "connection.sni"}
_SAME = {
    "source.ip": "ipBlocks",
    "remote.ip": "remoteIpBlocks",
    "source.namespace": "namespaces",
    "source.serviceAccount": "serviceAccounts",
    "source.trustDomain": "trustDomains",
    "source.principal": "principals",
    "destination.port": "ports",
    "request.auth.principal": "requestPrincipals",
}


def engine_of(documents: list[Json], action: str, *, tcp: bool = False) -> Json | None:
    """The rules of one engine; None where no policy of this action applies, so that there is no filter."""
    found = [d for d in documents if d["spec"].get("action", "ALLOW") == action]
    if not found:
        return None
    policies = {}
    for document in found:
        meta = document["metadata"]
        for index, rule in enumerate(document["spec"].get("rules", [])):
            if action == "ALLOW" and tcp and _has_http(rule):
                continue
            name = f"ns[{meta['namespace']}]-policy[{meta['name']}]-rule[{index}]"
            policies[name] = _policy(rule, meta["namespace"], tcp)
    return {"action": action, "policies": policies}


def network_filter(documents: list[Json], action: str) -> list[Json]:
    rules = engine_of(documents, action, tcp=True)
    if rules is None:
        return []
    config = {"@type": _RULES.format("network"), "rules": rules, "stat_prefix": action.lower()}
    return [{"name": "envoy.filters.network.rbac", "typed_config": config}]


def http_filter(name: str) -> Json:
    """A filter without rules; each route brings its own under this name."""
    return {"name": name, "typed_config": {"@type": _RULES.format("http")}}


def jwt_filter(jwks: str) -> Json:
    """Tokens of any issuer whose key is in ``jwks``; none is needed."""
    provider = {
        "local_jwks": {"inline_string": jwks},
        "payload_in_metadata": _PAYLOAD,
        "normalize_payload_in_metadata": {"space_delimited_claims": ["scope", "permission"]},
    }
    needed = {"requires_any": {"requirements": [{"provider_name": "any"}, {"allow_missing": {}}]}}
    kind = "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
    config = {"@type": kind, "providers": {"any": provider}, "rules": [{"match": {"prefix": "/"}, "requires": needed}]}
    return {"name": _JWT, "typed_config": config}


def per_route(documents: list[Json], names: dict[str, str]) -> Json:
    """``typed_per_filter_config`` of a route; ``names``: of the filters, by action."""
    kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
    found = {}
    for action, name in names.items():
        rules = engine_of(documents, action)
        if rules is not None:
            found[name] = {"@type": kind, "rbac": {"rules": rules}}
    return found


# -- rules ----------------------------------------------------------------------------------------------------


def _has_http(rule: Json) -> bool:
    parts = [*(p["operation"] for p in rule.get("to", [])), *(p["source"] for p in rule.get("from", []))]
    fields = [field for part in parts for field in part]
    keys = [when["key"] for when in rule.get("when", [])]
    return any(_positive(field) in _HTTP_ONLY for field in fields) or any(_is_http_key(key) for key in keys)


def _is_http_key(key: str) -> bool:
    return key.startswith("request.")


def _policy(rule: Json, home: str, tcp: bool) -> Json:
    whens = [when for when in rule.get("when", []) if not (tcp and _is_http_key(when["key"]))]
    sources = [part["source"] for part in rule.get("from", [])] or [{}]
    operations = [part["operation"] for part in rule.get("to", [])] or [{}]
    about_call = [when for when in whens if when["key"] in _PERMISSION_KEYS]
    about_caller = [when for when in whens if when["key"] not in _PERMISSION_KEYS]
    if tcp:
        sources, operations = (
            [{f: v for f, v in part.items() if _positive(f) not in _HTTP_ONLY} for part in side]
            for side in (sources, operations)
        )
    return {
        "permissions": [_all(part, about_call, home, "rules", "or_rules", "and_rules", "not_rule") for part in operations],
        "principals": [_all(part, about_caller, home, "ids", "or_ids", "and_ids", "not_id") for part in sources],
    }


def _all(fields: Json, whens: list[Json], home: str, inner: str, one_of: str, all_of: str, none: str) -> Json:
    tests: list[Json] = []
    lists = [(_positive(field), values, field.startswith("not")) for field, values in fields.items()]
    for when in whens:
        key = _SAME.get(when["key"], when["key"])
        lists += [(key, when.get("values", []), False), (key, when.get("notValues", []), True)]
    for fact, values, negative in lists:
        if values:
            found = {one_of: {inner: [_matcher(fact, value, home) for value in values]}}
            tests.append({none: found} if negative else found)
    return {all_of: {inner: tests}} if tests else {"any": True}


def _positive(field: str) -> str:
    return field[3].lower() + field[4:] if field.startswith("not") else field


# -- values ---------------------------------------------------------------------------------------------------


def _matcher(fact: str, value: str, home: str) -> Json:
    if fact.startswith("request.headers["):
        name = fact[16:-1].lower()
        return _header(":authority" if name == "host" else name, value)
    if fact.startswith("request.auth.claims["):
        return _claim(fact[20:-1].split("]["), value)
    makers = {
        "requestPrincipals": lambda: _token(value),
        "request.auth.audiences": lambda: _claim(["aud"], value),
        "request.auth.presenter": lambda: _claim(["azp"], value),
        "principals": lambda: _identity(_principal(value)),
        "namespaces": lambda: _identity(_regex(f".*/ns/{_glob(value, '.*')}/.*")),
        "serviceAccounts": lambda: _identity(_regex(_account(value, home))),
        "trustDomains": lambda: _identity(_regex(f"spiffe://{_glob(value, '[^/]*')}/.*")),
        "ipBlocks": lambda: {"direct_remote_ip": _cidr(value)},
        "remoteIpBlocks": lambda: {"remote_ip": _cidr(value)},
        "destination.ip": lambda: {"destination_ip": _cidr(value)},
        "ports": lambda: {"destination_port": int(value)},
        "connection.sni": lambda: {"requested_server_name": _string(value)},
        "methods": lambda: _header(":method", value),
        "hosts": lambda: _header(":authority", value, fold=True),
        "paths": lambda: _path(value),
    }
    return makers[fact]()


def _claim(names: list[str], value: str) -> Json:
    text = {"string_match": _string(value)}
    return _metadata(names, {"or_match": {"value_matchers": [text, {"list_match": {"one_of": text}}]}})


def _metadata(names: list[str], value: Json) -> Json:
    path = [{"key": name} for name in (_PAYLOAD, *names)]
    return {"metadata": {"filter": _JWT, "path": path, "value": value}}


def _token(value: str) -> Json:
    """Istio's translation of a request principal to issuer and subject."""
    issuer, slash, subject = value.rpartition("/")
    some = _string("*")
    if value == "*":
        pair = some, some
    elif value.startswith("*"):
        pair = (_string(issuer), {"exact": subject}) if slash else (some, _string(value))
    elif value.endswith("*"):
        pair = ({"exact": issuer}, _string(subject)) if slash else (_string(value), some)
    else:
        pair = ({"exact": issuer}, {"exact": subject}) if slash else ({"exact": value}, {"exact": ""})
    tests = [_metadata([name], {"string_match": one}) for name, one in zip(("iss", "sub"), pair, strict=True)]
    return {"and_ids": {"ids": tests}}


def _identity(matcher: Json) -> Json:
    return {"authenticated": {"principal_name": matcher}}


def _principal(value: str) -> Json:
    if value == "*":
        return _regex(".+")
    if value.startswith("*"):
        return _regex(f"spiffe://.*{re.escape(value[1:])}")
    return _string("spiffe://" + value)


def _account(value: str, home: str) -> str:
    namespace, name = value.split("/") if "/" in value else (home, value)
    return f"spiffe://.+/ns/{re.escape(namespace)}/(.*/)?sa/{re.escape(name)}(/.*)?"


def _path(value: str) -> Json:
    if "{*}" in value or "{**}" in value:
        kind = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
        template = value.replace("{**}", "**").replace("{*}", "*")
        config = {"@type": kind, "path_template": template}
        return {"uri_template": {"name": "uri-template", "typed_config": config}}
    return {"url_path": {"path": _string(value)}}


def _header(name: str, value: str, *, fold: bool = False) -> Json:
    if value == "*":
        return {"header": {"name": name, "present_match": True}}
    matcher = _string(value)
    return {"header": {"name": name, "string_match": {**matcher, "ignore_case": True} if fold else matcher}}


def _string(value: str) -> Json:
    if value == "*":
        return _regex(".+")
    if value.startswith("*"):
        return {"suffix": value[1:]}
    if value.endswith("*"):
        return {"prefix": value[:-1]}
    return {"exact": value}


def _regex(text: str) -> Json:
    return {"safe_regex": {"regex": text}}


def _glob(value: str, star: str) -> str:
    return star.join(map(re.escape, value.split("*")))


def _cidr(value: str) -> Json:
    net = ipaddress.ip_network(value, strict=False)
    return {"address_prefix": value.partition("/")[0], "prefix_len": net.prefixlen}
