"""Pending: which call a reply belongs to.

Law of this file: no I/O, no thread, no lock.  Any thread may add and remove; replies are dealt out by one at a time,
whoever reads the connection just then.

A *tagged* reply names its call.  Whatever became of that call, the reply reaches it or nobody: a tag that is in flight
is not given out again, and a tag that is unknown is counted.  A peer that ignores tags answers in the order of the
requests; for it, and as long as nobody knows what the peer is, the tags are also kept in the order in which the
requests were sent.  There a call that was given up leaves its place: the reply that belongs there shows that nothing is
known any more of the replies behind it either (``Distrust``).

A request that wants no reply leaves its place as well (``NO_REPLY``), as peers of the original's kind may answer it all
the same.  A reply without a tag that comes when only that is left is nobody's.  If a call's request stands behind it,
the reply may be either's, and of those behind it nothing is known.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Final

from bbipc.messages.message import FAILED, TAGGED, Message
from pool.calls import AnyCall, failure_of

MASK: Final = (1 << 32) - 1

#: what is known of the peer: nothing; it echoes tags; it answers in order
UNKNOWN: Final = 0
ECHOES: Final = 1
IN_ORDER: Final = 2

#: stands in the order for any number of requests in a row that want no reply, and for whatever comes of them
NO_REPLY: Final = -1


class Distrust(Exception):
    """A reply came of which nobody can say whose it is."""


class Pending:
    """The calls of one connection that wait for their replies.

    ``table``: by tag, in the order of their making.  ``order``: tags of the requests that were sent, oldest first,
    while ``style`` is not ECHOES.  ``late``: replies that came for nobody.  ``replies``: those without a tag.
    ``complaint``: what the peer said last of the connection as a whole.  ``sent_unanswered``: whether a request that
    wants no reply was sent, or is about to be.
    """

    __slots__ = ("table", "order", "style", "late", "replies", "complaint", "sent_unanswered", "_tags")

    def __init__(self, first_tag: int = 0) -> None:
        self.table: dict[int, AnyCall] = {}
        self.order: deque[int] = deque()
        self.style = UNKNOWN
        self.late = 0
        self.replies = 0
        self.complaint: Exception | None = None
        self.sent_unanswered = False
        self._tags = itertools.count(first_tag)

    def add(self, call: AnyCall) -> int:
        """*call* waits from here on; its tag."""
        while True:
            call.tag = tag = next(self._tags) & MASK
            if self.table.setdefault(tag, call) is call:
                return tag

    def remove(self, call: AnyCall) -> bool:
        """*call* waits no more; False: it did not.  Its place in the order stays."""
        return self.table.pop(call.tag, None) is call

    def note_order(self, tag: int) -> None:
        """The request with *tag*, or NO_REPLY, goes out now; nobody knows yet that the peer echoes tags.

        By one thread at a time.
        """
        order = self.order
        try:
            if tag == NO_REPLY and order[-1] == NO_REPLY:
                return
        except IndexError:
            pass
        order.append(tag)

    def is_doubtful(self) -> bool:
        """Whether nobody could say whose the reply to one more request is."""
        return self.style == IN_ORDER and NO_REPLY in self.order.copy()

    def deal_out(self, inbox: deque[Message]) -> None:
        """Settle the calls that the messages in *inbox* belong to.  By one thread at a time.

        A message is crossed off when it has been dealt with, so that a Ctrl-C loses none.

        :raises Distrust: the peer cannot be trusted any more
        """
        table = self.table
        while inbox:
            message = inbox[0]
            if not message[2] & TAGGED:
                self._deal_out_in_order(message, inbox)
                continue
            if self.style != ECHOES:
                self.style = ECHOES
                self.order.clear()
            tag = message[3]
            call = table.get(tag)
            if call is None:
                self.late += 1
            else:
                call.settle(message)
                table.pop(tag, None)
            del inbox[0]

    def _deal_out_in_order(self, message: Message, inbox: deque[Message]) -> None:
        """A reply without a tag: the oldest request's; or, from a peer that echoes tags, no reply at all."""
        order, call = self.order, None
        if message[2] & FAILED:
            self.complaint = failure_of(message)
        if self.style == ECHOES:
            calls = list(self.table.values())
            alone = len(calls) == 1 and not self.sent_unanswered
            call = calls[0] if message[2] & FAILED and alone else None
        elif order and order[0] == NO_REPLY:
            if len(order) > 1:
                raise Distrust("a reply without a tag came, and one of the requests before wanted none")
        elif order:
            call = self.table.get(order[0])
            if call is None:
                raise Distrust("a reply without a tag came for a call that was given up")
        if call is None:
            self.late += 0 if message[2] & FAILED else 1
        else:
            if not message[2] & FAILED:
                self.style = IN_ORDER
                self.replies += 1
            call.settle(message)
            self.remove(call)
        # Nothing can come between these two.
        if order and order[0] != NO_REPLY:
            del order[0]
        del inbox[0]
