"""Output: the replies of one connection on their way to the kernel.

Law of this file: any thread may send, nobody waits, and replies never interleave.  What goes wrong with the connection
is nobody's error here: the replies are dropped, and counted.

Who writes.  There is one *pen*, the one element of a list (taking it and giving it back are atomic).  Whoever has it
writes; whoever finds it gone has put his reply into the queue before, and the writer looks at the queue once more when
he has given the pen back.  So no reply is left behind, and no lock is held while the kernel copies.

The usual reply, alone in its turn, does not touch the queue: one call of the kernel takes it.  When the kernel has no
room the connection is *blocked*: nobody writes until it has told that there is room again.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from bbipc.errors import SocketError
from bbipc.sockets.stream import StreamSocket
from pool.requests import Entry

#: replies that are written with one call
_MOST: Final = 128
#: up to so many bytes a copy costs less than a vector
_JOINED: Final = 65536


class Output:
    """The sending side of one connection."""

    __slots__ = ("stream", "blocked", "mute", "replies", "sent", "dropped", "_unsent", "_pen")

    def __init__(self, stream: StreamSocket) -> None:
        self.stream = stream
        self.blocked = False  # the kernel has no room; whoever waits for it flushes
        self.mute = False  # what is sent is dropped
        self.replies = 0  # these three belong to who has the pen
        self.sent = 0  # bytes, while there was a queue
        self.dropped = 0
        self._unsent: deque[Entry] = deque()
        self._pen = [None]

    def unsent(self) -> int:
        """How many bytes wait for the kernel to take them."""
        return sum([len(part) for entry in self._unsent.copy() for part in entry])

    def send(self, entry: Entry) -> None:
        """Write *entry*, or as much of it as can be written now; the rest follows."""
        unsent, pen = self._unsent, self._pen
        try:
            pen.pop()
        except IndexError:
            unsent.append(entry)
            return self.flush()
        try:
            if unsent or self.mute:
                unsent.append(entry)
            elif len(entry) == 1:
                count = self.stream.write(entry[0])
                if count == len(entry[0]):
                    self.replies += 1
                else:
                    self._keep_rest(entry, count)
            else:
                self._keep_rest(entry, self.stream.write_vector(entry))
        except SocketError:
            unsent.appendleft(entry)
            self._give_up()
        finally:
            pen.append(None)
        if unsent:
            self.flush()

    def flush(self) -> None:
        """Write what waits, as far as the kernel takes it."""
        unsent, pen = self._unsent, self._pen
        while unsent and not self.blocked:
            try:
                pen.pop()
            except IndexError:
                return
            try:
                self._write()
            except SocketError:
                self._give_up()
            finally:
                pen.append(None)
        if not unsent:
            self.flushed()

    def flushed(self) -> None:
        """Nothing waits any more.  Told at the end of every flush, perhaps by several threads at once."""
        raise AssertionError("every kind of output has its own")

    def stuck(self) -> None:
        """The kernel has no room: wait for it, and flush then."""
        raise AssertionError("every kind of output has its own")

    # Whoever has the pen.

    def _write(self) -> None:
        unsent = self._unsent
        if self.mute:
            return self._drop()
        if len(unsent) == 1:
            vector = unsent[0]
        else:
            vector = tuple([part for entry in islice(unsent.copy(), _MOST) for part in entry])
        size = sum(map(len, vector))
        count = self.stream.write(b"".join(vector)) if size <= _JOINED else self.stream.write_vector(vector)
        self.sent += count
        if count < size:
            self._block()
        self._take_out(count)

    def _take_out(self, count: int) -> None:
        """The first *count* bytes are with the kernel."""
        unsent = self._unsent
        while count:
            entry = unsent[0]
            size = sum(map(len, entry))
            if count < size:
                unsent[0] = _rest(entry, count)
                return
            unsent.popleft()
            self.replies += 1
            count -= size

    def _keep_rest(self, entry: Entry, count: int) -> None:
        """*count* bytes of *entry*, which was no part of the queue, are with the kernel."""
        if count == sum(map(len, entry)):
            self.replies += 1
            return
        self._unsent.appendleft(_rest(entry, count))
        self._block()

    def _block(self) -> None:
        self.blocked = True
        if self.mute:  # since a moment ago; whoever has done that has found the pen gone
            self.blocked = False
        else:
            self.stuck()

    def _give_up(self) -> None:
        self.mute = True
        self.blocked = False
        self._drop()

    def _drop(self) -> None:
        while self._unsent:
            self._unsent.popleft()
            self.dropped += 1


def _rest(entry: Entry, count: int) -> Entry:
    """*entry* without its first *count* bytes."""
    parts = []
    for part in entry:
        if count < len(part):
            parts.append(memoryview(part)[count:])
        count = max(count - len(part), 0)
    return tuple(parts)
