"""One question and its answer, in the calling thread, with an eye on every byte.

Law of this file: no thread, and not MessageClient: that one does not tell how far a transfer is, which a person at a
slow link wants to know, and here one message goes each way.  It asks without a tag, in one write where the kernel takes
it, and keeps silent afterwards, so that the original's server answers it, too.  Whatever goes wrong is a ProblemError
that carries the exit code.
"""

from __future__ import annotations

import contextlib
import math
import time
from typing import Final

import bbipc
from bbipc import Address, SocketEvent
from bbipc.errors import (
    ConnectionFailedError,
    MessageError,
    RemoteDisconnectedError,
    SocketError,
    TruncatedMessageError,
)
from bbipc.messages import Decoder, Message, MessageFlag, encode
from bbipc.polling.signals import signal_stream
from pool.cli.exits import Exit, ProblemError
from pool.cli.terminal import Meter
from pool.cli.text import reason_of

_READ_SIZE: Final = 1 << 18
_ROOM: Final = SocketEvent.ROOM_TO_WRITE
#: something to read, or the end: data alone never tells of that
_READ: Final = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED


class Exchange:
    """One question to the server at *address*, and its answer, within *timeout* seconds (``None``: no limit)."""

    def __init__(self, address: Address, decoder: Decoder, *, timeout: float | None, meter: Meter) -> None:
        self._address = address
        self._decoder = decoder
        self._signals: bbipc.StreamSocket | None = None
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._meter = meter

    def ask(self, message: Message) -> Message | None:
        """The answer to *message*; None where the message says that it wants none.

        :raises ProblemError: there is no server, no answer in time, the connection is lost, the answer is no message
        """
        with signal_stream() as self._signals, self._connect() as stream:
            try:
                answer = self._send(stream, encode(message))
                if message.flags & MessageFlag.NO_RESPONSE:
                    return None
                while answer is None:
                    self._wait(stream, _READ, "no answer in time")
                    answer = self._read(stream)
                return answer
            except TruncatedMessageError as error:
                reason = f"the connection was lost in the answer, after {error.have} of {error.need} bytes"
                raise ProblemError(Exit.LOST, reason) from error
            except MessageError as error:
                raise ProblemError(Exit.BAD_MESSAGE, f"the answer is refused: {error}") from error
            except SocketError as error:
                raise ProblemError(Exit.LOST, f"the connection was lost: {reason_of(error)}") from error

    def _connect(self) -> bbipc.StreamSocket:
        try:
            stream = self._address.connect()
        except ConnectionFailedError as error:
            raise ProblemError(Exit.NO_SERVER, reason_of(error)) from error
        except SocketError as error:
            raise ProblemError(Exit.FAILED, reason_of(error)) from error
        except ValueError as error:  # port 0
            raise ProblemError(Exit.USAGE, f"nobody can listen at {self._address}: {error}") from error
        try:
            self._wait(stream, SocketEvent.DETERMINED, f"cannot connect to {self._address} in time")
            if failed := stream.connection_error():
                reason = f"no server can be reached at {self._address}: {failed.strerror}"
                raise ProblemError(Exit.NO_SERVER, reason)
            return stream
        except BaseException:
            stream.close()
            raise

    def _send(self, stream: bbipc.StreamSocket, data: bytes) -> Message | None:
        """Send it all; the answer, if it comes while we do: a server may refuse what it has not seen the end of."""
        sent = 0
        while True:
            try:
                sent += stream.write(data, sent)
            except RemoteDisconnectedError:
                return self._last_words(stream)
            self._meter("sending", sent, len(data))
            if sent == len(data):
                return None
            events = self._wait(stream, _ROOM | _READ, f"only {sent} of {len(data)} bytes were taken in time")
            if events & _READ and (answer := self._read(stream)):
                return answer

    def _last_words(self, stream: bbipc.StreamSocket) -> Message | None:
        """It has hung up on us; it may have said why before it did."""
        answer = None
        with contextlib.suppress(RemoteDisconnectedError):
            while answer is None and stream.data_available():
                answer = self._read(stream)
        if answer is None:
            raise ProblemError(Exit.LOST, "the server closed the connection before it had the whole message")
        return answer

    def _read(self, stream: bbipc.StreamSocket) -> Message | None:
        data = stream.read(_READ_SIZE)
        if data is None:
            return None
        if not data:
            self._decoder.finish()
            raise ProblemError(Exit.LOST, "the server closed the connection without an answer")
        messages = self._decoder.feed(data)
        if messages:
            return messages[0]
        self._decoder.check()
        have = self._decoder.pending
        self._meter("receiving", have, have + self._decoder.wanted)
        return None

    def _wait(self, stream: bbipc.StreamSocket, events: SocketEvent, too_late: str) -> SocketEvent:
        rows: list[tuple[bbipc.Socket, SocketEvent]] = [(stream, events)]
        if self._signals is not None:
            rows.append((self._signals, SocketEvent.DATA_AVAILABLE))
        while True:
            left = self._deadline - time.monotonic()
            found = bbipc.poll_sockets(rows, None if left == math.inf else max(left, 0.0))
            if found[0]:
                return found[0]
            if self._signals is not None:
                self._signals.read()  # one that did not end us
            if left <= 0:
                raise ProblemError(Exit.TIMEOUT, too_late)
