from __future__ import annotations

from pathlib import Path

import pytest
import trio

from proxy.net.fetch import FetchFailed, fetch
from tests.support.issuer import Issuer, make_tls, open_issuer


async def get(issuer: Issuer, path: str = "/keys", most: int = 1000) -> bytes:
    return await fetch(issuer.url + path, timeout=5.0, most=most)


async def refusal(issuer: Issuer, path: str = "/keys", most: int = 1000) -> str:
    with pytest.raises(FetchFailed) as caught:
        await get(issuer, path, most)
    return str(caught.value)


async def test_the_body_of_an_answer_is_had() -> None:
    async with open_issuer() as issuer:
        issuer.pages["/keys?v=1"] = b"hello"
        issuer.pages["/"] = b""
        assert await get(issuer, "/keys?v=1") == b"hello"
        assert await get(issuer, "") == b""
        assert issuer.asked == ["/keys?v=1", "/"]


async def test_a_body_may_come_in_chunks_or_last_until_the_end() -> None:
    async with open_issuer() as issuer:
        issuer.pages["/chunks"] = (200, ["transfer-encoding: chunked"], b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert await get(issuer, "/chunks") == b"abcde"


async def test_what_is_no_good_answer_is_refused() -> None:
    async with open_issuer() as issuer:
        issuer.pages["/500"] = (500, [], b"secret")
        issuer.pages["/cut"] = (200, ["content-length: 50"], b"abc")
        issuer.pages["/odd"] = (200, ["content-length: 3", "content-length: 4"], b"abcd")
        issuer.pages["/long"] = b"x" * 1001
        issuer.pages["/just"] = b"x" * 1000
        assert await refusal(issuer) == "the answer was 404"
        assert await refusal(issuer, "/500") == "the answer was 500"
        assert "cut off" in await refusal(issuer, "/cut")
        assert "not sound HTTP" in await refusal(issuer, "/odd")
        assert "longer than 1000" in await refusal(issuer, "/long")
        assert len(await get(issuer, "/just")) == 1000


async def test_a_redirect_is_followed_on_the_same_host_only() -> None:
    async with open_issuer() as issuer, open_issuer() as other:
        other.pages["/keys"] = b"theirs"
        issuer.pages["/new"] = b"ours"
        issuer.pages["/keys"] = (302, ["location: /new"], b"")
        assert await get(issuer) == b"ours"
        for location in (f"{other.url}/keys", f"http://localhost:{issuer.port}/new", "https://127.0.0.1/", "file:///x"):
            issuer.pages["/keys"] = (307, [f"location: {location}"], b"")
            assert "another place" in await refusal(issuer)
        assert other.asked == []


async def test_redirects_have_an_end() -> None:
    async with open_issuer() as issuer:
        issuer.pages["/keys"] = (301, ["location: /keys"], b"")
        assert await refusal(issuer) == "too many redirects"
        assert len(issuer.asked) == 4


async def test_nobody_there_and_nobody_who_answers() -> None:
    async with open_issuer() as issuer:
        issuer.away = True
        assert await refusal(issuer)
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        with pytest.raises(FetchFailed, match=r"no answer within 0\.05 s"):
            await fetch(f"http://127.0.0.1:{port}/", timeout=0.05, most=10)
        await listener.aclose()
        with pytest.raises(FetchFailed):
            await fetch(f"http://127.0.0.1:{port}/", timeout=5.0, most=10)


async def test_https_needs_a_certificate_that_is_trusted_and_of_that_name(tmp_path: Path) -> None:
    server, trust = make_tls(tmp_path, "127.0.0.1")
    async with open_issuer(server) as issuer:
        issuer.pages["/keys"] = b"hello"
        assert await fetch(f"{issuer.url}/keys", timeout=5.0, most=10, trust=trust) == b"hello"
        with pytest.raises(FetchFailed, match="not trusted"):
            await fetch(f"{issuer.url}/keys", timeout=5.0, most=10)
        with pytest.raises(FetchFailed, match="not trusted"):
            await fetch(f"https://localhost:{issuer.port}/keys", timeout=5.0, most=10, trust=trust)
        assert issuer.asked == ["/keys"]
