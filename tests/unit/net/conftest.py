"""Pollers and sockets that are closed after the test."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from proxy.net.poller import Poller

Pair = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.fixture
def poller() -> Iterator[Poller]:
    made = Poller()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Make connected, non-blocking socket pairs."""
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        ends = socket.socketpair()
        made.extend(ends)
        for end in ends:
            end.setblocking(False)
        return ends

    yield make
    for sock in made:
        sock.close()
