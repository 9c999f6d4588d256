"""Outgoing: the requests of one connection on their way out.

Law of this file: any thread may send; one at a time writes, and none waits for another.  Whoever finds nobody writing,
and nothing queued, writes at once; the others queue what they have, and whoever writes looks at the queue behind giving
the pen away.  What the kernel does not take stays in the queue, in front; then it is ``stuck``, and whoever waits for
the connection waits for room as well.  A write that was interrupted in its middle leaves nobody knowing how much has
left: it is the connection's end.

How one writes: ``_pen[0]`` is his token, as in ``socket_queue.py``.  He alone takes out of the queue, or puts in front.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

from bbipc.sockets.stream import StreamSocket
from pool.calls import Unsent, Waiter
from pool.pending import ECHOES, NO_REPLY, Pending

#: requests that are written with one system call
BATCH: Final = 64


class Parcel:
    """One request in the queue, *owner*'s.  ``begun``: some of it may have left."""

    __slots__ = ("owner", "tag", "parts", "begun")

    def __init__(self, owner: object, tag: int, parts: Sequence[bytes | memoryview], *, begun: bool = False) -> None:
        self.owner = owner
        self.tag = tag
        self.parts = parts
        self.begun = begun

    def size(self) -> int:
        """How many bytes are still to be sent."""
        return sum(map(len, self.parts))


class Outgoing:
    """What goes out over *stream*.

    ``queue``: what has not left; ``stuck``: because the kernel has no room.  ``error``: why nothing leaves any more.
    ``gone``: bytes that were in the queue and are not any more; the pen's, raised when they are out.
    """

    __slots__ = ("queue", "stuck", "error", "gone", "_stream", "_pending", "_pen")

    def __init__(self, stream: StreamSocket, pending: Pending) -> None:
        self.queue: deque[Parcel] = deque()
        self.stuck = False
        self.error: OSError | None = None
        self.gone = 0
        self._stream = stream
        self._pending = pending
        self._pen: dict[int, object] = {}

    def send(self, owner: object, tag: int, parts: tuple[bytes, ...]) -> bool:
        """Send the request *parts*, whose tag is *tag* (or NO_REPLY); False: some of it has not left yet.

        :raises Unsent: nothing of it has left, and nothing ever will
        """
        pen, pending = self._pen, self._pending
        try:
            if not self.queue and pen.setdefault(0, owner) is owner and not self.queue:
                if self.error is not None:
                    raise Unsent from self.error
                if pending.style != ECHOES:
                    pending.note_order(tag)
                stream = self._stream
                sent = stream.write(parts[0]) if len(parts) == 1 else stream.write_vector(parts)
                if sent == (len(parts[0]) if len(parts) == 1 else sum(map(len, parts))):
                    return True
                self.queue.appendleft(Parcel(owner, tag, _rest(parts, sent), begun=True))
                self.stuck = True
                return False
        except OSError as error:
            self.error = error
            raise Unsent from error
        finally:
            try:
                if pen[0] is owner:
                    del pen[0]
            except KeyError:
                pass
            if self.queue and not self.stuck:
                self.flush(owner)
        self.queue.append(Parcel(owner, tag, parts))
        return self.flush(owner)

    def flush(self, token: object) -> bool:
        """Write what is queued, as far as the kernel takes it; False: there is more, or somebody else writes."""
        pen, queue = self._pen, self.queue
        while queue and self.error is None:
            try:
                if pen.setdefault(0, token) is not token:
                    return False
                self.stuck = False  # whoever writes finds out, so that nobody else waits for room meanwhile
                if not self._write_batch():
                    self.stuck = True
                    return False
            except OSError as error:
                self.error = error
            finally:
                try:
                    if pen[0] is token:
                        del pen[0]
                except KeyError:
                    pass
        return not queue

    def holds(self, owner: object) -> bool:
        """Whether some of *owner*'s request has not left."""
        return any(parcel.owner is owner for parcel in self.queue.copy())

    def drop(self, owner: object) -> None:
        """Take *owner*'s request back, if nothing of it has left and nobody is just writing."""
        pen, token = self._pen, object()
        try:
            if pen.setdefault(0, token) is token:
                for parcel in _unbegun(self.queue.copy(), owner):
                    self.queue.remove(parcel)
                    self.gone += parcel.size()
                self.stuck = self.stuck and bool(self.queue)
        finally:
            try:
                if pen[0] is token:
                    del pen[0]
            except KeyError:
                pass
            if self.queue and not self.stuck:
                self.flush(token)

    def unsent(self) -> int:
        """How many bytes have not left."""
        return sum(parcel.size() for parcel in self.queue.copy())

    def owes(self) -> bool:
        """Whether something that wants no reply has not left: nobody may wait for it any more, but it is to go out."""
        return any(parcel.tag == NO_REPLY for parcel in self.queue.copy())

    def _write_batch(self) -> bool:
        """One write; False: the kernel has no room for all of it."""
        queue, pending = self.queue, self._pending
        if not queue:
            return True
        if pending.style == ECHOES:
            batch = list(itertools.islice(queue.copy(), BATCH))
        else:  # the order of the requests counts, so each is begun, and noted, by itself
            batch = [queue[0]]
            if not batch[0].begun:
                pending.note_order(batch[0].tag)
            batch[0].begun = True
        sent = self._stream.write_vector([part for parcel in batch for part in parcel.parts])
        for parcel in batch:
            size = parcel.size()
            if sent < size:
                if sent:
                    parcel.begun, parcel.parts = True, _rest(parcel.parts, sent)
                    self.gone += sent
                return False
            sent -= size
            queue.popleft()
            self.gone += size
            if isinstance(parcel.owner, Waiter) and parcel.tag == NO_REPLY:
                parcel.owner.end()  # who has sent what is not answered waits for nothing else
        return True


def _rest(parts: Sequence[bytes | memoryview], sent: int) -> list[bytes | memoryview]:
    """What is left of *parts* when *sent* bytes have been."""
    rest: list[bytes | memoryview] = []
    for part in parts:
        size = len(part)
        if sent < size:
            rest.append(memoryview(part)[sent:] if sent else part)
        sent = max(sent - size, 0)
    return rest


# In a frame of its own: see the end of ``interests.py``.
def _unbegun(parcels: Iterable[Parcel], owner: object) -> list[Parcel]:
    return [parcel for parcel in parcels if parcel.owner is owner and not parcel.begun]
