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
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from config.nodes import Document, Node


class Action(StrEnum):
    ALLOW = "ALLOW"
    DENY = "DENY"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


NOWHERE = Place("", 0, 0)


@dataclass(frozen=True, slots=True)
class Clause:
    """One field of a source or an operation, under its name as written (``paths``, ``notPaths``), with its
    values, of which there is at least one. Clauses are equal when they say the same, wherever they stand."""

    field: str
    values: tuple[str, ...]
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    @property
    def is_negative(self) -> bool:
        return self.field.startswith("not")

    @property
    def fact(self) -> str:
        """The positive name: ``paths`` of ``notPaths``."""
        return self.field[3].lower() + self.field[4:] if self.is_negative else self.field


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``source`` of ``from`` or one ``operation`` of ``to``: clauses, all of which must hold."""

    clauses: tuple[Clause, ...]
    place: Place = dataclasses.field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """Matches when one source and one operation match. No sources: any source; no operations: any."""

    sources: tuple[Entry, ...] = ()
    operations: tuple[Entry, ...] = ()
    place: Place = dataclasses.field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class AuthorizationPolicy:
    """One document. ``selector``: the labels a workload must have, as pairs; empty selects every workload."""

    name: str
    namespace: str
    action: Action = Action.ALLOW
    selector: tuple[tuple[str, str], ...] = ()
    rules: tuple[Rule, ...] = ()
    place: Place = dataclasses.field(default=NOWHERE, compare=False)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


# -- reading ------------------------------------------------------------------------------------------------

KIND: Final = "AuthorizationPolicy"
API_VERSIONS: Final = ("security.istio.io/v1", "security.istio.io/v1beta1")
MAX_RULES: Final = 512  # Istio's CRD schema

_SOURCE_FIELDS: Final = ("principals", "notPrincipals", "namespaces", "notNamespaces")
_OPERATION_FIELDS: Final = (
    *("hosts", "notHosts", "ports", "notPorts"),
    *("methods", "notMethods", "paths", "notPaths"),
)
# Written by clusters and people, without a meaning here.
_METADATA: Final = (
    *("name", "namespace", "labels", "annotations", "uid", "resourceVersion", "generation", "selfLink"),
    *("creationTimestamp", "managedFields", "ownerReferences", "finalizers", "generateName"),
)

_LATER_SOURCE: Final = dict.fromkeys(
    (
        *("requestPrincipals", "notRequestPrincipals", "serviceAccounts", "notServiceAccounts"),
        *("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks", "trustDomains", "notTrustDomains"),
    ),
    "a source can name principals and namespaces so far",
)
_LATER_RULE: Final = {"when": "a rule can have from and to so far"}
_LATER_SPEC: Final = {
    "targetRef": "select workloads by selector.matchLabels",
    "targetRefs": "select workloads by selector.matchLabels",
    "provider": "there are no external authorizers yet",
}
_LATER_ACTIONS: Final = dict.fromkeys(("AUDIT", "CUSTOM"), "write ALLOW or DENY")

_DRY_RUN: Final = "istio.io/dry-run"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")  # RFC 1123 subdomain, as Kubernetes
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123 label
_PORT: Final = re.compile(r"0{0,26}[0-9]{1,5}")


def parse_authorization_policy(document: Document, default_namespace: str) -> AuthorizationPolicy | None:
    """The policy that ``document`` holds; None when anything in it is an error (``document.problems`` says what).
    ``default_namespace`` is where a document without ``metadata.namespace`` belongs."""
    root = document.root
    if root is None:
        return None
    errors = document.problems.errors
    fields = root.fields(("apiVersion", "kind", "metadata", "spec", "status"))
    name, namespace = _metadata(root, fields.get("metadata"), default_namespace)
    document.title = f"{KIND} {namespace}/{name}"
    if "kind" not in fields or fields["kind"].text != KIND or "apiVersion" not in fields:
        root.report("SW0106", f"apiVersion and kind must be {API_VERSIONS[0]} and {KIND}")
    else:
        fields["apiVersion"].choice(API_VERSIONS, f"an API version of {KIND}")
    policy = _spec(fields.get("spec"), name, namespace, _place(root))
    return policy if document.problems.errors == errors else None


def _metadata(root: Node, node: Node | None, default_namespace: str) -> tuple[str, str]:
    fields = node.fields(_METADATA) if node is not None else {}
    name, namespace = fields.get("name"), fields.get("namespace")
    if name is None:
        (node or root).report("SW0106", "metadata.name is missing", hint="every policy needs a name")
    elif not _NAME.fullmatch(name.string() or ""):
        name.report("SW0105", f"{name.shown} is not a name", hint="lower-case letters, digits, '-' and '.'")
    if namespace is not None and not _NAMESPACE.fullmatch(namespace.string() or ""):
        namespace.report("SW0105", f"{namespace.shown} is not a namespace", hint="lower-case letters, digits, '-'")
    if "annotations" in fields:
        _annotations(fields["annotations"])
    return (name.text if name is not None else "?"), (namespace.text if namespace is not None else default_namespace)


def _annotations(node: Node) -> None:
    dry_run = node.mapping().get(_DRY_RUN)
    if dry_run is not None and dry_run.text != "false":
        dry_run.report_key("SW0120", f"'{_DRY_RUN}' is not supported yet", hint="the policy would be enforced")


def _spec(node: Node | None, name: str, namespace: str, place: Place) -> AuthorizationPolicy:
    fields = _filled(node, ("selector", "action", "rules"), _LATER_SPEC) if node is not None else {}
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
        place=place,
    )


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
        _note_unquoted(value)
        pairs.append((key, text or ""))
    return tuple(pairs)


def _rule(node: Node) -> Rule:
    if node.is_null:
        node.report("SW0106", "an empty rule", hint="write {} for a rule that matches everything")
        return Rule()
    fields = _filled(node, ("from", "to"), _LATER_RULE)
    return Rule(
        sources=_entries(fields.get("from"), "source", _SOURCE_FIELDS, _LATER_SOURCE),
        operations=_entries(fields.get("to"), "operation", _OPERATION_FIELDS),
        place=_place(node),
    )


def _entries(
    node: Node | None, name: str, known: tuple[str, ...], later: Mapping[str, str] | None = None
) -> tuple[Entry, ...]:
    if node is None:
        return ()
    items = node.sequence()
    if not items and node.kind == "sequence":
        node.report("SW0106", f"an empty list names no {name}", hint=f"leave it out for any {name}")
    return tuple(_entry(item, name, known, later) for item in items)


def _entry(node: Node, name: str, known: tuple[str, ...], later: Mapping[str, str] | None) -> Entry:
    inner = _filled(node, (name,)).get(name) if not node.is_null else None
    if inner is None:
        if node.is_null or not node.entries:
            node.report("SW0106", f"'{name}' is missing here", hint=f"write {name}: {{...}}")
        return Entry((), _place(node))
    fields = _filled(inner, known, later)
    clauses = tuple(_clause(field, value) for field, value in fields.items())
    if not any(clause.values for clause in clauses) and inner.entries.keys() <= set(known):
        inner.report("SW0106", f"the {name} says nothing", hint="name at least one field with a value")
    return Entry(tuple(clause for clause in clauses if clause.values), _place(inner))


def _clause(name: str, node: Node) -> Clause:
    values = []
    for item in node.sequence():
        text = item.string()
        if text is not None:
            _check_value(Clause(name, ()).fact, name, item, text)
            values.append(text)
    if not node.items and node.kind == "sequence":
        node.warn("SW0302", f"an empty list is as if '{name}' were not there", hint="remove it, or give it values")
    return Clause(name, tuple(values), _place(node.key or node))


# -- values -------------------------------------------------------------------------------------------------


def _check_value(fact: str, name: str, node: Node, text: str) -> None:
    if not text:
        node.report("SW0105", f"an empty value in '{name}'", hint="remove it")
        return
    _note_unquoted(node)
    if fact == "ports":
        if not _PORT.fullmatch(text) or int(text) > 65535:
            node.report("SW0105", f"{node.shown} is not a port", hint="a number from 0 to 65535, no ranges")
        return
    if fact == "paths" and not _is_plain_path(node, text):
        return
    if fact != "namespaces" and _has_literal_star(text):
        hint = "one * at the beginning or at the end is a wildcard, no other"
        node.warn("SW0301", f"{node.shown} matches a text with a star in it only", hint=hint)
    why = _never_matches(fact, text)
    if why is not None:
        said = "clause excludes nothing" if name.startswith("not") else "rule can never match"
        node.warn("SW0301", f"{said}: {why[0]}", hint=why[1])


def _is_plain_path(node: Node, text: str) -> bool:
    if "{*}" in text or "{**}" in text:
        node.report("SW0120", "path templates are not supported yet", hint="a path can begin or end with one *")
        return False
    if "{" in text or "}" in text:
        node.report("SW0105", f"{node.shown}: braces stand in {{*}} and {{**}} only")
        return False
    return True


def _has_literal_star(text: str) -> bool:
    if text.startswith("*"):
        return "*" in text[1:]
    return "*" in text.removesuffix("*")


def _never_matches(fact: str, text: str) -> tuple[str, str] | None:
    """Why no request can match ``text``, and what to do; None when one can."""
    if fact == "principals" and text.startswith("spiffe://"):
        return "'spiffe://' does not belong in a principal", "drop the scheme, as in Istio"
    if fact == "methods" and text != text.upper():
        return "methods are in capital letters", f"write {text.upper()}"
    if fact == "paths":
        return _never_matches_path(text)
    return None


def _never_matches_path(text: str) -> tuple[str, str] | None:
    if text[0] not in "/*":
        return "a path begins with '/'", f"write /{text}"
    if "?" in text or "#" in text:
        return "the query is not part of the path", "end it before the '?' or '#'"
    return None


def _note_unquoted(node: Node) -> None:
    if node.looks_like_other_type:
        node.warn("SW0107", f"{node.shown} should be in quotes", hint=f'quote it: "{node.text}"')


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
