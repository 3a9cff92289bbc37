"""What the authority takes and gives, and how it fails. Values only: no database, no files, no clock.

Times are aware datetimes on the way in, seconds of the epoch in everything that is given out. Authority ids are
the subject key identifier of the authority's certificate in hex (SPIRE's "authority ID"); for a JWT key it is
its ``kid``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal

from cryptography import x509

from identity.authority import ISSUING_LIFE, MAX_TTL, MIN_TTL, ROOT_LIFE

AuthorityKind = Literal["x509-root", "x509-issuing", "jwt"]
AuthorityState = Literal["requested", "prepared", "active", "old"]
RootPlace = Literal["here", "offline", "company"]

KINDS: Final[tuple[AuthorityKind, ...]] = ("x509-root", "x509-issuing", "jwt")


# -- errors -------------------------------------------------------------------------------------------------


class CaError(Exception):
    """The authority did not do it. The text says what and why; it holds no secrets."""


class NotAllowed(CaError):
    """Refused by a rule: revoked, banned, a key that belongs to another, a token that is not valid."""


class NoSuchThing(CaError):
    """The entry, node, authority or serial does not exist."""


class Conflict(CaError):
    """It exists already, or somebody else changed it in the meantime."""


class UnsafeStep(CaError):
    """A rotation step that would cut somebody off. ``reasons``: one sentence each; ``force`` overrules them."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class StoreUnavailable(CaError):
    """The store did not answer or cannot write (disk full, database away, too much waiting). Nothing was given
    out; whether a change was recorded may be unknown when the connection was lost at its end."""


class StoreCorrupt(CaError):
    """The database or the journal is damaged, or of a newer version of this program. Nothing will be issued."""


# -- who asks -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CallerFacts:
    """Who asked, for the journal (C-18). ``kind``: "agent", "operator", "token", "ca"...; ``id``: its SPIFFE ID
    or user name; ``address``: where from; ``detail``: e.g. pid and uid, pod UID. No secrets."""

    kind: str
    id: str = ""
    address: str = ""
    detail: str = ""

    @property
    def holder(self) -> str:
        """Under this name the certificates of one holder replace each other."""
        return f"{self.kind}:{self.id}"


ITSELF: Final = CallerFacts("ca")


# -- what is given out --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Issued:
    """An X509-SVID whose issuance is durable. ``chain``: leaf first, then intermediates, without the root;
    ``not_after``: seconds of the epoch; ``serial``: hex; ``authority_id``: who signed."""

    chain: tuple[x509.Certificate, ...] = field(repr=False)
    not_after: float
    serial: str
    authority_id: str


@dataclass(frozen=True, slots=True)
class AuthorityView:
    """One slot, as `ca status` shows it. Times in seconds of the epoch, 0 for "not yet"."""

    id: str
    kind: AuthorityKind
    state: AuthorityState
    tainted: bool
    not_before: float
    not_after: float
    prepared_at: float
    activated_at: float
    retired_at: float
    last_leaf: float  # when the last thing it signed ends
    published_sequence: int  # the bundle sequence in which it (or the root above it) first stood
    parent: str  # of an issuing authority: the id of its root
    has_key: bool  # whether this replica can sign with it
    certificate: bytes = field(repr=False)  # DER; of a JWT key the SubjectPublicKeyInfo


@dataclass(frozen=True, slots=True)
class RotationReport:
    """What a step did, or would do (``done`` False). ``trusting`` of ``living`` nodes hold a bundle with the
    next authority; ``behind``: SPIFFE IDs of those who do not (at most 20); ``presenting``: holders whose
    newest certificate hangs under the old one; ``unsafe``: why the step was or would be refused without force."""

    kind: AuthorityKind
    action: str
    authority_id: str
    done: bool
    living: int = 0
    trusting: int = 0
    behind: tuple[str, ...] = ()
    presenting: int = 0
    unsafe: tuple[str, ...] = ()
    next_step: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A machine or sidecar that attested. ``how``: the attestation method; ``key_hash``: hex SHA-256 of its
    public key (DER SPKI); ``machine_id``: what clone detection compares; ``expires_at``: of its newest SVID;
    ``seen_sequence``: the newest bundle it is known to hold."""

    spiffe_id: str
    how: str
    selectors: tuple[str, ...] = ()
    key_hash: str = ""
    machine_id: str = ""
    attested_at: float = 0.0
    seen_at: float = 0.0
    expires_at: float = 0.0
    seen_sequence: int = 0
    banned: str = ""  # the reason, empty when it is not banned


@dataclass(frozen=True, slots=True)
class TokenView:
    """An unused join token, without its secret. ``id``: the first characters of its hash."""

    id: str
    spiffe_id: str
    created_at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class IssuedView:
    """One certificate that has not expired yet."""

    serial: str
    spiffe_id: str
    authority_id: str
    holder: str
    key_hash: str
    issued_at: float
    not_after: float


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """One line of the journal. ``facts``: what it is about, JSON values; ``hash``: hex, over this and all before."""

    seq: int
    at: float
    kind: str
    subject: str
    caller: Mapping[str, str]
    facts: Mapping[str, Any]
    hash: str


@dataclass(frozen=True, slots=True)
class JournalVerdict:
    """Whether the chain is whole. ``broken_at``: the first record that does not fit (0: none)."""

    ok: bool
    records: int
    head: str
    broken_at: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Federated:
    """A foreign trust domain's bundle as we hold it. ``document``: its JWKS; ``settings``: endpoint, profile..."""

    trust_domain: str
    document: bytes = field(repr=False)
    sequence: int
    settings: Mapping[str, Any]
    updated_at: float


@dataclass(frozen=True, slots=True)
class CaStatus:
    """`ca status`. ``first_lapse``: seconds of the epoch at which the first holder would be without a valid
    SVID if the authority went away now (0: nobody holds one). ``problems``: sentences, worst first."""

    trust_domain: str
    store: str
    authorities: tuple[AuthorityView, ...]
    bundle_sequence: int
    journal_seq: int
    entries: int
    nodes: int
    banned: int
    tokens: int
    live_svids: int
    revocations: int
    first_lapse: float
    problems: tuple[str, ...]


# -- settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CaSettings:
    """Lives and thresholds, kept in the store so that all replicas agree. Seconds; shares of a life.

    The defaults are C-5, C-15 and IDENTITY.md 7. ``min_ttl`` under 60 s is for drills and tests only."""

    svid_ttl: float = 3600.0
    min_ttl: float = MIN_TTL.total_seconds()
    max_ttl: float = MAX_TTL.total_seconds()
    jwt_ttl: float = 300.0
    max_jwt_ttl: float = 3600.0
    root_life: float = ROOT_LIFE.total_seconds()
    issuing_life: float = ISSUING_LIFE.total_seconds()
    jwt_life: float = timedelta(days=90).total_seconds()
    prepare_at: float = 1 / 2
    activate_at: float = 5 / 6
    activate_anyway_at: float = (
        11 / 12
    )  # of its life: from here on, nodes that have not been heard of do not hold it up
    refresh_hint: float = 300.0  # of the bundle
    old_grace: float = 86400.0  # an old authority stays in the bundle for so long after its last leaf

    def __post_init__(self) -> None:
        _check_settings(self)

    def life(self, kind: AuthorityKind) -> timedelta:
        lives = {"x509-root": self.root_life, "x509-issuing": self.issuing_life, "jwt": self.jwt_life}
        return timedelta(seconds=lives[kind])

    def as_json(self) -> dict[str, float]:
        return asdict(self)


def _check_settings(settings: CaSettings) -> None:
    if not 1 <= settings.min_ttl <= settings.svid_ttl <= settings.max_ttl <= MAX_TTL.total_seconds():
        raise ValueError("1 s <= min_ttl <= svid_ttl <= max_ttl <= 24 h does not hold")
    if not 1 <= settings.jwt_ttl <= settings.max_jwt_ttl <= MAX_TTL.total_seconds():
        raise ValueError("1 s <= jwt_ttl <= max_jwt_ttl <= 24 h does not hold")
    if not 0 < settings.prepare_at < settings.activate_at <= settings.activate_anyway_at < 1:
        raise ValueError("0 < prepare_at < activate_at <= activate_anyway_at < 1 does not hold")
    if settings.refresh_hint <= 0 or settings.old_grace < 0 or min(_lives(settings)) <= settings.min_ttl:
        raise ValueError("the refresh hint must be positive, and an authority must outlive an SVID")


def _lives(settings: CaSettings) -> tuple[float, ...]:
    return settings.root_life, settings.issuing_life, settings.jwt_life
