"""StreamHalf: what the two directions of a FutureStream have in common.

Law of this file: see ``socket_queue.py``.

Tears.  A Ctrl-C may end a call between the kernel's part and ours: bytes are gone then that nobody knows of.  ``_torn``
is set across that gap; if it stays set, the direction is broken, and says so, instead of going on with a hole.
"""

from __future__ import annotations

import errno

from bbipc.errors import SocketError
from bbipc.events import SocketEvent
from bbipc.sockets.stream import StreamSocket
from pool.polling_loop import PollingLoop
from pool.socket_queue import SocketQueue


class StreamHalf(SocketQueue):
    """One direction of a stream."""

    def __init__(self, stream: StreamSocket, loop: PollingLoop, events: SocketEvent) -> None:
        super().__init__(stream, loop, events)
        self._stream = stream
        self._torn = False

    def _tear(self) -> SocketError:
        text = "an interrupt came between the kernel's part of a call and ours"
        return SocketError(errno.EIO, text, socket=self._stream)
