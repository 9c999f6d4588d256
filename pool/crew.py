"""Crew: worker threads, and the queue that they take their tasks from.

Law of this file: it knows nothing of sockets.  Threads are daemons, started when there is more to do than there are
idle ones, up to a limit, and stay.  A worker that has nothing to do asks its *duty* first (leading, see ``leader.py``)
and sleeps on the queue otherwise.  Tasks run with no lock held; what they raise goes to their futures.

How a sleeping worker is woken, and no wake is lost.  Every worker has a lock of his own to sleep on, his *bed*; those
in ``_beds`` belong to workers who sleep, or are about to, and whom nobody has called yet.

1. Whoever has something to do for others puts it down, and then calls the sleeper who lay down last: lets go of his
   bed, and takes it out of ``_beds``.  Both under the lock, in this order: a Ctrl-C in between loses nothing.
2. Whoever is about to sleep finds no task and adds his bed under the same lock.
3. Then he looks whether there is a duty to take over.  Whoever lays one down does that first, and looks for sleepers
   afterwards: one of the two sees the other.

A worker that is just free may take the task before the sleeper is awake, who then looks around and sleeps again.
Under the lock nothing waits, and no code of a user's runs.  (No SimpleQueue: on CPython 3.11 and 3.12 a ``get`` with a
timeout may wait for ever where there are several consumers.)
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from typing import Final

from bbipc.sockets import fork
from bbipc.sockets.locks import make_rlock
from pool import lifecycle, reports
from pool.duty import Duty, NoDuty
from pool.tasks import AnyTask

#: seconds until a nudge asks the system for one more thread again, where it had none
SHORT: Final = 1.0

logger = logging.getLogger(__name__)


class _Gate:
    """Somebody who waits for a place in the queue, and what he wants to put there."""

    __slots__ = ("task", "lock", "refused", "holds_worker")

    def __init__(self, task: AnyTask, *, holds_worker: bool) -> None:
        """*holds_worker*: he is a worker himself, and waits without limit."""
        self.task = task
        self.refused = False
        self.holds_worker = holds_worker
        self.lock = threading.Lock()
        self.lock.acquire()  # let go by whoever puts the task into the queue, or refuses it


class Crew:
    """The threads of one pool.

    It does not know the pool: one that nobody holds any more can be collected, and ends its crew.  *limit*: how many
    tasks may wait in the queue; ``None``: any number.  *initialize*: called first in every thread.
    """

    def __init__(
        self, max_workers: int, *, name: str, limit: int | None, initialize: Callable[[], object] | None
    ) -> None:
        self.max_workers = max_workers
        self.threads: set[threading.Thread] = set()
        self.duty: Duty = NoDuty()
        self.ending = False
        self._broken: BaseException | None = None
        self.name = name
        self._limit = limit
        self._initialize = initialize
        self._lock = make_rlock()
        self.tasks: deque[AnyTask] = deque()  # those that wait for a worker; to be looked at by anybody
        self._beds: list[threading.Lock] = []
        self._all_beds: tuple[threading.Lock, ...] = ()  # of all workers, for who may take no lock
        self._gates: deque[_Gate] = deque()
        self._joining: set[threading.Thread] = set()  # workers that wait for the others to end
        self._short_until = 0.0  # the system had no thread for us when we asked last
        self._generation = fork.generation

    # Any thread.

    def check(self) -> None:
        """Whether something new may be begun.

        :raises RuntimeError: no: it was shut down, it is the parent's, the interpreter exits
        :raises BrokenThreadPool: no: the initializer has failed
        """
        if self._generation != fork.generation:
            raise RuntimeError("this pool belongs to the process that forked this one; make another")
        if self._broken is not None:
            raise BrokenThreadPool("the initializer of a worker has failed") from self._broken
        if self.ending:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if lifecycle.exiting():
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    def put(self, task: AnyTask, timeout: float | None, *, urgent: bool = False) -> bool:
        """Let a worker run *task*; False: there was no place in the queue for *timeout* seconds, or never would be.

        *urgent*: whatever the limit of the queue says.
        """
        self.check()
        with self._lock:
            self.check()
            room = urgent or self._limit is None or len(self.tasks) < self._limit
            taken = not room or self._put_locked(task)
            gate = None if room or timeout == 0 else self._queue_up_locked(task, timeout)
        if not taken:  # asked behind the lock: a duty has a lock of its own, and may need ours with it in hand
            self.duty.interrupt()
        if gate is None:
            return room
        try:
            gate.lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
        finally:
            with self._lock:
                waiting = gate in self._gates
                if waiting:
                    self._gates.remove(gate)
        if gate.refused:
            self.check()
        return not waiting

    def nudge(self) -> bool:
        """One more worker is to look around; False: there is none to spare.

        :raises RuntimeError: there is none at all, and the system has no thread
        """
        if self._generation != fork.generation:
            return False
        with self._lock:
            # Without any worker nobody would come to look when the system has threads again.
            may_spawn = not self.threads or time.monotonic() >= self._short_until
            return not self.ending and (self._rouse_locked() or (may_spawn and self._spawn_locked()))

    def try_take(self) -> AnyTask | None:
        """A task, if one waits."""
        if not self.tasks:
            return None
        with self._lock:
            task, lonely = self._take_locked()
        if lonely:
            self.duty.interrupt()
        return task

    def idle(self) -> int:
        """How many workers sleep, and have not been called."""
        return len(self._beds)

    def spare(self) -> int:
        """So many, and those that may still be started."""
        return len(self._beds) + (0 if time.monotonic() < self._short_until else self.max_workers - len(self.threads))

    def end(self) -> None:
        """What is in the queue is still done; then the threads end."""
        with self._lock:
            self.ending = True
            for gate in tuple(self._gates):  # a Ctrl-C in the middle leaves the rest to a second call
                gate.refused = True
                with contextlib.suppress(RuntimeError):
                    gate.lock.release()
                with contextlib.suppress(ValueError):  # a signal handler in here has shut the pool down as well
                    self._gates.remove(gate)
            for _ in range(len(self._beds)):
                self._rouse_locked()
        self.duty.interrupt()

    def abandon(self) -> None:
        """The same from a finalizer, which may be inside any lock: without one."""
        self.ending = True
        for bed in self._all_beds:
            with contextlib.suppress(RuntimeError):  # he is not in it, and will not sleep in it any more
                bed.release()

    def drain(self) -> list[AnyTask]:
        """Take the tasks out of the queue, all but those that have to be done."""
        with self._lock:
            tasks, kept = _parted(self.tasks)
            self.tasks.clear()
            self.tasks.extend(kept)
            return tasks

    def cancel_all(self) -> None:
        """Cancel what is in the queue."""
        for task in self.drain():
            self._guarded(task.future.cancel)

    def join(self, timeout: float | None) -> bool:
        """Wait for the threads to end, all but the calling one and whoever else waits here; whether they have."""
        deadline = None if timeout is None else time.monotonic() + timeout
        me = threading.current_thread()
        with self._lock:
            others = self.threads - {me}
            if me in self.threads:  # workers that wait for each other would do so for ever
                others -= self._joining
                self._joining.add(me)
        for thread in others:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0.0))
        return not any(thread.is_alive() for thread in others)

    def stop_soon(self) -> None:
        """Not for users: the interpreter exits."""
        if self._generation == fork.generation:
            self.end()

    def wait_until(self, deadline: float) -> None:
        """Not for users: the interpreter exits."""
        if self._generation == fork.generation:
            self.join(max(deadline - time.monotonic(), 0.0))

    def _queue_up_locked(self, task: AnyTask, timeout: float | None) -> _Gate | None:
        """Wait for a place; ``None``: the caller is the last worker, and nobody would be left to make one."""
        holds_worker = timeout is None and threading.current_thread() in self.threads
        if holds_worker and sum(gate.holds_worker for gate in self._gates) + 1 >= len(self.threads):
            return None
        gate = _Gate(task, holds_worker=holds_worker)
        self._gates.append(gate)
        return gate

    def _put_locked(self, task: AnyTask) -> bool:
        """Put it into the queue; False: nobody is free to take it, and the duty is to be interrupted."""
        grown = not self._beds and self._spawn_locked()
        self.tasks.append(task)
        return grown or self._rouse_locked()

    def _rouse_locked(self) -> bool:
        """Wake a sleeper; False: there is none."""
        if not self._beds:
            return False
        bed = self._beds[-1]  # whoever lay down last is the quickest to wake, and the others sleep on
        with contextlib.suppress(RuntimeError):  # called already, by somebody whom a Ctrl-C has stopped
            bed.release()
        self._beds.pop()
        return True

    def _spawn_locked(self) -> bool:
        """One thread more; False: there are enough, or the system has none, and others will do it.

        :raises RuntimeError: the system has none, and there is no other
        """
        if len(self.threads) >= self.max_workers:
            return False
        bed = threading.Lock()
        bed.acquire()
        self._all_beds += (bed,)
        thread = threading.Thread(target=self._work, args=(bed,), name=f"{self.name}_{len(self.threads)}", daemon=True)
        self.threads.add(thread)
        try:
            if len(self.threads) == 1:
                lifecycle.stop_at_exit(self)
            thread.start()
            self._short_until = 0.0
        except BaseException as error:
            self._short_until = time.monotonic() + SHORT
            if thread.ident is None:
                self.threads.discard(thread)
                self._all_beds = tuple(other for other in self._all_beds if other is not bed)
            if self.threads and isinstance(error, RuntimeError):
                return False
            raise
        return True

    def _take_locked(self) -> tuple[AnyTask | None, bool]:
        """A task, if one waits; its place in the queue goes to whoever has waited longest for one.

        True beside it: nobody is free to take what came into that place, and the duty is to be interrupted.
        """
        if not self.tasks:
            return None, False
        task, taken = self.tasks.popleft(), True
        if self._gates and self._limit is not None and len(self.tasks) < self._limit:
            gate = self._gates.popleft()
            taken = self._put_locked(gate.task)
            gate.lock.release()
        return task, not taken

    # A worker.

    def _work(self, bed: threading.Lock) -> None:
        with self._lock:
            if threading.current_thread() not in self.threads:  # a Ctrl-C has made whoever starts us give us up
                return
        if self._prepare():
            while self._guarded(partial(self._turn, bed)):
                pass
        if self._generation == fork.generation:
            self._guarded(self.duty.dismiss)

    def _turn(self, bed: threading.Lock) -> bool:
        """Do one thing, or sleep until there may be one; False: the thread is to end."""
        task = self.duty.perform()
        if self._generation != fork.generation:  # a call has forked, and returned in the child
            return False
        if task is None:
            try:
                task = self._next(bed)
            except _End:
                return False
        if task is not None:
            self.duty.leave()
            task.run()
        return self._generation == fork.generation

    def _guarded(self, action: Callable[[], bool | None]) -> bool | None:
        """Do *action*; a callback of a user's future may raise out of it what no thread should end of."""
        try:
            return action()
        except BaseException as error:  # noqa: BLE001 # as said above
            reports.failure(logger, 1, "a callback", f"the worker {threading.current_thread().name!r}", error)
            return True

    def _next(self, bed: threading.Lock) -> AnyTask | None:
        """The next task; ``None``: there was none, and now that we have slept there may be one, or a duty.

        :raises _End: there will be none
        """
        task = self.try_take()
        if task is not None:
            return task
        with self._lock:
            if self.tasks:
                return None
            if self.ending:
                while self._rouse_locked():
                    pass
                raise _End
            self._beds.append(bed)
        limit = 0.0 if self.duty.wanted() else self.duty.begin_watch()
        called = bed.acquire(timeout=-1 if limit is None else limit)
        with self._lock:
            if bed in self._beds:
                self._beds.remove(bed)
            elif not called:  # since the time was up
                bed.acquire(blocking=False)
        return None

    def _prepare(self) -> bool:
        """Call the initializer; False: it has failed, and with it the pool."""
        if self._initialize is None:
            return True
        try:
            self._initialize()
        except BaseException as error:  # it goes to everybody who has submitted something
            logger.critical("the initializer of a worker failed", exc_info=True)
            with self._lock:
                self._broken = error
                self.ending = True
            self.end()
            for task in self.drain():
                broken = BrokenThreadPool("the initializer of a worker has failed")
                broken.__cause__ = error
                self._guarded(partial(task.give_up, broken))
            while (left := self.try_take()) is not None:  # what has to be done all the same
                self._guarded(left.run)
            return False
        return True


class _End(Exception):
    """The thread is to end."""


def _parted(tasks: Iterable[AnyTask]) -> tuple[list[AnyTask], list[AnyTask]]:
    """Those that may be left undone, and the others.  In a frame of its own: see the end of ``interests.py``."""
    return [task for task in tasks if not task.obligatory], [task for task in tasks if task.obligatory]
