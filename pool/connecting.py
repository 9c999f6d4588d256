"""Connecting: how a client comes to a connection, and to the next one.

Law of this file: it connects and learns what kind of peer it is; what happens on a connection is ``conversation.py``'s.
Any thread.  One thread at a time connects, the others wait for what comes of it.

Connecting anew.  A connection that has ended with nothing in flight is replaced at the next call.  So is one that took
nothing of a request: nobody has seen that.  What was in flight fails, as nobody knows what became of it.  Behind a
connect that failed again the next one waits, for at most ``LONGEST_PAUSE``.

Peers of the original's kind ignore tags, and close after one message; bytes behind a message may break them.  Nothing
tells before the first reply.  So while that one is out, others wait for it a moment (``MANNERS``).  If it carried no
tag, the next call looks for the same time whether the peer hangs up.  If so, every call gets a connection of its own
from then on.

They may also answer what wants no reply, and nobody could tell that answer from the next one's.  So where nobody knows
that the peer echoes tags, what wants no reply goes over a connection where nothing is asked (``telling``).  It ends
when the peer turns out to echo them; others are left to the peer to close, for LEAVE seconds.  Where there is only one
connection, *reconnect* is off, ``pending.py`` sees to it that an answer in doubt ends that.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from bbipc.errors import ConnectionFailedError, MessageTooLargeError, QueueFullError, SocketClosedError
from bbipc.messages.frames import Decoder
from bbipc.sockets import fork
from bbipc.sockets.endpoint import Address
from pool.calls import Unsent, Waiter
from pool.conversation import Conversation
from pool.pending import ECHOES, IN_ORDER, UNKNOWN, Distrust
from pool.poller_thread import PollerThread
from pool.replies import Reading
from pool.turn import Turn

#: seconds that a call waits for what kind of peer it is
MANNERS: Final = 0.02
#: seconds between failed connects
FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 1.0
#: seconds after which a peer has had time to answer what wants no reply, and to hang up; and so many such connections
#: stand at most
LEAVE: Final = 1.0
MOST_SPENT: Final = 8
#: how often a call is tried again that left nothing
TRIES: Final = 3

T = TypeVar("T")

monotonic: Final = time.monotonic


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client was made with."""

    max_message_size: int
    accept_unsigned: bool
    reconnect: bool
    max_in_flight: int
    spin: float


class ClientConnections:
    """The connections of one client, *owner*, to *address*; *lender*: whence its poller thread.

    ``current``: the one that is shared, if there is one; ``telling``: the one for what wants no reply, where that is
    not ``current``; ``standing``: all that have not ended; ``made``: how many there have been; ``late``: replies that
    came for nobody over those that are gone; ``first_tag``: of the next one.
    """

    def __init__(self, address: Address, terms: Terms, lender: Lender, owner: object) -> None:
        self.current: Conversation | None = None
        self.telling: Conversation | None = None
        self.made = 0
        self.late = 0
        self.first_tag = 0
        self.closed = False
        self._address = address
        self._terms = terms
        self._lender = lender
        self._owner = weakref.ref(owner)
        self.standing: dict[Reading, None] = {}
        self._turn = Turn()
        self._single = False
        self._style = UNKNOWN
        self._failures = 0
        self._failure: Exception = ConnectionError()
        self._not_before = 0.0
        self._generation = fork.generation

    # Any thread.

    def check(self) -> None:
        """Whether something new may be begun.

        :raises RuntimeError: no, this is a forked child
        :raises SocketClosedError: no, it was closed
        """
        if self._generation != fork.generation:
            raise RuntimeError("this client belongs to the process that forked this one; make another")
        if self.closed:
            raise self.closed_error()

    def closed_error(self) -> SocketClosedError:
        """The owner was closed."""
        return SocketClosedError(self._owner() or self)

    def close(self) -> None:
        """End them all, and refuse new ones."""
        self.closed = True
        if self._generation != fork.generation:
            return
        self._turn.rouse()
        for conversation in list(self.standing):
            conversation.end(self.closed_error())

    def carry_out(self, attempt: Callable[[Conversation], T], find: Callable[[], Conversation]) -> T:
        """What *attempt* gives over a connection that *find* finds; over another one if nothing of it has left.

        :raises RemoteDisconnectedError: that went on
        """
        tries = 0
        while True:
            conversation = find()
            tries += 1
            try:
                return attempt(conversation)
            except Unsent as error:
                self.check()
                failure = conversation.failure(error.__cause__)
            if tries == TRIES or not self._terms.reconnect or isinstance(failure, ConnectionFailedError):
                raise failure

    def roomy(self, size: int, deadline: float | None) -> Conversation:
        """A connection that has room for one more future, of *size* bytes.

        :raises QueueFullError: there was none in time; or at once, on the poller thread
        """
        patient, most = not self._lender.is_current(), 2 * self._terms.max_message_size
        while True:
            limit = self._terms.max_in_flight
            busy = [one for one in list(self.standing) if isinstance(one, Conversation) and one.table]
            if self._single and len(busy) >= limit:  # each has a connection of its own
                full, limit = busy[0], 1
            else:
                full = self.usable(size, deadline, patient=patient)
                if full.alone or full.has_room(limit, most):
                    return full
            if not patient or not full.make_room(limit, most, deadline):
                raise QueueFullError(self._terms.max_in_flight)

    def usable(self, size: int, deadline: float | None, *, patient: bool = True, answered: bool = True) -> Conversation:
        """A connection for a request of *size* bytes, as good as anybody can know.

        *answered*: whether a reply is wanted.

        :raises MessageTooLargeError: that is more than is allowed
        :raises OSError, RuntimeError: as ``MessageClient.send`` says
        """
        if size > self._terms.max_message_size:
            raise MessageTooLargeError(size, self._terms.max_message_size)
        tries = 0
        while True:
            self.check()
            tries += 1
            conversation, apart = self.current, False
            if not answered and (conversation is None or conversation.pending.style != ECHOES):
                apart = self._tells_apart(conversation, patient)
                conversation = self.telling if apart else conversation
            if conversation is None or not conversation.open or self._single:
                connect = partial(self._connect, deadline, patient, apart)
                conversation = self._turn.run(connect, deadline, None if patient else self._check_pause)
            if conversation.alone:
                return conversation
            self._get_acquainted(conversation, deadline, patient)
            plain = conversation.pending.style == IN_ORDER
            if answered and plain and conversation.pending.is_doubtful():
                self._doubt(conversation)
            elif tries == TRIES or (conversation.open and (answered or apart or not (plain and self._terms.reconnect))):
                return conversation

    def _tells_apart(self, conversation: Conversation | None, patient: bool) -> bool:
        """Whether what wants no reply goes over a connection of its own, as the peer may answer it all the same.

        *conversation*: the one that is ``current``.
        """
        if not self._terms.reconnect:  # there is one connection, and no other
            return False
        if conversation is None:
            return self._style != ECHOES
        if conversation.open and conversation.table and self._style != ECHOES:
            conversation.learn(MANNERS if patient else 0.0)
        if conversation.pending.style != UNKNOWN:
            self._note_style(conversation.pending.style)
        return self._style != ECHOES

    def _doubt(self, conversation: Conversation) -> None:
        """What wants no reply went over this one: there is no other, or the peer was thought to echo tags."""
        if self._terms.reconnect:
            conversation.set_aside()
        else:
            conversation.end(Distrust("the peer ignores tags, and was sent something that wants no reply"))

    def _get_acquainted(self, conversation: Conversation, deadline: float | None, patient: bool) -> None:
        """See what kind of peer it is, and whether it is still there."""
        pending = conversation.pending
        if pending.style == UNKNOWN and self._style != ECHOES:
            conversation.learn(MANNERS if patient else 0.0)
        if patient and pending.style == IN_ORDER and not conversation.probed:
            self._turn.run(lambda _: conversation.probe(MANNERS), deadline)
        elif not conversation.table and conversation.used >= 0:
            conversation.look(0.0)
        if pending.style != UNKNOWN:
            if pending.style != self._style:
                self._note_style(pending.style)
            conversation.at_hand = conversation.open and pending.style == ECHOES
            if not conversation.open:  # since
                conversation.at_hand = False
        self._note_manners(conversation)

    def _note_manners(self, conversation: Conversation) -> None:
        if conversation.single and self._terms.reconnect:
            self._single = True
            self._tell_with_the_others()

    def _note_style(self, style: int) -> None:
        self._style = style
        if style == ECHOES:
            self._tell_with_the_others()

    def _tell_with_the_others(self) -> None:
        """No connection is needed any more for what wants no reply, and for nothing else."""
        telling = self.telling
        if telling is not None and telling.open:
            if self._style == ECHOES:
                telling.retire()
            else:
                telling.set_aside()

    # Whoever's turn it is.

    def _connect(self, deadline: float | None, patient: bool, apart: bool, waiter: Waiter) -> Conversation:
        """A new connection, unless somebody has made one meanwhile; *apart*: the one that is ``telling``."""
        conversation = self.telling if apart else self.current
        if conversation is not None:
            if conversation.open and not self._single:
                return conversation
            refused = isinstance(conversation.reason, ConnectionFailedError)
            if not self._terms.reconnect and not self._single and not refused:
                raise conversation.failure(conversation.outgoing.error)  # perhaps nobody has read of the end yet
            self._share(None, apart)
            self._bury(conversation)
            if apart:
                conversation.set_aside()
            elif conversation.reason is None and not conversation.retired:
                conversation.retire()  # it may be open no more, and stand: its peer has complained, and does not close
        self._let_go_of_spent(conversation)
        self._pause(deadline, patient, waiter)
        conversation = self._begin()
        if not self._single:
            self._share(conversation, apart)
        if apart and self._style == ECHOES:  # known since a moment ago, when there was nothing to tell it by
            self._tell_with_the_others()
        if self.closed:  # whoever closes it has set the mark before he looked for what there is
            conversation.end(self.closed_error())
        return conversation

    def _share(self, conversation: Conversation | None, apart: bool) -> None:
        if apart:
            self.telling = conversation
        else:
            self.current = conversation

    def _let_go_of_spent(self, current: Conversation | None) -> None:
        """Peers of the original's kind answer all the same, and end by SIGPIPE where nobody is left to take it."""
        standing = [one for one in list(self.standing) if isinstance(one, Conversation) and one is not current]
        spent = sorted((one for one in standing if one.is_spent()), key=lambda one: one.told_at)
        now = monotonic()
        for number, one in enumerate(spent):
            if now - one.told_at > LEAVE or number < len(spent) - MOST_SPENT:
                self._let_go(one)

    def _let_go(self, conversation: Conversation) -> None:
        """Its peer has had time to hang up."""
        if self.telling is conversation:
            self.telling = None
        self._count_late(conversation)
        conversation.end(self.closed_error())

    def _begin(self) -> Conversation:
        terms = self._terms
        decoder = Decoder(max_message_size=terms.max_message_size, accept_unsigned=terms.accept_unsigned)
        try:
            stream = self._address.connect()
        except OSError as error:
            self._failed(monotonic(), error)
            raise
        conversation = Conversation(
            stream,
            decoder,
            self.standing,
            self._lender.get,
            first_tag=self.first_tag,
            spin=terms.spin,
            alone=self._single,
        )
        self.made += 1
        return conversation

    def _bury(self, conversation: Conversation) -> None:
        """Note what became of a connection that is not used any more."""
        self._count_late(conversation)
        self._note_manners(conversation)
        pending = conversation.pending
        if pending.style != UNKNOWN:
            self._note_style(pending.style)
        took = pending.sent_unanswered and conversation.used >= 0  # and so has done what it was for
        if pending.style != UNKNOWN or conversation.reason is None:
            self._failures = 0
        elif not took:
            self._failed(conversation.ended, conversation.failure())

    def _count_late(self, conversation: Conversation) -> None:
        self.late += conversation.pending.late
        conversation.pending.late = 0  # it may stand for a while, and would be counted twice

    def _failed(self, when: float, error: Exception) -> None:
        self._failures += 1
        self._failure = copy.copy(error)  # whose frames keep nothing
        pause = min(FIRST_PAUSE * 2.0 ** (self._failures - 2), LONGEST_PAUSE) if self._failures > 1 else 0.0
        self._not_before = when + pause

    def _pause(self, deadline: float | None, patient: bool, waiter: Waiter) -> None:
        """Wait until it may be tried again."""
        until = self._not_before if deadline is None else min(self._not_before, deadline)
        while monotonic() < until:
            if not patient:
                self._check_pause()
            self._turn.rouse()  # who cannot wait so long for his turn is to know
            self._turn.pause(waiter, until, lambda: not self.closed)
            self.check()
        if deadline is not None and deadline <= monotonic():
            raise TimeoutError("no connection in time") from self._failure

    def _check_pause(self) -> None:
        """Whether it may be tried now, for who cannot wait."""
        if monotonic() < self._not_before:
            raise copy.copy(self._failure)


class Lender:
    """Gives the poller thread, at first need."""

    def __init__(self, given: PollerThread | None) -> None:
        self._given = given
        self._own: dict[int, PollerThread] = {}
        self._closed = False

    def get(self) -> PollerThread:
        """The one that was *given*, or a new one of its own."""
        if self._given is not None:
            return self._given
        own = self._own.get(0)
        if own is None:
            own = self._own.setdefault(0, PollerThread(name="bbipc-client"))
        if self._closed:  # whoever closes it has set the mark before he looked for it
            own.stop_soon()
        return own

    def is_current(self) -> bool:
        """Whether the calling thread is the poller thread."""
        poller_thread = self._given or self._own.get(0)
        return poller_thread is not None and poller_thread.is_current()

    def close(self) -> None:
        """End what is its own."""
        self._closed = True
        for own in list(self._own.values()):
            own.close()

    def stop_soon(self) -> None:
        """The same from a finalizer."""
        self._closed = True
        for own in list(self._own.values()):
            own.stop_soon()
