"""Registration entries: what is accepted, who gets what, and why somebody gets nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.entries import Entry, EntryError, explain_miss, matching, problems

TD = "shop.internal"
PARENT = f"spiffe://{TD}/host/vm7"


def document(**more: Any) -> dict[str, Any]:
    made = {"spiffeId": f"spiffe://{TD}/ns/shop/sa/api", "parentId": PARENT, "selectors": ["unix:uid:1001"]}
    return {**made, **more}


def entry(**more: Any) -> Entry:
    return Entry.from_document(document(**more), TD)


def test_a_document_is_read_and_written_without_loss() -> None:
    whole = document(
        id="e1",
        selectors=["unix:uid:1001", "unix:path:/usr/bin/api"],
        x509SvidTtl=600,
        jwtSvidTtl=120.5,
        dnsNames=["api", "api.shop.svc"],
        federatesWith=["spiffe://other.test", "third.test"],
        hint="internal",
        admin=True,
        downstream=True,
        expiresAt=1_900_000_000,
        revisionNumber=3,
    )
    made = Entry.from_document(whole, TD)
    assert made.federates_with == ("other.test", "third.test")
    assert made.document() == {**whole, "federatesWith": ["other.test", "third.test"]}
    assert Entry.from_document(made.document(), TD) == made


def test_what_has_its_default_is_not_written() -> None:
    assert entry().document() == document()


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"spiffeId": None}, "spiffeId", "missing"),
        ({"spiffeId": "shop/api"}, "spiffeId", "not a SPIFFE ID"),
        ({"spiffeId": f"spiffe://{TD}"}, "spiffeId", "nobody in it"),
        ({"spiffeId": "spiffe://other.test/a"}, "spiffeId", "not of the trust domain"),
        ({"spiffeId": f"spiffe://{TD}/ns/x{{ns}}/sa/a"}, "spiffeId", "not a SPIFFE ID"),
        ({"spiffeId": f"spiffe://{TD}/ns/{{pod}}"}, "spiffeId", "not a SPIFFE ID"),
        ({"parentId": ""}, "parentId", "missing"),
        ({"parentId": "spiffe://other.test/a"}, "parentId", "not of the trust domain"),
        ({"parentId": f"spiffe://{TD}/ns/{{ns}}"}, "parentId", "not a SPIFFE ID"),
        ({"selectors": []}, "selectors", "everybody's"),
        ({"selectors": "unix:uid:1"}, "selectors", "missing"),
        ({"selectors": ["unix"]}, "selectors", "TYPE:VALUE"),
        ({"selectors": ["unix:"]}, "selectors", "TYPE:VALUE"),
        ({"selectors": ["Unix:uid:1"]}, "selectors", "TYPE:VALUE"),
        ({"selectors": ["unix:uid:1\n"]}, "selectors", "TYPE:VALUE"),
        ({"selectors": [7]}, "selectors", "TYPE:VALUE"),
        ({"selectors": ["unix:uid:1", "unix:uid:1"]}, "selectors", "twice"),
        ({"selectors": [{"type": "unix", "value": "uid:1"}]}, "selectors", "write unix:uid:1"),
        ({"selectors": [f"unix:uid:{n}" for n in range(65)]}, "selectors", "more than"),
        ({"x509SvidTtl": 59}, "x509SvidTtl", "not between"),
        ({"x509SvidTtl": 86401}, "x509SvidTtl", "not between"),
        ({"x509SvidTtl": "1h"}, "x509SvidTtl", "seconds"),
        ({"jwtSvidTtl": True}, "jwtSvidTtl", "seconds"),
        ({"dnsNames": ["*.shop"]}, "dnsNames", "DNS name"),
        ({"dnsNames": ["API"]}, "dnsNames", "DNS name"),
        ({"dnsNames": ["a" * 64]}, "dnsNames", "DNS name"),
        ({"dnsNames": ["api\n"]}, "dnsNames", "DNS name"),
        ({"dnsNames": "api"}, "dnsNames", "list"),
        ({"federatesWith": ["Other"]}, "federatesWith", "trust domain"),
        ({"federatesWith": [TD]}, "federatesWith", "our own"),
        ({"hint": "a\nb"}, "hint", "one line"),
        ({"admin": "yes"}, "admin", "true or false"),
        ({"downstream": 1}, "downstream", "true or false"),
        ({"expiresAt": -1}, "expiresAt", "epoch"),
        ({"expiresAt": "2027-01-01"}, "expiresAt", "epoch"),
        ({"revisionNumber": -1}, "revisionNumber", "number"),
        ({"selector": ["a:b"]}, "selector", "did you mean selectors?"),
        ({"SPIFFEID": "x"}, "SPIFFEID", "unknown"),
        ({"spiffeId": f"spiffe://{TD}/ns/{{ns}}/sa/{{sa}}"}, "selectors", "opt in by name"),
        ({"spiffeId": f"spiffe://{TD}/ns/shop/sa/{{sa}}"}, "selectors", "namespace's pods"),
        ({"spiffeId": f"spiffe://{TD}/sa/{{sa}}", "selectors": ["k8s:ns:a"], "admin": True}, "admin", "pattern"),
    ],
)
def test_what_cannot_be_an_entry_is_refused_with_its_field(change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(EntryError) as refused:
        entry(**change)
    assert refused.value.field == field
    assert words in refused.value.problem


def test_all_problems_are_found_at_once() -> None:
    found = problems({"spiffeId": "x", "selectors": [], "ttl": 1}, TD)
    assert [error.field for error in found] == ["ttl", "spiffeId", "parentId", "selectors"]


@given(
    st.dictionaries(
        st.sampled_from(["spiffeId", "parentId", "selectors", "dnsNames", "expiresAt", "admin", "x"]),
        st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)),
    )
)
def test_any_document_is_an_entry_or_has_problems(value: dict[str, Any]) -> None:
    if not problems(value, TD):
        assert Entry.from_document(Entry.from_document(value, TD).document(), TD)


SELECTORS = st.sampled_from([f"unix:uid:{n}" for n in range(4)] + ["k8s:ns:a", "k8s:ns:b", "k8s:sa:x"])


@given(st.lists(st.tuples(st.sets(SELECTORS, min_size=1), st.sampled_from([0.0, 50.0, 150.0])), max_size=6), st.sets(SELECTORS))
def test_a_caller_gets_exactly_the_entries_whose_selectors_it_has(
    wanted: list[tuple[set[str], float]], have: set[str]
) -> None:
    entries = [
        entry(id=f"e{n}", spiffeId=f"spiffe://{TD}/w/{n}", selectors=sorted(s), expiresAt=end)
        for n, (s, end) in enumerate(wanted)
    ]
    got = {identity.entry.id for identity in matching(entries, have, 100.0)}
    assert got == {f"e{n}" for n, (s, end) in enumerate(wanted) if s <= have and end != 50.0}
    missed = {miss.entry.id for miss in explain_miss(entries, have, 100.0, limit=100)}
    assert missed == {made.id for made in entries} - got


def test_the_more_particular_entry_comes_first_and_an_identity_once() -> None:
    plain = entry(id="b")
    particular = entry(id="c", selectors=["unix:uid:1001", "unix:path:/usr/bin/api"])
    other = entry(id="a", spiffeId=f"spiffe://{TD}/ns/shop/sa/z")
    found = matching([plain, other, particular], {"unix:uid:1001", "unix:path:/usr/bin/api"}, 0.0)
    assert [identity.entry.id for identity in found] == ["c", "a"]


PATTERN = {"spiffeId": f"spiffe://{TD}/ns/{{ns}}/sa/{{sa}}", "selectors": ["k8s:ns:shop"]}


def test_a_pattern_is_filled_by_what_was_attested() -> None:
    pattern = entry(**PATTERN)
    (identity,) = matching([pattern], {"k8s:ns:shop", "k8s:sa:web", "k8s:pod-name:web-1"}, 0.0)
    assert str(identity.spiffe_id) == f"spiffe://{TD}/ns/shop/sa/web"


@pytest.mark.parametrize(
    "have",
    [
        {"k8s:ns:shop"},
        {"k8s:ns:other", "k8s:sa:web"},
        {"k8s:ns:shop", "k8s:ns:other", "k8s:sa:web"},
        {"k8s:ns:shop", "k8s:sa:web", "k8s:sa:root"},
        {"k8s:ns:shop", "k8s:sa:../../root"},
        {"k8s:ns:shop", "k8s:sa:a/b"},
        {"k8s:ns:shop", "k8s:sa:"},
        {"k8s:ns:shop", "k8s:sa:{ns}"},
    ],
)
def test_a_pattern_gives_nothing_to_who_does_not_fill_it(have: set[str]) -> None:
    assert matching([entry(**PATTERN)], have, 0.0) == []


def test_a_miss_names_the_selector_that_failed() -> None:
    near = entry(id="near", selectors=["unix:uid:1001", "unix:path:/usr/bin/api"])
    far = entry(id="far", selectors=["unix:uid:5", "unix:gid:5", "unix:path:/x"])
    old = entry(id="old", expiresAt=50)
    first, second, third = explain_miss([far, near, old], {"unix:uid:1001"}, 100.0)
    assert (first.entry.id, first.missing, first.why) == ("old", (), "it has expired")
    assert (second.entry.id, second.missing) == ("near", ("unix:path:/usr/bin/api",))
    assert third.entry.id == "far"
