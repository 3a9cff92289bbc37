"""What is said between the authority (`sidewall ca serve`), its nodes and its operators: messages and method names.

Package ``sidewall.ca.v1``, gRPC over TLS 1.3 or the authority's Unix socket. Three services, by who may call:

    Enrol   anybody, rate-limited per address (C-6): ``Attest`` turns a proof into a first SVID.
    Node    a node with a valid SVID of ours that the store knows and has not banned (C-13), for itself and for
            the entries whose parent it is, for nothing else (C-7); on the Unix socket: nobody.
    Admin   on the Unix socket the user the authority runs as, and root; over TLS an identity with an ``admin``
            entry. One method for each act of ``identity.ca.service``; request and reply are JSON objects.

An Attest proof is one of:

    join_token    the secret of `sidewall join` (C-11). The SPIFFE ID is the token's.
    k8s_token     a projected service-account token (C-12). The ID comes from the entries below ``own_parent``.
    unix_peer     nothing: on the Unix socket the authority sees who calls. The user that owns the authority's keys
                  may be whoever it asks for in ``spiffe_id``; others get what the entries below ``own_parent`` say.
    expired_svid  chain of an SVID of ours that has expired, and a signature of its key over ``nonce`` and the new
                  key (``Challenge`` gives the nonce). Only where the authority was told to accept it.

A node makes its own keys (C-2). The CSR (DER, at most 8 kB) shows that it has the private key and says nothing else
(C-4). Chains are DER certificates, concatenated, leaf first, without the root. Times are seconds of the epoch.

``Node.Watch`` answers at once with everything, and again with everything at each change: entries below the node,
the bundle, federated bundles, the signed list of revocations and the authorities whose signatures must be renewed
now. ``seen_sequence`` tells the authority which bundle the node holds; rotation waits for it.
"""

from __future__ import annotations

from typing import Any, Final

from identity import protos
from identity.protos import Table

MAX_CSR: Final = 8 * 1024  # bytes [C-4]
MAX_REQUEST: Final = 64 * 1024  # bytes of a message to Enrol and Node
MAX_ADMIN: Final = 16 * 1024 * 1024  # bytes of a message to Admin: a whole folder of entries
MAX_BATCH: Final = 100  # SVIDs asked for in one call

ENROL: Final = "/sidewall.ca.v1.Enrol/"
NODE: Final = "/sidewall.ca.v1.Node/"
ADMIN: Final = "/sidewall.ca.v1.Admin/"
ATTEST: Final = ENROL + "Attest"  # unary AttestRequest -> AttestReply
CHALLENGE: Final = ENROL + "Challenge"  # unary Empty -> ChallengeReply
RENEW: Final = NODE + "Renew"  # unary RenewRequest -> Svid: the node's own
ISSUE: Final = NODE + "IssueX509"  # unary IssueRequest -> IssueReply: for entries below the node
ISSUE_JWT: Final = NODE + "IssueJwt"  # unary JwtRequest -> JwtReply
WATCH: Final = NODE + "Watch"  # server stream WatchRequest -> State
LEAVE: Final = NODE + "Leave"  # unary Empty -> Empty: forget the node, revoke what it holds

_TABLE: Final[Table] = {
    "Empty": {},
    "Svid": {
        "spiffe_id": (1, "string"),
        "chain": (2, "bytes"),
        "not_after": (3, "double"),
        "serial": (4, "string"),
        "authority_id": (5, "string"),
    },
    # ``document``: JWKS of identity.bundle, which holds sequence and refresh hint.
    "Bundle": {"trust_domain": (1, "string"), "document": (2, "bytes")},
    "ExpiredSvid": {"chain": (1, "bytes"), "nonce": (2, "bytes"), "signature": (3, "bytes")},
    "ChallengeReply": {"nonce": (1, "bytes")},
    "AttestRequest": {
        "csr": (1, "bytes"),
        "machine_id": (2, "string"),  # identity.attest.machine: clone detection
        "hostname": (3, "string"),  # for people who read the list of nodes
        "spiffe_id": (4, "string"),  # wish of a ``unix_peer`` or a pod: an ID, or its path; else empty
        "join_token": (5, "string", "oneof proof"),
        "k8s_token": (6, "string", "oneof proof"),
        "unix_peer": (7, "bool", "oneof proof"),
        "expired_svid": (8, "ExpiredSvid", "oneof proof"),
    },
    # ``url``: where Node is served over TLS, for callers that came by the Unix socket.
    "AttestReply": {"svid": (1, "Svid"), "bundle": (2, "Bundle"), "renew_at": (3, "double"), "url": (4, "string")},
    "RenewRequest": {"csr": (1, "bytes"), "machine_id": (2, "string")},
    "IssueItem": {"entry_id": (1, "string"), "csr": (2, "bytes"), "spiffe_id": (3, "string")},
    "IssueRequest": {"items": (1, "IssueItem", "repeated")},
    "IssueOutcome": {"svid": (1, "Svid"), "status": (2, "int32"), "message": (3, "string")},
    "IssueReply": {"outcomes": (1, "IssueOutcome", "repeated")},  # in the order of the items
    "JwtRequest": {"entry_id": (1, "string"), "spiffe_id": (2, "string"), "audience": (3, "string", "repeated")},
    "JwtReply": {"token": (1, "string"), "not_after": (2, "double")},
    "WatchRequest": {"seen_sequence": (1, "uint64")},
    "State": {
        "version": (1, "uint64"),
        "entries": (2, "bytes", "repeated"),  # identity.entries documents, JSON
        "bundle": (3, "Bundle"),
        "federated": (4, "Bundle", "repeated"),
        "revocations": (5, "string"),  # compact JWS, identity.ca.revocation.verify
        "renew_now": (6, "string", "repeated"),  # ids of tainted authorities
        "jitter": (7, "double"),  # seconds over which to spread what ``renew_now`` asks for
    },
    "AdminRequest": {"json": (1, "bytes")},
    "AdminReply": {"json": (1, "bytes")},
}

api: Final[Any] = protos.messages("sidewall.ca.v1", _TABLE)


def own_parent(trust_domain: str) -> str:
    """The parent of entries for callers that attest to the authority itself: pods, and processes on its machine."""
    return f"spiffe://{trust_domain}/sidewall/ca"
