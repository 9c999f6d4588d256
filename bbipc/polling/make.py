"""make_poller: which backend.

Law of this file: the only one that knows all of them.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from typing import Final

from bbipc.errors import SocketError
from bbipc.polling.epoll import EpollPoller
from bbipc.polling.kqueue import KqueuePoller
from bbipc.polling.poll import PollPoller
from bbipc.polling.poller import Poller
from bbipc.polling.select import SelectPoller

#: the best first
_BACKENDS: Final[dict[str, Callable[[], Poller]]] = {
    "epoll": EpollPoller,
    "kqueue": KqueuePoller,
    "poll": PollPoller,
    "select": SelectPoller,
}


def available_backends() -> tuple[str, ...]:
    """The backends that this system has, the best first."""
    return tuple(name for name in _BACKENDS if hasattr(select, name))


def make_poller(backend: str | None = None) -> Poller:
    """A Poller on *backend*: "epoll", "kqueue", "poll" or "select"; ``None``: the best that this system has.

    Any thread.

    :raises ValueError: no such backend, or not on this system
    :raises SocketError: there are no descriptors left
    """
    here = available_backends()
    name = here[0] if backend is None else backend
    if name not in here:
        raise ValueError(f"there is no backend {name!r} here: {', '.join(here)}")
    try:
        return _BACKENDS[name]()
    except OSError as error:
        raise SocketError(error.errno or errno.EIO, f"cannot make a {name} poller: {error.strerror}") from error
