"""The administrative doors, over real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
import trio.testing

from proxy import admin as module
from proxy.admin import Admin, Reply, Request, json_reply, text_reply


class Pages:
    """Handlers that remember what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    async def page(self, request: Request) -> Reply:
        self.asked.append(request)
        return text_reply("a page\n")

    async def long(self, request: Request) -> Reply:
        return Reply(200, content_type="text/plain", pieces=[b"x" * 1000, b"y" * 1000])

    async def broken(self, request: Request) -> Reply:
        raise RuntimeError("bug")

    async def change(self, request: Request) -> Reply:
        self.asked.append(request)
        return json_reply({"ok": True})

    def admin(self) -> Admin:
        reads = {"/live": self.page, "/status": self.page, "/long": self.long, "/broken": self.broken}
        return Admin(reads, {"/reload": self.change})


@asynccontextmanager
async def door(pages: Pages, name: str, tmp_path: Path) -> AsyncIterator[trio.SocketStream]:
    """A client behind one of the doors."""
    async with open_door(pages.admin(), name, tmp_path) as connect:
        stream = await connect()
        try:
            yield stream
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_door(admin: Admin, name: str, tmp_path: Path) -> AsyncIterator[Any]:
    path = str(tmp_path / "admin.sock")
    sock = socket.socket(socket.AF_UNIX if name == "unix" else socket.AF_INET)
    sock.bind(path if name == "unix" else ("127.0.0.1", 0))
    sock.listen(200)
    sock.setblocking(False)

    async def connect() -> trio.SocketStream:
        if name == "unix":
            return await trio.open_unix_socket(path)
        return await trio.open_tcp_stream("127.0.0.1", sock.getsockname()[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: admin.serve(sock, door=name))
        yield connect
        nursery.cancel_scope.cancel()
    sock.close()


async def ask(stream: trio.SocketStream, text: str, body: bytes = b"") -> tuple[int, bytes, bytes]:
    """Status, head and body of one answer; ``text`` is the request's head, lines parted by |."""
    await stream.send_all(text.replace("|", "\r\n").encode() + b"\r\n\r\n" + body)
    return await read(stream)


async def read(stream: trio.SocketStream) -> tuple[int, bytes, bytes]:
    got = b""
    with trio.fail_after(5):
        while b"\r\n\r\n" not in got:
            data = await stream.receive_some()
            if not data:
                raise AssertionError(f"closed after {bytes(got)!r}")
            got += data
        head, _, rest = got.partition(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        while len(rest) < length:
            rest += await stream.receive_some()
    return int(head[9:12]), head, bytes(rest)


LOCAL = "GET {} HTTP/1.1|host: localhost"


async def test_a_page_is_served_with_what_was_asked(tmp_path: Path) -> None:
    pages = Pages()
    async with door(pages, "unix", tmp_path) as stream:
        status, head, body = await ask(stream, "GET /status?verbose=1&x=a%20b HTTP/1.1|host: x|accept: text/html")
    assert (status, body) == (200, b"a page\n")
    assert b"cache-control: no-store" in head
    assert b"x-content-type-options: nosniff" in head
    (request,) = pages.asked
    assert (request.method, request.path, request.accept) == ("GET", "/status", "text/html")
    assert request.query == {"verbose": "1", "x": "a b"}
    assert request.uid == os.geteuid()


async def test_one_connection_carries_many_requests_also_pipelined(tmp_path: Path) -> None:
    async with door(Pages(), "unix", tmp_path) as stream:
        for _ in range(2):
            assert (await ask(stream, LOCAL.format("/live")))[0] == 200
        await stream.send_all((LOCAL.format("/live").replace("|", "\r\n") + "\r\n\r\n").encode() * 2)
        got = b""
        with trio.fail_after(5):
            while got.count(b"a page\n") < 2:
                got += await stream.receive_some()
    assert got.count(b"HTTP/1.1 200") == 2


async def test_a_long_page_is_sent_in_pieces(tmp_path: Path) -> None:
    async with door(Pages(), "unix", tmp_path) as stream:
        _, _, body = await ask(stream, LOCAL.format("/long"))
    assert body == b"x" * 1000 + b"y" * 1000


async def test_an_unknown_page_says_which_there_are(tmp_path: Path) -> None:
    async with door(Pages(), "unix", tmp_path) as stream:
        status, _, body = await ask(stream, LOCAL.format("/nothing"))
        assert (status, b"there are: /broken /live /long /status" in body) == (404, True)
        assert (await ask(stream, "POST /nothing HTTP/1.1|host: x|content-length: 0"))[0] == 404


async def test_other_methods_are_not_served(tmp_path: Path) -> None:
    async with door(Pages(), "unix", tmp_path) as stream:
        assert (await ask(stream, "DELETE /status HTTP/1.1|host: localhost"))[0] == 405


# -- who may change -------------------------------------------------------------------------------------------


async def test_a_change_is_made_over_the_unix_socket(tmp_path: Path) -> None:
    pages = Pages()
    async with door(pages, "unix", tmp_path) as stream:
        status, _, body = await ask(stream, "POST /reload HTTP/1.1|host: x|content-length: 4", b"body")
    assert (status, orjson.loads(body)) == (200, {"ok": True})
    assert pages.asked[0].body == b"body"


async def test_a_change_is_not_made_by_get(tmp_path: Path) -> None:
    pages = Pages()
    async with door(pages, "unix", tmp_path) as stream:
        assert (await ask(stream, LOCAL.format("/reload")))[0] == 404
    assert pages.asked == []


@pytest.mark.parametrize("name", ["loopback", "probes"])
async def test_a_change_is_not_made_over_tcp(tmp_path: Path, name: str) -> None:
    pages = Pages()
    async with door(pages, name, tmp_path) as stream:
        status, _, body = await ask(stream, "POST /reload HTTP/1.1|host: localhost|content-length: 0")
    assert (status, pages.asked) == (403, [])
    assert b"Unix socket" in body


@pytest.mark.parametrize(("uid", "status"), [(0, 200), (os.geteuid(), 200), (os.geteuid() + 4711, 403)])
async def test_a_change_is_made_by_root_and_ourselves_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, status: int
) -> None:
    monkeypatch.setattr(module, "_peer_uid", lambda stream: uid)
    async with door(Pages(), "unix", tmp_path) as stream:
        assert (await ask(stream, "POST /reload HTTP/1.1|host: x|content-length: 0"))[0] == status


# -- the doors on TCP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "localhost:15000", "127.0.0.1:15000", "[::1]:15000", "LOCALHOST"])
async def test_the_loopback_door_serves_who_names_this_machine(tmp_path: Path, host: str) -> None:
    async with door(Pages(), "loopback", tmp_path) as stream:
        assert (await ask(stream, f"GET /status HTTP/1.1|host: {host}"))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "127.0.0.2", "[::2]"]
)
async def test_the_loopback_door_refuses_a_rebound_name(tmp_path: Path, host: str) -> None:
    pages = Pages()
    async with door(pages, "loopback", tmp_path) as stream:
        assert (await ask(stream, f"GET /status HTTP/1.1|host: {host}"))[0] == 403
    assert pages.asked == []


async def test_a_target_in_absolute_form_does_not_get_around_the_host_check(tmp_path: Path) -> None:
    pages = Pages()
    async with door(pages, "loopback", tmp_path) as stream:
        status, _, _ = await ask(stream, "GET http://evil.example/status HTTP/1.1|host: localhost")
    assert (status in (400, 403), pages.asked) == (True, [])


async def test_the_probes_door_serves_probes_only_under_any_name(tmp_path: Path) -> None:
    pages = Pages()
    async with door(pages, "probes", tmp_path) as stream:
        assert (await ask(stream, "GET /live HTTP/1.1|host: 10.2.3.4:15021"))[0] == 200
        status, _, body = await ask(stream, "GET /status HTTP/1.1|host: 10.2.3.4:15021")
        assert (status, body) == (404, b"not served on this port\n")
    assert len(pages.asked) == 1


@pytest.mark.parametrize("path", ["/live/../status", "/live%2f..%2fstatus", "//status", "/live;/../status"])
async def test_a_path_trick_does_not_get_through_the_probes_door(tmp_path: Path, path: str) -> None:
    pages = Pages()
    async with door(pages, "probes", tmp_path) as stream:
        status, _, _ = await ask(stream, f"GET {path} HTTP/1.1|host: x")
    assert status in (400, 404)
    assert [r.path for r in pages.asked] == []


# -- clients that misbehave -----------------------------------------------------------------------------------


async def test_a_malformed_request_is_refused_and_the_connection_closed(tmp_path: Path) -> None:
    async with door(Pages(), "unix", tmp_path) as stream:
        assert (await ask(stream, "GET /live HTTP/1.1|host: a|host: b"))[0] == 400
        with trio.fail_after(5):
            assert await stream.receive_some() == b""


async def test_a_body_that_is_too_large_is_refused_before_it_was_read(tmp_path: Path) -> None:
    pages = Pages()
    async with door(pages, "unix", tmp_path) as stream:
        size = 3 * 1024 * 1024
        await stream.send_all(b"POST /reload HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
        with trio.fail_after(10):
            try:
                for _ in range(48):
                    await stream.send_all(b"x" * 65536)
            except trio.BrokenResourceError:
                pass
            try:
                status, _, _ = await read(stream)
            except trio.BrokenResourceError:
                status = 400
    assert (status in (400, 413), pages.asked) == (True, [])


async def test_a_page_that_fails_costs_one_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_door(Pages().admin(), "unix", tmp_path) as connect:
        broken = await connect()
        await broken.send_all(LOCAL.format("/broken").replace("|", "\r\n").encode() + b"\r\n\r\n")
        with trio.fail_after(5):
            assert await broken.receive_some() == b""
        good = await connect()
        assert (await ask(good, LOCAL.format("/live")))[0] == 200
        await good.aclose()
        await broken.aclose()
    assert "an administrative request failed" in caplog.text


async def test_a_client_that_asks_nothing_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IDLE", 0.02)
    async with door(Pages(), "unix", tmp_path) as stream:
        with trio.fail_after(5):
            assert await stream.receive_some() == b""


async def test_no_more_clients_than_allowed_and_a_place_is_free_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONNECTIONS", 2)
    admin = Pages().admin()
    async with open_door(admin, "unix", tmp_path) as connect:
        clients = [await connect() for _ in range(2)]
        for client in clients:
            assert (await ask(client, LOCAL.format("/live")))[0] == 200
        third = await connect()
        with trio.fail_after(5):
            assert await third.receive_some() == b""
        await clients[0].aclose()
        with trio.fail_after(5):
            while admin._open > 1:
                await trio.testing.wait_all_tasks_blocked()
        fourth = await connect()
        assert (await ask(fourth, LOCAL.format("/live")))[0] == 200
        for client in (*clients, third, fourth):
            await client.aclose()


async def test_a_client_that_goes_away_in_the_middle_is_forgotten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    admin = Pages().admin()
    async with open_door(admin, "unix", tmp_path) as connect:
        client = await connect()
        await client.send_all(b"GET /li")
        await client.aclose()
        again = await connect()
        assert (await ask(again, LOCAL.format("/live")))[0] == 200
        with trio.fail_after(5):
            while admin._open > 1:
                await trio.testing.wait_all_tasks_blocked()
        await again.aclose()
    assert "failed" not in caplog.text


async def test_head_gets_no_body(tmp_path: Path) -> None:
    async with door(Pages(), "unix", tmp_path) as stream:
        await stream.send_all(b"HEAD /live HTTP/1.1\r\nhost: x\r\n\r\n")
        with trio.fail_after(5):
            head = await stream.receive_some()
        assert b"content-length: 7" in head.lower()
        assert head.endswith(b"\r\n\r\n")
        assert (await ask(stream, LOCAL.format("/live")))[2] == b"a page\n"
