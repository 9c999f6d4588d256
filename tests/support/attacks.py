"""What attacks on message servers have in common: one on a local path that must be empty at the end, and gates."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import bbipc
from pool import MessageServer, Request
from tests.support import peers, wire
from tests.support.makers import PATIENCE
from tests.support.serving import until

HELLO = wire.string("hello")
Workers = Literal["inline"] | None
either_way = pytest.mark.parametrize("workers", [None, "inline"], ids=["workers", "inline"])


class Served:
    """A server on a local path."""

    def __init__(self, path: Path, handler: Callable[[Request], Any], **options: Any) -> None:
        self.path = path
        self.server = MessageServer(bbipc.make_local_server(path), handler, **options)

    def connect(self) -> socket.socket:
        return peers.connect(self.path)

    @property
    def connections(self) -> int:
        return self.server.stats().connections

    def is_empty(self) -> bool:
        stats = self.server.stats()
        return (stats.connections, stats.in_flight, stats.waiting, stats.unverified) == (0, 0, 0, 0)

    def works(self) -> bool:
        """Whether somebody honest is served."""
        with self.connect() as peer:
            peer.sendall(HELLO.encoded())
            return wire.receive(peer) == HELLO


def echo(request: Request) -> Any:
    return request.value


@contextlib.contextmanager
def served(directory: Path, handler: Callable[[Request], Any] = echo, **options: Any) -> Iterator[Served]:
    """At the end nothing may be left of any connection."""
    it = Served(directory / "server", handler, **options)
    it.server.start()
    try:
        yield it
        until(it.is_empty)
    finally:
        it.server.stop(PATIENCE)


@contextlib.contextmanager
def switch_interval(seconds: float = 1e-6) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Gate:
    """A handler that waits for requests of "wait" until it is opened; others are echoed."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, request: Request) -> Any:
        if request.value == "wait":
            self.entered.release()
            assert self.open.wait(PATIENCE)
        return request.value

    def wait(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=PATIENCE)


@contextlib.contextmanager
def opened(gate: Gate) -> Iterator[None]:
    """Whatever happens, it is opened at the end."""
    try:
        yield
    finally:
        gate.open.set()
