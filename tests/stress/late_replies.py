"""Late replies, as a program: ``python -m tests.stress.late_replies [--calls N] [--plant]`` (HAZARDS 45).

Threads share one client.  Each call has a payload of its own.  A fifth is cancelled, a fifth runs out of time while the
server holds the reply back, to send it among those of later calls; the tags wrap at 2**32 on the way.  Every reply must
be that of its call, and every late one must have come for nobody.

The full size is 20,000 calls.  ``--plant`` gives a reply to the oldest call, whatever its tag: the bug to be found.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
from collections import Counter, deque
from concurrent.futures import CancelledError
from pathlib import Path
from unittest import mock

from bbipc.messages import Message
from pool import MessageClient
from pool.pending import Pending
from tests.support.messaging import Peer, ScriptedServer, requests_of
from tests.support.serving import until

THREADS = 8
#: replies that the server holds back at once
HELD = 24


def holding_back(peer: Peer) -> None:
    """Answers at once, but what begins with "late" many requests later; the last ones never."""
    held: deque[Message] = deque()
    for request in requests_of(peer):
        if request.payload.startswith(b"late"):
            held.append(request)
        else:
            peer.answer(request)
        if len(held) > HELD:
            peer.answer(held.popleft())


def to_the_oldest(pending: Pending, inbox: deque[Message]) -> None:
    """The bug: no tag is looked at."""
    while inbox:
        message = inbox.popleft()
        for call in list(pending.table.values())[:1]:
            call.settle(message)
            pending.remove(call)


class LateReplies:
    """*calls* by THREADS threads over one connection; ``faults`` and ``outcomes`` are counted."""

    def __init__(self, seed: int = 0) -> None:
        self.faults: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.late = 0
        self._seed = seed
        self._lock = threading.Lock()

    def run(self, calls: int, directory: Path) -> None:
        path = directory / "s"
        with ScriptedServer(holding_back, path), MessageClient(path) as client:
            client._connections.first_tag = 2**32 - calls // 2
            client.send(b"first")
            threads = [
                threading.Thread(target=self._call, args=(client, number, calls // THREADS), daemon=True)
                for number in range(THREADS)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(100)
                if thread.is_alive():
                    self.faults["a thread hangs"] += 1
            until(lambda: not client.stats().in_flight)  # a reply is crossed off behind its delivery
            self.late = client.stats().late
            self.faults["connected anew"] += client.stats().connections - 1

    def _call(self, client: MessageClient, number: int, calls: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        outcomes: Counter[str] = Counter()
        faults: Counter[str] = Counter()
        for index in range(calls):
            name = f"{number}.{index}"
            dice = chance.random()
            try:
                if dice < 0.2:
                    self._cancelled(client, f"{chance.choice(['late', 'soon'])} {name}".encode(), outcomes, faults)
                elif dice < 0.4:
                    self._timed_out(client, f"late {name}".encode(), outcomes, faults, future=dice < 0.3)
                else:
                    self._answered(client, f"soon {name}".encode(), outcomes, faults, future=dice < 0.6)
            except Exception as error:
                faults[repr(error)] += 1
        with self._lock:
            self.outcomes += outcomes
            self.faults += faults

    @staticmethod
    def _cancelled(client: MessageClient, payload: bytes, outcomes: Counter[str], faults: Counter[str]) -> None:
        future = client.submit(payload)
        if future.cancel():
            outcomes["cancelled"] += 1
            try:
                future.result(0)
                faults["a result after a cancel"] += 1
            except CancelledError:
                pass
        else:
            outcomes["too late to cancel"] += 1
            faults["mismatch"] += future.result(0) != payload.upper()

    @staticmethod
    def _timed_out(
        client: MessageClient, payload: bytes, outcomes: Counter[str], faults: Counter[str], *, future: bool
    ) -> None:
        try:
            reply = client.submit(payload, timeout=0.002).result(10) if future else client.send(payload, timeout=0.002)
        except TimeoutError:
            outcomes["timed out"] += 1
        else:
            outcomes["answered"] += 1
            faults["mismatch"] += reply != payload.upper()

    @staticmethod
    def _answered(
        client: MessageClient, payload: bytes, outcomes: Counter[str], faults: Counter[str], *, future: bool
    ) -> None:
        reply = client.submit(payload).result(10) if future else client.send(payload, timeout=10)
        outcomes["answered"] += 1
        faults["mismatch"] += reply != payload.upper()


def planted() -> mock._patch[object]:
    return mock.patch.object(Pending, "deal_out", to_the_oldest)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--plant", action="store_true")
    words = parser.parse_args()
    race = LateReplies()
    with tempfile.TemporaryDirectory() as directory:
        if words.plant:
            with planted():
                race.run(words.calls, Path(directory))
        else:
            race.run(words.calls, Path(directory))
    faults = +race.faults
    print(f"{dict(race.outcomes)}, {race.late} replies came for nobody, faults: {dict(faults)}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
