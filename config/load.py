"""From a file, the environment and the command line to one complete ``Config`` and its policy documents.

Steps: read the text -> nodes -> put in ``SIDEWALL_*`` and ``--set`` -> fill in ``${..}`` -> read by the table of
settings -> fill in what is inherited and check the whole -> read the policy documents. No step stops at a
problem; the end raises all of them. Everything that decided the result goes into one digest, so that a reload
that changes nothing can be told from one that does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from config.documents import Documents, Reader
from config.expand import Expander
from config.files import Files, Unreadable
from config.kinds import Invalid, Reading
from config.model import CONFIG, Config
from config.nodes import Document, Node, parse_yaml
from config.overrides import Overrides
from config.problems import ConfigError, Problem, Problems
from config.resolve import Resolver, Surroundings
from config.resources import request_authentication
from config.resources.request_authentication import is_protected
from config.settings import leaves

SEARCHED: Final = (Path("sidewall.yaml"), Path("/etc/sidewall/sidewall.yaml"))


@dataclass(frozen=True, slots=True)
class Loaded:
    """One generation of the configuration. ``files``: what to watch; ``has_policy``: some source of policy was
    there and read, even if it holds no document, or ``policy.default`` lets traffic pass without one (S-29)."""

    config: Config
    documents: Documents
    digest: str
    files: tuple[Path, ...]
    has_policy: bool
    warnings: tuple[Problem, ...] = ()
    path: Path | None = None


def find_config() -> Path:
    """The file that is used when none is named. Raises ConfigError."""
    for path in SEARCHED:
        if path.exists():
            return path
    looked = " and ".join(str(path) for path in SEARCHED)
    hint = "name one with -c, or write one with: sidewall init sidecar"
    raise ConfigError([Problem("SW0113", f"no configuration file: looked for {looked}", hint=hint)])


def load_config(
    path: Path | None = None,
    *,
    text: str | None = None,
    base: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Config:
    """``load_all``, without the documents (which are read all the same)."""
    return load_all(path, text=text, base=base, env=env, overrides=overrides).config


def load_all(
    path: Path | None = None,
    *,
    text: str | None = None,
    base: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, str] | None = None,
) -> Loaded:
    """Read a file (by default the one of ``find_config``), or a text as if it stood in ``base``.

    ``env`` is ``os.environ`` by default; ``overrides`` are the ``--set`` of the command line. Raises ConfigError
    with every problem, warnings included."""
    if path is None and text is None:
        path = find_config()
    env = os.environ if env is None else env
    return _Load(path, base, env, overrides or {}).run(text)


class _Load:
    """The state of one load."""

    def __init__(
        self, path: Path | None, base: Path | None, env: Mapping[str, str], overrides: Mapping[str, str]
    ) -> None:
        self._path = path
        self._base = base or (path.parent if path is not None else Path.cwd())
        self._env = env
        self._overrides = overrides
        self._files = Files()
        self._problems = Problems()
        self._policy_nodes: list[Node] = []

    def run(self, text: str | None) -> Loaded:
        name = str(self._path) if self._path is not None else "sidewall.yaml"
        root, documents = self._parse(self._read(text), name)
        config = self._config(root)
        reader = Reader(config.workload.namespace, self._problems)
        for document in documents:
            reader.add(document)
        for index, path in enumerate(config.policy.from_):
            self._add_policy(reader, path, index)
        self._check_keys(reader.documents, config)
        self._files.watch(self._base / "policy")  # not there yet: it counts from when it is
        counted = reader.documents.count + 1
        self._problems.raise_errors(files=max(self._files.read, 1), documents=counted)
        return Loaded(
            config,
            reader.documents,
            self._files.digest,
            tuple(self._files.watched),
            bool(config.policy.from_ or documents) or config.policy.default != "deny",
            self._problems.in_order(),
            self._path,
        )

    def _read(self, text: str | None) -> str:
        if text is not None or self._path is None:
            self._files.note("text", "", (text or "").encode(errors="surrogateescape"))
            return text or ""
        self._files.watch(self._path)
        try:
            return self._files.text(self._path)
        except Unreadable as error:
            hint = "write one with: sidewall init sidecar" if not self._path.exists() else ""
            message = f"the file cannot be read: {error}"
            self._problems.add(Problem("SW0113", message, file=str(self._path), hint=hint))
            self._problems.raise_errors()
            raise

    # -- the configuration itself -------------------------------------------------------------------------

    def _parse(self, text: str, name: str) -> tuple[Node, list[Document]]:
        """The root of the configuration, and the documents that follow it."""
        root, documents = None, []
        for document in parse_yaml(text, name, self._problems):
            node = document.root
            if node is not None and {"apiVersion", "kind"} & node.entries.keys():
                documents.append(document)
            elif root is not None and node is not None:
                hint = "after --- come policy documents, with apiVersion and kind"
                node.report("SW0112", "a second configuration in one file", hint=hint)
            else:
                root = node
        return root or Node(Document(name, text.split("\n"), self._problems), "mapping", 1, 1, 1), documents

    def _config(self, root: Node) -> Config:
        overrides = Overrides(root, CONFIG, self._problems)
        for name in overrides.from_environment(self._env) if root.kind == "mapping" else []:
            self._files.note("env", name, self._env[name].encode(errors="surrogateescape"))
        if root.kind == "mapping":
            overrides.from_command_line(self._overrides)
        for key, value in self._overrides.items():
            self._files.note("set", key, value.encode(errors="surrogateescape"))
        Expander(self._env, self._base, self._files).expand(root)
        reading = Reading(self._base)
        read = CONFIG.read(root, reading)
        config = Config() if isinstance(read, Invalid) else read
        policy = reading.nodes.get("policy.from")
        self._policy_nodes = (policy.items or [policy]) if policy is not None else []
        resolver = Resolver(root, reading, Surroundings.here(self._env, self._base))
        config = resolver.resolve(config)
        return replace(
            config,
            origins=_origins(config, resolver, reading),
            secrets=frozenset(path for path, node in reading.nodes.items() if node.secret),
        )

    def _check_keys(self, documents: Documents, config: Config) -> None:
        """Whoever can put keys in on their way here can sign any token."""
        for document in documents.requests if not config.policy.unsafe_jwks else ():
            for rule in document.rules:
                uri = rule.jwks_uri or rule.issuer
                if not rule.jwks and not is_protected(uri):
                    place, subject = rule.place, f"{request_authentication.KIND} {document}"
                    message = f"keys would be fetched without protection: {uri}"
                    hint = "write https://; if you must, policy: {unsafeJwks: true}"
                    problem = Problem("SW0203", message, "error", place.file, place.line, place.column)
                    self._problems.add(replace(problem, hint=hint, subject=subject))

    def _add_policy(self, reader: Reader, path: Path, index: int) -> None:
        def complain(why: str) -> None:
            if index < len(self._policy_nodes):
                self._policy_nodes[index].report("SW0113", f"the policy path {path}: {why}")
            else:
                self._problems.add(Problem("SW0113", f"the path cannot be read: {why}", file=str(path)))

        reader.add_path(path, self._files, complain)


def _origins(config: Config, resolver: Resolver, reading: Reading) -> Mapping[str, str]:
    return {path: _origin(path, resolver, reading) for path, _ in leaves(config.shown())}


def _origin(path: str, resolver: Resolver, reading: Reading) -> str:
    seen = resolver.inherited.get(path, path)
    node = reading.nodes.get(seen)
    while node is None and seen:
        # A part of something written in short form (workload: shop/api) comes from where that stands.
        seen = seen[: max(seen.rfind("."), seen.rfind("["), 0)]
        node = reading.nodes.get(seen)
        if node is not None and node.kind == "mapping":
            return "default"
    if node is None:
        return "default"
    outside = bool(node.document.folder) or not node.line  # the environment, or the command line
    return node.file if outside else f"{node.file}:{node.line}"
