"""Signals that end a wait, whenever they come.

Law of this file: for the main thread, where Python runs the handlers of signals.  A signal usually ends its wait by
itself; these do not:

1. The main thread has looked for signals for the last time before its system call.  A signal comes, is noted, and
   interrupts nothing.  The main thread goes to sleep, and so does the handler (1 of 360 Ctrl-C in a loaded machine).
2. The kernel lets another thread take the signal: it notes it, and the main thread sleeps on.

So whatever notes a signal also writes a byte to a descriptor that the wait looks at (``signal.set_wakeup_fd``).
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from bbipc.errors import SocketError
from bbipc.events import SocketEvent
from bbipc.polling.poller import Poller
from bbipc.sockets.local import local_stream_pair
from bbipc.sockets.stream import StreamSocket


@contextlib.contextmanager
def signal_stream() -> Iterator[StreamSocket | None]:
    """A stream on which there is something to read when a signal has come; for the main thread to wait for as well.

    None in another thread, or where it cannot be had.  One at a time: the last one is told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield None
        return
    try:
        reader, writer = local_stream_pair()
    except SocketError:  # no descriptors left, or a system without local sockets
        yield None
        return
    before = -1
    with reader, writer:
        try:
            with contextlib.suppress(ValueError):  # another interpreter's main thread
                before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            yield reader
        finally:
            # Twice: the signal that ends it may come just here, and its byte must not go to a number that is another's.
            try:
                _restore(before)
            finally:
                _restore(before)


@contextlib.contextmanager
def woken_by_signals(poller: Poller) -> Iterator[Callable[[], object]]:
    """Let a signal end the waits of *poller*, with which the main thread waits: as an event that says nothing.

    What this gives is to be called after each wait; otherwise the next ones end at once.
    """
    with signal_stream() as stream:
        if stream is None:
            yield _nothing
            return
        poller.monitor_socket(stream, SocketEvent.DATA_AVAILABLE)
        try:
            yield stream.read
        finally:
            poller.unmonitor_socket(stream)


def _nothing() -> None:
    pass


def _restore(before: int) -> None:
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(before)
