"""Policies for tests, from text, through the product's own loader and compiler."""

from __future__ import annotations

from config.documents import parse_documents
from proxy.policy.engine import CompiledPolicies, WorkloadFacts, compile_policies

ALLOW_ALL = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow-all, namespace: shop}
spec:
  action: ALLOW
  rules: [{}]
"""


def compile_text(text: str) -> CompiledPolicies:
    """Compile documents for the workload shop/api."""
    policies = parse_documents(text).policies
    return compile_policies(policies, WorkloadFacts("shop", {"app": "api"}), default="deny")


def allow_all() -> CompiledPolicies:
    return compile_text(ALLOW_ALL)
