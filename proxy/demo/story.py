"""What the demo tells: denied and told why, allowed within a second, and the picture of it. Every step is checked."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from h2.exceptions import ProtocolError

from proxy import wiring
from proxy.demo import grpc
from proxy.demo.folder import POLICIES, TRUST_DOMAIN, Folder, Ports
from proxy.demo.services import RESERVE, WATCH
from proxy.observe.history import TraceReader
from proxy.observe.waterfall import render_trace
from proxy.policy.explain import explain, render
from proxy.policy.facts import AccessRequest

PATH: Final = "/orders/17"
_PATIENCE: Final = 5.0
_PROMISED: Final = 1.0  # seconds from a policy file to its effect

Say = Callable[[str], None]


class StepFailed(Exception):
    """A step did not come out as told."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    reason: str
    decision: str
    content: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.status} {self.reason} {self.content}"


class Story:
    """Tells it with ``say``, in order. Raises StepFailed."""

    def __init__(
        self, folder: Folder, ports: Ports, say: Say, *, show: str, unicode: bool = True, color: bool = False
    ) -> None:
        self.folder = folder
        self.ports = ports
        self.say = say
        self.show = show  # the command that shows the last trace
        self.unicode = unicode
        self.color = color

    def tell(self, *, with_grpc: bool) -> None:
        self.denied()
        self.why()
        self.allow()
        self.allowed()
        self.picture()
        if with_grpc:
            self.grpc_denied()
            self.grpc_allowed()

    # -- HTTP ---------------------------------------------------------------------------------------------

    def denied(self) -> None:
        self._title("1. denied, and told why")
        self.say(f"$ curl -i http://127.0.0.1:{self.ports.web}{PATH}")
        answer = self._call()
        _expect(answer.status == 403, f"a call that nothing allows was answered with {answer}")
        _expect(answer.reason == "no_allow_policy_matched", f"denied for another reason: {answer}")
        _expect(bool(answer.decision), f"the denial has no decision id: {answer}")
        self.say(f"HTTP/1.1 403\nx-sidewall-reason: {answer.reason}\nx-sidewall-decision: {answer.decision}")

    def why(self) -> None:
        """The operator's view: the log line of api's sidecar, and every clause of the policies that it has."""
        line = self._soon("the denial in api's access log", self._denial)
        self.say(f"\nthe operator sees more, in {self._shown('api', 'access.log')}:")
        for key in ("peer", "method", "path", "response_code", "response_code_details", "nearest"):
            if key in line:
                self.say(f"  {key:<22} {line[key]}")
        self.say("")
        loaded = wiring.Source(self.folder.of("api", "sidewall.yaml"), None, {}, {}).load()
        explanation = explain(wiring.compile_runtime(loaded), self._request(line))
        for text in render(explanation, unicode=self.unicode):
            self.say(f"  {text}".rstrip())
        _expect(not explanation.decision.allowed, "explain and the sidecar do not agree")

    def allow(self) -> None:
        self._title("2. a policy file is dropped in")
        path = self.folder.allow("allow-web")
        began = time.monotonic()
        self.say(f"{self._shown('policy', path.name)}:")
        for line in POLICIES["allow-web"].splitlines():
            self.say(f"  {line}")
        self._soon("the new policy to apply", lambda: self._call().status == 200)
        took = time.monotonic() - began
        _expect(took < _PROMISED, f"the policy applied after {took * 1000:.0f} ms, more than a second")
        self.say(f"it applies after {took * 1000:.0f} ms")

    def allowed(self) -> None:
        self._title("3. allowed")
        self.say(f"$ curl http://127.0.0.1:{self.ports.web}{PATH}")
        answer = self._call()
        _expect(answer.content.get("order") == 17 and answer.content.get("reserved") is True, f"answered {answer}")
        self.say(json.dumps(answer.content))

    def picture(self) -> None:
        self._title("4. what happened in between")
        self.say(f"$ {self.show}")
        self.say(self._soon("the trace of the last call", self._trace).rstrip())

    # -- gRPC ---------------------------------------------------------------------------------------------

    def grpc_denied(self) -> None:
        self._title("5. gRPC: web may not call stock")
        reply = self._grpc(RESERVE)
        _expect(reply.status == 7, f"a call that nothing allows ended with grpc-status {reply.status}")
        _expect(reply.headers.get("x-sidewall-reason") == "no_allow_policy_matched", f"answered {reply.headers}")
        self.say(f"{RESERVE}  grpc-status 7 (PERMISSION_DENIED), {reply.headers.get('grpc-message')}")

    def grpc_allowed(self) -> None:
        self._title("6. gRPC: with a policy it may")
        path = self.folder.allow("allow-web-to-stock")
        self.say(f"{self._shown('policy', path.name)} is dropped in")
        self._soon("the new policy to apply", lambda: self._grpc(RESERVE).status == 0)
        for method, count in ((RESERVE, 1), (WATCH, 3)):
            reply = self._grpc(method)
            _expect(reply.status == 0 and len(reply.messages) == count, f"{method}: {reply}")
            kind = "unary" if count == 1 else "server streaming"
            self.say(f"{method:<20} grpc-status 0, {kind}: {', '.join(map(json.dumps, reply.messages))}")

    # -- doing it -----------------------------------------------------------------------------------------

    def _title(self, text: str) -> None:
        self.say(f"\n\033[1m{text}\033[0m" if self.color else f"\n{text}")

    def _shown(self, *parts: str) -> str:
        return "/".join((self.folder.path.name, *parts))

    def _call(self) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.web, timeout=_PATIENCE)
        try:
            connection.request("GET", PATH)
            answer = connection.getresponse()
            reason, decision = (answer.getheader(f"x-sidewall-{word}") or "" for word in ("reason", "decision"))
            return Answer(answer.status, reason, decision, _json(answer.read()))
        except (OSError, http.client.HTTPException) as error:
            raise StepFailed(f"web did not answer: {error}") from error
        finally:
            connection.close()

    def _grpc(self, method: str) -> grpc.Reply:
        try:
            return grpc.call(self.ports.web_to_stock, method, {"order": 17})
        except (OSError, ProtocolError) as error:
            raise StepFailed(f"the call of {method} broke: {error}") from error

    def _soon(self, what: str, find: Callable[[], Any]) -> Any:
        """What ``find`` finds, as soon as it is there."""
        deadline = time.monotonic() + _PATIENCE
        while not (found := find()):
            if time.monotonic() > deadline:
                raise StepFailed(f"waited {_PATIENCE:.0f} s for {what}")
            time.sleep(0.01)
        return found

    def _denial(self) -> dict[str, Any] | None:
        """The last denial in api's log; None while there is none."""
        path = self.folder.of("api", "access.log")
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return next((line for line in reversed(lines) if line.get("response_code") == 403), None)

    def _request(self, line: dict[str, Any]) -> AccessRequest:
        """What the policies were asked, out of a line of the access log."""
        principal = f"{TRUST_DOMAIN}/ns/demo/sa/web"
        _expect(line.get("peer") == f"spiffe://{principal}", f"denied to another peer: {line.get('peer')}")
        return AccessRequest(
            principal=principal,
            namespace="demo",
            port=self.ports.api_app,
            method=str(line["method"]),
            host=str(line["authority"]),
            path=str(line["path"]),
        )

    def _trace(self) -> str:
        """The picture of the last trace, "" while spans are missing."""
        with TraceReader(self.folder.stores()) as reader:
            spans = reader.recent(1)
        if not spans or len({span.service for span in spans[0]}) < 3:
            return ""
        return render_trace(spans[0], width=100, unicode=self.unicode, color=self.color)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StepFailed(otherwise)


def _json(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {"body": body[:200].decode("ascii", "replace")}
    return content if isinstance(content, dict) else {"body": content}
