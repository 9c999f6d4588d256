"""A server that runs out of descriptors, as a program (HAZARDS 10): ``python -m tests.stress.fd_exhaustion``.

The server is a child with 64 descriptor numbers in all.  Its clients live here, where there are enough.

1. 58 clients connect.  As many as there are numbers for are served and held; the others are turned away.
2. 30 late clients connect.  All of them see an end within a second.
3. 30 clients connect again and again for 2 s: less than 5 % of a processor, and few lines in the log.
4. 20 of those that are held leave.  The next client is served within 200 ms.
5. The numbers are filled up again, and three threads of the server take and give back what number they find: mostly
   the spare one, in the moment when it is given up, which is drawn out to 0.2 ms one time in ten.  Five times 30
   late clients all see an end, or are served, in time.

``--plant NAME`` puts a bug in: ``spin`` accepts again at once, ``wait`` turns nobody away, ``once`` does not look for a
stolen number again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from unittest import mock

import bbipc
from bbipc.sockets.spare import SpareNumber
from pool.server import ConnectionServer

NUMBERS: Final = 64
HELD: Final = 58
HAMMERED: Final = 2.0  # seconds
LATE: Final = 30
LEAVING: Final = 20
#: of late clients among thieves
ROUNDS: Final = 5
#: seconds that whoever waits for something that should have come by then is given
PATIENCE: Final = 5.0


# The server.


def answer(stream: bbipc.StreamSocket) -> None:
    data = stream.read()
    if data:
        stream.write(data)


class Thieves:
    """Threads that take a number, keep it for 1 ms and give it back.  Where there is none they look 50 times in a row,
    with the processor offered to others between, and rest for 0.5 ms.
    """

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self.taken = 0

    def start(self, count: int) -> None:
        sys.setswitchinterval(1e-6)
        self._stop.clear()
        self._threads = [threading.Thread(target=self._steal, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _steal(self) -> None:
        while not self._stop.is_set():
            for _ in range(50):
                with contextlib.suppress(OSError):
                    number = os.dup(2)
                    self.taken += 1
                    self._stop.wait(0.001)
                    os.close(number)
                os.sched_yield()
            self._stop.wait(0.0005)


class SlowServer(bbipc.IPv4TCPServer):
    """Draws out the moment in which the spare number is free, when it is told to."""

    __slots__ = ("slow",)
    slow: bool

    def accept_connection(self) -> bbipc.IPv4TCPStream:
        if self.slow and random.random() < 0.1:
            time.sleep(0.0002)
        return super().accept_connection()


def make_server() -> SlowServer:
    with mock.patch("bbipc.sockets.tcp.IPv4TCPServer", SlowServer):
        server = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)
    assert isinstance(server, SlowServer)
    server.slow = False
    return server


@contextlib.contextmanager
def planted(bug: str) -> Iterator[None]:
    if bug == "spin":
        with mock.patch("pool.accepting.Accepting._shut_for"):
            with mock.patch.object(SpareNumber, "turn_away", return_value=0):
                yield
    elif bug == "wait":
        with mock.patch.object(SpareNumber, "turn_away", return_value=0):
            yield
    elif bug == "once":
        take, taken = SpareNumber.take, list[bool]()

        def take_once(spare: SpareNumber) -> bool:
            if not taken:
                taken.append(take(spare))
            return spare.held

        with mock.patch.object(SpareNumber, "take", take_once):
            yield
    else:
        yield


def say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def serve(bug: str) -> None:
    """Do what the lines of stdin say; answer each with a line of JSON."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (NUMBERS, NUMBERS))
    thieves = Thieves()
    server = make_server()
    with planted(bug), ConnectionServer(server, answer, per="readiness") as served:
        say(server.port)
        for line in sys.stdin:
            if line == "steal\n":
                server.slow = True
                thieves.start(3)
            elif line == "calm\n":
                thieves.stop()
            times = os.times()
            facts = {"cpu": times.user + times.system, "stolen": thieves.taken, **asdict(served.stats())}
            say(facts)


class Child:
    """The server's process."""

    def __init__(self, bug: str = "none") -> None:
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                __name__ if __name__ != "__main__" else "tests.stress.fd_exhaustion",
                "--serve",
                bug,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._port = int(self._read())
        self.log = ""

    def tell(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        facts: dict[str, Any] = json.loads(self._read())
        return facts

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), 4 * PATIENCE)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def __enter__(self) -> Child:  # noqa: PYI034
        return self

    def __exit__(self, *_error: object) -> None:
        try:
            _, self.log = self._process.communicate(timeout=PATIENCE)
        finally:
            self._process.kill()
            self._process.wait()


# The clients.


@dataclass
class Figures:
    """What was measured; seconds, and shares of one processor."""

    held: int = 0
    late: float = 0.0
    unanswered: int = 0
    cpu: float = 0.0
    connects: int = 0
    served_again: float = 0.0
    late_among_thieves: list[float] = field(default_factory=list)
    unanswered_among_thieves: int = 0
    stolen: int = 0
    log_lines: int = 0
    #: by how much a thread that sleeps for 1 ms was woken too late at worst: what the machine's other work costs
    lag: float = 0.0


@contextlib.contextmanager
def lag_measured(figures: Figures) -> Iterator[None]:
    over = threading.Event()

    def beat() -> None:
        begin = time.monotonic()
        while not over.wait(0.001):
            now = time.monotonic()
            figures.lag, begin = max(figures.lag, now - begin - 0.001), now

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def sort_out(peers: list[socket.socket]) -> tuple[list[socket.socket], int, float]:
    """(those that are served, how many have seen neither an answer nor an end, seconds that it took).

    Each has sent a byte; it comes back, or an end comes.  Those that have seen an end are closed.
    """
    begin = time.monotonic()
    waiting, served = list(peers), []
    while waiting and time.monotonic() - begin < PATIENCE:
        for peer in select.select(waiting, [], [], 0.1)[0]:
            waiting.remove(peer)
            try:
                answered = bool(peer.recv(1))
            except ConnectionResetError:
                answered = False
            if answered:
                served.append(peer)
            else:
                peer.close()
    seconds = time.monotonic() - begin
    for peer in waiting:
        peer.close()
    return served, len(waiting), seconds


def call(child: Child, count: int) -> list[socket.socket]:
    peers = [child.connect() for _ in range(count)]
    for peer in peers:
        with contextlib.suppress(OSError):  # turned away already
            peer.sendall(b"x")
    return peers


def call_until_served(child: Child) -> tuple[list[socket.socket], float]:
    """The one who is served, and when.  Whoever comes into a turn that still turns away comes again."""
    begin = time.monotonic()
    served: list[socket.socket] = []
    while not served and time.monotonic() < begin + PATIENCE:
        served, _, _ = sort_out(call(child, 1))
    return served, time.monotonic() - begin


def hammer(child: Child, seconds: float) -> int:
    """30 clients that connect again as soon as they are turned away; how often."""
    end = time.monotonic() + seconds
    peers = call(child, LATE)
    count = len(peers)
    while time.monotonic() < end:
        for peer in select.select(peers, [], [], 0.05)[0]:
            peers.remove(peer)
            peer.close()
            peers += call(child, 1)
            count += 1
    for peer in peers:
        peer.close()
    return count


def measure(bug: str = "none") -> Figures:
    """All steps."""
    figures = Figures()
    with Child(bug) as child, contextlib.ExitStack() as stack:
        held, _, _ = sort_out(call(child, HELD))
        figures.held = len(held)
        served, figures.unanswered, figures.late = sort_out(call(child, LATE))
        held += served
        cpu, begin = child.tell("stats")["cpu"], time.monotonic()
        figures.connects = hammer(child, HAMMERED)
        figures.cpu = (child.tell("stats")["cpu"] - cpu) / (time.monotonic() - begin)
        sort_out(call(child, 1))  # who hammered may still wait, and is dead by now: their turn comes before this one's
        for _ in range(LEAVING):
            held.pop().close()
        while child.tell("stats")["connections"] > len(held):
            pass
        with lag_measured(figures):
            served, figures.served_again = call_until_served(child)
        more, _, _ = sort_out(call(child, LEAVING + LATE))
        for peer in [*held, *served, *more]:
            stack.callback(peer.close)
        child.tell("steal")
        for _ in range(ROUNDS):
            served, unanswered, seconds = sort_out(call(child, LATE))
            figures.unanswered_among_thieves += unanswered
            figures.late_among_thieves.append(seconds)
            for peer in served:
                stack.callback(peer.close)
        figures.stolen = child.tell("calm")["stolen"]
    figures.log_lines = len(child.log.splitlines())
    return figures


def main() -> None:
    """Be the server, or measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plant", default="none", choices=["none", "spin", "wait", "once"])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
    else:
        sys.stdout.write(f"{measure(args.plant)}\n")


if __name__ == "__main__":
    main()
