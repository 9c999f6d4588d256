"""Forks, the interpreter's exit, Ctrl-C, signal handlers and finalizers: what happens round a polling loop."""

# mypy: disable-error-code="func-returns-value"

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any
from unittest import mock

import pytest

import bbipc
from bbipc import PollerClosedError, SocketClosedError, SocketEvent
from pool import lifecycle
from pool.polling_loop import PollingLoop
from tests.stress import interrupted_calls
from tests.support.alarm import Closer, alarms
from tests.support.loops import NOTHING, dealt_out, left, on_thread, pair, pairs
from tests.support.makers import PATIENCE, Worker
from tests.test_fork import in_child

DATA = SocketEvent.DATA_AVAILABLE
END = SocketEvent.REMOTE_DISCONNECTED
EXIT = 2.0  # seconds between the end of the main program and that of the process

FORKS = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings(r"ignore:.*use of fork\(\) may lead to deadlocks:DeprecationWarning"),
]


def forks(test: Callable[..., None]) -> Callable[..., None]:
    for mark in FORKS:
        test = mark(test)
    return test


def nothing(*args: object) -> None:
    """A callback."""


# Forks.


def refusals(loop: PollingLoop, one: bbipc.Socket) -> list[str]:
    told = []
    for call in (
        lambda: loop.when(one, DATA),
        lambda: loop.monitor(one, DATA, nothing),
        lambda: loop.call_later(0, nothing),
        loop.__enter__,
    ):
        try:
            call()
        except PollerClosedError as error:
            told.append(str(error))
    return told


REFUSAL = "this poller thread belongs to the process that forked this one; make another"


@forks
def test_a_child_is_refused_and_harms_nobody(backend: str) -> None:
    with pairs(2) as ((one, other), (two, another)), PollingLoop(bbipc.make_poller(backend)) as loop:
        future, silent = loop.when(one, DATA, timeout=60), loop.when(another, DATA)
        timer = loop.call_later(60, nothing)
        told = threading.Semaphore(0)
        monitor = loop.monitor(two, DATA, lambda socket, events: (two.read(), told.release()))

        def use() -> list[str]:
            said = refusals(loop, one)
            monitor.pause()
            monitor.resume()
            monitor.cancel()
            for future_ in (future, timer):
                future_.cancel()
            one.close()
            repr(loop)
            repr(monitor)
            loop.close()
            loop.close()
            return [*said, str(loop.closed), str(loop.is_current())]

        assert in_child(use) == [REFUSAL] * 4 + ["True", "False"]
        assert left(loop)[1] == 3
        other.write(b"x")
        another.write(b"x")
        assert future.result(PATIENCE) == DATA
        assert told.acquire(timeout=PATIENCE)
        two.write(b"x")
        assert silent.result(PATIENCE) == DATA
        assert timer.cancel()


@forks
@pytest.mark.parametrize("lock", ["table", "timers", "poller"])
def test_a_lock_that_was_held_at_the_fork_holds_no_child_up(lock: str) -> None:
    """By a thread that is not there: who waits for it waits for ever."""
    held, done = threading.Event(), threading.Event()
    with pair() as (one, _), PollingLoop() as loop:
        future, timer = loop.when(one, DATA, timeout=60), loop.call_later(60, nothing)
        monitor = loop.monitor(one, DATA, nothing)
        assert loop._poller is not None
        locks = {"table": loop._lock, "timers": loop._timers._lock, "poller": loop._poller._lock}

        def hold() -> None:
            with locks[lock]:
                held.set()
                assert done.wait(PATIENCE)

        def use() -> list[str]:
            said = refusals(loop, one)
            monitor.cancel()
            future.cancel()
            timer.cancel()
            repr(loop)
            one.close()
            loop.close()
            return said

        holder = Worker(hold)
        try:
            assert held.wait(PATIENCE)
            told = in_child(use, 5)
        finally:
            done.set()
            holder.outcome()
        assert told == [REFUSAL] * 4
        monitor.cancel()
        assert future.cancel()


@forks
def test_a_child_of_a_callback_lets_go_of_the_parents_poller() -> None:
    """There the forking thread has the poller thread's number, and is another one all the same."""

    def use(loop: PollingLoop) -> list[bool]:
        said = [loop.is_current()]
        loop.close()
        assert loop._poller is not None
        return [*said, loop._poller.closed]

    with PollingLoop() as loop:
        assert on_thread(loop, lambda: in_child(lambda: use(loop))) == [False, True]
        assert on_thread(loop, loop.is_current)


@forks
def test_children_talk_with_loops_of_their_own_while_the_parent_goes_on() -> None:
    """30 forks during full traffic: each child exchanges 10 messages, and the parent's echo never errs (HAZARDS 55)."""
    stop = threading.Event()

    def echo(socket: bbipc.Socket, events: SocketEvent) -> None:
        assert isinstance(socket, bbipc.LocalStream)
        data = socket.read()
        if data:
            socket.write(data)

    def talk(loop: PollingLoop, times: int) -> int:
        count = 0
        with pair() as (client, server):
            monitor = loop.monitor(server, DATA, echo)
            while count < times and not stop.is_set():
                client.write(b"%d" % count)
                assert loop.when(client, DATA, timeout=PATIENCE).result(PATIENCE) == DATA
                assert client.read() == b"%d" % count
                count += 1
            monitor.cancel()
        return count

    def in_a_loop_of_its_own() -> int:
        stop.clear()
        with PollingLoop() as loop:
            return talk(loop, 10)

    with PollingLoop() as loop:
        talkers = [Worker(lambda: talk(loop, 1 << 30)) for _ in range(2)]
        try:
            assert [in_child(in_a_loop_of_its_own) for _ in range(30)] == [10] * 30
        finally:
            stop.set()
        assert all(talker.outcome() for talker in talkers)
        assert left(loop) == NOTHING


# The exit of the interpreter, in programs of their own (HAZARDS 38).

SETUP = """
    import os, signal, sys, threading, time, bbipc
    from bbipc import SocketEvent
    from pool.poller_thread import PollerThread
    DATA = SocketEvent.DATA_AVAILABLE
    one, other = bbipc.local_stream_pair()
    loop = PollerThread()
    loop.call_later(0, int).result()
    entered = threading.Event()
    def block():
        entered.set()
        threading.Event().wait()
    def ready():
        print(time.monotonic(), flush=True)
    def nothing(*args): pass
"""
ENDINGS: dict[str, tuple[str, int | str]] = {
    "nothing closed": ("", 0),
    "closed": ("loop.close()", 0),
    "never used": ("unused = PollerThread()", 0),
    "with block": ("with loop: pass", 0),
    "futures pending": (
        """
        futures = [loop.when(one, DATA), loop.when(one, DATA, timeout=60), loop.call_later(60, nothing)]
        loop.monitor(one, DATA, nothing)
        """,
        0,
    ),
    "a daemon thread waits for a future": (
        "f = loop.when(one, DATA)\nthreading.Thread(target=f.exception, daemon=True).start()",
        0,
    ),
    "a callback blocks": ("loop.call_later(0, block)\nentered.wait()", 0),
    "a callback is busy": ("loop.monitor(one, SocketEvent.READY_TO_WRITE, nothing)", 0),
    "an exception": ("ready()\nraise ValueError('mine')", "ValueError: mine"),
    "sys.exit": ("ready()\nsys.exit(3)", 3),
    "sys.exit in a thread": ("t = threading.Thread(target=sys.exit)\nt.start()\nt.join()", 0),
    "sys.exit in a callback": ("f = loop.call_later(0, sys.exit)\nf.exception()", 0),
    "SIGTERM": (
        "f = loop.when(one, DATA)\nready()\nos.kill(os.getpid(), signal.SIGTERM)\nthreading.Event().wait()",
        -15,
    ),
    "SIGINT": (
        "f = loop.when(one, DATA)\nready()\nos.kill(os.getpid(), signal.SIGINT)\nf.result()",
        "KeyboardInterrupt",
    ),
    "os._exit": ("ready()\nos._exit(4)", 4),
    "closed by atexit": ("import atexit\natexit.register(loop.close)", 0),
    "closed by atexit, registered first": (
        "import atexit\natexit.register(lambda: (loop.close(), one.close()))\nf = loop.when(one, DATA)",
        0,
    ),
    "used by atexit": (
        """
        import atexit
        def late():
            try: loop.call_later(0, nothing)
            except bbipc.PollerClosedError: pass
        atexit.register(late)
        """,
        0,
    ),
    "a callback of the last futures uses the loop": (
        """
        def again(future):
            try: loop.call_later(0, nothing)
            except bbipc.PollerClosedError: pass
        loop.when(one, DATA).add_done_callback(again)
        """,
        0,
    ),
    "closed in a finalizer": (
        """
        class Owner:
            def __init__(self): self.loop = loop
            def __del__(self): self.loop.close(0.5)
        owner = Owner()
        owner.me = owner
        """,
        0,
    ),
    "many loops": ("loops = [PollerThread() for _ in range(20)]\nfor each in loops: each.call_later(60, nothing)", 0),
    "a forked child": (
        """
        f = loop.when(one, DATA)
        child = os.fork()
        if child == 0:
            with PollerThread() as mine: mine.call_later(0, int).result(5)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        0,
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_exits_in_time_with_the_right_code_and_quietly(ending: str) -> None:
    body, expected = ENDINGS[ending]
    program = textwrap.dedent(SETUP) + textwrap.dedent(body) + "\nready()\n"
    command = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore:This process:DeprecationWarning",
        "-W",
        "ignore::ResourceWarning",
    ]
    done = subprocess.run([*command, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    late = time.monotonic() - float(done.stdout.split()[-1])
    if isinstance(expected, str):
        assert done.stderr.splitlines()[-1] == expected
        assert done.stderr.count("Traceback") == 1
        assert done.returncode in (1, -signal.SIGINT)
    else:
        assert (done.returncode, done.stderr) == (expected, "")
    assert late < EXIT


def test_at_the_exit_all_that_wait_are_told() -> None:
    """The thread has ended in good order: nothing of it runs while the interpreter is taken apart."""
    body = """
        def tell(future):
            print(type(future.exception(0)).__name__)
        for future in (loop.when(one, DATA), loop.call_later(60, nothing)):
            future.add_done_callback(tell)
        loop.monitor(other, DATA, nothing, on_close=lambda error: print("on_close"))
    """
    program = textwrap.dedent(SETUP) + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert sorted(done.stdout.split()) == ["PollerClosedError", "PollerClosedError", "on_close"]


def test_the_exit_waits_for_all_owners_together() -> None:
    """Two that hang delay it no longer than one; whoever is stopped is told first, and waited for then."""
    told: list[str] = []

    class Owner:
        def __init__(self, name: str) -> None:
            self.name = name

        def stop_soon(self) -> None:
            told.append("stop")

        def wait_until(self, deadline: float) -> None:
            told.append("wait")
            deadlines.append(deadline)

    deadlines: list[float] = []
    with mock.patch.object(lifecycle, "_owners", lifecycle._Owners()) as owners:
        kept = [Owner(name) for name in "abc"]
        for owner in kept:
            lifecycle.stop_at_exit(owner)
        lifecycle.stop_at_exit(Owner("dropped"))
        gc.collect()
        assert not lifecycle.exiting()
        owners.stop_all()
        assert lifecycle.exiting()
        assert told == ["stop"] * 3 + ["wait"] * 3
        assert len(set(deadlines)) == 1
        assert deadlines[0] - time.monotonic() <= lifecycle.EXIT_PATIENCE
        loop = PollingLoop()
        with pytest.raises(PollerClosedError):
            loop.call_later(0, nothing)
        loop.close()


# Ctrl-C, signal handlers, finalizers.


@pytest.mark.parametrize("kind", ["PollingLoop", "Writing", "Reading", "Connecting", "Pooling", "Serving"])
@pytest.mark.parametrize("way", ["at every moment", "by an alarm"])
def test_a_ctrl_c_inside_any_call_has_no_consequences(way: str, kind: str) -> None:
    """Some 3,400 moments inside 46 calls, and 4 s of alarms: see tests/stress/interrupts.py (HAZARDS 37)."""
    options = ["--alarms", "0.7"] if way == "by an alarm" else []
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.stress.interrupts",
        *options,
        *interrupted_calls.NAMES[kind],
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    *wrong, summary = done.stdout.splitlines()
    assert wrong == []
    assert summary.endswith("interrupts, 0 with consequences")


@pytest.fixture(name="loop")
def a_loop() -> Iterator[PollingLoop]:
    with PollingLoop() as loop:
        yield loop


def test_a_signal_handler_may_close_what_the_main_thread_is_using(loop: PollingLoop) -> None:
    """1,500 rounds under a timer of 0.2 ms whose handler closes the very sockets: never stuck, nothing left."""
    closer = Closer()
    futures = []
    with alarms(closer, 0.0002):
        for _ in range(1500):
            one, other = bbipc.local_stream_pair()
            closer.current[:] = [one, other]
            try:
                monitor = loop.monitor(one, DATA, nothing)
                futures.append(loop.when(one, END))
                futures.append(loop.when(other, DATA, timeout=60))
                monitor.pause()
                monitor.resume()
                futures.append(loop.when(one, DATA))
                monitor.cancel()
            except SocketClosedError:
                pass
            one.close()
            other.close()
    assert closer.hits > 10, "the timer never hit"
    assert not wait(futures, PATIENCE).not_done
    dealt_out(loop)
    assert left(loop) == NOTHING


def test_a_signal_handler_may_use_the_loop(loop: PollingLoop) -> None:
    """It registers, cancels and adds timers itself, inside of calls of its own thread."""
    with pairs(2) as ((one, _), (two, _)):
        count = [0]

        def handler() -> None:
            count[0] += 1
            loop.when(two, DATA, timeout=60).cancel()
            loop.monitor(one, END, nothing).cancel()
            loop.call_later(60, nothing).cancel()

        with alarms(handler, 0.0005):
            for _ in range(1000):
                futures: list[Future[Any]] = [loop.when(one, DATA), loop.when(two, DATA), loop.call_later(60, nothing)]
                monitor = loop.monitor(one, DATA, nothing)
                monitor.set_events(END)
                monitor.cancel()
                assert all(future.cancel() for future in futures)
                assert not wait(futures, PATIENCE).not_done
        assert count[0] > 10, "the timer never hit"
        dealt_out(loop)
        assert left(loop) == NOTHING


class Owner:
    """Closes its socket when the collector finds it: anywhere, in any thread."""

    def __init__(self, socket: bbipc.Socket) -> None:
        self.socket = socket
        self.me = self

    def __del__(self) -> None:
        self.socket.close()


def test_finalizers_may_close_sockets_in_the_middle_of_anything(loop: PollingLoop) -> None:
    """1,000 sockets in circles, while the collector runs all the time, in all threads (HAZARDS 43)."""
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    futures = []
    owners: list[weakref.ref[Owner]] = []
    try:
        for _ in range(500):
            one, other = bbipc.local_stream_pair()
            loop.monitor(one, DATA, nothing)
            loop.monitor(one, END, nothing)
            futures += [loop.when(other, DATA, timeout=60), loop.when(one, DATA)]
            owners += [weakref.ref(Owner(one)), weakref.ref(Owner(other))]
            del one, other
    finally:
        gc.set_threshold(*threshold)
    while any(owner() for owner in owners):
        gc.collect()  # which does nothing while another thread collects
    assert not wait(futures, PATIENCE).not_done
    dealt_out(loop)
    assert left(loop) == NOTHING


def test_a_handler_inside_a_close_of_a_socket_may_close_the_loop(loop: PollingLoop) -> None:
    """There its own thread holds the poller's lock, which the poller thread waits for, with the table's in hand."""
    with pair() as (one, _):
        monitor = loop.monitor(one, DATA, nothing)
        poller = loop._poller
        assert poller is not None

        def cancel() -> None:
            entered.set()
            assert inside.wait(PATIENCE)
            monitor.cancel()

        def close_inside() -> None:
            cancelling = loop.call_later(0, cancel)
            assert entered.wait(PATIENCE)
            with poller._lock:
                inside.set()
                while loop._lock.acquire(blocking=False):  # until the poller thread has it, and waits for ours
                    loop._lock.release()
                loop.close(0.05)
                assert not cancelling.done()

        entered, inside = threading.Event(), threading.Event()
        Worker(close_inside).outcome(3)
    loop.close()
