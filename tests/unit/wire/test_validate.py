"""The control point, tested without any codec: field lists in, heads or refusals out."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import MALFORMED, MalformedRequest, MalformedResponse
from proxy.wire import authority
from proxy.wire.authority import parse_authority
from proxy.wire.events import Headers, RequestHead, ResponseHead
from proxy.wire.limits import WireLimits
from proxy.wire.names import KINDS, learn
from proxy.wire.validate import (
    IDENTITY_HEADERS,
    check_h2_request,
    check_h2_response,
    check_request,
    check_response,
    check_trailers,
    frame_response,
)

LIMITS = WireLimits()
HOST = (b"host", b"orders.shop.svc")
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
WEBSOCKET: Headers = [
    HOST,
    (b"connection", b"Upgrade"),
    (b"upgrade", b"websocket"),
    (b"sec-websocket-key", KEY),
    (b"sec-websocket-version", b"13"),
]


def request(
    *fields: tuple[bytes, bytes],
    method: bytes = b"GET",
    target: bytes = b"/",
    version: int = 11,
    scheme: bytes = b"https",
    authority: bytes = b"",
    limits: WireLimits = LIMITS,
    host: tuple[bytes, bytes] | None = HOST,
) -> RequestHead:
    everything = [*([host] if host else []), *fields]
    return check_request(method, scheme, authority, target, everything, version=version, limits=limits)


def refused(*fields: tuple[bytes, bytes], **more: Any) -> str:
    with pytest.raises(MalformedRequest) as caught:
        request(*fields, **more)
    assert caught.value.reason in MALFORMED
    return caught.value.reason


def h2(*fields: tuple[bytes, bytes], **pseudo: bytes | None) -> RequestHead:
    values: dict[str, bytes | None] = {
        "method": b"GET", "scheme": b"https", "path": b"/", "authority": b"a.example", **pseudo
    }  # fmt: skip
    heads = [(b":" + name.encode(), value) for name, value in values.items() if value is not None]
    return check_h2_request([*heads, *fields], LIMITS)


def h2_refused(*fields: tuple[bytes, bytes], **pseudo: bytes | None) -> str:
    with pytest.raises(MalformedRequest) as caught:
        h2(*fields, **pseudo)
    assert caught.value.reason in MALFORMED
    return caught.value.reason


# -- the canonical head ----------------------------------------------------------------------------------


def test_a_plain_request_becomes_its_canonical_head() -> None:
    head = request((b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2"), target=b"/a/%62?q=%2f")
    assert (head.method, head.scheme, head.version) == (b"GET", b"https", 11)
    assert (head.path, head.target) == (b"/a/b", b"/a/b?q=%2f")
    assert (head.authority, head.host) == (b"orders.shop.svc", b"orders.shop.svc")
    assert head.headers == [(b"accept", b"*/*"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert (head.length, head.keep_alive, head.expects_continue, head.upgrade) == (0, True, False, None)
    assert not head.is_grpc
    assert not head.te_trailers


@pytest.mark.parametrize(
    ("raw", "authority", "host"),
    [
        (b"A.Example", b"a.example", b"a.example"),
        (b"a.example.", b"a.example", b"a.example"),
        (b"a.example.:8080", b"a.example:8080", b"a.example"),
        (b"10.0.0.1:1", b"10.0.0.1:1", b"10.0.0.1"),
        (b"my_service:80", b"my_service:80", b"my_service"),
        (b"[::1]", b"[::1]", b"[::1]"),
        (b"[FE80::1]:443", b"[fe80::1]:443", b"[fe80::1]"),
    ],
)
def test_a_host_is_lower_cased_and_loses_port_and_trailing_dot(
    raw: bytes, authority: bytes, host: bytes
) -> None:
    head = request(host=(b"host", raw))
    assert (head.authority, head.host) == (authority, host)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b" ", b"a b", b"a,b", b"a, b", b"u@a", b"u:p@a", b"a/b", b"a?b", b"a#b", b"a:", b"a:0", b"a:65536",
        b"a:080", b"a:8x", b"a:+8", b":80", b".", b"..", b".a", b"a..b", b"a..", b"\xc3\xa9", b"a%2eb", b"a\\b",
        b"[::1", b"[::1]x", b"[v1.a]", b"[fe80::1%25eth0]", b"[:::]", b"a" * 256 + b"." + b"b" * 20, b"a:123456",
        b"http://a", b"a\x00", b"a\tb", b"a;b", b"*",
    ],
)  # fmt: skip
def test_a_host_with_two_readings_is_refused(raw: bytes) -> None:
    assert refused(host=(b"host", raw)) in {"bad_host", "bad_header_value"}
    assert h2_refused(authority=raw) == "bad_host"


def test_a_missing_host_is_refused() -> None:
    assert refused(host=None) == "bad_host"
    assert refused(host=None, version=10) == "bad_host"
    assert refused(host=None, target=b"http://a/") == "bad_host"


@pytest.mark.parametrize("second", [b"orders.shop.svc", b"evil", b""])
def test_a_second_host_header_is_refused(second: bytes) -> None:
    assert refused((b"host", second)) == "duplicate_header"


@pytest.mark.parametrize(
    ("target", "authority", "rest"),
    [
        (b"http://b.example/x?y", b"b.example", b"/x?y"),
        (b"HTTPS://B.example:8443/", b"b.example:8443", b"/"),
        (b"http://b.example", b"b.example", b"/"),
        (b"http://b.example?y", b"b.example", b"/?y"),
        (b"http://b.example//x/../y", b"b.example", b"/y"),
    ],
)
def test_the_authority_of_an_absolute_target_replaces_host(
    target: bytes, authority: bytes, rest: bytes
) -> None:
    head = request(target=target)
    assert (head.authority, head.target) == (authority, rest)
    assert head.scheme == b"https"


def test_options_of_the_whole_server() -> None:
    assert request(method=b"OPTIONS", target=b"*").path == b"*"
    assert request(method=b"OPTIONS", target=b"http://b.example").target == b"*"
    assert h2(method=b"OPTIONS", path=b"*").target == b"*"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (b"*", "bad_target"),
        (b"", "bad_target"),
        (b"a", "bad_target"),
        (b"a:80", "bad_target"),
        (b"ftp://a/", "bad_target"),
        (b"//a/b", None),
        (b"http:/a", "bad_target"),
        (b"http://", "bad_host"),
        (b"http:///x", "bad_host"),
        (b"http://u@a/", "bad_host"),
        (b"http://a b/", "bad_host"),
        (b"/?a b", "bad_target"),
        (b"/?a#b", "bad_target"),
        (b"/?\x7f", "bad_target"),
        (b"/?\xe9", "bad_target"),
        (b"/a b", "bad_path"),
        (b"/#", "bad_path"),
        (b"/%2f", "bad_path"),
    ],
)
def test_targets(target: bytes, reason: str | None) -> None:
    if reason is None:
        assert request(target=target).path == b"/a/b"  # origin-form: the first segment is never an authority
    else:
        assert refused(target=target) == reason


def test_http2_knows_no_absolute_target() -> None:
    assert h2_refused(path=b"http://a.example/") == "bad_target"
    assert h2_refused(path=b"") == "bad_target"
    assert h2_refused(path=b"*") == "bad_target"


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (b"CONNECT", "method_not_allowed"),
        (b"TRACE", "method_not_allowed"),
        (b"TRACK", "method_not_allowed"),
        (b"FOO", "method_unknown"),
        (b"get", "method_unknown"),
        (b"", "bad_request_line"),
        (b"GE T", "bad_request_line"),
        (b"GET\x00", "bad_request_line"),
        (b"GET,POST", "bad_request_line"),
    ],
)
def test_methods_are_a_white_list(method: bytes, reason: str) -> None:
    assert refused(method=method) == reason
    assert h2_refused(method=method) == reason


def test_the_dictionary_of_known_hosts_is_bounded() -> None:
    for number in range(3000):
        assert parse_authority(b"H%d." % number) == (b"h%d" % number, b"h%d" % number)
    assert len(authority._known) <= 1024


# -- names and values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(IDENTITY_HEADERS), b"x-sidewall-anything", b"x-sidewall-"])
def test_what_only_we_may_say_is_dropped(name: bytes) -> None:
    assert request((name, b"forged")).headers == []
    assert h2((name, b"forged")).headers == []
    assert check_trailers([(name, b"forged")]) == []


def test_an_underscore_in_a_name_is_refused_or_dropped() -> None:
    drop = WireLimits(underscore="drop")
    for name in (b"x_forwarded_client_cert", b"x-forwarded_client-cert", b"x_a", b"_"):
        assert refused((name, b"1")) == "underscore_header"
        assert h2_refused((name, b"1")) == "underscore_header"
        assert request((name, b"1"), limits=drop).headers == []


@pytest.mark.parametrize(
    "name", [b"", b"a b", b"a:", b"A", b"a\x00", b"a\xe9", b"a,b", b'"', b"(a)", b" a", b"a\t"]
)
def test_a_name_is_a_lower_case_token(name: bytes) -> None:
    assert refused((name, b"1")) == "bad_header_name"
    assert h2_refused((name, b"1")) == "bad_header_name"


def test_a_pseudo_header_is_no_field() -> None:
    assert refused((b":path", b"/")) == "bad_pseudo_header"


@pytest.mark.parametrize("byte", [*range(9), *range(10, 32), 127])
def test_a_control_character_in_a_value_is_refused(byte: int) -> None:
    value = b"a" + bytes((byte,)) + b"b"
    assert refused((b"x-a", value)) == "bad_header_value"
    assert h2_refused((b"x-a", value)) == "bad_header_value"
    with pytest.raises(MalformedResponse):
        check_response(200, [(b"x-a", value)], version=11, request_method=b"GET", limits=LIMITS)


def test_tab_and_8_bit_text_may_stand_inside_a_value() -> None:
    assert request((b"x-a", b"a\tb \xc3\xa9")).headers == [(b"x-a", b"a\tb \xc3\xa9")]


@pytest.mark.parametrize("value", [b" a", b"a ", b"\ta", b"a\t", b" "])
def test_white_space_around_an_http2_value_is_refused(value: bytes) -> None:
    assert h2_refused((b"x-role", value)) == "bad_header_value"


@pytest.mark.parametrize(
    "name",
    [
        b"authorization", b"content-length", b"content-type", b"transfer-encoding", b"x-request-id", b"traceparent",
        b"upgrade", b"expect", b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol",
    ],
)  # fmt: skip
def test_a_singleton_sent_twice_is_refused(name: bytes) -> None:
    value = {b"content-length": b"1", b"transfer-encoding": b"chunked"}.get(name, b"a")
    assert refused((name, value), (name, value)) == "duplicate_header"


def test_two_content_types_in_one_line_are_refused() -> None:
    assert refused((b"content-type", b"text/plain, text/html")) == "duplicate_header"
    quoted = (b"content-type", b'multipart/form-data; boundary="a,b"')
    assert request(quoted).headers == [quoted]


def test_cookie_crumbs_are_joined() -> None:
    crumbs = ((b"cookie", b"a=1"), (b"x-a", b"1"), (b"cookie", b"b=2"))
    assert h2(*crumbs).headers == [(b"x-a", b"1"), (b"cookie", b"a=1; b=2")]
    assert request(*crumbs).headers == [(b"x-a", b"1"), (b"cookie", b"a=1; b=2")]


def test_too_many_fields_are_refused() -> None:
    fields = [(b"x-a", b"1")] * 99
    assert len(request(*fields).headers) == 99
    assert refused(*fields, (b"x-a", b"1")) == "too_many_headers"
    assert h2_refused(*[(b"cookie", b"a")] * 101) == "too_many_headers"


def test_http2_sizes_are_bounded() -> None:
    assert h2_refused((b"x-a", b"1" * 32 * 1024)) == "head_too_large"
    assert h2_refused(*[(b"x-a", b"1" * 30_000)] * 3) == "head_too_large"
    assert h2((b"x-a", b"1" * 32_000)).length is None


def test_the_dictionary_of_known_names_is_bounded() -> None:
    before = dict(KINDS)
    try:
        for number in range(5000):
            learn(b"x-made-up-%d" % number)
        learn(b"x-" + b"a" * 5000)
        assert len(KINDS) <= 1024
        assert learn(b"x-one-more") == 0
    finally:
        KINDS.clear()
        KINDS.update(before)


# -- hop by hop ------------------------------------------------------------------------------------------


def test_hop_by_hop_fields_are_taken_out() -> None:
    head = request(
        (b"connection", b"x-hop, Keep-Alive"),
        (b"x-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-authorization", b"x"),
        (b"proxy-connection", b"keep-alive"),
        (b"http2-settings", b"AAMAAABk"),
        (b"upgrade", b"h2c"),
        (b"te", b"gzip"),
        (b"x-end", b"2"),
    )
    assert head.headers == [(b"x-end", b"2")]
    assert (head.keep_alive, head.upgrade, head.te_trailers) == (True, None, False)


@pytest.mark.parametrize(
    "name",
    [
        b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie", b"X-Forwarded-Client-Cert",
        b"x_forwarded_client_cert", b"x-sidewall-identity", b"x-forwarded-for", b"x-request-id", b"traceparent",
        b"sec-websocket-key", b"content-type", b":path", b"a b", b'"close"',
    ],
)  # fmt: skip
def test_connection_may_not_nominate_what_security_rests_on(name: bytes) -> None:
    assert refused((b"connection", b"close, " + name)) == "connection_header"


@pytest.mark.parametrize(
    ("value", "persists"),
    [
        (b"close", False),
        (b"CLOSE", False),
        (b"x, ,close\t", False),
        (b"keep-alive", True),
        (b"closed", True),
        (b"", True),
    ],
)
def test_connection_close_ends_the_connection(value: bytes, persists: bool) -> None:
    assert request((b"connection", value)).keep_alive is persists


def test_connection_on_two_lines_is_one_list() -> None:
    head = request((b"connection", b"x-a"), (b"x-a", b"1"), (b"connection", b"close"))
    assert (head.headers, head.keep_alive) == ([], False)


def test_http_1_0_does_not_persist() -> None:
    assert not request(version=10).keep_alive
    assert not request((b"connection", b"keep-alive"), version=10).keep_alive


@pytest.mark.parametrize("value", [b"trailers", b"gzip, Trailers", b"trailers;q=0.5", b"deflate ,\ttrailers"])
def test_te_trailers_is_noted(value: bytes) -> None:
    head = request((b"te", value))
    assert head.te_trailers
    assert head.headers == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"connection", b"close"), (b"keep-alive", b"1"), (b"proxy-connection", b"1"), (b"upgrade", b"websocket"),
        (b"transfer-encoding", b"chunked"), (b"http2-settings", b""), (b"te", b"gzip"), (b"te", b"trailers, gzip"),
        (b"connection", b""),
    ],
)  # fmt: skip
def test_connection_specific_fields_are_malformed_in_http2(name: bytes, value: bytes) -> None:
    assert h2_refused((name, value)) == "connection_header"


def test_te_trailers_is_allowed_in_http2() -> None:
    assert h2((b"te", b"trailers")).te_trailers


# -- framing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "length"), [(b"0", 0), (b"5", 5), (b"999999999999999999", 10**18 - 1)])
def test_content_length_is_decimal(value: bytes, length: int) -> None:
    assert request((b"content-length", value)).length == length
    assert h2((b"content-length", value)).length == length


@pytest.mark.parametrize(
    "value",
    [
        b"", b"+3", b"-1", b"0x3", b"1_0", "²".encode(), b"18446744073709551619", b"5, 5", b"5,6", b"05", b"00",
        b"5 ",
        b" 5", b"5.0", b"5e1", "٣".encode(), b"9" * 19,
    ],
)  # fmt: skip
def test_any_other_content_length_is_refused(value: bytes) -> None:
    assert refused((b"content-length", value)) == "bad_content_length"
    assert h2_refused((b"content-length", value)) in {"bad_content_length", "bad_header_value"}
    with pytest.raises(MalformedResponse):
        check_response(200, [(b"content-length", value)], version=11, request_method=b"GET", limits=LIMITS)


def test_bodies_are_announced() -> None:
    assert request().length == 0
    assert h2().length is None
    assert request((b"transfer-encoding", b"chunked")).length is None
    assert request((b"transfer-encoding", b"Chunked")).length is None


@pytest.mark.parametrize(
    "value",
    [
        b"", b"xchunked", b"identity", b"chunked, identity", b"identity, chunked", b"chunked, chunked", b'"chunked"',
        b"chunked;q=1", b"chunked,", b",chunked", b"chunked\x0b", b"chunked\xa0", b"\x0bchunked", b"chunked ",
        b"gzip", b"chunked, gzip", b"cow, chunked",
    ],
)  # fmt: skip
def test_any_transfer_encoding_but_chunked_is_refused(value: bytes) -> None:
    assert refused((b"transfer-encoding", value)) in {"bad_transfer_encoding", "bad_header_value"}
    with pytest.raises(MalformedResponse):
        check_response(200, [(b"transfer-encoding", value)], version=11, request_method=b"GET", limits=LIMITS)


@pytest.mark.parametrize("value", [b"gzip, chunked", b"GZIP,deflate ,\tchunked", b"x-compress, chunked"])
def test_a_known_coding_is_refused_as_not_implemented(value: bytes) -> None:
    assert refused((b"transfer-encoding", value)) == "encoding_unsupported"


def test_transfer_encoding_stands_alone() -> None:
    chunked = (b"transfer-encoding", b"chunked")
    assert refused(chunked, (b"content-length", b"5")) == "bad_transfer_encoding"
    assert refused((b"content-length", b"5"), chunked) == "bad_transfer_encoding"
    assert refused(chunked, version=10) == "bad_transfer_encoding"


def test_a_body_over_the_limit_is_refused_by_its_announcement() -> None:
    limits = WireLimits(body=10)
    assert request((b"content-length", b"10"), limits=limits).length == 10
    assert refused((b"content-length", b"11"), limits=limits) == "body_too_large"


def test_only_100_continue_may_be_expected() -> None:
    body = (b"content-length", b"5")
    head = request(body, (b"expect", b"100-Continue"))
    assert head.expects_continue
    assert head.headers == []
    assert not request((b"expect", b"100-continue")).expects_continue
    assert not request(body, (b"expect", b"100-continue"), version=10).expects_continue
    for value in (b"", b"200-ok", b"100-continue, x", b"100-continue,", b"y 100-continue"):
        assert refused(body, (b"expect", value)) == "expectation_failed"


def test_grpc_is_recognised_by_its_content_type() -> None:
    assert h2((b"content-type", b"application/grpc+proto")).is_grpc
    assert not h2((b"content-type", b"application/grpc-web")).is_grpc


# -- upgrade ---------------------------------------------------------------------------------------------


def websocket(drop: bytes = b"", **more: Any) -> RequestHead:
    replaced = more.pop("replace", {})
    fields = [(name, replaced.get(name, value)) for name, value in WEBSOCKET if name != drop]
    return request(*fields, host=None, **more)


def test_a_sound_websocket_handshake_is_noted() -> None:
    head = websocket()
    assert head.upgrade == b"websocket"
    assert head.headers == [(b"sec-websocket-key", KEY), (b"sec-websocket-version", b"13")]
    assert (
        websocket(replace={b"upgrade": b"WebSocket", b"connection": b"keep-alive, upgrade"}).upgrade
        == b"websocket"
    )


@pytest.mark.parametrize(
    "more",
    [
        {"method": b"POST"},
        {"version": 10},
        {"drop": b"connection"},
        {"drop": b"sec-websocket-key"},
        {"drop": b"sec-websocket-version"},
        {"replace": {b"sec-websocket-version": b"12"}},
        {"replace": {b"sec-websocket-key": b"short"}},
        {"replace": {b"sec-websocket-key": b"!" * 24}},
        {"replace": {b"sec-websocket-key": b"A" * 24}},
        {"replace": {b"upgrade": b"websocket, h2c"}},
    ],
)
def test_an_unsound_websocket_handshake_is_stripped_and_ends_the_connection(more: dict[str, Any]) -> None:
    head = websocket(**more)
    assert head.upgrade is None
    assert not head.keep_alive


def test_a_websocket_handshake_with_a_body_is_no_handshake() -> None:
    fields = [*WEBSOCKET, (b"content-length", b"5")]
    head = check_request(b"GET", b"http", b"", b"/", fields, version=11, limits=LIMITS)
    assert (head.upgrade, head.keep_alive) == (None, False)


# -- HTTP/2 pseudo-headers -------------------------------------------------------------------------------


def test_an_http2_request_becomes_the_same_head() -> None:
    head = h2((b"x-a", b"1"), authority=b"A.example.:443", path=b"/a/./b?c", scheme=b"http")
    assert (head.method, head.scheme, head.version) == (b"GET", b"http", 20)
    assert (head.authority, head.host, head.path, head.target) == (
        b"a.example:443", b"a.example", b"/a/b", b"/a/b?c",
    )  # fmt: skip
    assert head.headers == [(b"x-a", b"1")]
    assert head.keep_alive


@pytest.mark.parametrize("name", ["method", "scheme", "path"])
def test_a_missing_pseudo_header_is_refused(name: str) -> None:
    assert h2_refused(**{name: None}) == "bad_pseudo_header"


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority"])
def test_a_repeated_pseudo_header_is_refused(name: bytes) -> None:
    fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a")]
    again = next(field for field in fields if field[0] == name)
    with pytest.raises(MalformedRequest) as caught:
        check_h2_request([*fields, again], LIMITS)
    assert caught.value.reason == "bad_pseudo_header"


@pytest.mark.parametrize("name", [b":status", b":protocol", b":", b":x", b":Method"])
def test_an_unknown_pseudo_header_is_refused(name: bytes) -> None:
    with pytest.raises(MalformedRequest) as caught:
        check_h2_request(
            [(name, b"1"), (b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/")], LIMITS
        )
    assert caught.value.reason == "bad_pseudo_header"


def test_a_pseudo_header_after_a_field_is_refused() -> None:
    fields = [(b":method", b"GET"), (b":scheme", b"https"), (b"x", b"1"), (b":path", b"/")]
    with pytest.raises(MalformedRequest) as caught:
        check_h2_request(fields, LIMITS)
    assert caught.value.reason == "bad_pseudo_header"
    assert h2_refused((b"x", b"1"), (b":path", b"/")) == "bad_pseudo_header"


def test_a_plain_connect_is_not_allowed() -> None:
    assert h2_refused(method=b"CONNECT", scheme=None, path=None) == "method_not_allowed"


@pytest.mark.parametrize("scheme", [b"", b"file", b"HtTpS", b"https ", b"ftp", b"ws"])
def test_only_http_schemes_are_known(scheme: bytes) -> None:
    assert h2_refused(scheme=scheme) == "bad_scheme"


@pytest.mark.parametrize(("authority", "host"), [(b"a", b"A."), (b"a:443", b"a"), (b"a.:8080", b"a:8080")])
def test_host_may_repeat_the_authority(authority: bytes, host: bytes) -> None:
    assert h2((b"host", host), authority=authority).host == b"a"


@pytest.mark.parametrize(
    ("authority", "host"), [(b"a", b"b"), (b"a", b"a:80"), (b"a:1", b"a:2"), (b"a", b"")]
)
def test_a_host_that_differs_from_the_authority_is_refused(authority: bytes, host: bytes) -> None:
    assert h2_refused((b"host", host), authority=authority) == "bad_host"


def test_host_alone_will_do_but_not_none() -> None:
    assert h2((b"host", b"a"), authority=None).authority == b"a"
    assert h2_refused(authority=None) == "bad_host"
    assert h2_refused((b"host", b"a"), authority=b"") == "bad_host"
    assert h2_refused((b"host", b"a"), (b"host", b"a"), authority=None) == "duplicate_header"


# -- responses -------------------------------------------------------------------------------------------


def response(
    *fields: tuple[bytes, bytes], status: int = 200, method: bytes = b"GET", version: int = 11
) -> ResponseHead:
    return check_response(status, list(fields), version=version, request_method=method, limits=LIMITS)


def response_refused(*fields: tuple[bytes, bytes], **more: Any) -> str:
    with pytest.raises(MalformedResponse) as caught:
        response(*fields, **more)
    assert caught.value.reason in MALFORMED
    return caught.value.reason


def test_a_response_keeps_its_end_to_end_fields() -> None:
    head = response(
        (b"content-type", b"a"), (b"connection", b"x-hop, set-cookie"), (b"x-hop", b"1"), (b"keep-alive", b"5"),
        (b"set-cookie", b"a"), (b"set-cookie", b"b"), (b"content-length", b"5"), (b"x_under", b"1"),
        (b"upgrade", b"h2c"),
        (b"proxy-authenticate", b"x"), (b"x-forwarded-client-cert", b"x"), (b"x_forwarded-client_cert", b"x"),
        (b"x-sidewall-reason", b"no_allow_policy_matched"), (b"server", b"app"),
    )  # fmt: skip
    assert head.status == 200
    assert head.length == 5
    assert head.headers == [
        (b"content-type", b"a"), (b"x_under", b"1"),
        (b"x-sidewall-reason", b"no_allow_policy_matched"), (b"server", b"app"),
    ]  # fmt: skip


def test_an_app_cannot_have_protected_fields_taken_out() -> None:
    assert response((b"connection", b"content-type"), (b"content-type", b"a")).headers == [
        (b"content-type", b"a")
    ]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], "bad_transfer_encoding"),
        ([(b"content-length", b"5"), (b"content-length", b"5")], "duplicate_header"),
        ([(b"transfer-encoding", b"chunked")] * 2, "duplicate_header"),
        ([(b"transfer-encoding", b"gzip, chunked")], "encoding_unsupported"),
        ([(b"bad name", b"1")], "bad_header_name"),
        ([(b"x", b"1")] * 101, "too_many_headers"),
    ],
)
def test_a_response_with_two_readings_is_refused(fields: Headers, reason: str) -> None:
    assert response_refused(*fields) == reason


def test_transfer_encoding_in_an_http_1_0_response_is_refused() -> None:
    assert response_refused((b"transfer-encoding", b"chunked"), version=10) == "bad_transfer_encoding"


@pytest.mark.parametrize("status", [0, 99, 600, 999])
def test_a_status_out_of_range_is_refused(status: int) -> None:
    assert response_refused(status=status) == "bad_status_line"


def framed(
    *fields: tuple[bytes, bytes], status: int = 200, method: bytes = b"GET", version: int = 11
) -> tuple[Any, ...]:
    head, chunked, persists = frame_response(
        status, list(fields), version=version, request_method=method, limits=LIMITS
    )
    return head.length, chunked, persists


def test_how_a_response_is_framed() -> None:
    length, chunked = (b"content-length", b"5"), (b"transfer-encoding", b"chunked")
    assert framed(length) == (5, False, True)
    assert framed(chunked) == (None, True, True)
    assert framed() == (None, False, True)
    assert framed(chunked, method=b"HEAD") == (None, False, True)
    assert framed(length, method=b"HEAD") == (5, False, True)
    assert framed(length, status=304) == (5, False, True)
    assert framed(length, status=204) == (None, False, True)
    assert framed(chunked, status=204) == (None, False, True)
    assert framed((b"connection", b"close")) == (None, False, False)
    assert framed(length, version=10) == (5, False, False)


def test_http2_responses_are_checked_alike() -> None:
    head = check_h2_response([(b":status", b"200"), (b"x", b"1"), (b"content-length", b"3")], limits=LIMITS)
    assert (head.status, head.headers, head.length) == (200, [(b"x", b"1")], 3)
    assert check_h2_response([(b":status", b"103")], limits=LIMITS).status == 103


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"x", b"1")],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"600")],
        [(b":status", b"+20")],
        [(b":status", b"101")],
        [(b":status", b"200"), (b":status", b"200")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b"x", b"1"), (b":status", b"200")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"keep-alive", b"1")],
        [(b":status", b"200"), (b"transfer-encoding", b"chunked")],
        [(b":status", b"200"), (b"x", b" 1")],
        [(b":status", b"200"), (b"X", b"1")],
        [(b":status", b"200"), (b"x", b"1" * 40_000)],
    ],
)
def test_malformed_http2_responses_are_refused(fields: Headers) -> None:
    with pytest.raises(MalformedResponse) as caught:
        check_h2_response(fields, limits=LIMITS)
    assert caught.value.reason in MALFORMED


# -- trailers --------------------------------------------------------------------------------------------


def test_trailers_pass_unless_they_frame_route_or_authenticate() -> None:
    fields = [(b"grpc-status", b"0"), (b"x-checksum", b"1"), (b"my_meta", b"2"), (b"server-timing", b"a")]
    assert check_trailers(fields) == fields


@pytest.mark.parametrize(
    "name",
    [
        b"content-length", b"transfer-encoding", b"host", b"authorization", b"cookie", b"set-cookie", b"connection",
        b"te", b"trailer", b"upgrade", b"keep-alive", b"proxy-authorization", b"x-forwarded-client-cert",
        b"x_forwarded_client_cert", b"content_length", b"x-forwarded-for", b"content-type", b"cache-control",
        b"x-sidewall-identity", b"sec-websocket-key", b"expect", b"x_request_id", b"range", b"max-forwards",
    ],
)  # fmt: skip
def test_other_trailers_are_dropped(name: bytes) -> None:
    assert check_trailers([(b"a", b"1"), (name, b"1")]) == [(b"a", b"1")]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ((b":status", b"200"), "bad_pseudo_header"),
        ((b"", b"1"), "bad_trailer"),
        ((b"A", b"1"), "bad_trailer"),
        ((b"a b", b"1"), "bad_trailer"),
        ((b"a", b"1\r\n"), "bad_trailer"),
        ((b"a", b"\x00"), "bad_trailer"),
        ((b"a", b" 1"), "bad_trailer"),
    ],
)
def test_illegal_bytes_in_trailers_are_refused(field: tuple[bytes, bytes], reason: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        check_trailers([field])
    assert caught.value.reason == reason


@pytest.mark.parametrize("authority", [b"tmp%2Fagent.sock", b"", b"a@b", b"x:99999"])
def test_where_there_is_no_authority_any_will_do_and_none_is_believed(authority: bytes) -> None:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", authority)]
    with pytest.raises(MalformedRequest):
        check_h2_request(fields, WireLimits())
    head = check_h2_request([*fields, (b"host", b"admin")], WireLimits(authority="ignore"))
    assert (head.authority, head.host) == (b"localhost", b"localhost")
    assert head.headers == []
