"""Reading: who reads one connection of a client, and its end.

Law of this file: any thread may wait for what it likes; nobody reads for himself alone.  One thread at a time has the
*reader's role*.  It sleeps on the connection, and deals out whatever comes.

    a thread that waits for its reply      takes the role if it is free, and reads until it has its own reply;
                                           otherwise it sleeps in its bed, as one of the ``_sleepers``
    the poller thread                      reads where calls are outstanding and no thread waits: ``standby.py``

The role is ``_role[0]``, as in ``socket_queue.py``.  No role is lost, and nobody is left asleep:

1. Whoever leaves gives the role back, and *then* wakes a sleeper if there is one.  If there is none, and calls are
   outstanding, the poller thread is to read.
2. Whoever is about to sleep lies down among the sleepers, and *then* looks whether the role is free.  One of the two
   sees the other.
3. Whoever was woken and does not take the role, because he has his reply or his time is up, leaves as in 1.

A thread that finds the role free takes it, whoever was woken; that one sleeps again.  Whoever takes it looks *then*
whether his wait is over, and whoever ends another's wait looks afterwards who reads, and wakes him (``_nudge``).  No
code of a user runs in the role.

The end comes once, through whoever finds it: ``open`` becomes False, then all calls that are there fail; whoever adds
one looks at ``open`` afterwards.  A Ctrl-C between the kernel and the decoder, or inside a write, is the end: nobody
knows what was lost.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from typing import Final

from bbipc.errors import MessageError, TruncatedMessageError
from bbipc.events import SocketEvent
from bbipc.messages.frames import Decoder
from bbipc.messages.message import TAGGED, Message
from bbipc.polling.vigil import Vigil
from bbipc.polling.wait import poll_socket
from bbipc.sockets.stream import StreamSocket
from pool.calls import Call, Role, Waiter
from pool.outgoing import Outgoing
from pool.pending import IN_ORDER, Distrust, Pending
from pool.told import call_failure, interrupted, without_frames

#: seconds between two looks of a thread that waits for the connect: nobody can wake it, and it may be over
CONNECT_TICK: Final = 0.05
#: bytes a read: a message of 64 KiB in one; and at most, where much of one message is missing
READ_SIZE: Final = 65536 + 4096
LONGEST_READ: Final = 1 << 18
#: reads at most of who looks what has come unasked
LOOKS: Final = 8

monotonic: Final = time.monotonic


class Reading:
    """What comes over *stream*, and whose it is.

    *decoder*: for what comes.  *registry*: where this is until it has ended.  *first_tag*: of the first request.
    *spin*: seconds in which a thread tries to read before it sleeps.  *alone*: the connection is for one request.

    ``open``: whether it takes calls.  ``retired``: it is to end when there are none; ``leaving``: it is not left to the
    peer to close.  ``reason``: why it has ended, at ``ended`` on the monotonic clock.  ``single``: the peer has
    answered one request, without a tag, and closed.  The owner's: ``at_hand``: open, and nothing is to be found out
    about the peer; ``used``: when somebody has asked last, 0: look before the next request, -1: never.
    """

    def __init__(
        self,
        stream: StreamSocket,
        decoder: Decoder,
        registry: dict[Reading, None],
        *,
        first_tag: int = 0,
        spin: float = 0.0,
        alone: bool = False,
    ) -> None:
        self.open = True
        self.at_hand = False
        self.alone = self.retired = alone
        self.leaving = False
        self.reason: Exception | None = None
        self.used = -1.0
        self.ended = 0.0
        self.single = False
        self.pending = Pending(first_tag)
        self.table = self.pending.table
        self.outgoing = Outgoing(stream, self.pending)
        self._stream = stream
        self._decoder = decoder
        self._registry = registry
        self._spin = spin
        self._vigil: Vigil | None = None
        self._role: dict[int, Waiter | Role] = {}
        self._sleepers: dict[Waiter, None] = {}
        self._crowd: dict[Waiter, None] = {}  # who waits for a reply to come, whosever it is, or for room in the queue
        self._gone_told = 0  # how much had left when the crowd was told last
        self._tellers: dict[Waiter, None] = {}  # who waits until a request that has no reply has left
        self._inbox: deque[Message] = deque()
        self._size = READ_SIZE
        self._end_guard: dict[int, Exception] = {}
        registry[self] = None

    # Any thread.

    def attend(self, waiter: Waiter, deadline: float | None) -> bool:
        """Read, or sleep while somebody else does, until *waiter* is over; False: it is *deadline*."""
        try:
            return self._attend_until(waiter, deadline)
        finally:
            try:
                self._leave(waiter)
            except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
                self._leave(waiter)
                raise

    def look(self, seconds: float) -> None:
        """Deal with what has come unasked: late replies, the peer's end.  Waits *seconds* for it."""
        waiter = Waiter()
        try:
            if self.open and self._role.setdefault(0, waiter) is waiter:
                self._step(seconds)
                for _ in range(LOOKS):
                    if not (self.open and (vigil := self._vigil) is not None and vigil.wait(0.0)):
                        break
                    self._take_in()  # the end may stand behind a late reply
        finally:
            try:
                self._leave(waiter)
            except BaseException:  # as above
                self._leave(waiter)
                raise

    def end(self, reason: Exception) -> None:
        """Close the connection; every call that is outstanding fails.  The first one counts."""
        guard = self._end_guard
        without_frames(reason)
        try:
            if guard.setdefault(0, reason) is reason:
                self._end(reason)
        except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
            if guard.get(0) is reason:
                self._end(reason)
            raise

    def retire(self) -> None:
        """It takes no calls any more, and ends when those that are outstanding are answered, and nothing is owed."""
        self.retired = self.leaving = True
        self.open = self.at_hand = False
        self._one_less()

    def failure(self, reason: BaseException | None = None) -> Exception:
        """Why a call has failed: an error of its own, as each is raised in a thread of its own.

        *reason*: why, if nobody has come to an end with the connection yet.
        """
        return call_failure(self.reason or reason or _finished(), self._stream)

    # By who has the role, or wants it.

    def _attend_until(self, waiter: Waiter, deadline: float | None) -> bool:  # apart: see the end of interests.py
        while not waiter.over:
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                return False
            if self._role.setdefault(0, waiter) is not waiter:
                self._rest(waiter, left)
            elif not waiter.over:  # still: whoever had the role before may have ended the wait
                self._step(left)
        return True

    def _step(self, left: float | None) -> None:
        """Look once, for *left* seconds at most."""
        if self._inbox:
            return self._deal_out()
        vigil = self._vigil
        if vigil is None or self.outgoing.stuck:
            return self._long_step(left)
        if (self._spin and self._spin_step(left)) or vigil.wait(left):
            self._take_in()
        return None

    def _long_step(self, left: float | None) -> None:
        """Where there is something to write, or the connection does not stand yet, or not any more."""
        if self.reason is not None:
            return self._end(self.reason)  # once more: whoever comes to read is not to be forgotten
        vigil = self._vigil
        if vigil is None:  # whoever wanted to wake the reader had nothing to do it with: look around before sleeping
            self._connected(left)
            return None
        if self.outgoing.stuck:
            self._flush()
        if self.outgoing.error is not None or vigil.wait(left, self.outgoing.stuck):
            self._take_in()
        return None

    def _spin_step(self, left: float | None) -> bool:
        """Look again and again for a while; True: something is there."""
        end = monotonic() + (self._spin if left is None else min(self._spin, left))
        vigil = self._vigil
        while vigil is not None and not vigil.wait(0.0):
            if monotonic() >= end:
                return False
        return True

    def _connected(self, left: float | None) -> Vigil | None:
        """To wait with, once the connection stands; waits for that."""
        try:
            pause = CONNECT_TICK if left is None else min(left, CONNECT_TICK)
            if not self._stream.determined() and not poll_socket(self._stream, SocketEvent.DETERMINED, pause):
                return None
            self._stream.read(1, peek=True)  # raises for a connect that failed
            self._vigil = Vigil(self._stream)
        except OSError as error:
            self.end(error)
        return self._vigil

    def _flush(self) -> None:
        """Write what is queued, as far as there is room."""
        try:
            self.outgoing.flush(Waiter())
        except BaseException as error:
            self.end(interrupted(error))
            raise
        if self._tellers:
            self._nudge()
        if self.leaving:
            self._one_less()
        elif self._crowd:
            self._tell_of_room()

    def _take_in(self, call: Call | None = None, kept: deque[bytes] | None = None) -> bool:
        """Read once, and deal out; False: there was nothing, or it is the end.  *call*: who reads, of who is likely.

        *kept*: wait in the read, and keep there what came until it is the inbox's, or the caller's.
        """
        try:
            stream, size = self._stream, self._size
            data = stream.read(size) if kept is None else stream._read_patiently(kept, size)
            if not data:
                return self._took_nothing(data)
            messages = self._decoder.feed(data)
            if call is not None and len(messages) == 1 and not self._inbox and not self._crowd:
                _, _, flags, tag = message = messages[0]
                if tag == call.tag and flags & TAGGED and self.at_hand and self._decoder.error is None:
                    call.reply = message
                    call.over = True  # and nobody else has anything of it
                    return True
            self._inbox += messages
        except OSError as error:
            self.end(error)
            return False
        except BaseException as error:
            if kept is None or kept:  # else it was interrupted before anything was read
                self.end(interrupted(error))
            raise
        if not messages or self._size != READ_SIZE:
            self._size = min(max(self._decoder.wanted, READ_SIZE), LONGEST_READ)
        self._deal_out()
        return self.reason is None

    def _took_nothing(self, data: bytes | None) -> bool:
        if data is not None:
            self._peer_ended()
        elif self.outgoing.error is not None:  # and this was all that the peer had to say
            self.end(self.outgoing.error)
        return False

    def _deal_out(self) -> None:
        pending = self.pending
        try:
            pending.deal_out(self._inbox)
        except Distrust as error:
            self.end(pending.complaint or error)
        if pending.complaint is not None:  # it is going to close; what it has accepted it still answers
            self.open = self.at_hand = False
        if self._decoder.error is not None:
            self.end(self._decoder.error)
        self._one_less()

    def _one_less(self) -> None:
        if self.retired and not self.table and not self.outgoing.owes():
            self.end(_finished())
        if self._crowd:
            self._tell_crowd()

    def _tell_of_room(self) -> None:
        """Somebody has written: the crowd looks again if that made room.  Whoever reads would spin otherwise."""
        gone = self.outgoing.gone
        if gone != self._gone_told:
            self._tell_crowd()
            self._gone_told = gone  # afterwards: what is told twice is told

    def _tell_crowd(self) -> None:
        for waiter in list(self._crowd):
            waiter.end()
        self._nudge()

    def _nudge(self) -> None:
        """Somebody's wait is over: if he is the one who reads, he sleeps on the connection, and not in his bed."""
        reader = self._role.get(0)
        if isinstance(reader, Waiter) and reader.over:
            self._wake_reader()

    def _wake_reader(self) -> None:
        """Whoever reads is to look around."""
        vigil = self._vigil
        if vigil is not None and self._role:
            vigil.wake()

    def _peer_ended(self) -> None:
        reason: Exception = ConnectionResetError(errno.ECONNRESET, "the peer has closed the connection")
        try:
            self._decoder.finish()
        except TruncatedMessageError as error:
            reason = error
        except MessageError:
            pass
        self.single = self.pending.style == IN_ORDER and self.pending.replies == 1
        self.end(self.pending.complaint or reason)

    # Whoever waits.

    def _rest(self, waiter: Waiter, left: float | None) -> None:
        """Sleep until woken, *left* seconds at most; not if there is something to do."""
        bed = waiter.lie_down()
        self._sleepers[waiter] = None
        try:
            reader = self._role.get(0)
            if waiter.over or reader is None:
                return
            if reader.thread == waiter.thread:
                raise RuntimeError("a signal handler or finalizer waits for a reply inside of a call of its thread")
            bed.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX))
        finally:
            self._sleepers.pop(waiter, None)

    def _leave(self, waiter: Waiter) -> None:
        """*waiter* waits no more: the role goes on."""
        role = self._role
        try:
            if role[0] is waiter:
                del role[0]
        except KeyError:
            pass
        self._sleepers.pop(waiter, None)
        self._crowd.pop(waiter, None)
        if not role and (self._sleepers or self.table or self.outgoing.stuck):
            self._pass_on()

    def _pass_on(self) -> None:
        """Somebody else is to read."""
        for waiter in list(self._sleepers):
            if not waiter.over:
                return waiter.wake()
        self._attend()
        return None

    def _attend(self) -> None:
        """Nobody waits, and calls are outstanding: somebody is to read, now or soon."""
        raise AssertionError("see standby.py")

    def _end(self, reason: Exception) -> None:
        if self.reason is None:
            self.reason = reason
        self.open = self.at_hand = False
        self.ended = monotonic()
        self._stream.close()
        for tag in list(self.table):
            call = self.table.get(tag)
            if call is not None:
                call.fail(self.failure())
                self.table.pop(tag, None)
        for waiter in [*list(self._sleepers), *list(self._crowd), *list(self._tellers)]:
            waiter.end()
        self._vigil = None
        self._registry.pop(self, None)


def _finished() -> Exception:
    return ConnectionAbortedError(errno.ECONNABORTED, "it is to take no more requests")
