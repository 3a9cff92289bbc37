"""Protobuf messages from tables, in a descriptor pool of our own.

Generated modules put their messages into one pool for the whole process, by name. The Workload API's messages
have no package, so a program that imports both our generated module and the ``spiffe`` package's, or Envoy's,
would fail or get the other's classes. Here every message lives in a private pool; nothing is generated, and the
tables below are all there is to read. Only what is used is in them: unknown fields of a peer are ignored.

A table says for each message ``{"field": (number, type)}`` or ``(number, type, label)``:

    type    a scalar ("string", "bytes", "bool", "int32", "int64", "uint32", "uint64", "double"), the name of a
            message of the same package, or a full name with a leading dot (".google.protobuf.Struct")
    label   "" (one), "repeated", "map" (string keys; ``type`` is the value's), "optional" (knows whether it was
            set), or "oneof NAME"

Field numbers are facts of others: workload.proto of the SPIFFE standards, and Envoy's api/envoy/{service/discovery,
service/secret, extensions/transport_sockets/tls, config/core}/v3. Tests compare them with generated modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, struct_pb2
from google.protobuf.message import DecodeError, Message

from identity.rpc import RpcError, Status

Field = tuple[int, str] | tuple[int, str, str]
Table = Mapping[str, Mapping[str, Field]]

_F: Final = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final = {
    "double": _F.TYPE_DOUBLE,
    "int64": _F.TYPE_INT64,
    "uint64": _F.TYPE_UINT64,
    "int32": _F.TYPE_INT32,
    "uint32": _F.TYPE_UINT32,
    "bool": _F.TYPE_BOOL,
    "string": _F.TYPE_STRING,
    "bytes": _F.TYPE_BYTES,
}
_pool: Final = descriptor_pool.DescriptorPool()
for _known in (any_pb2, struct_pb2):
    _pool.AddSerializedFile(_known.DESCRIPTOR.serialized_pb)


class Messages:
    """The message classes of one package, as attributes. AttributeError for a name that is not in the table."""

    def __init__(self, package: str, names: Mapping[str, type[Message]]) -> None:
        self._package = package
        self._names = dict(names)

    def __getattr__(self, name: str) -> Any:  # Any: fields are attributes that no type checker knows
        try:
            return self._names[name]
        except KeyError:
            raise AttributeError(f"no message {name} in package {self._package or '(none)'}") from None


def messages(package: str, table: Table) -> Messages:
    """Classes for the messages of ``table``. What it names of other packages must have been made before.

    TypeError (of protobuf) when the table contradicts itself or an earlier one of the same package."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{package or 'workload'}.proto", package=package, syntax="proto3")
    needed: set[str] = set()
    for name, fields in table.items():
        message = file.message_type.add(name=name)
        for field_name, field in fields.items():
            _add_field(message, f"{package}.{name}".lstrip("."), field_name, field, package, needed)
        _order_oneofs(message)
    file.dependency.extend(sorted(needed))
    _pool.AddSerializedFile(file.SerializeToString())
    prefix = f"{package}." if package else ""
    return Messages(package, {name: well_known(prefix + name) for name in table})


def well_known(name: str) -> Any:
    """The class of a message of the private pool by its full name (``google.protobuf.Any``). KeyError."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(name))


def _add_field(
    message: descriptor_pb2.DescriptorProto, full: str, name: str, field: Field, package: str, needed: set[str]
) -> None:
    number, kind = field[0], field[1]
    label = field[2] if len(field) == 3 else ""
    made = message.field.add(name=name, number=number, label=_F.LABEL_OPTIONAL)
    if label == "map":
        entry = _map_entry(name)
        nested = message.nested_type.add(name=entry)
        nested.options.map_entry = True
        _add_field(nested, full, "key", (1, "string"), package, needed)
        _add_field(nested, full, "value", (2, kind), package, needed)
        made.type, made.type_name, made.label = _F.TYPE_MESSAGE, f".{full}.{entry}", _F.LABEL_REPEATED
        return
    _set_type(made, kind, package, needed)
    if label == "repeated":
        made.label = _F.LABEL_REPEATED
    elif label == "optional":
        made.proto3_optional = True
        made.oneof_index = _oneof(message, f"_{name}")
    elif label.startswith("oneof "):
        made.oneof_index = _oneof(message, label[6:])
    elif label:
        raise ValueError(f"{full}.{name}: unknown label {label!r}")


def _set_type(made: descriptor_pb2.FieldDescriptorProto, kind: str, package: str, needed: set[str]) -> None:
    scalar = _SCALARS.get(kind)
    if scalar is not None:
        made.type = scalar
        return
    made.type = _F.TYPE_MESSAGE
    made.type_name = kind if kind.startswith(".") else (f".{package}.{kind}" if package else f".{kind}")
    if kind.startswith("."):
        needed.add(_pool.FindFileContainingSymbol(kind[1:]).name)


def _map_entry(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_")) + "Entry"


def _oneof(message: descriptor_pb2.DescriptorProto, name: str) -> int:
    names = [one.name for one in message.oneof_decl]
    if name not in names:
        message.oneof_decl.add(name=name)
        names.append(name)
    return names.index(name)


def _order_oneofs(message: descriptor_pb2.DescriptorProto) -> None:
    """Those made for "optional" fields must come last (descriptor.proto, proto3_optional)."""
    optional = {field.oneof_index for field in message.field if field.proto3_optional}
    order = sorted(range(len(message.oneof_decl)), key=lambda index: index in optional)
    names = [message.oneof_decl[index].name for index in order]
    for field in message.field:
        if field.HasField("oneof_index"):
            field.oneof_index = order.index(field.oneof_index)
    for index, name in enumerate(names):
        message.oneof_decl[index].name = name


def parse(kind: Any, data: bytes) -> Any:
    """``data`` as a message of class ``kind``. Raises RpcError INVALID_ARGUMENT when it is not one."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise RpcError(Status.INVALID_ARGUMENT, "the request is not a valid message") from None


# -- the Workload API (SPIFFE Workload API, workload.proto; no package) ---------------------------------------------

workload: Final = messages(
    "",
    {
        "X509SVIDRequest": {},
        "X509SVIDResponse": {
            "svids": (1, "X509SVID", "repeated"),
            "crl": (2, "bytes", "repeated"),
            "federated_bundles": (3, "bytes", "map"),
        },
        "X509SVID": {
            "spiffe_id": (1, "string"),
            "x509_svid": (2, "bytes"),
            "x509_svid_key": (3, "bytes"),
            "bundle": (4, "bytes"),
            "hint": (5, "string"),
        },
        "X509BundlesRequest": {},
        "X509BundlesResponse": {"crl": (1, "bytes", "repeated"), "bundles": (2, "bytes", "map")},
        "JWTSVIDRequest": {"audience": (1, "string", "repeated"), "spiffe_id": (2, "string")},
        "JWTSVIDResponse": {"svids": (1, "JWTSVID", "repeated")},
        "JWTSVID": {"spiffe_id": (1, "string"), "svid": (2, "string"), "hint": (3, "string")},
        "JWTBundlesRequest": {},
        "JWTBundlesResponse": {"bundles": (1, "bytes", "map")},
        "ValidateJWTSVIDRequest": {"audience": (1, "string"), "svid": (2, "string")},
        "ValidateJWTSVIDResponse": {"spiffe_id": (1, "string"), "claims": (2, ".google.protobuf.Struct")},
    },
)

# -- Envoy's secret discovery service, version 3 -------------------------------------------------------------------

rpc_status: Final = messages("google.rpc", {"Status": {"code": (1, "int32"), "message": (2, "string")}})

envoy_type: Final = messages(
    "envoy.type.v3", {"SemanticVersion": {"major_number": (1, "uint32"), "minor_number": (2, "uint32")}}
)

envoy_core: Final = messages(
    "envoy.config.core.v3",
    {
        "DataSource": {
            "filename": (1, "string", "oneof specifier"),
            "inline_bytes": (2, "bytes", "oneof specifier"),
            "inline_string": (3, "string", "oneof specifier"),
        },
        "TypedExtensionConfig": {"name": (1, "string"), "typed_config": (2, ".google.protobuf.Any")},
        "BuildVersion": {"version": (1, ".envoy.type.v3.SemanticVersion")},
        "Node": {"id": (1, "string"), "user_agent_build_version": (8, "BuildVersion")},
    },
)

envoy_tls: Final = messages(
    "envoy.extensions.transport_sockets.tls.v3",
    {
        "TlsCertificate": {
            "certificate_chain": (1, ".envoy.config.core.v3.DataSource"),
            "private_key": (2, ".envoy.config.core.v3.DataSource"),
        },
        "CertificateValidationContext": {
            "trusted_ca": (1, ".envoy.config.core.v3.DataSource"),
            "custom_validator_config": (12, ".envoy.config.core.v3.TypedExtensionConfig"),
        },
        "Secret": {
            "name": (1, "string"),
            "tls_certificate": (2, "TlsCertificate", "oneof type"),
            "validation_context": (4, "CertificateValidationContext", "oneof type"),
        },
        # In Envoy's file TrustDomain is nested in SPIFFECertValidatorConfig; on the wire that makes no difference.
        "TrustDomain": {"name": (1, "string"), "trust_bundle": (2, ".envoy.config.core.v3.DataSource")},
        "SPIFFECertValidatorConfig": {"trust_domains": (1, "TrustDomain", "repeated")},
    },
)

envoy_discovery: Final = messages(
    "envoy.service.discovery.v3",
    {
        "DiscoveryRequest": {
            "version_info": (1, "string"),
            "node": (2, ".envoy.config.core.v3.Node"),
            "resource_names": (3, "string", "repeated"),
            "type_url": (4, "string"),
            "response_nonce": (5, "string"),
            "error_detail": (6, ".google.rpc.Status"),
        },
        "DiscoveryResponse": {
            "version_info": (1, "string"),
            "resources": (2, ".google.protobuf.Any", "repeated"),
            "type_url": (4, "string"),
            "nonce": (5, "string"),
        },
    },
)
