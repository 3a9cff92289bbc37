"""The cases of h2spec (generic, http2, hpack), re-stated as conversations in memory with both server engines.

Each case is played whole and byte by byte. An engine that ends in another way than the RFC's plain reading stands in
``EXCEPTIONS`` with its reason; the test fails when an exception is no longer needed.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.http2 import H2Server, NgServer
from tests.conformance.h2_driver import ANSWERED, IGNORED, Case, Play, goaway
from tests.conformance.h2_generic import GENERIC
from tests.conformance.h2_hpack import HPACK
from tests.conformance.h2_rfc9113 import RFC9113

CASES = GENERIC + RFC9113 + HPACK

_FORGETS = (
    "nghttp2 keeps no memory of closed streams, and ignores what an honest peer may have sent before it saw our "
    "RST_STREAM: nothing reaches the app, windows are given back, and header blocks on such streams are counted "
    "(FrameMeter, L-17); 'answered' is the answer to the request before"
)

# (engine, case) -> (what happens instead, why that is right as well)
EXCEPTIONS: dict[tuple[type, str], tuple[str, str]] = {
    **{
        (NgServer, f"http2/5.1/{number}"): (outcome, _FORGETS)
        for number, outcome in ((8, IGNORED), (9, IGNORED), (11, ANSWERED), (12, ANSWERED))
    },
    (NgServer, "http2/5.1.1/2"): (IGNORED, _FORGETS),
    (NgServer, "http2/6.9.1/3"): (
        goaway(3),
        "nghttp2 ends the connection instead of the stream, as RFC 9113 5.4.2 allows; no honest peer does this",
    ),
    (H2Server, "http2/6.5/1"): (
        goaway(1),
        "hyperframe refuses the frame before its size is looked at: the connection ends, with another code",
    ),
    (H2Server, "http2/8.1/1"): (
        goaway(1),
        "h2 ends the connection instead of the stream, as RFC 9113 5.4.2 allows",
    ),
}


@pytest.mark.parametrize("made", [NgServer, H2Server])
@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: Case, made: Any, bytewise: bool) -> None:
    outcome = Play(made, case).run(bytewise=bytewise)
    exception = EXCEPTIONS.get((made, case.name))
    if exception is None:
        assert outcome in case.outcomes, case.title
    else:
        assert outcome not in case.outcomes, f"{case.name} needs no exception any more"
        assert outcome == exception[0], case.title


def test_every_case_of_h2spec_is_here_once() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) == 147


def test_exceptions_name_cases_that_exist() -> None:
    names = {case.name for case in CASES}
    assert {name for _, name in EXCEPTIONS} <= names
    assert all(reason for _, reason in EXCEPTIONS.values())
