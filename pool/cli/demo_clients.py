"""Clients of ``bbipc demo``: a process of threads that share one connection, and check every answer.

Law of this file: it tells its figures four times a second, and ends when its time is up or its stdin ends.
"""

from __future__ import annotations

import random
import string
import time
from concurrent.futures import Future, wait
from dataclasses import asdict
from typing import Final

from bbipc import parse_address
from pool import MessageClient, WorkerPool
from pool.cli.children import be_child, stdin_ended, tell
from pool.cli.tally import Tally, added_up

_EVERY: Final = 0.25
#: seconds for an answer
_PATIENCE: Final = 20.0


class Caller:
    """One thread: asks again and again, until it is over."""

    def __init__(self, name: str, client: MessageClient, end: float) -> None:
        self.tally = Tally()
        self.end = end  # on time.monotonic; anybody may bring it forward
        self._client = client
        self._random = random.Random(name)  # noqa: S311
        self._name = name

    def call(self) -> None:
        """Ask until the end.

        :raises OSError: the connection was lost
        :raises RuntimeError: the server failed
        """
        while time.monotonic() < self.end:
            question = self._question()
            right = question.upper() if isinstance(question, str) else question[::-1]
            began = time.perf_counter()
            answer = self._client.send(question, timeout=_PATIENCE)
            self.tally.count(time.perf_counter() - began, 2 * len(question), right=answer == right)

    def _question(self) -> str | bytes:
        """Three short texts, then some kilobytes."""
        number = self.tally.answers
        if number % 4 == 3:
            return self._random.randbytes(self._random.randrange(4096))
        letter = self._random.choice(string.ascii_lowercase)
        return f"{self._name}, question {number}: {letter * self._random.randrange(200)}"


def call_all(words: list[str]) -> None:
    """Call the server at an address, from a number of threads, for some seconds, as a name."""
    address, threads, seconds, name = words
    end = time.monotonic() + float(seconds)
    with MessageClient(parse_address(address)) as client, WorkerPool(int(threads)) as pool:
        callers = [Caller(f"{name}.{number}", client, end) for number in range(int(threads))]
        calling = [pool.submit(caller.call) for caller in callers]
        _watch(callers, calling)
        for each in calling:
            each.result()


def _watch(callers: list[Caller], calling: list[Future[None]]) -> None:
    began = time.monotonic()
    over = False
    while not over:
        ended = stdin_ended(_EVERY) or any(each.done() and each.exception() for each in calling)
        if ended:
            for caller in callers:
                caller.end = 0.0
            wait(calling, _PATIENCE)
        over = ended or all(each.done() for each in calling)
        tally = added_up([caller.tally for caller in callers])
        tell({**asdict(tally), "seconds": time.monotonic() - began})


if __name__ == "__main__":
    be_child(call_all)
