"""Unverified: the memory of messages that have not come in full, for all connections of a server together.

Law of this file: it counts bytes, and says who is to be read no further; it reads nothing itself.  Any thread may call
anything; nobody is called under the lock.

A checksum stands over the whole message, so until its end nobody knows whether the bytes are worth anything.  Past the
limit all connections that hold such bytes are *held*, that is read no further, but one, the *favourite*: so there is
never more than the limit and one message, and somebody always gets to his end.  Behind him comes who has the least to
go.  While it is so, who holds bytes has to deliver, the favourite and those who wait (``message_sweep.py``): the memory
of all is not for those who only sit on it.

The favourite is read on to the end of that message, and not a byte further, whatever else there is against it (too many
requests, or replies).  Were he not, all others would wait for a handler of his; and if he gave the role up instead,
each of many could come as far as the middle of a message of his own, and hold that.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar

from bbipc.sockets.locks import make_rlock


class Holder(Protocol):
    """Whoever holds such bytes."""

    def go_on(self) -> object:
        """Be read again, if nothing else is in the way."""

    def missing(self) -> int:
        """How many bytes are missing of what he holds a part of."""
        ...


H = TypeVar("H", bound=Holder)


class Unverified(Generic[H]):
    """The bytes of one server, *limit* at most (and what is read at once beyond it)."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = make_rlock()
        self._parts: dict[H, int] = {}  # who holds how much; these four are guarded by the lock
        self._held: dict[H, None] = {}
        self._favourite: H | None = None
        self.total = 0

    def change(self, holder: H, bytes_more: int) -> None:
        """*holder* holds so many bytes more than before; fewer, if negative: his message is complete, or he is gone."""
        with self._lock:
            self.total += bytes_more
            part = self._parts.pop(holder, 0) + bytes_more
            if part:
                self._parts[holder] = part
            if bytes_more >= 0:
                return
            self._held.pop(holder, None)
            if self._favourite is holder:
                self._favourite = None
            freed = self._take_freed_locked()
        for other in freed:
            other.go_on()

    def may_go_on(self, holder: H) -> bool:
        """Whether *holder*, who holds some bytes, is to be read any further; if not, he is told when he is."""
        with self._lock:
            if self.total <= self._limit or holder not in self._parts:  # he may have lost them a moment ago
                return True
            if self._favourite is None:
                self._favourite = holder
            if self._favourite is holder:
                return True
            self._held[holder] = None
            return False

    def favours(self, holder: H) -> bool:
        """Whether *holder* is to be read on to the end of his message, whatever is in the way."""
        return self._favourite is holder

    def scarce(self) -> bool:
        """Whether there is too much."""
        return self.total > self._limit

    def has_to_deliver(self, holder: H) -> bool:
        """Whether there is too much, and *holder* has a part in it."""
        return self.total > self._limit and (self._favourite is holder or holder in self._held)

    def _take_freed_locked(self) -> list[H]:
        if self.total <= self._limit:
            freed = list(self._held)
        elif self._favourite is None and self._held:
            self._favourite = min(self._held, key=lambda holder: holder.missing())
            freed = [self._favourite]
        else:
            freed = []
        for holder in freed:
            del self._held[holder]
        return freed
