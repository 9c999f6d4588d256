"""What must hold across ``os.fork``: the locks of the sockets, and the knowledge of being a child.

Law of this file: it knows nothing of sockets.  A lock that another thread holds at the moment of a fork stays held
for ever in the child, so the locks of all sockets are a fixed set, taken by the forking thread before the fork and
let go on both sides: the child finds every lock free and every socket's fields in order.  (A lock a socket would need
a list of all sockets, and 80 bytes more a socket.)

Nobody waits inside these locks, not even for another lock: whoever holds something else may always take one of them.
They are re-entrant, because a signal handler, or a finalizer, may close the very socket whose lock its thread holds.
"""

from __future__ import annotations

import os
from typing import Final

from bbipc.sockets.locks import Lock, make_rlock

#: 64: enough that threads on different sockets seldom meet, few enough that a fork takes them all in 10 us
_LOCKS: Final = tuple(make_rlock() for _ in range(64))

#: 0 in the process that imported the package, one more in every generation of forked children.  Read at every use of
#: a poller, where os.getpid(), a system call of 0.16 us, would be felt.
generation = 0


#: how often this process, or one that it came from, has forked: what is older than the last fork may be shared
forks = 0


def lock_for(number: int) -> Lock:
    """The lock that guards the socket which holds descriptor *number*."""
    return _LOCKS[number & 63]


def _take_all() -> None:
    for lock in _LOCKS:
        lock.acquire()


def _let_go() -> None:
    global forks  # noqa: PLW0603
    forks += 1
    for lock in _LOCKS:
        lock.release()


def _let_go_in_child() -> None:
    global generation  # noqa: PLW0603
    generation += 1
    _let_go()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_take_all, after_in_parent=_let_go, after_in_child=_let_go_in_child)
