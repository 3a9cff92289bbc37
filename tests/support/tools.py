"""Programs of other people: found or the test is skipped, run with a limit, their figures read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.support.apps import free_socket

_SEARCH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin"


def tool(name: str) -> str:
    """The path of a program. Skips the calling test when it is not installed."""
    found = shutil.which(name) or shutil.which(name, path=_SEARCH)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


async def run(command: list[str], seconds: float = 60.0) -> str:
    """Standard output of ``command``; fails with its standard error when it does not end with 0."""
    with trio.fail_after(seconds):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout.decode()[-2000:]}\n{done.stderr.decode()[-2000:]}"
    return done.stdout.decode("utf-8", "replace")


def h2load_counts(output: str) -> dict[str, int]:
    """h2load's ``requests:`` line: total, started, done, succeeded, failed, errored, timeout; and its 2xx count."""
    line = re.search(r"^requests: (.*)$", output, re.MULTILINE)
    codes = re.search(r"^status codes: (\d+) 2xx", output, re.MULTILINE)
    assert line is not None, output
    assert codes is not None, output
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", line[1])}
    return {**counts, "2xx": int(codes[1])}


_NGINX = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    keepalive_timeout {keep_alive};
    keepalive_requests 1000000;
    gzip on;
    gzip_min_length 1;
    gzip_types text/plain;
    gzip_proxied any;
    server {{
        listen 127.0.0.1:{port}{h2c};
        root {folder}/www;
        location = /empty {{ return 204; }}
        location = /text {{ default_type text/plain; return 200 "connection $connection"; }}
        location = /moved {{ return 302 /text; }}
    }}
}}
"""


@asynccontextmanager
async def run_nginx(folder: Path, *, http2: bool = False, keep_alive: str = "75s") -> AsyncIterator[int]:
    """nginx as an app; its port. ``folder/www`` is what it serves."""
    program = tool("nginx")
    sock, port = free_socket()
    sock.close()
    # Started by root, nginx would serve as nobody, who may not read a test's folder.
    user = "user root;" if os.geteuid() == 0 else ""
    h2c = " http2" if http2 else ""
    config = _NGINX.format(folder=folder, port=port, keep_alive=keep_alive, h2c=h2c, user=user)
    command = _prepare(folder, program, config)
    process = await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with trio.fail_after(10):
            while not await _answers(port):
                assert process.poll() is None, _log(folder)
                await trio.sleep(0.02)
        yield port
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()


def _prepare(folder: Path, program: str, config: str) -> list[str]:
    (folder / "www").mkdir(parents=True, exist_ok=True)
    (folder / "nginx.conf").write_text(config)
    return [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def _log(folder: Path) -> str:
    return (folder / "error.log").read_text()[-2000:]


async def _answers(port: int) -> bool:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True
