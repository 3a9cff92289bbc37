"""Messages from tables: the same bytes as generated modules, in a pool of their own."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from google.protobuf import any_pb2, struct_pb2
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.protos import envoy_discovery, envoy_tls, messages, parse, rpc_status, well_known, workload
from identity.rpc import RpcError, Status

generated: Any = importlib.import_module("spiffe._proto.workload_pb2")
WORKLOAD = sorted(generated.DESCRIPTOR.message_types_by_name)


@pytest.mark.parametrize("name", WORKLOAD)
def test_every_field_of_the_workload_api_is_the_standards(name: str) -> None:
    def shape(descriptor: Any) -> list[tuple[Any, ...]]:
        fields = [
            (
                field.name,
                field.number,
                field.type,
                field.is_repeated,
                field.message_type and field.message_type.full_name,
            )
            for field in descriptor.fields
        ]
        return [*fields, *(shape(nested) for nested in descriptor.nested_types)]

    ours = getattr(workload, name).DESCRIPTOR
    theirs = getattr(generated, name).DESCRIPTOR
    assert shape(ours) == shape(theirs)
    assert ours.full_name == theirs.full_name
    assert ours.file.pool is not theirs.file.pool


TEXTS = st.text(max_size=40)
SVIDS = st.fixed_dictionaries(
    {
        "spiffe_id": TEXTS,
        "x509_svid": st.binary(max_size=80),
        "x509_svid_key": st.binary(max_size=80),
        "bundle": st.binary(max_size=80),
        "hint": TEXTS,
    }
)


@settings(max_examples=60)
@given(st.lists(SVIDS, max_size=3), st.dictionaries(TEXTS, st.binary(max_size=50), max_size=3))
def test_what_we_write_the_generated_module_reads_and_the_other_way_round(
    svids: list[dict[str, Any]], federated: dict[str, bytes]
) -> None:
    ours = workload.X509SVIDResponse(svids=[workload.X509SVID(**svid) for svid in svids], federated_bundles=federated)
    theirs = generated.X509SVIDResponse.FromString(ours.SerializeToString())
    assert [(one.spiffe_id, one.x509_svid, one.hint) for one in theirs.svids] == [
        (svid["spiffe_id"], svid["x509_svid"], svid["hint"]) for svid in svids
    ]
    assert dict(theirs.federated_bundles) == federated
    assert workload.X509SVIDResponse.FromString(theirs.SerializeToString()) == ours


def test_claims_are_a_struct_of_json_values() -> None:
    claims = {"sub": "spiffe://a/b", "aud": ["x", "y"], "exp": 12.0, "deep": {"n": None, "t": True}}
    ours = workload.ValidateJWTSVIDResponse(spiffe_id="spiffe://a/b")
    ours.claims.update(claims)
    theirs = generated.ValidateJWTSVIDResponse.FromString(ours.SerializeToString())
    expected = struct_pb2.Struct()
    expected.update(claims)
    assert theirs.claims == expected


def test_an_any_of_ours_is_everybodys() -> None:
    secret = envoy_tls.Secret(name="default")
    secret.tls_certificate.private_key.inline_bytes = b"key"
    packed = well_known("google.protobuf.Any")()
    packed.Pack(secret)
    theirs = any_pb2.Any.FromString(packed.SerializeToString())
    assert theirs.type_url == "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    assert envoy_tls.Secret.FromString(theirs.value).tls_certificate.private_key.inline_bytes == b"key"


def test_an_error_detail_is_googles_status() -> None:
    theirs = status_pb2.Status(code=3, message="no")
    assert rpc_status.Status.FromString(theirs.SerializeToString()).message == "no"


def test_fields_that_are_not_in_a_table_are_ignored() -> None:
    made = messages(
        "test.unknown", {"Wide": {"a": (1, "string"), "b": (700, "bytes")}, "Narrow": {"a": (1, "string")}}
    )
    data = made.Wide(a="x", b=b"y").SerializeToString()
    assert parse(made.Narrow, data).a == "x"


def test_every_label_can_be_used() -> None:
    made = messages(
        "test.labels",
        {
            "Leaf": {"n": (1, "int64")},
            "All": {
                "maybe": (1, "string", "optional"),
                "left": (2, "Leaf", "oneof side"),
                "right": (3, "uint32", "oneof side"),
                "many": (4, "Leaf", "repeated"),
                "by_name": (5, "Leaf", "map"),
                "number": (6, "double"),
                "flag": (7, "bool"),
                "any_kind": (8, ".google.protobuf.Any"),
            },
        },
    )
    one = made.All(maybe="", number=1.5, flag=True)
    one.left.n = 1
    one.right = 2
    one.many.add(n=3)
    one.by_name["x"].n = 4
    again = made.All.FromString(one.SerializeToString())
    assert again == one
    assert (again.HasField("maybe"), made.All().HasField("maybe")) == (True, False)
    assert (again.WhichOneof("side"), again.HasField("left")) == ("right", False)
    assert again.by_name["x"].n == 4


def test_mistakes_in_a_table_are_found_when_it_is_made() -> None:
    with pytest.raises(ValueError, match=r"test\.bad\.A\.x: unknown label 'twice'"):
        messages("test.bad", {"A": {"x": (1, "string", "twice")}})
    with pytest.raises(TypeError):
        messages("test.worse", {"A": {"x": (1, "string"), "y": (1, "string")}})
    with pytest.raises(KeyError):
        messages("test.worst", {"A": {"x": (1, ".no.such.Message")}})
    with pytest.raises(AttributeError, match="no message Nothing in package"):
        _ = workload.Nothing


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05abc", b"\x0a\x01\xff"])
def test_what_is_no_message_is_the_callers_mistake(data: bytes) -> None:
    with pytest.raises(RpcError) as caught:
        parse(envoy_discovery.DiscoveryRequest, data)
    assert caught.value.status is Status.INVALID_ARGUMENT
