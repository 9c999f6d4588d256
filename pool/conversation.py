"""Conversation: one connection of a client, and what may be done with it: ask, post, tell.

Law of this file: any thread.  The calling thread writes, and the one that asks reads its own reply unless another
thread reads already (``replies.py``, ``standby.py``).  While a thread asks alone there is no lock to wait for, no
future and no registration with a poller: a write, a sleep, a read.  So ``ask`` spells out what elsewhere is a method.
"""

from __future__ import annotations

from typing import Final, NoReturn

from bbipc.messages.frames import encode_parts
from bbipc.messages.message import CLOSE, FAILED, NO_RESPONSE, TAGGED, Message
from bbipc.sockets.stream import CAN_WAIT
from pool.calls import Call, CallFuture, Unsent, Waiter
from pool.pending import NO_REPLY, UNKNOWN
from pool.replies import monotonic
from pool.standby import Standby
from pool.told import interrupted

#: seconds that a thread sleeps in a read, where little can wake it.  Most answers come sooner, and what is in the way
#: of another thread (a request of megabytes, stuck behind this one's) waits no longer
TICK: Final = 0.02


class Conversation(Standby):
    """The calls that go over one connection."""

    #: the owner's: whether it was seen if the peer hangs up behind a reply
    probed = False
    told_at = 0.0  # when a request that wants no reply was sent last, on the monotonic clock
    _waits = False  # a read may

    def ask(self, kind: int, payload: bytes, deadline: float | None) -> Message:
        """Send a request, and wait for the reply.

        :raises TimeoutError: it has not come before *deadline*, on the monotonic clock
        :raises Unsent: nothing has been sent, and nothing will be
        """
        call, role = Call(), self._role
        try:
            tag = self.pending.add(call)
            self._send(call, kind, payload, TAGGED, tag)
            self._await_reply(call, deadline)
        finally:
            try:
                if role[0] is call:
                    del role[0]
            except KeyError:
                pass
            try:
                self.table.pop(call.tag, None)
                if self._sleepers or self.table or self.outgoing.queue or self._crowd or self.retired:
                    self._withdraw(call)
            except BaseException:  # Ctrl-C in the middle: a step may be taken twice, none may be left out
                self._withdraw(call)
                raise
        if call.reply is None:
            self._no_reply(call)
        self.used = monotonic() if not call.reply[2] & FAILED else self._doubted(call.reply)
        return call.reply

    def _await_reply(self, call: Call, deadline: float | None) -> None:
        # In a frame of its own: see the end of ``interests.py``.
        role, left, listening = self._role, None, CAN_WAIT
        while not call.over:
            if deadline is not None and (left := deadline - monotonic()) <= 0:
                break
            if role.setdefault(0, call) is not call:
                self._rest(call, left)
            elif call.over:  # since: whoever had the role before has read the reply
                break
            elif (vigil := self._vigil) is None or self._inbox or self.outgoing.stuck or self._spin:
                self._step(left)
            elif listening:
                listening = self._listen(call, left)
            elif vigil.wait(left):
                self._take_in(call)

    def post(self, kind: int, payload: bytes, deadline: float | None) -> CallFuture:
        """Send a request; the reply to come.

        :raises Unsent: nothing has been sent, and nothing will be
        :raises PollerClosedError: the same, as nobody would call back
        """
        poller_thread = self._poller_thread()
        if poller_thread.closed and self.open:  # in this order: who closes his own has ended this before
            raise poller_thread._closed_error()
        future = CallFuture(self)
        tag = self.pending.add(future)
        self._send(future, kind, payload, TAGGED, tag)
        if deadline is not None:
            future.deadline = deadline
            sweep_at = self._sweep_at  # read once: the poller thread takes it away
            if sweep_at is None or deadline < sweep_at:
                self._sweep_later(deadline)
        if not self._armed or self.outgoing.stuck:
            self._attend()
        self.used = max(self.used, 0.0)  # it is looked at before the next request, if nothing is out
        return future

    def tell(self, kind: int, payload: bytes, deadline: float | None) -> None:
        """Send a request that has no reply; returns when the kernel has taken it.

        :raises TimeoutError: it has not before *deadline*; the rest goes out when it can
        :raises Unsent: nothing has been sent, and nothing will be
        """
        waiter = Waiter()
        self._tellers[waiter] = None
        self.pending.sent_unanswered = True
        try:
            if not self._send(waiter, kind, payload, NO_RESPONSE, NO_REPLY):
                if not self.attend(waiter, deadline):
                    raise TimeoutError("the peer did not take it in time")
                if self.outgoing.holds(waiter):
                    raise self.failure()
        finally:
            self.told_at = monotonic()
            self._tellers.pop(waiter, None)
            if self.outgoing.queue:
                self._take_back(waiter)
            if self.leaving:  # for a CLOSE: whoever took that back was perhaps the last
                self._one_less()

    def set_aside(self) -> None:
        """It takes no calls any more, and is left to the peer to close."""
        self.retired = True
        self.open = self.at_hand = False

    def is_spent(self) -> bool:
        """Whether it takes no calls any more, and all has left that was sent without waiting for a reply."""
        busy = self.table or self._tellers or self.outgoing.queue
        return self.retired and self.pending.sent_unanswered and not busy

    def has_room(self, calls: int, size: int) -> bool:
        """Whether fewer than *calls* are outstanding, and fewer than *size* bytes unsent."""
        return len(self.table) < calls and (not self.outgoing.queue or self.outgoing.unsent() < size)

    def make_room(self, calls: int, size: int, deadline: float | None) -> bool:
        """Wait until fewer than *calls* are outstanding, and fewer than *size* bytes unsent; False: the time is up."""
        while self.open:
            waiter = Waiter()
            self._crowd[waiter] = None
            if self.has_room(calls, size):
                self._crowd.pop(waiter, None)
                break
            if not self.attend(waiter, deadline):
                return False
        return True

    def learn(self, seconds: float) -> None:
        """Whoever comes first may go on; the others wait up to *seconds* for what his reply tells of the peer."""
        now = monotonic()
        begun = vars(self).setdefault("_begun", now)
        while begun is not now and self.open and self.pending.style == UNKNOWN:
            waiter = Waiter()
            self._crowd[waiter] = None
            if self.pending.style != UNKNOWN or not self.attend(waiter, begun + seconds):
                self._crowd.pop(waiter, None)
                return

    def probe(self, seconds: float) -> None:
        """The peer has answered without a tag: see whether it hangs up then.  By one at a time."""
        until, patient = monotonic() + seconds, not self.probed
        while patient and self.open and not self.table:  # the crowd is told of other things, too
            waiter = Waiter()
            self._crowd[waiter] = None
            patient = self.open and self.attend(waiter, until)
            self._crowd.pop(waiter, None)
        self.probed = True

    def __repr__(self) -> str:
        return f"<Conversation {'open' if self.open else 'ended'}, {len(self.table)} calls, over {self._stream!r}>"

    def _listen(self, call: Call, left: float | None) -> bool:
        """Sleep in the read itself, for ``TICK`` at most; False: nothing came, or not now.

        Half of what a poll and a read cost; nothing but what comes, and a close, wakes who sleeps there.  What he would
        be woken for otherwise waits until he looks around, and behind a sleep that came to nothing he polls.  The main
        thread has its signals, and each lets such a sleep begin anew: not where there is a deadline.
        """
        if left is not None and (left < 2 * TICK or call.thread == self._main):
            return False
        kept = self._kept
        kept.clear()  # a Ctrl-C may have left something
        try:
            if not self._waits:
                self._stream._let_reads_wait(TICK)
                self._waits = True
            return self._take_in(call, kept)
        except OSError as error:
            self.end(error)
            return False
        finally:
            kept.clear()

    def _send(self, owner: object, kind: int, payload: bytes, flags: int, tag: int) -> bool:
        """Send a request, as far as the kernel takes it; whether that was all.

        :raises Unsent: nothing has been sent, and nothing will be
        """
        if not self.open:
            self.table.pop(tag, None)
            raise Unsent from self.reason
        try:
            parts = encode_parts(kind, payload, flags, tag if tag >= 0 else 0)
            sent = self.outgoing.send(owner, tag, parts)
        except Unsent:
            self.table.pop(tag, None)
            self.open = self.at_hand = False  # whoever reads may see the end much later: no call is to come meanwhile
            self._hear_out()
            raise
        except BaseException as error:
            self.end(interrupted(error))
            raise
        if self.outgoing.error is not None:  # in the queue, for which nobody raises it
            self._hear_out()
        elif self.outgoing.stuck:  # whoever reads is to wait for room, too
            self._wake_reader()
        elif self._tellers:  # another's request may have left with this one
            self._nudge()
        if self._crowd:
            self._tell_of_room()
        if kind == CLOSE and (tag != NO_REPLY or not self.alone):  # what is sent behind it would be lost
            self.retire()
        return sent

    def _withdraw(self, call: Call) -> None:
        """*call* is over, whatever has become of it."""
        if self.outgoing.queue:
            self._take_back(call)
            stuck = self.outgoing.stuck and self.outgoing.queue.copy()
            if call.reply is not None and stuck and any(one.owner is call and one.begun for one in stuck):
                self.retire()  # who answers a request that has not left yet reads no further
        self.table.pop(call.tag, None)
        self._leave(call)
        if self.reason is None and call.error is None:
            self._one_less()

    def _doubted(self, reply: Message) -> float:
        """A server that was sent something that it does not take says so, and is going to close."""
        if reply[1].startswith(b"MessageTooLargeError"):
            self.retire()
        return 0.0

    def _no_reply(self, call: Call) -> NoReturn:
        error, call.error = call.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        self._given_up()
        raise TimeoutError("no reply came in time")
