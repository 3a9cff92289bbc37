"""A grpcio server without generated code: ``python grpc_server.py`` prints its port and serves until killed.

    Echo/Unary     the request back; metadata "x-fail: NAME" fails with that status and error details
    Echo/Download  request N (decimal): N messages of 1000 bytes
    Echo/Upload    the number of bytes received
    Echo/Chat      each message back as it comes
    Echo/Slow      waits 30 s
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures

import grpc

cancelled = 0
_lock = threading.Lock()


def _note_cancel() -> None:
    global cancelled
    with _lock:
        cancelled += 1


def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-seen", metadata.get("x-own", "")),))
    context.set_trailing_metadata((("x-trailing", "yes"), ("grpc-status-details-bin", b"\x08\x05details")))
    if metadata.get("x-fail"):
        context.abort(grpc.StatusCode[metadata["x-fail"]], "as asked: 100 % ü")
    return request


def download(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    for number in range(int(request)):
        yield str(number).encode().ljust(1000, b".")


def upload(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    return str(sum(len(request) for request in requests)).encode()


def chat(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from requests


def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
    ended = threading.Event()

    def on_end() -> None:
        _note_cancel()
        ended.set()

    context.add_callback(on_end)
    ended.wait(30)
    return b""


def count_cancelled(request: bytes, context: grpc.ServicerContext) -> bytes:
    return str(cancelled).encode()


def main() -> None:
    server = grpc.server(
        futures.ThreadPoolExecutor(64),
        options=[("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 16 << 20)],
    )
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
        "Cancelled": grpc.unary_unary_rpc_method_handler(count_cancelled),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
