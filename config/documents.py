"""Policy documents: found in files and folders, or after ``---`` in sidewall.yaml, each read by its kind.

What we do not know is an error, never skipped: a DENY that nobody reads must not turn into an allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from config.files import Files, Unreadable, is_policy_file, yaml_files
from config.nodes import Document, Node, parse_yaml
from config.problems import Problem, Problems, suggest
from config.resources import authorization, peer_authentication, request_authentication
from config.resources.authorization import AuthorizationPolicy
from config.resources.peer_authentication import PeerAuthentication
from config.resources.request_authentication import RequestAuthentication
from config.resources.scope import API_VERSIONS

Resource = AuthorizationPolicy | PeerAuthentication | RequestAuthentication
Parse = Callable[[Document, str], Resource | None]

_KINDS: Final[dict[str, tuple[tuple[str, ...], Parse]]] = {
    authorization.KIND: (API_VERSIONS, authorization.parse_authorization_policy),
    peer_authentication.KIND: (API_VERSIONS, peer_authentication.parse_peer_authentication),
    request_authentication.KIND: (API_VERSIONS, request_authentication.parse_request_authentication),
}
_LATER: Final = {
    "HTTPRoute": "name upstreams and outbound listeners in sidewall.yaml",
    "GRPCRoute": "name upstreams and outbound listeners in sidewall.yaml",
    "Gateway": "name inbound listeners in sidewall.yaml",
    "DestinationRule": "write its trafficPolicy under upstreams.<name> in sidewall.yaml",
}


@dataclass(frozen=True, slots=True)
class Documents:
    """What the documents say. ``count``: how many there were."""

    policies: tuple[AuthorizationPolicy, ...] = ()
    count: int = 0
    peers: tuple[PeerAuthentication, ...] = ()
    requests: tuple[RequestAuthentication, ...] = ()


class Reader:
    """Collects documents and reports problems."""

    def __init__(self, namespace: str, problems: Problems) -> None:
        self._namespace = namespace
        self._problems = problems
        self._found: dict[tuple[str, str], Resource] = {}
        self._count = 0

    @property
    def documents(self) -> Documents:
        found = self._found.values()
        return Documents(
            tuple(one for one in found if isinstance(one, AuthorizationPolicy)),
            self._count,
            tuple(one for one in found if isinstance(one, PeerAuthentication)),
            tuple(one for one in found if isinstance(one, RequestAuthentication)),
        )

    def add(self, document: Document) -> None:
        root = document.root
        if root is None:
            return
        self._count += 1
        kind = _kind(root)
        if kind is None:
            return
        found = _KINDS[kind][1](document, self._namespace)
        if found is not None:
            self._keep(kind, found, root)

    def _keep(self, kind: str, found: Resource, root: Node) -> None:
        before = self._found.setdefault((kind, str(found)), found)
        if before is not found:
            note = f"the first one stands in {before.place}"
            root.report("SW0202", f"{kind} {found} is there twice", hint="rename one", note=note)

    def add_text(self, text: str, file: str) -> None:
        for document in parse_yaml(text, file, self._problems):
            self.add(document)

    def add_path(self, path: Path, files: Files, complain: Callable[[str], None]) -> None:
        """A file, or every document of a folder. ``complain`` says what is wrong with the path itself."""
        files.watch(path)
        if not path.is_dir():
            self._add_file(path, files, complain)
            return
        for file in yaml_files(path, complain):
            self._add_file(file, files, lambda why, file=file: self._unreadable(file, why))  # type: ignore[misc]

    def _add_file(self, path: Path, files: Files, complain: Callable[[str], None]) -> None:
        try:
            text = files.text(path)
        except Unreadable as error:
            complain(str(error))
        else:
            self.add_text(text, str(path))

    def _unreadable(self, path: Path, why: str) -> None:
        self._problems.add(Problem("SW0113", f"the file cannot be read: {why}", file=str(path)))


def _kind(root: Node) -> str | None:
    """The kind of a document if we read it; otherwise None, and a problem."""
    if root.kind != "mapping" or not {"apiVersion", "kind"} <= root.entries.keys():
        hint = "a policy document begins with apiVersion: and kind:"
        root.report("SW0112", "this is not a policy document", hint=hint)
        return None
    node, version = root.entries["kind"], root.entries["apiVersion"]
    kind, text = node.string(), version.string()
    if kind is None or text is None:
        return None
    if kind in _LATER:
        node.report("SW0120", f"{kind} is not supported yet", hint=_LATER[kind])
    elif kind not in _KINDS:
        hint = suggest(kind, _KINDS) or f"known: {', '.join(_KINDS)}"
        node.report("SW0112", f"{node.shown} is not a kind of document that is read here", hint=hint)
    elif text not in _KINDS[kind][0]:
        hint = f"write {_KINDS[kind][0][0]}"
        version.report("SW0112", f"{version.shown} is not an API version of {kind}", hint=hint)
    else:
        return kind
    return None


def parse_documents(text: str, *, file: str = "policy.yaml", namespace: str = "default") -> Documents:
    """Read documents from a text. Raises ConfigError with every problem."""
    problems = Problems()
    reader = Reader(namespace, problems)
    reader.add_text(text, file)
    problems.raise_errors(files=1, documents=reader.documents.count)
    return reader.documents


def load_documents(paths: Sequence[Path], *, namespace: str = "default") -> tuple[Documents, tuple[Problem, ...]]:
    """Read files and folders: the documents, and the warnings. Raises ConfigError with every problem."""
    problems, files = Problems(), Files()
    reader = Reader(namespace, problems)
    for path in paths:

        def complain(why: str, path: Path = path) -> None:
            problems.add(Problem("SW0113", f"the path cannot be read: {why}", file=str(path)))

        reader.add_path(path, files, complain)
    problems.raise_errors(files=files.read, documents=reader.documents.count)
    return reader.documents, problems.in_order()


__all__ = ["Documents", "Reader", "is_policy_file", "load_documents", "parse_documents"]
