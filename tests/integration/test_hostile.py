"""Hostile HTTP/1.1 through both doors: mTLS into the inbound listener, plaintext into the outbound one.

Every row of the requirements on parsing (2.3) is sent by itself, with a second request right behind it that
nobody may ever read as one (``SMUGGLED``). It must end in the answer the row names and the close of the
connection, with its reason word counted; the app must never see a complete request of it; and the next good
request on a new connection is served. One mesh serves a whole chapter: a proxy is not new for each attack.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from proxy.errors import MALFORMED
from proxy.lifecycle import Caps
from tests.support.hostile_rows import CHAPTERS, CHUNKED, GET, HOST, POST, SMUGGLED, Row
from tests.support.mesh import WEB, Mesh, Side, make_context, open_mesh
from tests.support.raw import GOOD, Heard, RawApp, ask, connect, talk, tls_client, until


@dataclass
class Door:
    """One way in: the port, the client's TLS (None = plaintext) and the sidecar that reads first."""

    mesh: Mesh
    app: RawApp
    side: Side
    tls: ssl.SSLContext | None

    async def ask(self, data: bytes) -> Heard:
        return await ask(self.side.port, data, self.tls)

    def counted(self) -> dict[str, float]:
        """Malformed messages so far, by reason."""
        family = self.side.telemetry.instruments.malformed
        return {word: family.labels(word).value for word in MALFORMED}


@asynccontextmanager
async def open_door(which: str, folder: Path) -> AsyncIterator[Door]:
    app = RawApp()
    caps = Caps(handshakes_per_second=0)
    async with trio.open_nursery() as nursery:
        await nursery.start(app.run)
        async with open_mesh(folder, app.port, api={"caps": caps}) as mesh:
            if which == "inbound":
                yield Door(mesh, app, mesh.api, tls_client(make_context(mesh.ca, WEB), folder))
            else:
                yield Door(mesh, app, mesh.web, None)
        nursery.cancel_scope.cancel()


async def try_row(door: Door, row: Row) -> list[str]:
    """Everything that is wrong with what became of ``row``; empty when it went as it must."""
    before = door.counted()
    heard = await door.ask(row.sent + SMUGGLED)
    counted = {word for word, value in door.counted().items() if value > before[word]}
    wrong = []
    if heard.statuses != [heard.status] or heard.status not in row.status:
        wrong.append(f"answered {heard.statuses}")
    if not heard.closed:
        wrong.append("left open")
    if row.reason and heard.reason != row.reason:
        wrong.append(f"said {heard.reason!r}")
    if counted != {heard.reason}:
        wrong.append(f"counted {sorted(counted)} but said {heard.reason!r}")
    if any(b"/hit" in request or b"/smuggled" in request for request in door.app.complete):
        wrong.append("reached the app as a complete request")
    if b"/smuggled" in door.app.everything:
        wrong.append("what followed reached the app")
    door.app.complete.clear()
    door.app.everything.clear()
    good = await door.ask(GOOD)
    if good.status != 200:
        wrong.append(f"then a good request got {good.status}")
    return [f"{row.name}: {words}" for words in wrong]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["inbound", "outbound"])
@pytest.mark.parametrize("chapter", CHAPTERS)
async def test_malformed_requests_end_as_the_requirements_say(tmp_path: Path, which: str, chapter: str) -> None:
    async with open_door(which, tmp_path) as door:
        wrong = [words for row in CHAPTERS[chapter] for words in await try_row(door, row)]
        assert wrong == []
        await door.mesh.settled()


# -- what is not an error, and must not become one --------------------------------------------------------------

DOORS = pytest.mark.parametrize("which", ["inbound", "outbound"])


def fields(request: bytes) -> dict[str, str]:
    """The header fields of a request that the app got; fails when one is there twice."""
    lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


@DOORS
async def test_the_app_gets_our_framing_and_never_the_callers(tmp_path: Path, which: str) -> None:
    body = b'2;a=b\r\nhe\r\n0003;x="y"\r\nllo\r\n000;z\r\n'
    trailers = (
        b"X-Sum: 5\r\nContent-Length: 9\r\nAuthorization: me\r\nX-Forwarded-Client-Cert: me\r\nHost: evil\r\n\r\n"
    )
    head = POST + b"transfer-encoding: Chunked\r\nTE: trailers, gzip\r\n"
    head += b"Connection: x-own, te\r\nX-Own: 1\r\nKeep-Alive: 5\r\n\r\n"
    async with open_door(which, tmp_path) as door:
        await door.ask(GOOD)  # opens the connections: a request that waits for one may lose its trailers
        door.app.complete.clear()
        heard = await door.ask(head + body + trailers + GOOD)
        assert heard.statuses == [200, 200]
        got = fields(door.app.complete[0])
        sent = door.app.complete[0].partition(b"\r\n\r\n")[2].lower()
    assert got["transfer-encoding"] == "chunked"
    assert not {"content-length", "keep-alive", "x-own"} & got.keys()
    assert "gzip" not in got.get("te", "")
    assert sent.startswith((b"5\r\nhello\r\n0\r\n", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n"))
    assert b"x-sum: 5" in sent
    assert not any(word in sent for word in (b"content-length", b"authorization", b"client-cert", b"evil", b";"))


@DOORS
@pytest.mark.parametrize("target", [b"http://Other.Shop:8080/x?y", b"https://other.shop:8080/x?y"])
async def test_an_absolute_target_replaces_the_host_field(tmp_path: Path, which: str, target: bytes) -> None:
    async with open_door(which, tmp_path) as door:
        await door.ask(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        (request,) = door.app.complete
    assert request.startswith(b"GET /x?y HTTP/1.1\r\n")
    assert fields(request)["host"] == "other.shop:8080"


@DOORS
async def test_options_asterisk_and_http_1_0_are_served(tmp_path: Path, which: str) -> None:
    async with open_door(which, tmp_path) as door:
        star = await door.ask(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        old = await door.ask(b"GET /old HTTP/1.0\r\n" + HOST + b"\r\n" + SMUGGLED)
        requests = door.app.complete
    assert (star.statuses, old.statuses, old.closed) == ([200], [200], True)
    assert [request.split(b"\r\n")[0] for request in requests] == [b"OPTIONS * HTTP/1.1", b"GET /old HTTP/1.1"]


@DOORS
async def test_good_requests_before_a_bad_one_are_answered_in_order(tmp_path: Path, which: str) -> None:
    first, second = (GET.replace(b"hit", name) + HOST + b"\r\n" for name in (b"1", b"2"))
    async with open_door(which, tmp_path) as door:
        heard = await door.ask(first + second + GET + b"\r\n" + SMUGGLED)
        paths = [request.split()[1] for request in door.app.complete]
    assert (heard.statuses, heard.closed, paths) == ([200, 200, 400], True, [b"/1", b"/2"])


@DOORS
@pytest.mark.parametrize(
    "head",
    [
        GET + HOST + b"Connection: close\r\n\r\n",
        GET + HOST + b"Connection: keep-alive, close\r\n\r\n",
        GET + HOST + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        GET
        + HOST
        + b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        + b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        POST + b"Expect: 100-continue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    ],
    ids=["close", "close in a list", "unsound upgrade", "refused upgrade", "close with expect"],
)
async def test_nothing_is_read_after_the_last_request(tmp_path: Path, which: str, head: bytes) -> None:
    async with open_door(which, tmp_path) as door:
        heard = await door.ask(head + SMUGGLED)
        assert (heard.statuses, heard.closed) == ([200], True)
        assert b"/smuggled" not in door.app.everything
        assert (await door.ask(GOOD)).status == 200


@DOORS
@pytest.mark.parametrize("how", ["closed", "aborted"])
@pytest.mark.parametrize(
    "sent",
    [
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"0\r\n",
        POST + b"Content-Length: 9\r\n\r\nhello",
    ],
    ids=["between chunks", "in a chunk", "before the trailers end", "short of content-length"],
)
async def test_a_caller_gone_in_the_body_never_completes_the_request(
    tmp_path: Path, which: str, how: str, sent: bytes
) -> None:
    async with open_door(which, tmp_path) as door:
        stream = await connect(door.side.port, door.tls)
        await stream.send_all(sent)
        await until(lambda: b"/hit" in door.app.everything)
        if how == "closed":
            await stream.aclose()
        else:
            await trio.aclose_forcefully(stream)
        await until(lambda: door.app.cut)
        assert door.app.complete == []
        assert (await door.ask(GOOD)).status == 200
        await door.mesh.settled()


@DOORS
async def test_a_head_that_drips_is_answered_408_and_closed(tmp_path: Path, which: str) -> None:
    async with open_door(which, tmp_path) as door:
        door.side.service.times.head = 0.2
        stream = await connect(door.side.port, door.tls)
        heard = await talk(stream, b"GET /hit HTTP/1.1\r\nHost: api.")
        assert (heard.statuses, heard.closed, heard.reason) == ([408], True, "head_timeout")
        assert (await door.ask(GOOD)).status == 200
        assert len(door.app.complete) == 1
