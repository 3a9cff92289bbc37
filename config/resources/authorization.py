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
from collections.abc import Mapping
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
from config.resources.authorization_values import MAX_ACCOUNTS, check_key, check_value, fact_of
from config.resources.scope import (
    API_VERSIONS,
    DRY_RUN,
    filled,
    place_of,
    read_envelope,
    read_selector,
    read_targets,
)

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
MAX_RULES: Final = 512  # Istio's CRD schema

_SOURCES: Final = (
    *("principals", "requestPrincipals", "namespaces", "serviceAccounts", "trustDomains"),
    *("ipBlocks", "remoteIpBlocks"),
)
_SOURCE_FIELDS: Final = (*_SOURCES, *(f"not{name[0].upper()}{name[1:]}" for name in _SOURCES))
_OPERATION_FIELDS: Final = (
    *("hosts", "notHosts", "ports", "notPorts"),
    *("methods", "notMethods", "paths", "notPaths"),
)
_SPEC_FIELDS: Final = ("selector", "targetRef", "targetRefs", "action", "rules")
_LATER_SPEC: Final = {"provider": "there are no external authorizers yet"}
_LATER_ACTIONS: Final = {"CUSTOM": "there are no external authorizers yet: write ALLOW, DENY or AUDIT"}
_TRUE: Final = ("1", "t", "T", "true", "TRUE", "True")  # as Go reads booleans
_FALSE: Final = ("0", "f", "F", "false", "FALSE", "False")


def parse_authorization_policy(document: Document, default_namespace: str) -> AuthorizationPolicy | None:
    """The policy that ``document`` holds; None when anything in it is an error (``document.problems`` says what).
    ``default_namespace`` is where a document without ``metadata.namespace`` belongs."""
    root = document.root
    if root is None:
        return None
    errors = document.problems.errors
    metadata, spec = read_envelope(document, root, KIND, default_namespace)
    dry_run = _dry_run(metadata.annotations)
    policy = _spec(spec, metadata.name, metadata.namespace, place_of(root))
    if dry_run and policy.action == Action.AUDIT:
        root.report("SW0105", "an AUDIT policy enforces nothing: it has no dry run", hint="remove the annotation")
    policy = dataclasses.replace(policy, dry_run=dry_run)
    return policy if document.problems.errors == errors else None


def _dry_run(annotations: Mapping[str, Node]) -> bool:
    value = annotations.get(DRY_RUN)
    if value is not None and value.text not in (*_TRUE, *_FALSE):
        value.report("SW0105", f"{value.shown} is not a boolean", hint='write "true" or "false"')
    return value is not None and value.text in _TRUE


def _spec(node: Node | None, name: str, namespace: str, place: Place) -> AuthorizationPolicy:
    fields = filled(node, _SPEC_FIELDS, _LATER_SPEC) if node is not None else {}
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
        selector=read_selector(fields["selector"]) if "selector" in fields else (),
        rules=tuple(_rule(rule) for rule in rules[:MAX_RULES]),
        target_refs=read_targets(fields),
        place=place,
    )


def _rule(node: Node) -> Rule:
    if node.is_null:
        node.report("SW0106", "an empty rule", hint="write {} for a rule that matches everything")
        return Rule()
    fields = filled(node, ("from", "to", "when"))
    return Rule(
        sources=_entries(fields.get("from"), "source", _SOURCE_FIELDS),
        operations=_entries(fields.get("to"), "operation", _OPERATION_FIELDS),
        conditions=_conditions(fields["when"]) if "when" in fields else (),
        place=place_of(node),
    )


def _conditions(node: Node) -> tuple[Condition, ...]:
    return tuple(found for item in node.sequence() if (found := _condition(item)) is not None)


def _condition(node: Node) -> Condition | None:
    """One entry of ``when``. The whole key is checked (AUTHZ 4.4): Istio looks at its beginning only."""
    fields = filled(node, ("key", "values", "notValues"))
    if "key" not in fields:
        node.report("SW0106", "'key' is missing here", hint="e.g. request.headers[x-team]")
        return None
    key = check_key(fields["key"])
    if key is None:
        return None
    lists = {name: _values(fact_of(key), name, fields[name]) for name in ("values", "notValues") if name in fields}
    if not any(lists.values()):
        node.report("SW0106", "neither values nor notValues", hint="give the condition something to compare with")
    return Condition(key, lists.get("values", ()), lists.get("notValues", ()), place_of(node))


def _entries(node: Node | None, name: str, known: tuple[str, ...]) -> tuple[Entry, ...]:
    if node is None:
        return ()
    items = node.sequence()
    if not items and node.kind == "sequence":
        node.report("SW0106", f"an empty list names no {name}", hint=f"leave it out for any {name}")
    return tuple(_entry(item, name, known) for item in items)


def _entry(node: Node, name: str, known: tuple[str, ...]) -> Entry:
    inner = filled(node, (name,)).get(name) if not node.is_null else None
    if inner is None:
        if node.is_null or not node.entries:
            node.report("SW0106", f"'{name}' is missing here", hint=f"write {name}: {{...}}")
        return Entry((), place_of(node))
    fields = filled(inner, known)
    clauses = tuple(_clause(field, value) for field, value in fields.items())
    if not any(clause.values for clause in clauses) and inner.entries.keys() <= set(known):
        inner.report("SW0106", f"the {name} says nothing", hint="name at least one field with a value")
    _check_together(inner, fields)
    return Entry(tuple(clause for clause in clauses if clause.values), place_of(inner))


def _check_together(node: Node, fields: Mapping[str, Node]) -> None:
    accounts = [name for name in ("serviceAccounts", "notServiceAccounts") if name in fields]
    others = [name for name in ("principals", "notPrincipals", "namespaces", "notNamespaces") if name in fields]
    if accounts and others:
        hint = "a service account says its namespace by itself: namespace/name"
        fields[accounts[0]].report_key("SW0106", f"'{accounts[0]}' and '{others[0]}' exclude each other", hint=hint)


def _clause(name: str, node: Node) -> Clause:
    return Clause(name, _values(Clause(name, ()).fact, name, node), place_of(node.key or node))


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
