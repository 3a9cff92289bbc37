"""A page for each code: what ``sidewall explain SW0204`` prints. Offline, and complete: a test compares it with
the codes that are used."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Final

from config.problems import suggest

FAMILIES: Final = {
    "SW01": "syntax and fields",
    "SW02": "references and contradictions",
    "SW03": "logic of policies",
    "SW04": "the running proxy",
    "SW05": "telemetry",
    "SW06": "identity",
    "SW07": "cluster",
}


@dataclass(frozen=True, slots=True)
class Page:
    """``title`` in a few words, ``text`` what it means and why it is so, ``wrong`` and ``right`` as examples."""

    title: str
    text: str
    wrong: str = ""
    right: str = ""


PAGES: Final[dict[str, Page]] = {
    "SW0100": Page(
        "not YAML",
        "The text breaks the rules of YAML at the caret; the cause may stand a line above. Often a value "
        "needs quotes: it holds ': ', or begins with one of @ ` % { [ * & !. Inside {..} an address is "
        "written without its leading colon. The rest of this document was not read; other documents and files "
        "were.",
        "inbound: [{listen: :8443, app: 8080}]",
        "inbound: [{listen: 8443, app: 8080}]",
    ),
    "SW0101": Page(
        "unknown field",
        "There is no such field at this place. Unknown fields are errors and are never ignored: a misspelled "
        "limit would not limit, and a misspelled condition of a policy would let everybody in.",
        "inbound:\n- lisen: 8443",
        "inbound:\n- listen: 8443",
    ),
    "SW0102": Page(
        "key is there twice",
        "A mapping has the same key twice. YAML keeps the last in silence, which is rarely what was meant.",
        "policy: ./a\npolicy: ./b",
        "policy: [./a, ./b]",
    ),
    "SW0103": Page(
        "wrong shape",
        "A mapping, a list or a single value is expected here, and something else is written.",
        "methods: GET",
        "methods: [GET]",
    ),
    "SW0104": Page(
        "not one of the words",
        "This field takes one of a few words, and this is none of them. Upper and lower case matter.",
        "action: ALOW",
        "action: ALLOW",
    ),
    "SW0105": Page(
        "value cannot be read",
        "The value has not the form its field needs: a duration is 250ms, 10s or 1h30m, a size 64KiB, an "
        "address 8443, 127.0.0.1:8443, [::1]:8443 or unix:/path, a flag true or false. Values are read by "
        "their field, not by YAML: 'no' and '08' stay the texts they are.",
        "timeouts: {request: 60}",
        "timeouts: {request: 60s}",
    ),
    "SW0106": Page(
        "something is missing",
        "A field that has no default is not there, or is there without a value.",
        "inbound:\n- listen: 8443",
        "inbound:\n- listen: 8443\n  app: 8080",
    ),
    "SW0107": Page(
        "quote it",
        "YAML, and with it Kubernetes, reads this word as a number or a boolean where a text is wanted. "
        "Sidewall takes the text as written; kubectl apply would refuse the same file.",
        "ports: [80]",
        'ports: ["80"]',
    ),
    "SW0108": Page(
        "character that is not allowed",
        "A tab in the indentation, a byte order mark, a control character or an invisible line break. Editors "
        "show them as nothing or as a space. Indent with spaces, and save as UTF-8 without BOM.",
    ),
    "SW0109": Page(
        "YAML feature that is not allowed",
        "Tags (!!python/object, !Ref) make objects out of texts, merge keys (<<) hide what a mapping says, "
        "and a value cannot contain itself. Plain anchors and aliases (&name, *name) may be used.",
    ),
    "SW0110": Page(
        "too large",
        "Everything that is read has a limit, so that no file can exhaust the proxy: 1 MiB of text, 100 000 "
        "values of one document with aliases counted in full, 64 levels, 512 rules of one policy.",
    ),
    "SW0111": Page(
        "reference cannot be filled in",
        "${NAME} stands for an environment variable, ${NAME:-default} for one that may be missing, "
        "${file:/path} for the content of a file. What is missing is an error and not an empty text. Write "
        "$${ for a plain ${.",
        "workload: ${NAMESPACE}/api        # NAMESPACE is not set",
        "workload: ${NAMESPACE:-shop}/api",
    ),
    "SW0112": Page(
        "not a document we read",
        "Policy folders hold documents with apiVersion and kind, and only kinds that Sidewall understands. An "
        "unknown kind is an error: it could be the one that denies. Files that end in .test.yaml are left "
        "alone.",
        "apiVersion: security.istio.io/v2",
        "apiVersion: security.istio.io/v1",
    ),
    "SW0113": Page(
        "cannot be read",
        "A file or folder is not there, may not be read, is too large, is not UTF-8, or is a device or pipe. "
        "Relative paths begin at the file they stand in.",
    ),
    "SW0114": Page(
        "override of nothing",
        "A SIDEWALL_ variable or --set names a setting that does not exist. '__' steps into a mapping or "
        "list, '_' parts words. For a variable this is a warning, because clusters set variables of their "
        "own.",
        "SIDEWALL_SHUTDOWN_DRAIN=10s",
        "SIDEWALL_SHUTDOWN__DRAIN=10s",
    ),
    "SW0120": Page(
        "not supported yet",
        "The field or value exists in this format, but this version does not act on it. It is refused and not "
        "ignored, because a file must do what it says. The hint names what to write until then.",
        "inbound:\n- {listen: 8443, app: 8080, capture: true}",
        "inbound:\n- {listen: 8443, app: 8080}",
    ),
    "SW0121": Page(
        "out of range",
        "The value can be read but is too small or too large to make sense; the hint says what is allowed.",
        "telemetry: {tracing: {sample: 5}}",
        "telemetry: {tracing: {sample: 0.05}}",
    ),
    "SW0201": Page(
        "names no upstream",
        "outbound[].to must be a key of upstreams.",
        "outbound: [{listen: 9001, to: stok}]\nupstreams: {stock: {...}}",
        "outbound: [{listen: 9001, to: stock}]\nupstreams: {stock: {...}}",
    ),
    "SW0202": Page(
        "there twice",
        "Two listeners share an address or a name, or two policies share namespace and name. A bare port of "
        "an inbound listener is that port on all interfaces, and so overlaps with the same port on any one of "
        "them.",
    ),
    "SW0203": Page(
        "not on this machine",
        "The app must be reached by loopback or a Unix socket: what we verified would travel unprotected, and "
        "others could call the app without us. An outbound or administrative listener must be on loopback: "
        "whoever reaches it acts as us. unsafeApp: true and unsafeListen: true lift the first two, for "
        "networks that protect by other means. Keys of tokens are fetched from other machines by https only; "
        "policy.unsafeJwks lifts that.",
        "inbound: [{listen: 8443, app: 10.0.0.7:8080}]",
        "inbound: [{listen: 8443, app: 127.0.0.1:8080}]",
    ),
    "SW0204": Page(
        "whom to expect",
        "An upstream must say which SPIFFE IDs may answer for it. Any certificate of our trust domain is not "
        "enough: one broken workload could then pose as every other. Write namespace/service-account, a full "
        "SPIFFE ID, or a list of them; wildcards are refused.",
        "upstreams:\n  stock: {dns: stock.shop:8443}",
        "upstreams:\n  stock: {dns: stock.shop:8443, expect: shop/stock}",
    ),
    "SW0206": Page(
        "settings that contradict each other",
        "Two settings cannot both hold, or say the same thing twice: app beside inbound, endpoints beside "
        "dns, certificate files beside a CA folder, a part that is larger than its whole.",
    ),
    "SW0207": Page(
        "upstream without use",
        "No outbound listener leads to this upstream, so nothing can reach it through this proxy.",
    ),
    "SW0208": Page(
        "nothing to do",
        "There is neither an inbound nor an outbound listener. The smallest useful file is one line.",
        "",
        "app: 8080",
    ),
    "SW0301": Page(
        "clause can never match",
        "No request can have this value, so an ALLOW rule with it allows nothing, and a DENY rule denies "
        "nothing. Principals are written without spiffe://, methods in capitals, paths from '/' on and "
        "without a query; a star is a wildcard at the beginning or the end only.",
        "principals: [spiffe://shop.internal/ns/shop/sa/web]",
        "principals: [shop.internal/ns/shop/sa/web]",
    ),
    "SW0302": Page(
        "selects or says more than it seems",
        "An empty selector selects every workload of its namespace, and an empty list is as if it were not "
        "there. Leave it out to say so, or fill it.",
    ),
    "SW0303": Page(
        "rule can never match",
        "No request satisfies all clauses of the rule together: two of them exclude each other, or a value is "
        "one that no request can have (a path that is never canonical, a namespace with a slash). An ALLOW rule "
        "of this kind allows nothing, a DENY rule denies nothing.",
        "to: [{operation: {paths: [/a/*], notPaths: [/a*]}}]",
        "to: [{operation: {paths: [/a/*], notPaths: [/a/private/*]}}]",
    ),
    "SW0304": Page(
        "rule is shadowed",
        "Whatever this rule matches, other rules of the same action match already, so it decides nothing. That "
        "is exact: there is no request that would miss it. Remove it, or narrow the wider rule if that one was "
        "not meant to reach so far.",
        "rules:\n- to: [{operation: {paths: [/a/*]}}]\n- to: [{operation: {paths: [/a/b]}}]",
        "rules:\n- to: [{operation: {paths: [/a/*]}}]",
    ),
    "SW0305": Page(
        "DENY hides an ALLOW",
        "DENY policies come first, and together they deny everything that this ALLOW rule matches: it allows "
        "nothing. Narrow the DENY rule, for example by notPrincipals, or remove the ALLOW rule.",
    ),
    "SW0306": Page(
        "selects nothing",
        "None of the workloads that were named has these labels, or that Service name, in this namespace. A "
        "DENY policy that selects nothing protects nothing. A policy of the root namespace selects in every "
        "namespace, any other only in its own.",
    ),
    "SW0307": Page(
        "foreign trust domain",
        "A principal begins with its trust domain, and nobody with a certificate that we accept comes from this "
        "one. Often it is cluster.local, copied from an example. A trust domain that is federated with is made "
        "known with --trust-domain.",
        "principals: [cluster.local/ns/shop/sa/web]",
        "principals: [shop.internal/ns/shop/sa/web]",
    ),
    "SW0308": Page(
        "everything or nothing",
        "A policy without rules matches nothing: as an ALLOW policy it closes the workloads it selects. An empty "
        "rule matches everything: as an ALLOW rule it opens them, to callers without a certificate as well. "
        "Both are proper idioms; they are said aloud because they look alike.",
        "",
        "rules: [{}]     # everything\nrules: []       # nothing",
    ),
    "SW0309": Page(
        "policy is there twice",
        "Two policies of different names select the same workloads and say the same. One of them will be "
        "changed some day, and the other forgotten.",
    ),
    "SW0310": Page(
        "not worked out",
        "Whether a rule is of any use beside the others is a question that can have more cases than may be "
        "tried. Then nothing is said about it, rather than something that was not worked out. What is decided "
        "about requests does not depend on it.",
    ),
}


class NoSuchCode(LookupError):
    """There is no page of that code; the text says what may have been meant."""


def explain(code: str) -> str:
    """The page of a code, for a terminal. Raises NoSuchCode."""
    code = code.upper()
    page = PAGES.get(code)
    if page is None:
        raise NoSuchCode(f"there is no code {code}: {suggest(code, PAGES) or 'codes look like SW0101'}")
    parts = [f"{code}: {page.title}   ({FAMILIES[code[:4]]})", textwrap.fill(page.text, 79)]
    for word, example in (("wrong", page.wrong), ("right", page.right)):
        if example:
            parts.append(f"{word}\n" + "\n".join(f"    {line}" for line in example.split("\n")))
    return "\n\n".join(parts)
