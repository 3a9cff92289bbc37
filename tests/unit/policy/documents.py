"""Policies for tests, from the text or the data of documents, through the real reader."""

from __future__ import annotations

import json
from typing import Any

from config.nodes import parse_yaml
from config.problems import Problem, Problems
from config.resources.authorization import AuthorizationPolicy, parse_authorization_policy


def read(text: str, namespace: str = "shop") -> tuple[list[AuthorizationPolicy], list[Problem]]:
    """The policies of a file, and what was found wrong with it."""
    problems = Problems()
    documents = parse_yaml(text, "policy/api.yaml", problems)
    found = [parse_authorization_policy(document, namespace) for document in documents]
    return [policy for policy in found if policy is not None], list(problems)


def document(key: str, spec: dict[str, Any]) -> dict[str, Any]:
    """``key``: "namespace/name", or a name in the namespace shop."""
    namespace, _, name = key.rpartition("/")
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace or "shop"},
        "spec": spec,
    }


def read_data(documents: list[dict[str, Any]]) -> list[AuthorizationPolicy]:
    """Documents as data, which must be without errors."""
    policies, problems = read("\n---\n".join(map(json.dumps, documents)))  # JSON is YAML
    assert not [problem for problem in problems if problem.severity == "error"], problems
    return policies


def policies_of(specs: dict[str, dict[str, Any]]) -> list[AuthorizationPolicy]:
    return read_data([document(key, spec) for key, spec in specs.items()])
