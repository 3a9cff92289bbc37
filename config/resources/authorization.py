"""AuthorizationPolicy as written: ``security.istio.io/v1`` and ``v1beta1``, read into frozen types that know where
they stand.

What is read is exactly what the policy engine can judge. Everything else of Istio's schema is an error that names
the field and its place (SW0120), never something left out: a document of which a part was ignored would mean
something else than was written, and for a DENY or a ``not`` field that opens a door. A document with an error
yields no policy at all.

What Istio's validation refuses is refused here (a DENY without rules, an empty ``from``, an empty value, a port
that is none). So is a field without a value, which Kubernetes takes for "absent" and so for "any". What Istio
accepts although it can never match (a principal with its scheme, a method in lower case) is accepted with a
warning, and decided as Istio would.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Final

from config.nodes import Document, Node
from config.resources.authorization_model import (
    NOWHERE,
    Action,
    AuthorizationPolicy,
    Clause,
    Condition,
    Entry,
    Place,
    Rule,
    TargetRef,
)
from config.resources.authorization_values import MAX_ACCOUNTS, check_key, check_value, fact_of, note_unquoted

__all__ = [
    "API_VERSIONS",
    "KIND",
    "MAX_RULES",
    "NOWHERE",
    "Action",
    "AuthorizationPolicy",
    "Clause",
    "Condition",
    "Entry",
    "Place",
    "Rule",
    "TargetRef",
    "parse_authorization_policy",
]

# -- reading ------------------------------------------------------------------------------------------------

KIND: Final = "AuthorizationPolicy"
API_VERSIONS: Final = ("security.istio.io/v1", "security.istio.io/v1beta1")
MAX_RULES: Final = 512  # Istio's CRD schema
_GATEWAY: Final = "gateway.networking.k8s.io"

_SOURCES: Final = (
    *("principals", "requestPrincipals", "namespaces", "serviceAccounts", "trustDomains"),
    *("ipBlocks", "remoteIpBlocks"),
)
_SOURCE_FIELDS: Final = (*_SOURCES, *(f"not{name[0].upper()}{name[1:]}" for name in _SOURCES))
_OPERATION_FIELDS: Final = (
    *("hosts", "notHosts", "ports", "notPorts"),
    *("methods", "notMethods", "paths", "notPaths"),
)
# Written by clusters and people, without a meaning here.
_METADATA: Final = (
    *("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "selfLink"),
    *("creationTimestamp", "managedFields", "ownerReferences", "finalizers", "generateName"),
)

_SPEC_FIELDS: Final = ("selector", "targetRef", "targetRefs", "action", "rules")
_LATER_SPEC: Final = {"provider": "there are no external authorizers yet"}
_LATER_ACTIONS: Final = {"CUSTOM": "there are no external authorizers yet: write ALLOW, DENY or AUDIT"}
# What a policy may hang on (Gateway API); a sidecar has no Gateway, GatewayClass or ServiceEntry.
_TARGETS: Final = {"Service": ("", "core"), "HTTPRoute": (_GATEWAY,), "GRPCRoute": (_GATEWAY,)}
_LATER_TARGETS: Final = dict.fromkeys(
    ("Gateway", "GatewayClass", "ServiceEntry"), "a sidecar is none: name a Service, HTTPRoute or GRPCRoute"
)
_MAX_TARGETS: Final = 16  # Istio's CRD schema

_DRY_RUN: Final = "istio.io/dry-run"
_TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")  # as Go reads booleans
_FALSE: Final = ("0", "f", "F", "false", "FALSE", "False")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123 subdomain, as Kubernetes
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label


def parse_authorization_policy(document: Document, default_namespace: str) -> AuthorizationPolicy | None:
    """The policy that ``document`` holds; None when anything in it is an error (``document.problems`` says what).
    ``default_namespace`` is where a document without ``metadata.namespace`` belongs."""
    root = document.root
    if root is None:
        return None
    errors = document.problems.errors
    fields = root.fields(("apiVersion", "kind", "metadata", "spec", "status"))
    name, namespace, dry_run = _metadata(root, fields.get("metadata"), default_namespace)
    document.title = f"{KIND} {namespace}/{name}"
    if "kind" not in fields or fields["kind"].text != KIND or "apiVersion" not in fields:
        root.report("SW0106", f"apiVersion and kind must be {API_VERSIONS[0]} and {KIND}")
    else:
        fields["apiVersion"].choice(API_VERSIONS, f"an API version of {KIND}")
    policy = _spec(fields.get("spec"), name, namespace, _place(root))
    if dry_run and policy.action == Action.AUDIT:
        root.report("SW0105", "an AUDIT policy enforces nothing: it has no dry run", hint="remove the annotation")
    policy = dataclasses.replace(policy, dry_run=dry_run)
    return policy if document.problems.errors == errors else None


def _metadata(root: Node, node: Node | None, default_namespace: str) -> tuple[str, str, bool]:
    fields = node.fields(_METADATA) if node is not None else {}
    name, namespace = fields.get("name"), fields.get("namespace")
    if name is None:
        (node or root).report("SW0106", "metadata.name is missing", hint="every policy needs a name")
    elif not _NAME.fullmatch(name.string() or ""):
        name.report("SW0105", f"{name.shown} is not a name", hint="lower-case letters, digits, '-' and '.'")
    if namespace is not None and not _NAMESPACE.fullmatch(namespace.string() or ""):
        namespace.report("SW0105", f"{namespace.shown} is not a namespace", hint="lower-case letters, digits, '-'")
    dry_run = "annotations" in fields and _dry_run(fields["annotations"])
    home = namespace.text if namespace is not None else default_namespace
    return (name.text if name is not None else "?"), home, dry_run


def _dry_run(node: Node) -> bool:
    value = node.mapping().get(_DRY_RUN)
    if value is not None and value.text not in (*_TRUE, *_FALSE):
        value.report("SW0105", f"{value.shown} is not a boolean", hint='write "true" or "false"')
    return value is not None and value.text in _TRUE


def _spec(node: Node | None, name: str, namespace: str, place: Place) -> AuthorizationPolicy:
    fields = _filled(node, _SPEC_FIELDS, _LATER_SPEC) if node is not None else {}
    action = Action.ALLOW
    if "action" in fields:
        action = Action(fields["action"].choice(list(Action), "an action", _LATER_ACTIONS) or Action.ALLOW)
    rules = fields["rules"].sequence() if "rules" in fields else []
    if action == Action.DENY and not rules and node is not None:
        hint = "write rules: [{}] to deny everything"
        fields.get("rules", node).report("SW0106", "a DENY policy without rules denies nothing", hint=hint)
    if len(rules) > MAX_RULES:
        rules[MAX_RULES].report("SW0110", f"a policy has at most {MAX_RULES} rules", hint="make it two policies")
    return AuthorizationPolicy(
        name=name,
        namespace=namespace,
        action=action,
        selector=_selector(fields["selector"]) if "selector" in fields else (),
        rules=tuple(_rule(rule) for rule in rules[:MAX_RULES]),
        target_refs=_targets(fields),
        place=place,
    )


def _targets(fields: Mapping[str, Node]) -> tuple[TargetRef, ...]:
    """AUTHZ 13: one of selector, targetRef and targetRefs; same namespace; at most 16."""
    named = [name for name in ("selector", "targetRef", "targetRefs") if name in fields]
    if len(named) > 1:
        fields[named[1]].report_key("SW0106", f"'{named[0]}' and '{named[1]}' exclude each other", hint="keep one")
    nodes = [fields["targetRef"]] if "targetRef" in fields else []
    if "targetRefs" in fields:
        nodes += fields["targetRefs"].sequence()
    if len(nodes) > _MAX_TARGETS:
        nodes[_MAX_TARGETS].report("SW0110", f"a policy has at most {_MAX_TARGETS} targets")
    return tuple(ref for node in nodes[:_MAX_TARGETS] if (ref := _target(node)) is not None)


def _target(node: Node) -> TargetRef | None:
    fields = _filled(node, ("group", "kind", "name"), {"namespace": "a target is in the policy's own namespace"})
    if "kind" not in fields or "name" not in fields:
        node.report("SW0106", "a target needs kind and name", hint="e.g. {kind: Service, name: api}")
        return None
    kind = fields["kind"].choice(list(_TARGETS), "a kind of target", _LATER_TARGETS)
    if kind is None:
        return None
    group = fields["group"].text if "group" in fields else _TARGETS[kind][0]
    if group not in _TARGETS[kind]:
        fields["group"].report("SW0105", f"{kind} is of group {_TARGETS[kind][0]!r}")
    return TargetRef(kind, fields["name"].string() or "")


def _selector(node: Node) -> tuple[tuple[str, str], ...]:
    fields = _filled(node, ("matchLabels",))
    labels = fields["matchLabels"].mapping() if "matchLabels" in fields else {}
    if not labels and node.kind == "mapping":
        node.warn("SW0302", "a selector without labels selects every workload", hint="leave it out to say so")
    pairs = []
    for key, value in labels.items():
        text = value.string()
        if not key:
            value.report_key("SW0105", "a label must have a name")
        if "*" in key or "*" in (text or ""):
            value.report("SW0105", "a selector has no wildcards", hint="labels are compared as they are")
        note_unquoted(value)
        pairs.append((key, text or ""))
    return tuple(pairs)


def _rule(node: Node) -> Rule:
    if node.is_null:
        node.report("SW0106", "an empty rule", hint="write {} for a rule that matches everything")
        return Rule()
    fields = _filled(node, ("from", "to", "when"))
    return Rule(
        sources=_entries(fields.get("from"), "source", _SOURCE_FIELDS),
        operations=_entries(fields.get("to"), "operation", _OPERATION_FIELDS),
        conditions=_conditions(fields["when"]) if "when" in fields else (),
        place=_place(node),
    )


def _conditions(node: Node) -> tuple[Condition, ...]:
    return tuple(found for item in node.sequence() if (found := _condition(item)) is not None)


def _condition(node: Node) -> Condition | None:
    """One entry of ``when``. The whole key is checked (AUTHZ 4.4): Istio looks at its beginning only."""
    fields = _filled(node, ("key", "values", "notValues"))
    if "key" not in fields:
        node.report("SW0106", "'key' is missing here", hint="e.g. request.headers[x-team]")
        return None
    key = check_key(fields["key"])
    if key is None:
        return None
    lists = {name: _values(fact_of(key), name, fields[name]) for name in ("values", "notValues") if name in fields}
    if not any(lists.values()):
        node.report("SW0106", "neither values nor notValues", hint="give the condition something to compare with")
    return Condition(key, lists.get("values", ()), lists.get("notValues", ()), _place(node))


def _entries(node: Node | None, name: str, known: tuple[str, ...]) -> tuple[Entry, ...]:
    if node is None:
        return ()
    items = node.sequence()
    if not items and node.kind == "sequence":
        node.report("SW0106", f"an empty list names no {name}", hint=f"leave it out for any {name}")
    return tuple(_entry(item, name, known) for item in items)


def _entry(node: Node, name: str, known: tuple[str, ...]) -> Entry:
    inner = _filled(node, (name,)).get(name) if not node.is_null else None
    if inner is None:
        if node.is_null or not node.entries:
            node.report("SW0106", f"'{name}' is missing here", hint=f"write {name}: {{...}}")
        return Entry((), _place(node))
    fields = _filled(inner, known)
    clauses = tuple(_clause(field, value) for field, value in fields.items())
    if not any(clause.values for clause in clauses) and inner.entries.keys() <= set(known):
        inner.report("SW0106", f"the {name} says nothing", hint="name at least one field with a value")
    _check_together(inner, fields)
    return Entry(tuple(clause for clause in clauses if clause.values), _place(inner))


def _check_together(node: Node, fields: Mapping[str, Node]) -> None:
    accounts = [name for name in ("serviceAccounts", "notServiceAccounts") if name in fields]
    others = [name for name in ("principals", "notPrincipals", "namespaces", "notNamespaces") if name in fields]
    if accounts and others:
        hint = "a service account says its namespace by itself: namespace/name"
        fields[accounts[0]].report_key("SW0106", f"'{accounts[0]}' and '{others[0]}' exclude each other", hint=hint)


def _clause(name: str, node: Node) -> Clause:
    return Clause(name, _values(Clause(name, ()).fact, name, node), _place(node.key or node))


def _values(fact: str, name: str, node: Node) -> tuple[str, ...]:
    values = []
    for item in node.sequence():
        text = item.string()
        if text is not None:
            check_value(fact, name, item, text)
            values.append(text)
    if not node.items and node.kind == "sequence":
        node.warn("SW0302", f"an empty list is as if '{name}' were not there", hint="remove it, or give it values")
    if fact == "serviceAccounts" and len(values) > MAX_ACCOUNTS:
        node.report("SW0110", f"at most {MAX_ACCOUNTS} service accounts")
    return tuple(values)


def _filled(node: Node, names: Iterable[str], later: Mapping[str, str] | None = None) -> dict[str, Node]:
    """``Node.fields``, and a problem for each known field without a value."""
    known = tuple(names)
    fields = node.fields(known, later)
    for name, value in node.entries.items():
        if name in known and value.is_null:
            value.report_key("SW0106", f"'{name}' has no value", hint="give it one, or leave it out")
    return fields


def _place(node: Node) -> Place:
    return Place(node.file, node.line, node.column)
