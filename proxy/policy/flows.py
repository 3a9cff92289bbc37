"""What policy tools take of the flow ledger (``proxy.observe.flows``)."""

from proxy.observe.flows import Flow as FlowRecord

__all__ = ["FlowRecord"]
