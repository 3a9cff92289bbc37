"""The three services of the demo. They know nothing of certificates or policies; that is the point.

    python -m proxy.demo.services web PORT API_PORT      HTTP/1.1, asks api through its sidecar
    python -m proxy.demo.services api PORT STOCK_PORT    HTTP/1.1, asks stock through its sidecar
    python -m proxy.demo.services stock PORT             gRPC over h2c
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from h2.exceptions import ProtocolError

from proxy.demo import grpc

RESERVE: Final = "/demo.Stock/Reserve"
WATCH: Final = "/demo.Stock/Watch"
TRACE_HEADERS: Final = ("traceparent", "tracestate", "x-request-id")
_PASSED_ON: Final = ("content-type", "x-sidewall-reason", "x-sidewall-decision")


class _Service(BaseHTTPRequestHandler):
    """One request of a service: ``behind`` is the port on which its sidecar leads to the next one."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one write
    disable_nagle_algorithm = True
    behind = 0

    def trace_headers(self) -> dict[str, str]:
        """All a service has to do for traces: hand on what it was given."""
        return {name: self.headers[name] for name in TRACE_HEADERS if name in self.headers}

    def answer(self, status: int, body: bytes, headers: Iterable[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_json(self, status: int, content: object) -> None:
        body = json.dumps(content).encode() + b"\n"
        self.answer(status, body, [("content-type", "application/json")])

    def log_message(self, format: str, *args: object) -> None:
        sys.stderr.write(f"{format % args}\n")


class Web(_Service):
    def do_GET(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=5)
        try:
            connection.request("GET", self.path, headers=self.trace_headers())
            answer = connection.getresponse()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() in _PASSED_ON]
            self.answer(answer.status, answer.read(), kept)
        except (OSError, http.client.HTTPException) as error:
            self.answer_json(502, {"service": "web", "error": str(error)})
        finally:
            connection.close()


class Api(_Service):
    def do_GET(self) -> None:
        kind, _, number = self.path.strip("/").partition("/")
        if kind != "orders" or not number.isdecimal():
            self.answer_json(404, {"service": "api", "error": "try /orders/17"})
            return
        try:
            reply = grpc.call(self.behind, RESERVE, {"order": int(number)}, list(self.trace_headers().items()))
        except (OSError, ProtocolError) as error:
            self.answer_json(502, {"service": "api", "error": str(error)})
            return
        if reply.status != 0:
            self.answer_json(502, {"service": "api", "error": reply.headers.get("grpc-message", "no status")})
            return
        self.answer_json(200, {"order": int(number), **reply.messages[0]})


def reserve(message: grpc.Message) -> Iterable[grpc.Message]:
    time.sleep(0.004)  # something to see in the trace
    yield {"reserved": True, "left": 41}


def watch(message: grpc.Message) -> Iterable[grpc.Message]:
    for left in (41, 40, 39):
        yield {"left": left}


def main(arguments: list[str]) -> None:
    name, port = arguments[0], int(arguments[1])
    if name == "stock":
        grpc.Server(port, {RESERVE: reserve, WATCH: watch}).serve_forever()
        return
    handler: type[_Service] = {"web": Web, "api": Api}[name]
    handler.behind = int(arguments[2])
    ThreadingHTTPServer(("127.0.0.1", port), handler).serve_forever()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
