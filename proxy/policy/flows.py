"""What policy tools take of the flow ledger (``proxy.observe.flows``), and how a flow is asked about."""

from proxy.observe.flows import Flow as FlowRecord
from proxy.policy.facts import HTTP, AccessRequest

__all__ = ["NOT_RECORDED", "FlowRecord", "request_of_flow"]

# Facts that policies can ask for and no flow has, by the names of ``proxy.policy.fields``.
NOT_RECORDED = frozenset(
    (
        *("headers", "claims", "requestPrincipals", "request.auth.audiences", "request.auth.presenter"),
        *("remoteIpBlocks", "destination.ip", "connection.sni", "target"),
    )
)


def request_of_flow(flow: FlowRecord) -> AccessRequest:
    """The facts of one of the calls, as far as they were recorded: what was not is absent."""
    caller = flow.caller
    parts = caller.split("/") if caller is not None else ()
    namespace = parts[2] if len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa" else None
    if flow.protocol != HTTP:
        return AccessRequest(
            protocol=flow.protocol, principal=caller, namespace=namespace, port=flow.port, source_ip=flow.source
        )
    return AccessRequest(
        principal=caller,
        namespace=namespace,
        port=flow.port,
        method=flow.method,
        host=flow.host,
        path=flow.path,
        source_ip=flow.source,
        route=flow.route,
    )
