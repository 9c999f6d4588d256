"""Ctrl-C at every place inside the calls of ``pool``, as a program: ``python -m tests.stress.interrupts [NAME …]``.

CPython looks at signals when a function begins and when a call of a C function returns.  A profiler is told of just
these moments.  So each call is made again and again, and interrupted at its 1st, 2nd, 3rd … such moment, until it gets
through.  After each interrupt another thread uses the same loop: nobody may wait for a lock that was left held, the
poller thread least of all.  And what the table says is what the poller does, so that nothing spins.  Here are the calls
of a polling loop; ``interrupted_calls.py`` has those of what is built on it.

``--alarms SECONDS`` takes a real signal at random times instead.

The program shares the process with nobody, since an interrupt may also hit what a test-suite runs in the main thread.
From CPython 3.14 on, ``with lock`` looks at signals between taking the lock and being responsible for it; there these
moments are left out.  Our own locks have none of them (``bbipc/sockets/locks.py``): the alarms are for them.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from types import FrameType

import bbipc
from bbipc import SocketEvent
from pool.parties import Monitor
from pool.polling_loop import PollingLoop
from tests.stress.interrupted_calls import CASES, NAMES, AboveCase
from tests.support.makers import Worker, is_asleep

DATA = SocketEvent.DATA_AVAILABLE
WRITE = SocketEvent.READY_TO_WRITE
END = SocketEvent.REMOTE_DISCONNECTED
PING = 0.5  # seconds within which the loop has to answer
LOCKS = (type(threading.Lock()), type(threading.RLock()))


class Interrupt(BaseException):
    """What a signal handler raises."""


def nothing(*args: object) -> None:
    """A callback."""


class Case:
    """One call on a loop that is in use, and what there has to be for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop = PollingLoop()
        self.one, self.other = bbipc.local_stream_pair()
        self.monitor: Monitor | None = None
        self.futures: list[Future[object]] = []
        if name == "first use":
            return
        self.loop.call_later(0, nothing).result(PING)
        if name in {"cancel", "pause", "resume", "set_events", "close of a socket", "cancel of one of two"}:
            self.monitor = self.loop.monitor(self.one, DATA, nothing)
        if name in {"cancel of one of two", "monitor beside another"}:
            self.loop.monitor(self.one, END, nothing)
        if name == "resume":
            assert self.monitor is not None
            self.monitor.pause()
        if name in {"close", "close of a socket"}:
            self.futures += [self.loop.when(self.one, END), self.loop.when(self.one, DATA, timeout=60)]  # type: ignore[list-item]
        if name == "close":
            self.futures.append(self.loop.call_later(60, nothing))

    def call(self) -> Callable[[], object]:
        """What is to be interrupted."""
        loop, one = self.loop, self.one
        monitor: Monitor = self.monitor  # type: ignore[assignment]
        calls: dict[str, Callable[[], object]] = {
            "when": lambda: loop.when(one, DATA),
            "when with a timeout": lambda: loop.when(one, DATA, timeout=60),
            "when, and it is there": lambda: loop.when(one, WRITE),
            "monitor": lambda: loop.monitor(one, END, nothing),
            "monitor beside another": lambda: loop.monitor(one, END | WRITE, nothing),
            "cancel": lambda: monitor.cancel(),  # noqa: PLW0108
            "cancel of one of two": lambda: monitor.cancel(),  # noqa: PLW0108
            "pause": lambda: monitor.pause(),  # noqa: PLW0108
            "resume": lambda: monitor.resume(),  # noqa: PLW0108
            "set_events": lambda: monitor.set_events(END),
            "call_later": lambda: loop.call_later(60, nothing),
            "call_later, and it is due": lambda: loop.call_later(0, nothing),
            "close of a socket": lambda: one.close(),  # noqa: PLW0108
            "first use": lambda: loop.call_later(60, nothing),
            "close": lambda: loop.close(),  # noqa: PLW0108
            "repr": lambda: repr(loop),
        }
        return calls[self.name]

    def check(self) -> None:
        """Called in another thread behind the interrupt: all is in order."""
        if self.name == "close" and self.loop.closed:
            self.loop.close(PING)
            assert self.loop._thread is not None
            assert not self.loop._thread.is_alive(), "the thread does not end"
        else:
            self._ping()
            self._compare()
        if self.name in {"close", "close of a socket"} and (self.loop.closed or self.one.closed):
            late = wait(self.futures, PING).not_done
            assert self.one.closed or not late, f"never settled: {late}"
            assert self.loop.closed or len(late) <= len(self.futures) - 2, f"never settled: {late}"
        self.loop.close(PING)
        thread = self.loop._thread
        assert thread is None or not thread.is_alive(), "the thread does not end"
        assert self.loop._poller is None or self.loop._poller.closed, "the poller stays open"

    def _ping(self) -> None:
        one, other = bbipc.local_stream_pair()
        with one, other:
            future = self.loop.when(one, DATA)
            other.write(b"x")
            assert future.result(PING) == DATA
        self.loop.call_later(0, nothing).result(PING)
        self.loop.call_later(0, nothing).result(PING)

    def _compare(self) -> None:
        table, poller, thread = self.loop._interests, self.loop._poller, self.loop._thread
        assert poller is not None
        assert thread is not None
        assert set(poller.monitored_sockets()) <= set(table._table), "a socket in the poller that nobody waits for"
        if self.one.closed:
            return
        self.other.write(b"x")
        wanted = sum({party.wanted for party in table.parties_of(self.one)})
        if not wanted & (DATA | WRITE).value:
            end = time.monotonic() + PING
            while not is_asleep(thread):
                assert time.monotonic() < end, "the thread spins"

    def drop(self) -> None:
        """The call got through."""
        with contextlib.suppress(bbipc.PollerClosedError):
            self.loop.close()

    def end(self) -> None:
        """Behind the check."""
        self.one.close()
        self.other.close()


def make(name: str) -> Case | AboveCase:
    """The case of the call *name*."""
    return CASES[name](name) if name in CASES else Case(name)


def left_out(event: str, frame: FrameType, arg: object) -> bool:
    """A moment of a plain lock's; see the head of this file."""
    own = getattr(arg, "__self__", None)
    return sys.version_info >= (3, 14) and getattr(arg, "__name__", "") == "__enter__" and isinstance(own, LOCKS)


def at_step(step: int, call: Callable[[], object]) -> str | None:
    """Interrupt *call* at its *step*th moment; where that was, ``None``: it got through."""
    seen = 0
    place = ""

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal seen, place
        if event not in {"call", "c_return"} or left_out(event, frame, arg):
            return
        seen += 1
        if seen == step:
            stack: list[str] = []
            above: FrameType | None = frame
            while above is not None and above.f_code.co_name != "<lambda>" and len(stack) < 6:
                stack.append(f"{above.f_code.co_name}:{above.f_lineno}")
                above = above.f_back
            place = f"{event} {getattr(arg, '__name__', '')} in {' < '.join(stack)}"
            raise Interrupt

    try:
        sys.setprofile(profile)
        call()
        sys.setprofile(None)
    except (Interrupt, RuntimeError):  # what threading's own locks make of it
        pass
    finally:
        sys.setprofile(None)
    return place or None  # in a finalizer it is swallowed: the call goes on


def steps(name: str) -> Iterator[str | None]:
    """Each step of the call *name*: what went wrong there."""
    step = 0
    while True:
        step += 1
        case = make(name)
        place = at_step(step, case.call())
        if place is None:
            case.drop()
            case.end()
            return
        yield judge(case, f"step {step}, {place}")


def judge(case: Case | AboveCase, where: str) -> str | None:
    """What is wrong behind the interrupt."""
    try:
        Worker(case.check).outcome(8 * PING)
    except BaseException as error:
        return f"{case.name}: {where}: {type(error).__name__}: {error}"
    finally:
        case.end()
    return None


def alarms(name: str, seconds: float) -> Iterator[str | None]:
    """The call *name* under a real signal at random times."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        case = make(name)
        call = case.call()
        hit = False
        try:
            try:
                armed.append(True)
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-6, 2e-4))
                call()
            finally:
                armed.clear()
                signal.setitimer(signal.ITIMER_REAL, 0)
        except (Interrupt, RuntimeError):  # what threading's own locks make of it
            hit = True
        if hit:
            yield judge(case, "an alarm")
        else:
            case.drop()
            case.end()


#: not empty while an alarm is wanted.  The kernel may give it to another thread, which tells of it some time later
armed: list[bool] = []


def ring(number: int, frame: FrameType | None) -> None:
    """The handler."""
    if armed:
        armed.clear()
        raise Interrupt


def main() -> None:
    """Interrupt all calls, or one, and say what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alarms", type=float, default=0, metavar="SECONDS")
    parser.add_argument("names", nargs="*", default=[name for names in NAMES.values() for name in names])
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, ring)
    sys.unraisablehook = nothing  # an interrupt in a finalizer
    count = wrong = 0
    for name in args.names:
        outcomes = alarms(name, args.alarms / len(args.names)) if args.alarms else steps(name)
        for outcome in outcomes:
            count += 1
            if outcome is not None:
                wrong += 1
                print(outcome, flush=True)
    print(f"{count} interrupts, {wrong} with consequences", flush=True)
    os._exit(min(wrong, 1))  # whatever is stuck


if __name__ == "__main__":
    main()
