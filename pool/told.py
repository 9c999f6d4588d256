"""Errors as they are kept and handed on: of one error each owner of a future is given his own.

Law of this file: no I/O, no lock; only ``without_frames`` changes what it is given.  An exception that is raised
gathers the traceback, the context and the notes of whoever raises it; the same object in two futures would be written
to by two threads.
"""

from __future__ import annotations

import copy
import errno
from typing import Final, TypeVar

from bbipc.errors import (
    ConnectionFailedError,
    MessageError,
    PollerClosedError,
    RemoteDisconnectedError,
    SocketClosedError,
    TruncatedMessageError,
)
from bbipc.sockets.base import Socket

_AS_THEY_ARE: Final = (ConnectionFailedError, MessageError, PollerClosedError, SocketClosedError)

E = TypeVar("E", bound=Exception)


def again(error: E) -> E:
    """*error* for one more owner, with the same facts and the same cause."""
    other = copy.copy(error)
    if "socket" in vars(error):  # it does not travel through copy, as it does not through pickle
        vars(other)["socket"] = vars(error)["socket"]
    other.__cause__ = error.__cause__ or error
    return other


def with_facts(error: E, *, sent: int, unsent: int) -> E:
    """*error* for the owner of a write: *sent* bytes of it are with the kernel, *unsent* are not."""
    other = again(error)
    vars(other).update(sent=sent, unsent=unsent)
    return other


def call_failure(reason: BaseException, socket: Socket) -> Exception:
    """What one call is told whose connection, *socket*, has ended for *reason*."""
    if isinstance(reason, TruncatedMessageError) or not isinstance(reason, _AS_THEY_ARE):
        number, told = (reason.errno, reason.strerror) if isinstance(reason, OSError) else (None, None)
        text = "" if isinstance(reason, RemoteDisconnectedError) else "connection lost: "
        text += told or str(reason)
        error: Exception = RemoteDisconnectedError(number or errno.ECONNRESET, text, socket=socket)
    else:
        error = copy.copy(reason)
    error.__cause__ = reason
    return error


def interrupted(error: BaseException) -> Exception:
    """The reason of an end that *error*, an interrupt, has brought."""
    text = f"an interrupt ended a read or a write in its middle ({type(error).__name__})"
    return ConnectionAbortedError(errno.ECONNABORTED, text)


def without_frames(error: BaseException) -> None:
    """An error that is kept must not keep, by its frames, what waits for a descriptor."""
    one: BaseException | None = error
    for _ in range(9):
        if one is None:
            break
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
