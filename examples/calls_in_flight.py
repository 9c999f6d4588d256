"""A client that keeps many calls in flight on one connection, and deals with the answers as they come.

python examples/calls_in_flight.py [--calls N] [--in-flight N] [--local PATH | --host H --port P]

A call is a line, its number and a text, "17 call 17"; the answer, "17 CALL 17", has the same number, and may overtake
others.  Without --local or --port the server is in this program, and takes up to 20 ms over each answer.
"""

import argparse
import random
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from functools import partial
from itertools import islice

import bbipc
from pool import FutureStream, PollerThread, WorkerPool

PATIENCE = 10.0  # seconds
DELAY = 0.02  # seconds


class Calls:
    """Calls on one connection; any thread may make them."""

    def __init__(self, stream: FutureStream) -> None:
        self.stream = stream
        self.lock = threading.Lock()  # guards the three below
        self.made = 0
        self.error: BaseException | None = None  # why nobody is answered any more
        self.waiting: dict[int, Future[str]] = {}
        stream.read_until(b"\n").add_done_callback(self._answered)

    def call(self, text: str) -> Future[str]:
        """The answer to *text*."""
        future: Future[str] = Future()
        with self.lock:
            self.made += 1
            number = self.made
            self.waiting[number] = future
        self.stream.write(f"{number} {text}\n".encode()).add_done_callback(self._sent)
        if self.error:  # it came before this call was among those that wait, or has been told to it
            self._fail(self.error)
        return future

    def _sent(self, writing: Future[int]) -> None:
        if error := writing.exception():
            self._fail(error)

    def _answered(self, reading: Future[bytes]) -> None:
        while reading.done():  # a loop, and no chain of callbacks: many answers may be there already
            if error := reading.exception():  # the end, or a reset
                return self._fail(error)
            number, _, text = reading.result().decode(errors="replace").rstrip("\n").partition(" ")
            with self.lock:
                future = self.waiting.pop(int(number) if number.isdecimal() else 0, None)
            if future is None:
                return self._fail(ValueError(f"nobody has asked for the answer {number!r}"))
            if future.set_running_or_notify_cancel():
                future.set_result(text)
            reading = self.stream.read_until(b"\n")
        return reading.add_done_callback(self._answered)

    def _fail(self, error: BaseException) -> None:
        with self.lock:
            self.error = error = self.error or error  # the first one tells why
            waiting, self.waiting = self.waiting, {}
        self.stream.close(flush=False)
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def as_they_come(calls: Iterator[Future[str]], in_flight: int) -> Iterator[Future[str]]:
    """*calls* as they are done; for each the next one is made, so *in_flight* of them are under way all the time."""
    flying = set(islice(calls, in_flight))
    while flying:
        done = next(as_completed(flying, timeout=PATIENCE))
        flying.remove(done)
        flying.update(islice(calls, 1))
        yield done


def run(client: Calls, count: int, in_flight: int) -> None:
    began = time.perf_counter()
    calls = (client.call(f"call {number}") for number in range(1, count + 1))
    answers = [future.result() for future in as_they_come(calls, in_flight)]
    spent = time.perf_counter() - began
    numbers = [int(answer.removeprefix("CALL ")) for answer in answers]
    overtaken = sum(number < max(numbers[:at], default=0) for at, number in enumerate(numbers))
    print(f"{len(set(numbers))} calls, {in_flight} in flight: {spent:.2f} s, {count / spent:.0f} a second")
    print(f"{overtaken} answers were overtaken by a later call's")


def serve(stream: FutureStream, thread: PollerThread, reading: Future[bytes]) -> None:
    """The server in this program."""
    while reading.done():
        if reading.exception():
            stream.close(flush=False)
            return
        try:
            thread.call_later(random.uniform(0, DELAY), stream.write, reading.result().upper())
        except bbipc.PollerClosedError:  # the program ends
            return
        reading = stream.read_until(b"\n")
    reading.add_done_callback(partial(serve, stream, thread))


def connect(args: argparse.Namespace, thread: PollerThread) -> FutureStream:
    if args.local:
        return thread.connect_local(args.local, timeout=PATIENCE).result()
    if args.port:
        return thread.connect_ipv4(args.host, args.port, timeout=PATIENCE).result()
    ours, theirs = (FutureStream(stream, thread) for stream in bbipc.local_stream_pair())
    serve(theirs, thread, theirs.read_until(b"\n"))
    return ours


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000, metavar="N")
    parser.add_argument("--in-flight", type=int, default=100, metavar="N")
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int)
    args = parser.parse_args()
    try:
        with WorkerPool(1) as threads, PollerThread() as thread, connect(args, thread) as connection:
            # The main thread only waits.  A Ctrl-C in the middle of as_completed would leave futures locked.
            threads.submit(run, Calls(connection), args.calls, args.in_flight).result()
    except KeyboardInterrupt:
        print("calls in flight: bye")
    except (OSError, EOFError, ValueError) as error:
        sys.exit(f"calls in flight: {error}")
