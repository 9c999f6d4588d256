"""HAZARDS 23, 45 to 52 in their full sizes, as a program: ``python -m tests.stress.message_limits [NAME …]``.

The server is a child; memory and processor time are its own.  Each part prints one line of figures and whether it
holds what the row promises; the exit code is the number of parts that do not.

    claims      46: 1,000 clients with the largest length and no body: less than 70 MB
    pieces      46: 8 clients that send 5 MiB in pieces of 2 bytes: what came, and 1 MiB each
    silent      47: 50 clients that never read 64 KiB and 4 MiB replies: less than 600 MB, honest p99 < 50 ms
    slow        48: 500 clients at a byte every 0.5 s: all cut by their deadline + 1 s, honest p99 < 50 ms
    splits      49: every split of 3 messages, and 5,000 random segmentations
    flips       50: every single bit of messages of 0, 1, 64 and 1,024 bytes, and 2,000 bursts
    junk        52: 4 peers with 5 MiB of junk at a time, for 20 s: honest p99 < 60 ms
    oversize    23: 1,000 requests that are too large: at least 999 see the message
    hoard            64 peers that fill the memory for incomplete messages, and drip: all cut, 100 kB of others in 1 s
    endless     23: who streams for ever, slowly or fast, is cut after 2 s, or 8 MiB
    late        45: 20,000 calls of 8 threads, a fifth cancelled, a fifth out of time: no wrong answer
"""

from __future__ import annotations

import contextlib
import itertools
import random
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Final

from bbipc.messages import Message, encode
from pool import MessageClient
from tests.interop.engine import in_two, send_apart
from tests.stress.hostile_server import Child
from tests.support import wire
from tests.support.makers import PATIENCE, Worker
from tests.support.wire import BINARY, LIMIT, Frame

MIB: Final = 1 << 20
HELLO: Final = wire.string("hello")
PART: dict[str, Callable[[], bool]] = {}


def part(fn: Callable[[], bool]) -> Callable[[], bool]:
    PART[fn.__name__] = fn
    return fn


def say(name: str, holds: bool, **figures: object) -> bool:
    text = "  ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
    )
    sys.stdout.write(f"{name:10} {'holds' if holds else 'FAILS'}  {text}\n")
    sys.stdout.flush()
    return holds


def until(fact: Callable[[], bool], seconds: float = 2 * PATIENCE) -> bool:
    """Whether it came about in time."""
    deadline = time.monotonic() + seconds
    pace = threading.Event()
    while not fact():
        if time.monotonic() > deadline:
            return False
        pace.wait(0.02)
    return True


class Honest:
    """A client that asks small things all the time, and how long each took."""

    def __init__(self, child: Child, pause: float = 0.002) -> None:
        self.times: list[float] = []
        self._ending = threading.Event()
        self._pause = pause
        self._peer = child.connect()
        self._worker = Worker(self._ask)

    def _ask(self) -> None:
        with self._peer as peer:
            while not self._ending.wait(self._pause):
                began = time.monotonic()
                peer.sendall(HELLO.encoded())
                assert wire.receive(peer) == HELLO
                self.times.append(time.monotonic() - began)

    def p99(self) -> float:
        """End; milliseconds."""
        self._ending.set()
        self._worker.outcome()
        assert len(self.times) > 50, len(self.times)
        return sorted(self.times)[int(len(self.times) * 0.99)] * 1000


@contextlib.contextmanager
def clients(child: Child, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(child.connect("tcp" if number % 2 else "local")) for number in range(count)]


@part
def claims() -> bool:
    with Child(max_connections=2000) as child:
        before = child.facts()["memory"]
        with clients(child, 1000) as all_of_them:
            for peer in all_of_them:
                peer.sendall(Frame(BINARY).header(LIMIT - 1, check=0))
            arrived = until(lambda: child.facts()["connections"] == 1000)
            more = (child.facts()["memory"] - before) / MIB
            honest = Honest(child)
            time.sleep(1)
            p99 = honest.p99()
        return say("claims", arrived and more < 70 and p99 < 50, mib=more, honest_p99_ms=p99)


@part
def pieces() -> bool:
    with Child(min_body_rate=0) as child:
        before = child.facts()["memory"]
        share = MIB
        with clients(child, 8) as all_of_them:
            for peer in all_of_them:
                peer.sendall(Frame(BINARY).header(LIMIT - 1, check=0))
            for _ in range(share // 2):
                for peer in all_of_them:
                    peer.sendall(b"ab")
            facts = child.facts()
            more = (facts["memory"] - before) / MIB
        return say("pieces", more < 8 * 2 + 8, mib=more, sent_mib=8, unverified_mib=facts["unverified"] / MIB)


@part
def silent() -> bool:
    good = True
    for handler in ("big", "huge"):
        with Child(handler) as child:
            before = child.facts()["memory"]
            ask = wire.string("big").encoded() * 500
            with clients(child, 50) as all_of_them:
                honest = Honest(child)
                for peer in all_of_them:
                    peer.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        peer.send(ask)
                worst = 0
                for _ in range(25):
                    time.sleep(0.2)
                    worst = max(worst, child.facts()["memory"] - before)
                p99 = honest.p99()
            good &= say(f"silent {handler}", worst < 600 * MIB and p99 < 50, mib=worst / MIB, honest_p99_ms=p99)
    return good


@part
def slow() -> bool:
    """A half of them stops in the header, the other half in the body."""
    with Child(header_timeout=4.0) as child, clients(child, 500) as all_of_them:
        honest = Honest(child)
        header = Frame(BINARY).header(10_000, check=0)
        gone: dict[int, float] = {}
        for peer in all_of_them:
            peer.setblocking(False)
        for peer in all_of_them[250:]:
            peer.send(header)
        began = time.monotonic()
        while len(gone) < 500 and time.monotonic() - began < 12:
            for number, peer in enumerate(all_of_them):
                if number in gone:
                    continue
                try:
                    peer.send(header[:1])
                    if peer.recv(1000) == b"":
                        gone[number] = time.monotonic() - began
                except BlockingIOError:
                    pass
                except OSError:
                    gone[number] = time.monotonic() - began
            time.sleep(0.5)
        p99 = honest.p99()
        head = max([gone.get(number, 99.0) for number in range(250)])
        body = max([gone.get(number, 99.0) for number in range(250, 500)])
        # 0.5 s of it are this program's own pace
        holds = head < 4 + 1.5 and body < 5 + 1 + 1.5 and p99 < 50
        return say("slow", holds, cut=len(gone), last_in_header_s=head, last_in_body_s=body, honest_p99_ms=p99)


@part
def splits() -> bool:
    whole = b"".join([HELLO.encoded(), Frame(BINARY, b"\0\1").encoded(), wire.string("").encoded()])
    dice = random.Random(1)
    wrong = 0
    with Child() as child, child.connect() as peer:
        for at in range(1, len(whole)):
            send_apart(peer, in_two(at)([whole]))
            wrong += wire.receive_exactly(peer, len(whole)) != whole
        send_apart(peer, [bytes([byte]) for byte in whole])
        wrong += wire.receive_exactly(peer, len(whole)) != whole
        for _ in range(5000):
            cuts = sorted({0, len(whole), *(dice.randrange(len(whole)) for _ in range(dice.randrange(1, 12)))})
            for start, end in itertools.pairwise(cuts):
                peer.sendall(whole[start:end])
            wrong += wire.receive_exactly(peer, len(whole)) != whole
    return say("splits", not wrong, wrong=wrong, splits=len(whole) - 1, segmentations=5000)


@part
def flips() -> bool:
    dice = random.Random(2)
    tried = accepted = 0
    began = time.monotonic()
    with Child() as child:

        def attempt(data: bytes) -> None:
            nonlocal tried, accepted
            tried += 1
            with child.connect() as peer:
                peer.sendall(data)
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_WR)
                accepted += any(not frame.flags & wire.FAILED for frame in wire.receive_all(peer))

        for size in (0, 1, 64, 1024):
            whole = Frame(BINARY, dice.randbytes(size)).encoded()
            for bit in range(8 * len(whole)):
                flipped = bytearray(whole)
                flipped[bit // 8] ^= 1 << bit % 8
                attempt(bytes(flipped))
        whole = Frame(BINARY, dice.randbytes(64)).encoded()
        for _ in range(2000):
            number = int.from_bytes(whole, "little")
            burst = dice.randrange(1, 1 << dice.randrange(1, 65)) << dice.randrange(8 * len(whole) - 64)
            attempt((number ^ burst).to_bytes(len(whole), "little"))
        handled = child.facts()["requests"]
    return say("flips", not accepted and not handled, tried=tried, accepted=accepted, seconds=time.monotonic() - began)


@part
def hoard() -> bool:
    """14 of them have sent 4.7 MiB, 50 have sent 6 kB; each goes on with 10 bytes every 0.1 s."""
    ending = threading.Event()
    waited = []

    def drip(hoarders: list[socket.socket]) -> None:
        while not ending.wait(0.1):
            for peer in hoarders:
                with contextlib.suppress(OSError):
                    peer.send(b"y" * 10, socket.MSG_DONTWAIT)

    whole = Frame(BINARY, bytes(100_000)).encoded()
    with Child() as child, contextlib.ExitStack() as stack:
        hoarders = [stack.enter_context(child.connect()) for _ in range(64)]
        for number, peer in enumerate(hoarders):
            peer.settimeout(0.2)
            with contextlib.suppress(OSError):
                peer.sendall(Frame(BINARY).header(LIMIT - 1, check=0))
                peer.sendall(b"x" * (LIMIT - 300_000 if number < 14 else 6000))
        dripping = Worker(lambda: drip(hoarders))
        began = time.monotonic()
        while time.monotonic() - began < 40 and child.facts()["connections"]:
            with child.connect() as peer:
                peer.settimeout(60)
                asked = time.monotonic()
                peer.sendall(whole)
                assert wire.receive_exactly(peer, len(whole)) == whole
                waited.append(time.monotonic() - asked)
            time.sleep(0.5)
        ending.set()
        dripping.outcome()
        facts = child.facts()
    cut = sum(number for name, number in facts.items() if name.startswith("cut_for_"))
    return say("hoard", cut == 64 and max(waited) < 1, cut=cut, longest_wait_s=max(waited), mib=facts["memory"] / MIB)


@part
def junk() -> bool:
    data = Frame(BINARY, bytes(LIMIT - 1)).header(check=1) + bytes(LIMIT - 1)
    ending = threading.Event()
    sent = [0]

    def send(child: Child) -> None:
        while not ending.is_set():
            with child.connect() as peer, contextlib.suppress(OSError):
                peer.sendall(data)
                wire.receive(peer)
                sent[0] += 1

    with Child() as child:
        honest = Honest(child)
        workers = [Worker(lambda: send(child)) for _ in range(4)]
        time.sleep(20)
        ending.set()
        for worker in workers:
            worker.outcome()
        p99 = honest.p99()
        facts = child.facts()
    return say("junk", p99 < 60, honest_p99_ms=p99, asked=len(honest.times), messages=sent[0], cpu_s=facts["cpu"])


@part
def oversize() -> bool:
    told = 0
    data = bytes(MIB)
    with Child() as child:
        for number in range(1000):
            with child.connect("tcp" if number % 2 else "local") as peer, contextlib.suppress(OSError, AssertionError):
                with contextlib.suppress(OSError):
                    peer.sendall(Frame(BINARY).header(6 * MIB))
                    for _ in range(6):
                        peer.sendall(data)
                frame = wire.receive(peer)
                told += frame is not None and frame.text.startswith("MessageTooLargeError")
        empty = until(lambda: child.facts()["connections"] == 0)
    return say("oversize", told >= 999 and empty, told=told)


@part
def endless() -> bool:
    good = True
    for kind, piece, pause in (("local", 100, 0.002), ("tcp", 100, 0.002), ("tcp", 1 << 16, 0.0)):
        with Child() as child, child.connect(kind) as peer:
            began = time.monotonic()
            total = 0
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - began < 8:
                    total += peer.send(b"\xee" * piece)
                    time.sleep(pause)
            seconds = time.monotonic() - began
            good &= say(f"endless {kind[0]}{piece}", seconds < 3, seconds=seconds, mib=total / MIB)
    return good


@part
def late() -> bool:
    """And every thread's calls that nobody gave up must have been answered."""
    counts = dict.fromkeys(("right", "wrong", "timeout", "cancelled"), 0)
    lock = threading.Lock()

    def work(client: MessageClient, thread: int) -> None:
        dice = random.Random(thread)
        for number in range(2500):
            text = f"{thread}/{number}/" + "x" * dice.randrange(5)
            future = client.submit(text, timeout=0.001 if dice.random() < 0.2 else 20)
            if dice.random() < 0.2:
                future.cancel()
            try:
                what = "right" if future.result(PATIENCE) == text else "wrong"
            except CancelledError:
                what = "cancelled"
            except TimeoutError:
                what = "timeout"
            with lock:
                counts[what] += 1

    sys.setswitchinterval(1e-5)
    began = time.monotonic()
    with Child("slow") as child, MessageClient(child.path) as client:
        workers = [Worker(lambda thread=thread: work(client, thread)) for thread in range(8)]  # type: ignore[misc]
        for worker in workers:
            worker.outcome(300)
        dropped = client.stats()
    sys.setswitchinterval(0.005)
    say("", True, client=dropped)
    holds = not counts["wrong"] and sum(counts.values()) == 20_000
    return say("late", holds, **counts, seconds=time.monotonic() - began)


def main(names: list[str]) -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    assert encode(Message.string("hello")) == HELLO.encoded()
    return sum(not PART[name]() for name in names or PART)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
