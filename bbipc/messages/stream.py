"""MessageStream: messages over a StreamSocket, for those who poll themselves.

Law of this file: nothing here waits.  ``receive`` makes at most one system call, ``send`` and ``flush`` go on until
the kernel has no room or nothing is unsent.  No thread is started.  The stream is not owned: who made it closes it.
Any thread may call anything at any time; messages go in the order in which the calls got their turn.

Who guards what: ``_sending`` the backlog, ``_receiving`` the decoder and the messages that are ready.  Each is held
across a system call that cannot wait, so that whole frames follow each other and bytes are decoded in the order they
came.  They are plain locks: not to be called from a signal handler.  A Ctrl-C may arrive between a system call and
what is made of its result; then the direction is in doubt, and is not used again.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from bbipc.errors import MessageTooLargeError, SocketError
from bbipc.messages.frames import HEADER_SIZE, MAX_MESSAGE_SIZE, Decoder, encode_parts
from bbipc.messages.message import Message
from bbipc.sockets.locks import make_lock
from bbipc.sockets.stream import StreamSocket

#: what one read asks for, and how much it may be if so much is missing of one message
_READ: Final = 65536
_LARGE_READ: Final = 1 << 18
#: buffers a write
_VECTOR: Final = 64


class MessageStream:
    """Sends and receives messages over *stream*, without waiting.

    *max_message_size*: the longest payload in bytes, both ways.  *accept_unsigned*: take messages without a checksum.

    The backlog is bounded: a message is taken when nothing is unsent, or when no more than *max_message_size* bytes
    are unsent with it.  So at most one message of the full size is held, or many small ones.

    To wait for a message: call ``receive`` until it gives ``None``, and if not ``ended`` wait for
    ``DATA_AVAILABLE | REMOTE_DISCONNECTED`` on ``stream``.  To send what is ``unsent``: wait for ``ROOM_TO_WRITE``, and
    ``flush``.

    :raises ValueError: *max_message_size* is negative, or does not fit into 32 bits
    """

    def __init__(
        self, stream: StreamSocket, *, max_message_size: int = MAX_MESSAGE_SIZE, accept_unsigned: bool = False
    ) -> None:
        self._stream = stream
        self._limit = max_message_size
        self._sending = make_lock()
        self._backlog: deque[bytes | memoryview] = deque()
        self._unsent = 0
        self._send_in_doubt = False
        self._receiving = make_lock()
        self._decoder = Decoder(max_message_size=max_message_size, accept_unsigned=accept_unsigned)
        self._ready: deque[Message] = deque()
        self._ended = False
        self._receive_in_doubt = False

    def __repr__(self) -> str:
        return f"<MessageStream over {self._stream!r}, {self._unsent} bytes unsent>"

    @property
    def stream(self) -> StreamSocket:
        """What the messages travel over."""
        return self._stream

    # Sending.

    @property
    def unsent(self) -> int:
        """How many bytes of taken messages the kernel has not taken yet."""
        return self._unsent

    def send(self, message: Message) -> bool:
        """Take *message*, and write what the kernel has room for; whether it was taken.

        ``False``: too much is unsent, and nothing of it will be sent; wait for ROOM_TO_WRITE and call again.  ``True``:
        it goes out behind those before it, with this call, later ones and ``flush``.

        :raises MessageTooLargeError: it is longer than *max_message_size*; nothing of it is sent
        :raises SocketClosedError: the stream was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer is gone; ``unsent`` says how much it was not sent
        :raises RuntimeError: an earlier write was interrupted (Ctrl-C), and how much of it went out is unknown
        """
        kind, payload, flags, tag = message
        size = len(payload)
        if size > self._limit:
            raise MessageTooLargeError(size, self._limit)
        parts = encode_parts(kind, payload, flags, tag)
        size += HEADER_SIZE
        with self._sending:
            self._ask_for_doubt()
            if self._unsent:
                self._write()
                if self._unsent and self._unsent + size > self._limit:
                    return False
            waiting = self._unsent
            self._send_in_doubt = True
            self._backlog.extend(parts)
            self._unsent = waiting + size
            self._send_in_doubt = False
            if not waiting:
                self._write()
        return True

    def flush(self) -> bool:
        """Write what is unsent, as far as the kernel has room; whether all of it went out.

        :raises SocketClosedError: the stream was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer is gone; ``unsent`` says how much it was not sent
        :raises RuntimeError: an earlier write was interrupted (Ctrl-C), and how much of it went out is unknown
        """
        with self._sending:
            self._ask_for_doubt()
            self._write()
            return not self._unsent

    def _write(self) -> None:
        """The caller holds ``_sending``."""
        while self._backlog:
            self._send_in_doubt = True
            try:
                count = self._stream.write_vector(islice(self._backlog, _VECTOR))
            except SocketError as error:
                self._send_in_doubt = False
                error.unsent = self._unsent
                raise
            self._take_off(count)
            self._send_in_doubt = False
            if not count:
                return

    def _ask_for_doubt(self) -> None:
        if self._send_in_doubt:
            raise RuntimeError("a write was interrupted: what the peer has got of it is unknown")

    def _take_off(self, count: int) -> None:
        self._unsent -= count
        while count:
            first = self._backlog.popleft()
            if len(first) > count:
                self._backlog.appendleft(memoryview(first)[count:])
                return
            count -= len(first)

    # Receiving.

    @property
    def ended(self) -> bool:
        """Whether the peer has ended in good order, behind a whole message, and all its messages were received."""
        return self._ended

    def receive(self) -> Message | None:
        """The next message; ``None`` if none is complete yet, or if the peer has ``ended``.

        What came before an error is received before it is raised.  Messages that came together are kept, so wait for
        the stream only after a ``None``.

        :raises MessageError: what came is no message for this receiver; every later call raises it too
        :raises TruncatedMessageError: the peer ended inside a message
        :raises SocketClosedError: the stream was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer reset the connection
        :raises RuntimeError: an earlier read was interrupted (Ctrl-C), and what it got is lost
        """
        with self._receiving:
            if not self._ready:
                self._read()
            return self._ready.popleft() if self._ready else None

    def _read(self) -> None:
        """The caller holds ``_receiving``."""
        decoder = self._decoder
        decoder.check()
        if self._receive_in_doubt:
            raise RuntimeError("a read was interrupted: what it had got is lost")
        if self._ended:
            return
        self._receive_in_doubt = True
        try:
            data = self._stream.read(min(max(_READ, decoder.wanted), _LARGE_READ))
        except SocketError:
            self._receive_in_doubt = False
            raise
        if data:
            self._ready.extend(decoder.feed(data))
        self._receive_in_doubt = False
        if data == b"":
            decoder.finish()
            self._ended = True
        elif not self._ready:
            decoder.check()
