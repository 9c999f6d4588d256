"""Message servers and clients in a churn, as a program: ``python -m tests.stress.message_churn [NAME …]``.

Each part prints a line of figures and whether it holds; the exit code is the number of parts that do not.

    behaviours  HAZARDS 51: 5,000 random calls (0, 1, 2 replies, raise, bad values), each runner
    vanish      10,000 connections of 8 threads that leave in any phase, by end, close or reset: nothing is left
    stops       60 servers stopped under load, after a random time and with a random limit: all in time, all peers told
    clients     200 clients closed under the calls of 6 threads: every call settles, no thread or descriptor is left
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import bbipc
from pool import MessageClient, MessageServer, Request
from tests.stress.hostile_server import Child
from tests.stress.message_limits import MIB, Honest, say, until
from tests.support import peers, wire
from tests.support.attacks import Workers, switch_interval
from tests.support.makers import PATIENCE, Worker
from tests.support.peers import reset
from tests.support.wire import BINARY, CLOSE, Frame, tagged
from tests.test_message_handler_attacks import BEHAVIOURS, behave, check

HELLO: Final = wire.string("hello")


def behaviours() -> bool:
    good = 0
    runners: tuple[Workers, Workers] = (None, "inline")
    for workers in runners:
        for seed in range(10):
            dice = random.Random(seed)
            plan = [(dice.choice(BEHAVIOURS), dice.random() < 0.3, dice.random() < 0.5) for _ in range(500)]
            with tempfile.TemporaryDirectory() as directory:
                path = Path(directory) / "server"
                server = MessageServer(bbipc.make_local_server(path), behave, workers=workers, max_message_size=MIB)
                with switch_interval(1e-5), server, peers.connect(path) as peer:
                    good += _ask_all(peer, plan)
    return say("behaviours", good == 10_000, good=good)


def _ask_all(peer: socket.socket, plan: list[tuple[str, bool, bool]]) -> int:
    frames = [
        wire.string(text, mute | wire.TAGGED * with_tag, number * with_tag)
        for number, (text, mute, with_tag) in enumerate(plan)
    ]
    sender = Worker(lambda: peer.sendall(b"".join(frame.encoded() for frame in frames)))
    in_order = [text for text, mute, with_tag in plan if not mute and not with_tag]
    by_tag = {number: text for number, (text, mute, with_tag) in enumerate(plan) if not mute and with_tag}
    while in_order or by_tag:
        frame = wire.receive(peer)
        assert frame is not None
        if frame.flags & wire.TAGGED:
            check(frame, by_tag.pop(frame.word), frame.word)
        else:
            check(frame, in_order.pop(0))
    sender.outcome()
    peer.shutdown(socket.SHUT_WR)
    assert wire.receive_all(peer) == []
    return len(plan)


def vanish() -> bool:
    whole = b"".join(
        [
            HELLO.encoded(),
            tagged(HELLO, 7).encoded(),
            wire.string("big").encoded(),
            Frame(BINARY, bytes(9000)).encoded(),
        ]
    )
    bad = whole[:50] + b"\xff" * 60

    def leave(child: Child, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(1250):
            with child.connect(dice.choice(("local", "tcp"))) as peer, contextlib.suppress(OSError):
                data = dice.choice((whole, whole, whole + Frame(CLOSE).encoded(), bad))
                peer.sendall(data[: dice.randrange(len(data) + 1)])
                manner = dice.randrange(5)
                if manner == 0:
                    peer.shutdown(socket.SHUT_WR)
                elif manner == 1:
                    reset(peer)
                elif manner == 2:
                    peer.settimeout(0.001)
                    peer.recv(dice.randrange(1, 70_000))

    with Child("big", switch_interval=1e-5) as child:
        honest = Honest(child)
        facts = child.facts()
        began = time.monotonic()
        threads = [Worker(partial(leave, child, seed)) for seed in range(8)]
        for thread in threads:
            thread.outcome(300)
        seconds = time.monotonic() - began
        p99 = honest.p99()
        empty = until(lambda: child.facts()["connections"] == 0)
        after = child.facts()
    left = [after[name] for name in ("connections", "in_flight", "waiting", "unverified")]
    more = (after["memory"] - facts["memory"]) / MIB
    holds = empty and left == [0, 0, 0, 0] and more < 100
    return say(
        "vanish", holds, left=left, mib=more, honest_p99_ms=p99, seconds=seconds, errors=after["protocol_errors"]
    )


def stops() -> bool:
    dice = random.Random(3)
    worst = 0.0
    good = True
    threads = set(threading.enumerate())
    for number in range(60):
        workers: Workers = None if number % 2 else "inline"
        limit = dice.choice((0, 0.05, 0.3))
        with tempfile.TemporaryDirectory() as directory, switch_interval(1e-5):
            path = Path(directory) / "server"
            server = MessageServer(bbipc.make_local_server(path), _handle, workers=workers)
            server.start()
            callers = [Worker(partial(_call, path)) for _ in range(6)]
            time.sleep(dice.random() * 0.1)
            began = time.monotonic()
            report = server.stop(limit)
            spent = time.monotonic() - began - limit
            worst = max(worst, spent)
            good &= spent < 2.5 and server.stats().connections == report.abandoned
            for caller in callers:
                caller.outcome()
    good &= until(lambda: set(threading.enumerate()) == threads, 5)
    return say("stops", good, worst_beyond_limit_s=worst)


def _handle(request: Request) -> str | bytes:
    time.sleep(0.001)
    return bytes(2 * MIB) if request.value == "big" else str(request.value)


def _call(path: Path) -> None:
    """Ask until the server is gone; one in ten does not read what it has asked for."""
    dice = random.Random()
    with contextlib.suppress(OSError):
        while True:
            with peers.connect(path) as peer:
                for tag in range(50):
                    peer.sendall(tagged(wire.string(dice.choice(("a", "b", "big"))), tag).encoded())
                    if dice.random() < 0.9:
                        header = wire.receive_exactly(peer, 32)
                        if len(header) < 32:
                            break
                        wire.receive_exactly(peer, wire.HEADER.unpack(header)[2])


def clients() -> bool:
    dice = random.Random(9)
    counts = {"answered": 0, "ended": 0}
    lock = threading.Lock()
    numbers = len(os.listdir("/proc/self/fd"))
    threads = set(threading.enumerate())

    def call(client: MessageClient, start: threading.Barrier) -> None:
        start.wait(PATIENCE)
        futures = []
        with contextlib.suppress(OSError, RuntimeError):
            while True:
                futures.append(client.submit("future"))
                assert client.send("call") == "call"
                with lock:
                    counts["answered"] += 1
        for future in futures:
            outcome = future.exception(PATIENCE)
            assert outcome is None or isinstance(outcome, (OSError, RuntimeError)), outcome
        with lock:
            counts["ended"] += 1

    with Child() as child, switch_interval(1e-6):
        for _ in range(200):
            client = MessageClient(child.path)
            start = threading.Barrier(7)
            callers = [Worker(partial(call, client, start)) for _ in range(6)]
            start.wait(PATIENCE)
            time.sleep(dice.random() * 0.02)
            began = time.monotonic()
            client.close()
            assert time.monotonic() - began < 2
            for caller in callers:
                caller.outcome()
    gone = until(lambda: set(threading.enumerate()) == threads, 5)
    holds = gone and counts["ended"] == 1200 and len(os.listdir("/proc/self/fd")) <= numbers + 1
    return say("clients", holds, **counts)


PART: Final[dict[str, Callable[[], bool]]] = {fn.__name__: fn for fn in (behaviours, vanish, stops, clients)}


if __name__ == "__main__":
    sys.exit(sum(not PART[name]() for name in sys.argv[1:] or PART))
