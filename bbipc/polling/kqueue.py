"""The kqueue backend: macOS and the BSDs.

Two things kqueue does otherwise: a socket has a reading and a writing *filter*, each registered by itself and each
reporting an event of its own; and the end of the peer is a flag on those (EV_EOF), never an event alone.  Both are
translated by pure functions (``changes`` and ``flags_of``), which Linux can test with recorded events.
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, Protocol

from bbipc.polling.poller import Poller
from bbipc.polling.watch import UNKNOWN
from bbipc.readiness import ERROR, HUNG_UP, READ_HUNG_UP, READABLE, WRITABLE

# <sys/event.h> of macOS, FreeBSD and OpenBSD, for where the module has none to tell.
READ_FILTER: Final[int] = getattr(select, "KQ_FILTER_READ", -1)
WRITE_FILTER: Final[int] = getattr(select, "KQ_FILTER_WRITE", -2)
ADD: Final[int] = getattr(select, "KQ_EV_ADD", 0x0001)
DELETE: Final[int] = getattr(select, "KQ_EV_DELETE", 0x0002)
EOF: Final[int] = getattr(select, "KQ_EV_EOF", 0x8000)

#: as many as epoll hands over at once
_BATCH: Final = 1023


class Kevent(NamedTuple):
    """What this file needs of a ``select.kevent``."""

    ident: int
    filter: int
    flags: int
    fflags: int = 0


class Kernel(Protocol):
    """What this file needs of a ``select.kqueue``."""

    def control(self, changelist: Any, maxevents: int, timeout: float | None = None, /) -> list[Any]:
        """Carry out *changelist*, then wait for at most *maxevents* events."""
        ...


def filters(mask: int) -> set[int]:
    """The filters that tell of the flags in *mask*.  The end of the peer shows on the reading one."""
    wanted = set()
    if mask & READABLE:
        wanted.add(READ_FILTER)
    if mask & WRITABLE:
        wanted.add(WRITE_FILTER)
    return wanted


def changes(number: int, old: int, new: int) -> list[Kevent]:
    """What to tell the kernel so that *number* is watched for the flags *new* instead of *old*."""
    before, after = filters(old), filters(new)
    removed = [Kevent(number, kind, DELETE) for kind in sorted(before - after)]
    return removed + [Kevent(number, kind, ADD) for kind in sorted(after - before)]


def flags_of(events: Iterable[Any]) -> dict[int, int]:
    """The flags of every number in a batch of kevents.

    EV_EOF on the reading filter: the peer sends no more.  On the writing one: it takes no more, so it has gone.
    With it, ``fflags`` holds the pending error, if there is one.
    """
    flags: dict[int, int] = {}
    for event in events:
        told = READABLE if event.filter == READ_FILTER else WRITABLE
        if event.flags & EOF:
            told |= READ_HUNG_UP if event.filter == READ_FILTER else HUNG_UP
            if event.fflags:
                told |= ERROR
        flags[event.ident] = flags.get(event.ident, 0) | told
    return flags


class KqueuePoller(Poller):
    """A Poller on kqueue(2)."""

    backend = "kqueue"
    _end_has_edge = False
    _sees_changes = True

    def __init__(self, kernel: Kernel | None = None, kevent: Callable[..., Any] | None = None) -> None:
        """*kernel*, *kevent*: a test's, in the place of ``select.kqueue()`` and ``select.kevent``."""
        super().__init__()
        if kernel is None:
            kernel = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
        self._kernel: Kernel | None = kernel
        self._kevent = kevent if kevent is not None else select.kevent  # type: ignore[attr-defined,unused-ignore]
        self._tell_kernel(self._waker.number, 0, READABLE)

    def _tell_kernel(self, number: int, old: int, new: int) -> None:
        if self._kernel is None:
            return
        if old == UNKNOWN:  # adding what is there already does nothing; taking away what is not is an error
            for change in changes(number, READABLE | WRITABLE, 0):
                with contextlib.suppress(FileNotFoundError):
                    self._kernel.control([self._kevent(*change[:3])], 0, 0)
            old = 0
        told = [self._kevent(*change[:3]) for change in changes(number, old, new)]
        if told:
            self._kernel.control(told, 0, 0)

    def _kernel_wait(self, seconds: float | None) -> list[tuple[int, int]]:
        kernel = self._kernel
        events = [] if kernel is None else kernel.control(None, _BATCH, seconds)
        return list(flags_of(events).items())

    def _release_kernel(self) -> None:
        self._kernel = None
