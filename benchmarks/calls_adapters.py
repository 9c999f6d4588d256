"""Calls of bytes by messages: our side of ``calls.py``.

Law of this file: the public names of bbipc and pool only, and nothing of this package: it may also be run by its path,
for whoever wants a dict ADAPTERS of classes with ``serve``, ``client`` and ``client_futures`` (see ``call_peers.py``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Literal, cast

import bbipc
from pool import MessageClient, MessageServer, Request, WorkerPool

BACKLOG: Final = 4096
#: seconds in which an answer is looked for before the thread sleeps
SPIN: Final = 100e-6


def capitals(request: Request) -> bytes:
    return cast(bytes, request.value).upper()


def serve(path: str, workers: Literal["inline"] | WorkerPool | None, listening: Callable[[], None]) -> None:
    server = MessageServer(
        bbipc.make_local_server(path, backlog=BACKLOG), capitals, workers=workers, max_connections=BACKLOG
    )
    server.start()
    listening()
    server.serve_forever()


def nothing() -> None:
    pass


class Workers:
    """Handlers on workers, the default; each client has a connection of its own."""

    @staticmethod
    def serve(path: str, listening: Callable[[], None] = nothing) -> None:
        serve(path, None, listening)

    @staticmethod
    def client(path: str) -> Callable[[bytes], object]:
        return MessageClient(path).send

    @staticmethod
    def client_futures(path: str) -> Callable[[bytes], Future[object]]:
        return cast(Callable[[bytes], Future[object]], MessageClient(path).submit)


class Inline(Workers):
    """Handlers on the poller thread."""

    @staticmethod
    def serve(path: str, listening: Callable[[], None] = nothing) -> None:
        serve(path, "inline", listening)


class Spinning(Workers):
    """A client that looks for its answer, and a worker that looks for requests, before they sleep."""

    @staticmethod
    def serve(path: str, listening: Callable[[], None] = nothing) -> None:
        serve(path, WorkerPool(spin=SPIN), listening)

    @staticmethod
    def client(path: str) -> Callable[[bytes], object]:
        return MessageClient(path, spin=SPIN).send


class Shared(Workers):
    """One client, and so one connection, for all threads."""

    @staticmethod
    def client(path: str) -> Callable[[bytes], object]:
        return the_client(path).send


the_client: Final = functools.cache(MessageClient)


ADAPTERS: Final[dict[str, type[Workers]]] = {
    "bbipc": Workers,
    "bbipc_inline": Inline,
    "bbipc_spin": Spinning,
    "bbipc_shared": Shared,
}
