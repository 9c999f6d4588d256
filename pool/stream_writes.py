"""What is to be sent on a stream, and who is told when: the bytes and the order, without any I/O.

Law of this file: no system call, no lock, no thread: one call at a time, which the owner sees to.  Futures
are claimed here, together with the first byte that is handed out; they are settled afterwards.

    promised   bytes of writes whose futures are done: ours, at most ``limit`` of them
    held       writes that wait, each with its caller's own buffer; the first one may have been sent in part
    waiters    flush, shutdown_write, close: each waits until so many bytes were sent

All is sent in the order of the calls, promised before held.  As soon as what is left of the first held write fits
under the limit, it is copied and promised: its future is done, its buffer is the caller's again.  So our memory is
bounded by the limit, not by what callers want to send.

A write is taken back whole or not at all: only while no byte of it was handed out.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Final
from weakref import ref as Ref  # noqa: N812 # a class

from typing_extensions import Buffer

from pool.afterwards import Afterwards
from pool.futures import GuardedFuture
from pool.timers import Timer
from pool.told import with_facts

#: bytes handed to the kernel in one turn; with less than a local socket's buffer (208 KiB) the kernel would idle
CHUNK: Final = 256 * 1024


class Held:
    """A write that waits.

    ``view``: what is left of the caller's buffer.  ``sent``: how many bytes of it the kernel has taken; the view does
    not tell that once it was let go of.  ``started``: its future was claimed, it cannot be cancelled any more.
    *on_done*: called with a weak reference to it, and its future, when that is done.
    """

    __slots__ = ("future", "view", "size", "sent", "started", "serial", "timer", "__weakref__")

    def __init__(self, view: memoryview, size: int, on_done: Callable[[Ref[Held], Future[int]], object]) -> None:
        self.future: Future[int] = GuardedFuture()
        # Before anybody else knows the future: a Ctrl-C in here leaves it locked.
        self.future.add_done_callback(partial(on_done, Ref(self)))
        self.view = view
        self.size = size
        self.sent = size - len(view)
        self.started = self.sent > 0 and self.future.set_running_or_notify_cancel()
        self.serial = 0
        self.timer: Timer | None = None

    @property
    def unsent(self) -> int:
        """How many bytes of it the kernel has not taken."""
        return self.size - self.sent

    def claim(self) -> bool:
        """Whether it is to be sent: False: it was cancelled."""
        self.started = self.started or self.future.set_running_or_notify_cancel()
        return self.started

    def advance(self, count: int) -> None:
        """The kernel has taken *count* bytes more."""
        view, self.view = self.view, self.view[count:]
        self.sent += count
        view.release()

    def let_go(self, after: Afterwards) -> None:
        """Its buffer is the caller's again, its time does not matter any more."""
        self.view.release()
        if self.timer is not None:
            after.add(self.timer.cancel)


class Kind(enum.Enum):
    """What a waiter waits to do."""

    FLUSH = "flush"
    SHUTDOWN = "shutdown_write"
    CLOSE = "close"


class SendWaiter:
    """Something to be done when ``goal`` bytes were sent; *on_done*: as of :class:`Held`.

    Of a close: ``deadline`` on the monotonic clock, ``None``: none; ``leaves``: it does not wait for a linger;
    ``lingers``: there is one, which closes the stream.
    """

    __slots__ = ("future", "kind", "goal", "serial", "timer", "deadline", "leaves", "lingers", "__weakref__")

    def __init__(self, kind: Kind, on_done: Callable[[Ref[SendWaiter], Future[None]], object] | None = None) -> None:
        self.future: Future[None] = GuardedFuture()
        if on_done is not None:
            self.future.add_done_callback(partial(on_done, Ref(self)))
        self.kind = kind
        self.goal = 0
        self.serial = 0
        self.timer: Timer | None = None
        self.deadline: float | None = None
        self.leaves = False
        self.lingers = False


class WriteQueue:
    """What is to be sent, in its order."""

    __slots__ = ("limit", "_promised", "_held", "_held_bytes", "_waiters", "_sent", "_serial")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._promised = bytearray()
        self._held: OrderedDict[Held, None] = OrderedDict()
        self._held_bytes = 0
        self._waiters: OrderedDict[SendWaiter, None] = OrderedDict()
        self._sent = 0
        self._serial = 0

    @property
    def pending(self) -> int:
        """How many bytes are to be sent."""
        return len(self._promised) + self._held_bytes

    @property
    def promised(self) -> int:
        """How many of them belong to writes whose futures are done."""
        return len(self._promised)

    @property
    def ending(self) -> bool:
        """Whether somebody waits to shut our sending down."""
        return any(waiter.kind is not Kind.FLUSH for waiter in self._waiters)

    def promise(self, rest: Buffer) -> bool:
        """Copy *rest* behind all others, if nobody is held and it fits under the limit."""
        with memoryview(rest) as view:
            # Somebody may be held though there is room: who was held before him has just been taken back.
            if self._held or len(self._promised) + len(view) > self.limit:
                return False
            self._promised += view
        return True

    def hold(self, held: Held) -> None:
        """*held* waits behind all others."""
        self._serial = held.serial = self._serial + 1
        self._held[held] = None
        self._held_bytes += held.unsent

    def wait(self, waiter: SendWaiter) -> None:
        """*waiter* waits until all that is pending now was sent."""
        self._serial = waiter.serial = self._serial + 1
        waiter.goal = self._sent + self.pending
        self._waiters[waiter] = None

    def next_bytes(self, after: Afterwards) -> Buffer | None:
        """What to hand to the kernel next; of a held write a view, to be released."""
        if self._promised:
            return self._promised
        while self._held:
            head = next(iter(self._held))
            if head.claim():
                return head.view[:CHUNK]
            self._remove(head, after)
        return None

    def taken(self, count: int, after: Afterwards) -> None:
        """The kernel has taken *count* bytes of what :meth:`next_bytes` gave last."""
        self._sent += count
        if self._promised:
            del self._promised[:count]
        elif count:
            next(iter(self._held)).advance(count)
            self._held_bytes -= count
        self.promise_more(after)

    def promise_more(self, after: Afterwards) -> None:
        """Promise those held writes that fit under the limit by now."""
        while self._held:
            head = next(iter(self._held))
            if len(self._promised) + head.unsent > self.limit:
                return
            if not head.claim():
                self._remove(head, after)
                continue
            self._promised += head.view
            self._held_bytes -= head.unsent
            del self._held[head]
            after.add(head.future.set_result, head.size)
            head.let_go(after)

    def withdraw(self, held: Held, after: Afterwards) -> bool:
        """Take back *held*, of which nothing was sent; False: somebody else has taken it out."""
        if held not in self._held:
            return False
        self._remove(held, after)
        return True

    def __contains__(self, item: Held | SendWaiter) -> bool:
        return item in (self._held if isinstance(item, Held) else self._waiters)

    def drop(self, waiter: SendWaiter, after: Afterwards) -> bool:
        """Take out *waiter*; False: somebody else has, and settles it."""
        if waiter not in self._waiters:
            return False
        del self._waiters[waiter]
        if waiter.timer is not None:
            after.add(waiter.timer.cancel)
        return True

    def reached(self, after: Afterwards) -> list[SendWaiter]:
        """Take out the waiters whose time has come."""
        found = []
        while self._waiters:
            waiter = next(iter(self._waiters))
            if waiter.goal > self._sent:
                break
            self.drop(waiter, after)
            found.append(waiter)
        return found

    def fail(self, error: Exception, after: Afterwards) -> list[SendWaiter]:
        """Nothing more can be sent: every held write fails with *error*; all waiters, for the caller to deal with."""
        self._promised.clear()
        self._held_bytes = 0
        while self._held:
            held, _ = self._held.popitem(last=False)
            if held.claim():
                after.add(held.future.set_exception, with_facts(error, sent=held.sent, unsent=held.unsent))
            held.let_go(after)
        waiters = list(self._waiters)
        for waiter in waiters:
            self.drop(waiter, after)
        return waiters

    def _remove(self, held: Held, after: Afterwards) -> None:
        """*held* is not sent: those behind it wait for so much less."""
        del self._held[held]
        left = held.unsent
        self._held_bytes -= left
        for waiter in self._waiters:
            if waiter.serial > held.serial:
                waiter.goal -= left
        held.let_go(after)
