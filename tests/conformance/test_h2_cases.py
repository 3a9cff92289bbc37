"""The cases of h2spec (generic, http2, hpack), re-stated as conversations in memory with both server engines.

Each case is played whole and byte by byte. An engine that ends in another way than the RFC's plain reading stands in
``EXCEPTIONS`` with its reason; the test fails when an exception is no longer needed.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.wire.http2 import H2Server, NgServer
from tests.conformance.h2_driver import Case, Play
from tests.conformance.h2_generic import GENERIC
from tests.conformance.h2_hpack import HPACK
from tests.conformance.h2_rfc9113 import RFC9113

CASES = GENERIC + RFC9113 + HPACK

# (engine, case) -> (what happens instead, why that is right as well)
EXCEPTIONS: dict[tuple[type, str], tuple[str, str]] = {}


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
