"""The poll backend: every Unix, any number of sockets, the whole set handed to the kernel at every wait.

A poll object does not see a change made during its wait, and refuses a second waiter.  So only the waiting thread
touches it: changes are noted under the lock, and the waiter, whom ``Poller`` nudges, carries them out before its next
system call.
"""

from __future__ import annotations

import select

from bbipc.polling.deadline import milliseconds
from bbipc.polling.poller import Poller
from bbipc.readiness import READABLE
from bbipc.sockets.handle import poll_mask


class PollPoller(Poller):
    """A Poller on poll(2)."""

    backend = "poll"

    def __init__(self) -> None:
        super().__init__()
        self._changes: dict[int, int] = {self._waker.number: READABLE}  # guarded by the lock
        self._poll = select.poll()  # the waiting thread's alone

    def _tell_kernel(self, number: int, old: int, new: int) -> None:
        self._changes[number] = new

    def _kernel_wait(self, seconds: float | None) -> list[tuple[int, int]]:
        with self._lock:
            changes, self._changes = self._changes, {}
        for number, mask in changes.items():
            if mask:
                self._poll.register(number, poll_mask(mask))
            else:
                self._forget(number)
        return self._poll.poll(None if seconds is None else milliseconds(seconds))

    def _forget(self, number: int) -> None:
        try:
            self._poll.unregister(number)
        except KeyError:  # it came and went between two waits
            pass

    def _release_kernel(self) -> None:
        self._changes.clear()
