from __future__ import annotations

import pytest

from proxy.wire.grpc import (
    STATUS_NAMES,
    decode_message,
    encode_message,
    grpc_to_http,
    http_to_grpc,
    is_grpc,
    parse_grpc_status,
    parse_grpc_timeout,
    render_grpc_timeout,
    status_name,
)


@pytest.mark.parametrize(
    "value",
    [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=x", b"Application/GRPC"],
)
def test_grpc_content_types(value: bytes) -> None:
    assert is_grpc(value)


@pytest.mark.parametrize(
    "value", [b"", b"application/grpc-web", b"application/grpcx", b"application/json", b"application/grp"]
)
def test_other_content_types_are_not_grpc(value: bytes) -> None:
    assert not is_grpc(value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1S", 1.0), (b"2M", 120.0), (b"1H", 3600.0), (b"250m", 0.25), (b"99999999u", 99.999999), (b"0n", 0.0)],
)
def test_a_timeout_is_digits_and_a_unit(value: bytes, seconds: float) -> None:
    assert parse_grpc_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"S",
        b"1",
        b"1s",
        b"123456789S",
        b"-1S",
        b"+1S",
        b"1.5S",
        b" 1S",
        b"1S ",
        b"1S\n",
        b"1_0S",
        "٣S".encode(),
    ],
)
def test_a_malformed_timeout_is_none(value: bytes) -> None:
    assert parse_grpc_timeout(value) is None


@pytest.mark.parametrize(
    ("seconds", "rendered"),
    [
        (0.0, b"0n"),
        (-1.0, b"0n"),
        (0.05, b"50000000n"),
        (0.25, b"250000u"),
        (90.0, b"90000000u"),
        (3600.0, b"3600000m"),
        (1e9, b"16666667M"),
        (1e30, b"99999999H"),
    ],
)
def test_a_timeout_is_rendered_in_the_finest_unit_that_fits(seconds: float, rendered: bytes) -> None:
    assert render_grpc_timeout(seconds) == rendered


@pytest.mark.parametrize("seconds", [1e-9, 0.001, 0.1, 1.0, 12.345, 3600.0, 86400.0])
def test_a_rendered_timeout_is_never_shorter(seconds: float) -> None:
    back = parse_grpc_timeout(render_grpc_timeout(seconds))
    assert back is not None
    assert back >= seconds * (1 - 1e-9)
    assert back == pytest.approx(seconds, rel=0.001)


@pytest.mark.parametrize(("value", "code"), [(b"0", 0), (b"7", 7), (b"16", 16), (b"99", 99)])
def test_a_status_is_a_small_number(value: bytes, code: int) -> None:
    assert parse_grpc_status(value) == code


@pytest.mark.parametrize("value", [b"", b"00", b"07", b"100", b"-1", b"1 ", b"x", "²".encode()])
def test_a_malformed_status_is_none(value: bytes) -> None:
    assert parse_grpc_status(value) is None


def test_every_status_has_a_name_and_an_http_status() -> None:
    assert len(STATUS_NAMES) == 17
    assert [status_name(code) for code in (0, 7, 14, 16)] == [
        "OK",
        "PERMISSION_DENIED",
        "UNAVAILABLE",
        "UNAUTHENTICATED",
    ]
    assert [grpc_to_http(code) for code in (0, 4, 7, 8, 12, 14, 16)] == [200, 504, 403, 429, 501, 503, 401]
    assert status_name(17) == status_name(-1) == "UNKNOWN"
    assert grpc_to_http(17) == grpc_to_http(-1) == 500


def test_http_answers_without_a_grpc_status_are_mapped_as_clients_do() -> None:
    assert [http_to_grpc(status) for status in (400, 401, 403, 404, 429, 502, 503, 504)] == [
        13, 16, 7, 12, 14, 14, 14, 14,
    ]  # fmt: skip
    assert http_to_grpc(200) == http_to_grpc(500) == 2


@pytest.mark.parametrize(
    ("text", "encoded"),
    [("denied", b"denied"), ("50% off", b"50%25 off"), ("a\r\nb", b"a%0D%0Ab"), ("é€", b"%C3%A9%E2%82%AC")],
)
def test_a_message_is_percent_encoded_and_back(text: str, encoded: bytes) -> None:
    assert encode_message(text) == encoded
    assert decode_message(encoded) == text


def test_decoding_a_message_never_fails() -> None:
    assert decode_message(b"100% %zz %ff") == "100% %zz \ufffd"
