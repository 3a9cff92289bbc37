"""Asking an administrative socket, also when nobody sensible answers."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from proxy import ask as module
from proxy.admin import Admin, Reply, Request, text_reply
from proxy.ask import ask

Serve = Callable[[trio.SocketStream], Awaitable[None]]


async def asked(tmp_path: Path, serve: Serve, method: str = "GET", target: str = "/live") -> tuple[int, bytes]:
    """What ``ask`` makes of a server."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(5)
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            try:
                return await ask(path, method, target)
            finally:
                nursery.cancel_scope.cancel()
    raise AssertionError("unreachable")


def answering(*pieces: bytes, stay: bool = False) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        for piece in pieces:
            try:
                await stream.send_all(piece)
            except trio.BrokenResourceError:
                break
        if stay:
            await trio.sleep_forever()
        await stream.aclose()

    return serve


async def test_a_page_of_the_real_server_is_fetched(tmp_path: Path) -> None:
    seen: list[Request] = []

    async def page(request: Request) -> Reply:
        seen.append(request)
        return text_reply("x" * 100_000, 201)

    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(5)
        sock.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: Admin({"/status": page}, {"/drain": page}).serve(sock, door="unix"))
            assert await ask(path, "GET", "/status?all=1") == (201, b"x" * 100_000)
            assert (await ask(path, "POST", "/drain"))[0] == 201
            nursery.cancel_scope.cancel()
    assert [(r.method, r.path, r.query) for r in seen] == [("GET", "/status", {"all": "1"}), ("POST", "/drain", {})]


async def test_nobody_there_is_a_503_with_words(tmp_path: Path) -> None:
    status, words = await ask(str(tmp_path / "no"), "GET", "/live")
    assert status == 503
    assert words


async def test_an_answer_in_pieces_is_put_together(tmp_path: Path) -> None:
    serve = answering(b"HTTP/1.1 200 OK\r\ncontent-le", b"ngth: 5\r\n\r\nab", b"cde", stay=True)
    assert await asked(tmp_path, serve) == (200, b"abcde")


async def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    serve = answering(b"HTTP/1.1 409 No\r\ncontent-length: 0\r\n\r\n", stay=True)
    assert await asked(tmp_path, serve) == (409, b"")


@pytest.mark.parametrize(
    "piece",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"garbage\r\n\r\n",
    ],
)
async def test_an_answer_that_is_cut_off_or_garbage_is_a_503(tmp_path: Path, piece: bytes) -> None:
    with trio.fail_after(5):
        status, body = await asked(tmp_path, answering(piece))
    assert status == 503
    assert body == b"the answer was cut off"


async def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT", 0.02)
    with trio.fail_after(5):
        status, words = await asked(tmp_path, answering(stay=True))
    assert (status, bool(words)) == (503, True)


async def test_an_answer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST", 100_000)

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        try:
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n")
            while True:
                await stream.send_all(b"x" * 65536)
        except trio.BrokenResourceError:
            pass

    with trio.fail_after(5):
        assert await asked(tmp_path, serve) == (503, b"the answer was cut off")
