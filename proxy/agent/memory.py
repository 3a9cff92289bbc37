"""What a node that has joined keeps on disk, so that it is still itself after a reboot.

    FOLDER/           0700, of the user that runs the proxy
      node.json       where the authority is, who we are, which machine this is; its hash covers the other two
      svid.pem        certificates of our SVID and its private key, 0600
      bundle.json     the trust bundle we hold (JWKS)

Only nodes that cannot prove again who they are keep anything: a join token is good once. Files are replaced whole
(write, fsync, rename); the SVID and its key are one file, so that a crash between two writes cannot part them. Files
that are damaged, or readable by others, are refused with what to do; nothing is guessed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from identity import bundle as bundles
from identity.bundle import Bundle, BundleError
from identity.disk import (
    IdentityFileError,
    check_private_folder,
    make_private_folder,
    read_file,
    read_workload_key,
    write_private,
)
from identity.files import certificates_pem, key_pem, parse_certificates, parse_private_key
from identity.spiffe import SpiffeId, SpiffeIdError
from identity.svid import X509Svid

NODE: Final = "node.json"
SVID: Final = "svid.pem"
BUNDLE: Final = "bundle.json"
_VERSION: Final = 1
_REJOIN: Final = "join this machine again: sidewall leave --local, then sidewall join with a new token"


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """``url``: of the authority; ``machine_id``: of the machine that joined (clone detection)."""

    spiffe_id: str
    trust_domain: str
    url: str
    machine_id: str = ""
    joined_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Remembered:
    """Everything of a folder."""

    facts: NodeFacts
    svid: X509Svid = field(repr=False)
    bundle: Bundle = field(repr=False)


class NodeFolder:
    """One folder. Methods block; raises IdentityFileError for whatever is wrong with the files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def is_joined(self) -> bool:
        return (self.path / NODE).exists()

    def check_free(self) -> None:
        """Raises IdentityFileError when a machine has joined here already."""
        if self.is_joined:
            raise IdentityFileError(self.path, "this machine has joined already", "sidewall leave undoes that")

    def create(self, facts: NodeFacts, svid: X509Svid, bundle: Bundle) -> None:
        """A new node. Raises IdentityFileError when there is one already."""
        self.check_free()
        make_private_folder(self.path, must_be_empty=False)
        self.save(svid, bundle)
        write_private(self.path / NODE, json.dumps({"version": _VERSION, **asdict(facts)}, indent=2).encode())

    def save(self, svid: X509Svid, bundle: Bundle) -> None:
        """A renewed SVID, or a newer bundle."""
        write_private(self.path / BUNDLE, bundle.document())
        write_private(self.path / SVID, certificates_pem(svid.chain) + key_pem(svid.key))

    def load(self) -> Remembered:
        """What was saved last; the SVID may have expired meanwhile."""
        check_private_folder(self.path)
        facts = self._facts()
        try:
            bundle = bundles.parse(read_file(self.path / BUNDLE), facts.trust_domain)
            svid = self._svid(facts)
        except (BundleError, SpiffeIdError) as error:
            raise IdentityFileError(self.path, f"what was saved cannot be read: {error}", _REJOIN) from None
        return Remembered(facts, svid, bundle)

    def facts(self) -> NodeFacts:
        """Who joined here."""
        check_private_folder(self.path)
        return self._facts()

    def _facts(self) -> NodeFacts:
        try:
            found: Any = json.loads(read_file(self.path / NODE))
            if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
                raise ValueError("not a file of this version")
            return NodeFacts(**found)
        except (ValueError, TypeError) as error:
            raise IdentityFileError(self.path / NODE, f"it cannot be read: {error}", _REJOIN) from None

    def _svid(self, facts: NodeFacts) -> X509Svid:
        path = self.path / SVID
        data = read_workload_key(path)
        key, chain = parse_private_key(path, data), parse_certificates(path, data)
        if not chain or key.public_key() != chain[0].public_key():
            raise IdentityFileError(path, "certificate and key do not belong together", _REJOIN)
        return X509Svid(SpiffeId.parse(facts.spiffe_id), chain, key)

    def remove(self) -> list[Path]:
        """Delete what was kept; the paths that are gone."""
        gone = [self.path / name for name in (SVID, BUNDLE, NODE) if (self.path / name).exists()]
        for path in gone:
            path.unlink()
        return gone


def is_valid(svid: X509Svid, now: datetime) -> bool:
    """Whether every certificate of it is in its time."""
    return svid.not_before <= now.timestamp() < svid.not_after
