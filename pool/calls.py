"""Calls: requests that wait for their replies; and whoever waits for something of a conversation.

Law of this file: no I/O and no thread.  A call is settled by whoever reads the connection, with no lock held, and any
number of times: the first one counts.  (A Ctrl-C between settling a call and crossing off its reply has the reply dealt
out once more.)

Who sleeps lies in a *bed*, a lock of his own; see ``crew.py``.  Whoever has something for him writes that down first
and lets go of the bed afterwards; he gets the bed first and looks whether there is something afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Final, Protocol, TypeAlias

from typing_extensions import Buffer

from bbipc.errors import RemoteHandlerError
from bbipc.messages.message import BINARY, DISCARD, FAILED, Message, MessageType, encoded
from pool.futures import GuardedFuture

#: what a reply comes to; what may be sent
Reply: TypeAlias = str | bytes | None
Value: TypeAlias = str | Buffer | Message | None

get_ident: Final = threading.get_ident
main_thread: Final = threading.main_thread


class Unsent(Exception):
    """Nothing of a request has left: it may go over another connection.  ``__cause__``: why."""


class Waiter:
    """One thread that waits.  ``over``: it need not any more.  ``thread``: which one it is."""

    # What is not there yet is the class's: an object costs half of one whose fields are set.
    over = False
    bed: threading.Lock | None = None

    def __init__(self) -> None:
        self.thread = get_ident()

    def lie_down(self) -> threading.Lock:
        """The bed, made."""
        bed = self.bed
        if bed is None:
            bed = threading.Lock()
            bed.acquire()
            self.bed = bed
        return bed

    def wake(self) -> None:
        """Let it look around."""
        bed = self.bed
        if bed is not None:
            try:
                bed.release()
            except RuntimeError:  # woken already
                pass

    def end(self) -> None:
        """It is over."""
        self.over = True
        self.wake()


class Role:
    """What has the reader's role, seen by others.  ``thread``: which one it is."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = -1


class Call(Waiter):
    """A request whose sender waits in its own thread."""

    tag = -1
    reply: Message | None = None
    error: Exception | None = None

    def settle(self, reply: Message) -> None:
        """This is the answer."""
        self.reply = reply
        self.end()

    def fail(self, error: Exception) -> None:
        """There will be none."""
        self.error = error
        self.end()


class Keeper(Protocol):
    """The conversation that a future's call belongs to."""

    def attend_to(self, future: CallFuture, timeout: float | None) -> None:
        """Read, or sleep while somebody else does, until *future* is over or the time is up."""

    def give_up(self, call: AnyCall) -> None:
        """Nobody wants the reply any more."""

    def call_back(self, future: CallFuture) -> None:
        """Have *future*'s callbacks called, where nobody reads."""


class CallFuture(GuardedFuture[Reply]):
    """The reply to come.

    Whoever waits in ``result`` or ``exception`` reads the connection himself, for everybody, unless another thread
    does; so the reply needs no second thread.  ``add_done_callback``, ``concurrent.futures.wait``, ``as_completed`` and
    ``asyncio.wrap_future`` need nobody who waits: the poller thread reads then, and calls back.
    """

    tag = -1
    deadline: float | None = None
    _over = False
    _value: Reply = None
    _good = False
    _has_callbacks = False

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = keeper
        self._sleepers: dict[Waiter, None] = {}

    @property
    def over(self) -> bool:
        """Whether it is done; takes no lock."""
        return self._over

    def settle(self, reply: Message) -> None:
        """This is the answer."""
        kind, payload, flags, _ = reply
        if flags & FAILED:
            return self.fail(failure_of(reply))
        value = payload if kind is BINARY and not flags & DISCARD else value_of(reply)
        try:
            self.set_result(value)
            self._value = value
            self._good = True
        except InvalidStateError:  # cancelled, or too late
            pass
        except BaseException:
            self._unlock()
            raise
        self._end()

    def fail(self, error: Exception) -> None:
        """There will be none."""
        try:
            self.set_exception(error)
        except InvalidStateError:
            pass
        except BaseException:
            self._unlock()
            raise
        self._end()

    def result(self, timeout: float | None = None) -> Reply:
        """The reply; see ``concurrent.futures.Future.result``.  *timeout* (seconds) ends the wait, not the call."""
        if self._good:
            return self._value
        if not self._over:
            self._keeper.attend_to(self, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Why there is no reply; see ``concurrent.futures.Future.exception``."""
        if not self._over:
            self._keeper.attend_to(self, timeout)
        return super().exception(0)

    def cancel(self) -> bool:
        """Give the call up: the request may have been sent, its reply is dropped.  False: it is done."""
        if not super().cancel():
            return False
        mine = object()
        if vars(self).setdefault("_canceller", mine) is not mine:  # somebody else lets the waiters know
            return True
        self.set_running_or_notify_cancel()
        self._end()
        self._keeper.give_up(self)
        return True

    def add_done_callback(self, fn: Callable[[Future[Reply]], object]) -> None:
        """Call ``fn(future)`` when it is done: on the poller thread, or here and now if it is done already."""
        self._has_callbacks = True
        super().add_done_callback(fn)

    def join(self, waiter: Waiter) -> None:
        """*waiter* is told when it is over."""
        self._sleepers[waiter] = None
        if self._over:
            waiter.over = True

    def leave(self, waiter: Waiter) -> None:
        """*waiter* waits no more."""
        self._sleepers.pop(waiter, None)

    def call_back(self) -> None:
        """Call the callbacks.  By whom the keeper lets."""
        super()._invoke_callbacks()  # type: ignore[misc]

    def _invoke_callbacks(self) -> None:
        """What the standard library calls where it settles the future: there nobody's code is to run."""
        if self._has_callbacks:
            self._keeper.call_back(self)

    def _end(self) -> None:
        self._over = True
        if self._sleepers:
            for waiter in list(self._sleepers):
                waiter.end()

    def _unlock(self) -> None:
        """A Ctrl-C in the methods of a Condition may leave it locked, by this thread: nobody else could wait for it."""
        try:
            while True:
                self._condition.release()
        except RuntimeError:
            pass


AnyCall: TypeAlias = Call | CallFuture


def outgoing(value: Value, type: MessageType | None) -> tuple[int, bytes]:  # noqa: A002
    """The type and the payload of *value*.

    :raises ValueError: a STRING with a NUL in it, or not UTF-8
    :raises TypeError: nothing that can be sent
    """
    if isinstance(value, Message):
        return value.type, value.payload
    return encoded(value, type)


def value_of(reply: Message) -> Reply:
    """What *reply* says; ``None``: that there is no value.

    :raises RemoteHandlerError: that the handler failed
    """
    flags = reply.flags
    if flags & FAILED:
        raise failure_of(reply)
    return None if flags & DISCARD else reply.value


def failure_of(reply: Message) -> RemoteHandlerError:
    """The error that a FAILED *reply* tells."""
    return RemoteHandlerError(str(reply.payload, "utf-8", "replace").removesuffix("\0"))
