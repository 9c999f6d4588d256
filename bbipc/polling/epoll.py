"""The epoll backend: Linux, any number of sockets, a change takes effect while another thread waits.

Some facts about epoll, and what they mean here:

- Its set is keyed by (number, open file).  A registration whose number changed meaning while a duplicate of the file
  lived on (a forked child, a dup) cannot be removed any more and reports for ever (135,000 stale events in 0.2 s).
  So a socket leaves before its number changes meaning: ``Poller.socket_closing``.
- A hang-up and an error are reported whatever was asked, mask 0 included: who wants neither must leave the set.
- ``epoll.close`` does not wake a thread in ``poll``, and frees the number under it.  So it is never called: the thread
  is woken and the object dropped; the last call that uses it frees it.
- A child of a fork shares the set: ``Poller`` touches nothing of it there.
"""

from __future__ import annotations

import contextlib
import select

from bbipc.polling.poller import Poller
from bbipc.readiness import READABLE


class EpollPoller(Poller):
    """A Poller on epoll(7)."""

    backend = "epoll"
    _sees_changes = True

    def __init__(self) -> None:
        super().__init__()
        self._epoll: select.epoll | None = select.epoll()
        self._epoll.register(self._waker.number, READABLE)
        # The bound method itself: one frame less at every wait.
        self._kernel_wait = self._epoll.poll  # type: ignore[assignment,method-assign]

    def _tell_kernel(self, number: int, old: int, new: int) -> None:
        if self._epoll is None:
            return
        if not new:
            with contextlib.suppress(FileNotFoundError):
                self._epoll.unregister(number)
        elif old:
            self._modify(self._epoll, number, new)
        else:
            self._register(self._epoll, number, new)

    # What the table says may differ from what the kernel has, where a Ctrl-C came in between: each call mends it.

    @staticmethod
    def _register(epoll: select.epoll, number: int, mask: int) -> None:
        try:
            epoll.register(number, mask)
        except FileExistsError:
            epoll.modify(number, mask)

    @staticmethod
    def _modify(epoll: select.epoll, number: int, mask: int) -> None:
        try:
            epoll.modify(number, mask)
        except FileNotFoundError:
            epoll.register(number, mask)

    def _kernel_wait(self, seconds: float | None) -> list[tuple[int, int]]:
        return []  # once closed: the bound method in its place has gone

    def _release_kernel(self) -> None:
        if self._epoll is not None:
            self._epoll = None
            del self._kernel_wait
