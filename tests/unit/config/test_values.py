from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.values import (
    Address,
    check_expected,
    expand_expected,
    parse_address,
    parse_duration,
    parse_size,
    parse_workload,
    render_duration,
    render_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("250ms", 0.25),
        ("10s", 10),
        ("1h30m", 5400),
        ("1m", 60),
        ("1.5s", 1.5),
        ("1h2m3s4ms", 3723.004),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "s", "-1s", "1d", "1s1h", "1 s", "1e3s", "٣s", "1s\n", "1mss"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


def test_a_duration_without_a_unit_gets_one_suggested() -> None:
    with pytest.raises(ValueError, match="write 60s"):
        parse_duration("60")


@given(st.integers(min_value=0, max_value=10**9))
def test_a_rendered_duration_reads_the_same(milliseconds: int) -> None:
    assert parse_duration(render_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("64KiB", 65536), ("10MB", 10**7), ("1GiB", 2**30), ("5 B", 5)])
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-1", "1.5MiB", "3Mib", "1_000", "٣"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**40))
def test_a_rendered_size_reads_the_same(size: int) -> None:
    assert parse_size(render_size(size)) == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8443", Address("0.0.0.0", 8443)),
        (":8443", Address("0.0.0.0", 8443)),
        ("*:8443", Address("0.0.0.0", 8443)),
        ("127.0.0.1:80", Address("127.0.0.1", 80)),
        ("[::1]:80", Address("::1", 80)),
        ("[0:0:0:0:0:0:0:1]:80", Address("::1", 80)),
        ("localhost:80", Address("127.0.0.1", 80)),
        ("unix:/run/app.sock", Address(path="/run/app.sock")),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert parse_address(text, bare="0.0.0.0") == address


def test_a_bare_port_is_on_the_host_that_is_usual_there() -> None:
    assert parse_address("8080", bare="127.0.0.1") == Address("127.0.0.1", 8080)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "65536",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "::1:80",
        "[::1]",
        "[1.2.3.4]:1",
        "1.2.3:80",
        "a:80",
        "unix:",
        "unix:@abstract",
        "unix:/" + "x" * 120,
        "systemd:x",
        "1.2.3.4:٣",
        "host name:80",
    ],
)
def test_other_texts_are_no_addresses(text: str) -> None:
    with pytest.raises(ValueError):
        parse_address(text, bare="127.0.0.1")


def test_names_are_addresses_only_where_they_are_allowed() -> None:
    assert parse_address("api.shop:80", bare="", names=True) == Address("api.shop", 80)
    for text in ("1.2.3:80", "999.1.1.1:80", "-a:80", "a b:80", "a/b:80"):
        with pytest.raises(ValueError):
            parse_address(text, bare="", names=True)


@pytest.mark.parametrize("text", ["127.0.0.1:80", "[::1]:80", "unix:/a/b"])
def test_an_address_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_address(text, bare="")) == text


@pytest.mark.parametrize(
    ("text", "local"),
    [("127.9.9.9:1", True), ("[::1]:1", True), ("unix:/a", True), ("10.0.0.1:1", False), ("1", False)],
)
def test_loopback_and_sockets_are_local(text: str, local: bool) -> None:
    assert parse_address(text, bare="0.0.0.0").is_local is local


def test_all_interfaces_overlap_with_each() -> None:
    everywhere = Address("0.0.0.0", 80)
    assert everywhere.overlaps(Address("10.0.0.1", 80))
    assert not everywhere.overlaps(Address("10.0.0.1", 81))
    assert not Address("10.0.0.1", 80).overlaps(Address("10.0.0.2", 80))
    assert not everywhere.overlaps(Address(path="/a"))


@pytest.mark.parametrize("text", ["shop/api", "spiffe://shop.internal/ns/shop/sa/api"])
def test_identities_to_expect(text: str) -> None:
    assert expand_expected(check_expected(text), "shop.internal") == "spiffe://shop.internal/ns/shop/sa/api"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "any",
        "shop/*",
        "api",
        "a/b/c",
        "spiffe://td",
        "spiffe://td/",
        "spiffe://td/a/",
        "spiffe://td/../x",
        "spiffe://TD/a",
        "spiffe://td/a%20",
        "SPIFFE://td/a",
        "spiffe://td/*",
        "shop/..",
        "https://td/a",
    ],
)
def test_what_does_not_name_one_identity_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        check_expected(text)


@pytest.mark.parametrize("text", ["api", "a/b/c", "a/", "/b", "a b/c", "../x"])
def test_a_workload_has_two_parts(text: str) -> None:
    with pytest.raises(ValueError):
        parse_workload(text)
