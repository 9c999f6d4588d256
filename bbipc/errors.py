"""Every exception of bbipc, named by who caused it.

    OSError
      SocketError                                   a system call on one of our sockets failed; .socket, errno kept
        SocketClosedError                           you closed it, here or in another thread
        NoConnectionAvailableError (BlockingIOError)  nobody waits to be accepted just now
        ConnectionFailedError (ConnectionError)     the connection never came about
          NoLocalServerError                        nothing listens at .path
        RemoteDisconnectedError (ConnectionError)   the peer went away in the middle of something
    EOFError
      IncompleteReadError                           the peer ended before all that was asked for had come; .partial
    ValueError
      SeparatorNotFoundError                        the peer sends longer lines than you allow; .max_bytes
      MessageError                                  what the peer sent is no message for you; nothing behind it is read
        InvalidMessageError                         a header or a text that no sender of ours writes
        ChecksumError                               the bytes are not those that were sent
        MessageTooLargeError                        longer than you allow; .size, .limit, .tag
        TruncatedMessageError                       the stream ended inside a message; .have, .need
    TimeoutError
      WriteTimeoutError                             the peer did not take it in the time you gave; .sent, .unsent
    RuntimeError
      PollerClosedError                             you closed the poller, or it was made before a fork
      QueueFullError                                there is no room for one more call; .limit
      ResponseError
        ResponseDisabledError                       you respond to a request that wants no response
        ResponseAlreadySentError                    you respond a second time
        RemoteHandlerError                          the peer's handler failed, and this is what it said

Law of this file: it knows nothing of the rest of the package.  An error is raised with facts and builds its
own text; a system error is translated only in ``sockets/`` and ``polling/``, ``from`` the original, errno kept.
"Nothing now" and "the peer's clean end" are return values, never exceptions.

What became of a write is a fact of the error that ended it.  ``sent``: how many bytes of this write the kernel had
taken, before whatever the peer makes of them.  ``unsent``: how many it had not, of this write, or of all that was
still queued when a flush or a close failed.  Both are ``None`` where no queued write was concerned.
"""

from __future__ import annotations

import errno
import os
from typing import TypeVar

_E = TypeVar("_E", bound="SocketError")


def _rebuild(kind: type[_E], number: int | None, text: str | None, facts: dict[str, object]) -> _E:
    error = kind.__new__(kind)
    OSError.__init__(error, number, text)
    error.__dict__.update(facts)
    return error


class SocketError(OSError):
    """A system call on a socket failed.

    ``errno`` and ``strerror`` are the system's, ``__cause__`` is the original exception, ``socket`` is the socket
    it happened to (``None`` while there was none yet, and in a copy that travelled through pickle: a socket does
    not travel).  Keeping the exception keeps the socket object, never its descriptor number.
    """

    socket: object = None
    sent: int | None = None
    unsent: int | None = None

    def __init__(self, number: int, text: str | None = None, *, socket: object = None) -> None:
        super().__init__(number, text or os.strerror(number))
        self.socket = socket

    def __reduce__(self) -> tuple[object, ...]:
        facts = {name: value for name, value in self.__dict__.items() if name != "socket"}
        return _rebuild, (type(self), self.errno, self.strerror, facts)


class SocketClosedError(SocketError):
    """The socket was closed by this program, in this thread or in another.  Final: every later call raises it too."""

    def __init__(self, socket: object) -> None:
        super().__init__(errno.EBADF, f"{type(socket).__name__} is closed", socket=socket)


class NoConnectionAvailableError(SocketError, BlockingIOError):
    """No connection waits to be accepted just now; wait for CONNECTION_AVAILABLE and call again."""

    def __init__(self, socket: object) -> None:
        super().__init__(errno.EAGAIN, "no connection is waiting to be accepted", socket=socket)


class ConnectionFailedError(SocketError, ConnectionError):
    """The connection never came about: refused, unreachable, timed out.  Final for that stream: make a new one."""


class NoLocalServerError(ConnectionFailedError):
    """Nothing listens at ``path``: there is no such file, or no server behind it any more."""

    path: str | bytes

    def __init__(self, number: int, path: str | bytes, *, socket: object = None) -> None:
        super().__init__(number, f"no server listens at {path!r}: {os.strerror(number)}", socket=socket)
        self.path = path


class RemoteDisconnectedError(SocketError, ConnectionError):
    """The peer reset the connection, or vanished from it, while something was still to be read or written.

    A peer that closes in good order is no error: reads then return ``0`` or ``b""``.
    """


class IncompleteReadError(EOFError):
    """The stream ended before all that was asked for had come.

    ``partial``: what had come, bytes; they are not to be read again.  ``expected``: how many bytes were asked for,
    ``None`` where it was a separator.
    """

    def __init__(self, partial: bytes, expected: int | None = None) -> None:
        wanted = "the separator" if expected is None else f"all {expected} bytes"
        super().__init__(f"the stream ended after {len(partial)} bytes, before {wanted}")
        self.partial = partial
        self.expected = expected

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.partial, self.expected), self.__dict__


class SeparatorNotFoundError(ValueError):
    """``max_bytes`` bytes came without the ``separator``.  They stay to be read."""

    def __init__(self, separator: bytes, max_bytes: int) -> None:
        super().__init__(f"no {separator!r} in {max_bytes} bytes")
        self.separator = separator
        self.max_bytes = max_bytes

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.separator, self.max_bytes), self.__dict__


class WriteTimeoutError(TimeoutError):
    """The kernel had no room for all of it in time, because the peer does not read.

    With nothing ``sent`` the write was taken back, and the stream is as good as before.  With a part of it sent, what
    would come next is garbage to the peer: nothing can be written any more.
    """

    def __init__(self, text: str, *, sent: int = 0, unsent: int = 0) -> None:
        super().__init__(text)
        self.sent = sent
        self.unsent = unsent

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.args, self.__dict__


class PollerClosedError(RuntimeError):
    """The poller was closed, here or in another thread, or it belongs to the process that forked this one."""

    sent: int | None = None
    unsent: int | None = None


class QueueFullError(RuntimeError):
    """There was no room for one more call in the time that was given: in a pool's queue, or among a client's futures.

    ``limit``: how many there may be.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(f"there is no room for one more call: the limit is {limit}")
        self.limit = limit

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.limit,), self.__dict__


class MessageError(ValueError):
    """What came from the peer is no message for this receiver.  The stream cannot be read any further."""


class InvalidMessageError(MessageError):
    """A header that no sender writes, or a STRING that is not UTF-8."""


class ChecksumError(MessageError):
    """The checksum does not match: the bytes are not those that were sent.  Their content is shown to nobody."""

    def __init__(self, size: int) -> None:
        super().__init__(f"checksum mismatch in a message of {size} bytes")
        self.size = size

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.size,), self.__dict__


class MessageTooLargeError(MessageError):
    """A payload of ``size`` bytes, where at most ``limit`` are allowed.  Told from the header, before any was taken.

    ``tag``: the correlation tag that the header named, ``None`` if it named none.  It is not covered by a checksum yet.
    """

    def __init__(self, size: int, limit: int, *, tag: int | None = None) -> None:
        super().__init__(f"a message of {size} bytes, where at most {limit} are allowed")
        self.size = size
        self.limit = limit
        self.tag = tag

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.size, self.limit), self.__dict__


class TruncatedMessageError(MessageError):
    """The stream ended inside a message: ``have`` bytes of it had come, ``need`` are known to belong to it.

    ``need`` counts the header too; while the header itself is not complete it is the header's size.
    """

    def __init__(self, have: int, need: int) -> None:
        super().__init__(f"the stream ended after {have} of {need} bytes of a message")
        self.have = have
        self.need = need

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.have, self.need), self.__dict__


class ResponseError(RuntimeError):
    """Something is wrong with the response to a request."""


class ResponseDisabledError(ResponseError):
    """The request said that it wants no response, or it is a copy that travelled away from its connection."""


class ResponseAlreadySentError(ResponseError):
    """The request was responded to before."""


class RemoteHandlerError(ResponseError):
    """The handler at the other side failed.  The text is what that side says of it: type and message, no traceback."""
