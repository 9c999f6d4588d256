"""The server of ``bbipc demo``: a process of its own.

Law of this file: it tells its figures four times a second, and ends when its stdin does.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from bbipc import Address, parse_address
from pool import MessageServer, WorkerPool
from pool.cli.children import be_child, stdin_ended, tell
from pool.requests import Request

_EVERY: Final = 0.25


def answer(request: Request) -> str | bytes:
    """A text in capitals, and bytes from last to first: something that the client can check."""
    value = request.value
    return value.upper() if isinstance(value, str) else request.payload[::-1]


def serve(words: list[str]) -> None:
    """Serve at an address with a number of workers (0: as many as the pool thinks fit)."""
    address, workers = words
    listening = parse_address(address).listen()
    with WorkerPool(int(workers) or None) as pool, MessageServer(listening, answer, workers=pool) as server:
        tell({"address": str(Address.of(listening))})
        while not stdin_ended(_EVERY):
            tell(asdict(server.stats()))
        report = server.stop(5)
        tell({**asdict(server.stats()), **asdict(report)})


if __name__ == "__main__":
    be_child(serve)
