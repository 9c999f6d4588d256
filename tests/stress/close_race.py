"""The race of close against use, as a program: ``python -m tests.stress.close_race [--plant] [ROUNDS]``.

Each round, two users hammer one socket with an operation until they are told that it is closed.  A closer closes it,
and at once opens another of the same kind, which is given the lowest free number: the closed one's, if that was freed.
The new one holds a secret.  A user who reads it, or whose bytes arrive at the new peer, has reached a stranger.

``--plant`` puts a plain close in the place of the tombstone: the bug that the race must find.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from unittest import mock

import bbipc
from bbipc.sockets.handle import Handle

SECRET = b"secret of another connection"
MARK = b"mark of the users"
_names = itertools.count()


def plain_close(handle: Handle, *, shut_down: bool) -> None:
    """What the tombstone is instead of."""
    handle.close()


def _read(stream: bbipc.StreamSocket) -> bytes:
    return stream.read() or b""


def _read_into(stream: bbipc.StreamSocket) -> bytes:
    buffer = bytearray(64)
    count = stream.read_into(buffer)
    return bytes(buffer[:count]) if count else b""


def _write(stream: bbipc.StreamSocket) -> bytes:
    stream.write(MARK)
    return b""


def _write_vector(stream: bbipc.StreamSocket) -> bytes:
    stream.write_vector([MARK])
    return b""


def _shutdown(stream: bbipc.StreamSocket) -> bytes:
    stream.shutdown_write()
    return b""


def _poll(stream: bbipc.StreamSocket) -> bytes:
    return SECRET if stream.data_available() else b""


OPERATIONS: dict[str, Callable[[bbipc.StreamSocket], bytes]] = {
    "read": _read,
    "read_into": _read_into,
    "write": _write,
    "write_vector": _write_vector,
    "shutdown_write": _shutdown,
    "data_available": _poll,
}


class StreamRace:
    """The race for one operation on streams."""

    def __init__(self, operation: str, rounds: int, users: int = 2) -> None:
        self._operate = OPERATIONS[operation]
        self._rounds = rounds
        self._barrier = threading.Barrier(users + 1)
        self._target: bbipc.StreamSocket | None = None
        self._at_it = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._use, daemon=True) for _ in range(users)]
        self.strangers = 0
        self.errors: list[BaseException] = []

    def run(self) -> int:
        """How many rounds reached a stranger; raises what a user met and should not have."""
        for thread in self._threads:
            thread.start()
        for _ in range(self._rounds):
            self._round()
            if self.errors:
                self._barrier.abort()
                raise self.errors[0]
        for thread in self._threads:
            thread.join(10)
        return self.strangers

    def _round(self) -> None:
        target, peer = bbipc.local_stream_pair()
        self._target = target
        self._barrier.wait(30)
        for _ in self._threads:  # close only when all are at it
            assert self._at_it.acquire(timeout=30)
        target.close()
        new, new_peer = bbipc.local_stream_pair()
        new_peer.write(SECRET)
        self._barrier.wait(30)
        untouched = new.read() == SECRET and new_peer.read() is None
        self.strangers += not untouched
        for socket in (peer, new, new_peer):
            socket.close()

    def _use(self) -> None:
        for _ in range(self._rounds):
            self._barrier.wait(30)
            target = self._target
            assert target is not None
            try:
                self._operate(target)
                self._at_it.release()
                while SECRET not in self._operate(target):
                    pass
            except bbipc.SocketClosedError:
                pass
            except (bbipc.SocketError, ValueError) as error:  # ValueError: poll, of a number that a plain close took
                self.errors.append(error)
            self._barrier.wait(30)


class AcceptRace:
    """The same for accept_connection: the new server has a caller waiting, who must not be taken by the users."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._barrier = threading.Barrier(3)
        self._target: bbipc.StreamServer | None = None
        self._threads = [threading.Thread(target=self._use, daemon=True) for _ in range(2)]
        self.strangers = 0

    def run(self) -> int:
        """How many callers of another server were taken."""
        for thread in self._threads:
            thread.start()
        for _ in range(self._rounds):
            with self._server() as target:
                self._target = target
                self._barrier.wait(30)
            with self._server() as new, bbipc.connect_to_local_server(new.path):
                self._barrier.wait(30)
                self.strangers += not new.connection_available()
        for thread in self._threads:
            thread.join(10)
        return self.strangers

    def _server(self) -> bbipc.LocalServer:
        return bbipc.make_local_server(f"\0bbipc-race-{id(self)}-{next(_names)}-{threading.get_native_id()}")

    def _use(self) -> None:
        for _ in range(self._rounds):
            self._barrier.wait(30)
            assert isinstance(self._target, bbipc.LocalServer)
            try:
                while True:
                    with contextlib.suppress(bbipc.NoConnectionAvailableError):
                        self._target.accept_connection().close()
            except bbipc.SocketClosedError:
                pass
            self._barrier.wait(30)


@contextlib.contextmanager
def switch_interval(seconds: float) -> Iterator[None]:
    """Threads change as often as that: what is rare becomes common."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def rounds_of(rounds: int) -> int:
    """Without a GIL a round on one processor takes 50 to 140 ms instead of 4, and finds the bug 3 times as often."""
    return rounds if getattr(sys, "_is_gil_enabled", lambda: True)() else rounds // 20


@contextlib.contextmanager
def pinned_to_one_cpu() -> Iterator[None]:
    """This thread, and those that it starts, share one processor.

    A thread that gives up the GIL for its system call is then often put to sleep right there, before the call begins:
    the gap in which its number can be given to another.
    """
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice(sorted(before))})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    """Run all races and say what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plant", action="store_true")
    parser.add_argument("rounds", type=int, nargs="?", default=4000)
    args = parser.parse_args()
    planted = mock.patch("bbipc.sockets.base.end", plain_close) if args.plant else contextlib.nullcontext()
    with planted, pinned_to_one_cpu(), switch_interval(1e-6):
        for name in OPERATIONS:
            race = StreamRace(name, args.rounds)
            try:
                print(f"{name}: {race.run()} of {args.rounds} closes reached a stranger")
            except (bbipc.SocketError, ValueError) as error:
                print(f"{name}: {race.strangers} of {args.rounds} closes reached a stranger, then {error!r}")
        print(f"accept_connection: {AcceptRace(args.rounds).run()} of {args.rounds} closes reached a stranger")


if __name__ == "__main__":
    main()
