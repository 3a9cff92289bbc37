"""A grpcio client: ``python grpc_client.py PORT`` makes every kind of call and prints one JSON object."""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import grpc


def error_of(call: Any) -> dict[str, Any]:
    try:
        call()
    except grpc.FutureCancelledError:
        return {"code": "CANCELLED"}
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())  # type: ignore[attr-defined]
        return {
            "code": error.code().name,  # type: ignore[attr-defined]
            "details": error.details(),  # type: ignore[attr-defined]
            "status_details": trailing.get("grpc-status-details-bin", b"").hex(),
        }
    return {"code": "OK"}


def main() -> None:
    options = [("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20)]
    channel = grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}", options=options)
    unary = channel.unary_unary("/test.Echo/Unary")
    result: dict[str, Any] = {}

    answer, call = unary.with_call(b"hello", metadata=(("x-own", "value"), ("x-bin-bin", b"\0\1\2")), timeout=10)
    result["unary"] = answer.decode()
    result["initial"] = dict(call.initial_metadata()).get("x-seen")
    result["trailing"] = dict(call.trailing_metadata()).get("x-trailing")
    large = bytes(range(256)) * (4 << 12)
    result["four_mebibytes"] = unary(large, timeout=30) == large
    result["download"] = sum(len(m) for m in channel.unary_stream("/test.Echo/Download")(b"500", timeout=30))
    pieces = (b"x" * 10_000 for _ in range(300))
    result["upload"] = int(channel.stream_unary("/test.Echo/Upload")(pieces, timeout=30))
    messages = [str(n).encode() for n in range(200)]
    result["chat"] = list(channel.stream_stream("/test.Echo/Chat")(iter(messages), timeout=30)) == messages
    result["failed"] = error_of(lambda: unary(b"", metadata=(("x-fail", "FAILED_PRECONDITION"),), timeout=10))
    slow = channel.unary_unary("/test.Echo/Slow")
    began = time.monotonic()
    result["deadline"] = error_of(lambda: slow(b"", timeout=0.3))["code"]
    result["deadline_kept"] = time.monotonic() - began < 5
    future = slow.future(b"")
    threading.Timer(0.2, future.cancel).start()
    result["cancel"] = error_of(future.result)["code"]
    deadline = time.monotonic() + 5
    counted = channel.unary_unary("/test.Echo/Cancelled")
    while int(counted(b"", timeout=5)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    result["ended_at_the_server"] = int(counted(b"", timeout=5))
    result["unknown"] = error_of(lambda: channel.unary_unary("/test.Echo/Nothing")(b"", timeout=5))["code"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
