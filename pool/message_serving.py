"""Serving: what waits in a connection's queue is given to the handler, in one of three ways.

Law of this file: whoever runs a handler has a place of the connection and one of the server, and no lock.  He takes a
message out of the queue, hands in the reply, says that it is answered, and gives the places back; then he looks at what
others could not do for want of a place: at who has starved, at ``holds``, and at the end.

The hot path is :meth:`DirectConnection.work_off`: a small request costs 2.7 us here and in ``message_inbox.py``, where
the codec costs 2 and the kernel 4.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import CancelledError, Executor, Future
from functools import partial
from typing import Final

from bbipc.errors import SocketError
from bbipc.messages.message import DISCARD, NO_RESPONSE, TAGGED, Message
from bbipc.sockets.stream import StreamSocket
from pool.later import Later
from pool.message_connection import MessageConnection
from pool.message_inbox import READ_SIZE
from pool.message_service import Service
from pool.requests import Deferred, Entry, Peer, Reply, Request, call, reply_entry
from pool.worker_pool import WorkerPool

#: requests of one connection before others have their turn
TURN: Final = 16
#: the same on the poller thread, where the next turn costs a timer
INLINE_TURN: Final = 64
#: seconds; what comes behind a slower request gets a worker of its own
SLOW: Final = 0.001


class PlacedConnection(MessageConnection):
    """What all kinds of connections have in common: places, and replies that come later."""

    __slots__ = ()

    def enter(self) -> bool:
        """Take a place here and a place of the server; False: there is none, whoever gives one back goes on."""
        try:
            self.places.pop()
        except IndexError:
            return False
        try:
            self._common_places.pop()
        except IndexError:
            self.starve()
            return False
        return True

    def starve(self) -> None:
        """There was a place here, and none of the server."""
        service = self.service
        self.places.append(None)
        service.starved[self] = None
        if service.places:  # since a moment ago
            service.feed_starved()

    def leave(self) -> None:
        """Give the places back."""
        service = self.service
        self._common_places.append(None)
        self.places.append(None)
        if self.holds or self.discards or service.starved or service.held:
            self.make_way()

    def make_way(self) -> None:
        """There is a place: somebody may have waited for one."""
        service = self.service
        if service.starved:
            service.feed_starved()
        if service.held:
            service.relieve()
        if self.holds:
            self.go_on()
        if self.discards:
            self.discard()

    def look_around(self) -> None:
        """Behind a turn: do what others could not do for want of a token."""
        service = self.service
        if service.starved and service.places:
            service.feed_starved()
        if self.discards:
            self.discard()
        if self.ending:
            self.conclude()

    def defer(self, request: Request, future: Deferred) -> None:
        """*future* will have the reply; the places are its own until then."""
        future.add_done_callback(partial(self.delivered, request))

    def delivered(self, request: Request, future: Deferred) -> None:
        """The reply is there.  Any thread."""
        error = CancelledError() if future.cancelled() else future.exception()
        if error is not None:  # not raised here: a traceback that somebody keeps would keep the executor
            entry = self.settle_failed(request, error)
        else:
            value: Reply = future.result()
            if isinstance(value, Future):
                return self.defer(request, value)
            entry = self.settle(request, value)
        self.finish(request.message, entry)
        if self.queue:
            self.call_back()
        self.look_around()

    def finish(self, message: Message, entry: Entry | None) -> None:
        """Hand in the reply, and give the places back."""
        if entry is not None:
            self.send(entry)
        self.answered(message)
        self.leave()

    def blank(self, message: Message) -> Entry | None:
        """The reply to a request that is not for the handler."""
        return None if message[2] & NO_RESPONSE else self.entry(message, None, None)


class DirectConnection(PlacedConnection):
    """Handlers run where :meth:`run` is called; it may be called by several workers at once."""

    __slots__ = ()
    turn = TURN

    def again(self) -> None:
        """Have :meth:`run` called once more, behind others."""
        raise AssertionError("every kind of connection has its own")

    def run(self) -> int:
        """Answer what waits, until nothing does, or others have their turn."""
        if self._unsent:  # of a colleague whose handler blocks
            self.flush()
        service, places, common = self.service, self.places, self._common_places
        count = 0
        while self.queue and not self.discards and not (self.blocked and self.choked()):
            try:  # enter(), without its frame
                places.pop()
            except IndexError:
                break
            try:
                common.pop()
            except IndexError:
                self.starve()
                break
            try:
                served = self.work_off()
            except BaseException:  # an error of this program, not of a handler: nobody knows what was answered
                self.leave()
                self.cut()
                raise
            if served is None:
                count += 1
                break
            common.append(None)  # leave()
            places.append(None)
            if self.holds or self.discards or service.starved or service.held:
                self.make_way()
            count += served
            if count >= self.turn:
                if self.queue:
                    self.again()
                break
        if self.blocked and self.queue and self.choked():
            self.hold_for_replies()
        if self.ending or self.discards or service.starved:
            self.look_around()
        return count

    def waiting(self) -> int:
        """See Errand: how much one more worker could do now; replies to send are something, too."""
        queue, places = self.queue, self.places
        if queue and places and not (self.discards or (self.blocked and self.choked())):
            # At least one, though the server may have no place: whoever comes for it notes that it has starved.
            return max(min(len(queue), len(places), len(self._common_places)), 1)
        return 1 if self._unsent and not self.blocked else 0

    def work_off(self) -> int | None:  # noqa: PLR0912 # the hot path, in one frame
        """Answer up to ``turn`` requests, with a place; how many.  ``None``: the place is gone with one."""
        queue, handler, limit = self.queue, self.handler, self.service.limits.max_message_size
        count, last = 0, time.monotonic() if len(queue) > 1 or self._lane else 0.0
        while count < self.turn and not self.discards:
            try:
                message = queue.popleft()
            except IndexError:
                break
            count += 1
            if self.holds and not queue:  # the handler may take long
                self.go_on()
            request = Request(message, self)
            entry: Entry | None
            try:
                value = handler(request) if not message[2] & DISCARD else None
            except BaseException as error:  # noqa: BLE001 # whatever a handler raises, it ends nothing
                entry = self.settle_failed(request, error)
            else:
                try:
                    entry = reply_entry(message, value, None, limit)  # type: ignore[arg-type] # what is none raises
                    request.claim.pop()
                except Exception:  # noqa: BLE001 # a Future, or nothing that can be sent, or it was responded to
                    if isinstance(value, Future):
                        self._part_with(request, value)
                        return None
                    entry = self.settle(request, value)
            if entry is not None and not message[2] & NO_RESPONSE:
                if last and len(entry) == 1 and (queue or self._lane):  # small, and more to come: all with one call
                    self._unsent.append(entry)
                else:
                    self.send(entry)
            if self._heavy or not message[2] & TAGGED:
                self.answered(message)
            if not queue or (self.blocked and self.choked()):
                break
            now = time.monotonic()
            if now - last > SLOW and last:
                self.share()
            last = now
        if self._unsent:
            self.flush()
        return count

    def _part_with(self, request: Request, future: Deferred) -> None:
        """A handler has returned *future*: it takes the place with it.  What waits behind needs another one."""
        if self._unsent:
            self.flush()
        self.defer(request, future)
        if self.queue:
            self.again()

    def share(self) -> None:
        """A request has taken long, and others wait behind it: let somebody else see to them as well."""
        self.flush()
        self.again()


class WorkerConnection(DirectConnection):
    """Handlers run on the workers of a pool that monitors the stream, too."""

    __slots__ = ("_kept",)

    def __init__(self, service: Service, stream: StreamSocket, peer: Peer, workers: WorkerPool) -> None:
        super().__init__(service, stream, peer, workers.follow_up)
        self._kept: deque[bytes] | None = None  # there is one when reads may wait

    def listen(self, seconds: float) -> bool:
        """See Listener.  As :meth:`on_ready`, but who calls this waits in the read, and calls :meth:`run` himself."""
        try:
            self._reader.pop()
        except IndexError:
            return False
        data: bytes | None = None
        try:
            room = len(self.places) > len(self.queue) and self._common_places
            if room and not (self._unusual or self._lane or self._heavy or (self._known_part and self._crammed())):
                data = self._wait_in_read(seconds)
            if data:
                self._take_in(data)
            elif data is not None:
                self._take_end()
        except SocketError as error:
            self._take_loss(error)
        finally:
            self._reader.append(None)
            if self.service.held and not self.queue:
                self.pass_on()
            if self.ending:
                self.conclude()
        return bool(data)

    def _crammed(self) -> bool:
        """Whether who holds a part of a message has to deliver: the sweep is to see that nobody reads it meanwhile."""
        return self.service.unverified.scarce()

    def _wait_in_read(self, seconds: float) -> bytes | None:
        kept = self._kept
        if kept is None:
            try:
                self.stream._let_reads_wait(seconds)
            except SocketError:  # closed, or the system refuses: a read that does not wait will tell
                return None
            kept = self._kept = deque()
        data = self.stream._read_patiently(kept, self._read_size() if self.part else READ_SIZE)
        kept.clear()
        return data

    def again(self) -> None:
        """A worker: behind the others."""
        self.start(self)

    def call_back(self) -> None:
        """Any thread."""
        self.start(self)


class InlineConnection(DirectConnection):
    """Handlers run on the poller thread."""

    __slots__ = ("_later",)
    turn = INLINE_TURN

    def __init__(self, service: Service, stream: StreamSocket, peer: Peer, later: Later) -> None:
        super().__init__(service, stream, peer, DirectConnection.run)
        self._later = later

    def again(self) -> None:
        """The poller thread: when it has looked at the others."""
        self._later.call(self)

    def call_back(self) -> None:
        """Any thread."""
        self._later.call(self)

    def share(self) -> None:
        """There is nobody else."""
        self.flush()


class ExecutorConnection(PlacedConnection):
    """Handlers run on an executor; :meth:`run` hands requests to it, on the poller thread only.

    (Not in a future's callback: an executor may hold a lock of its own there that ``submit`` takes, too, as that of a
    broken ProcessPoolExecutor does.)
    """

    __slots__ = ("_later", "_executor")

    def __init__(self, service: Service, stream: StreamSocket, peer: Peer, executor: Executor, later: Later) -> None:
        super().__init__(service, stream, peer, ExecutorConnection.run)
        self._executor = executor
        self._later = later

    def call_back(self) -> None:
        """Any thread."""
        self._later.call(self)

    def run(self) -> int:
        """Hand on what waits, as far as there are places."""
        count = 0
        while self.queue and not self.discards and not self.choked() and self.enter():
            try:
                message = self.queue.popleft()
            except IndexError:
                self.leave()
                continue
            count += 1
            if message[2] & DISCARD:
                self.finish(message, self.blank(message))
            else:
                self._hand_on(Request(message, self))
        if self.queue and self.choked():
            self.hold_for_replies()
        self.look_around()
        return count

    def _hand_on(self, request: Request) -> None:
        try:
            future = self._executor.submit(call, self.handler, request)
        except BaseException as error:  # noqa: BLE001 # shut down, broken, or it cannot be pickled
            self.finish(request.message, self.settle_failed(request, error))
        else:
            self.defer(request, future)  # type: ignore[arg-type]
