"""The end of the interpreter, for whatever owns threads.

Law of this file: it knows nothing of sockets or pollers.  Our threads are daemons, so that a program in which somebody
forgot a ``close`` ends all the same; and they are stopped by ``atexit``, because a daemon thread that still runs while
the interpreter is taken apart may touch what is gone.  (A non-daemon thread would be joined before ``atexit`` runs:
the program would hang.)

At the exit all owners of threads are told to stop, and then waited for together, ``EXIT_PATIENCE`` seconds at most:
work that was submitted may end, a call that blocks for ever delays the exit no longer.  In a forked child, where the
threads do not exist, nobody is told.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from typing import Final, Protocol

from bbipc.sockets.locks import make_rlock

#: seconds; with what the interpreter needs for itself, a program ends in under two
EXIT_PATIENCE: Final = 1.5


logger = logging.getLogger(__name__)


class Owner(Protocol):
    """Whoever owns threads."""

    def stop_soon(self) -> None:
        """Let the threads end when they have done what there is to do.  Never waits."""

    def wait_until(self, deadline: float) -> None:
        """Wait for them until *deadline* on ``time.monotonic``."""


class _Owners:
    """All owners of threads in this process."""

    def __init__(self) -> None:
        self.lock = make_rlock()
        self.known: weakref.WeakSet[Owner] = weakref.WeakSet()
        self.exiting = False

    def stop_all(self) -> None:
        """What ``atexit`` calls."""
        self.exiting = True
        with self.lock:
            owners = list(self.known)
        for owner in owners:
            try:
                owner.stop_soon()
            except Exception:  # the others are to be told all the same
                logger.exception("%r could not be stopped", owner)
        deadline = time.monotonic() + EXIT_PATIENCE
        for owner in owners:
            owner.wait_until(deadline)

    def begin_child(self) -> None:
        """After a fork: the threads are the parent's, and so may be whoever holds the lock."""
        self.lock = make_rlock()
        self.known = weakref.WeakSet()


_owners: Final = _Owners()
atexit.register(_owners.stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_owners.begin_child)


def stop_at_exit(owner: Owner) -> None:
    """Stop *owner*'s threads when the interpreter exits.  It is not kept alive by this.  Any thread."""
    with _owners.lock:
        _owners.known.add(owner)


def exiting() -> bool:
    """Whether the interpreter is on its way out: nothing new is to be begun."""
    return _owners.exiting
