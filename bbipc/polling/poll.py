"""The poll backend: every Unix, any number of sockets, the whole set handed to the kernel at every wait.

A poll object does not see a change made during its wait, and refuses a second waiter.  So only the waiting thread
touches it: changes are noted under the lock, and the waiter, whom ``Poller`` nudges, carries them out before its next
system call.
"""

from __future__ import annotations

import contextlib
import errno
import select

from bbipc.errors import SocketError
from bbipc.polling.deadline import milliseconds
from bbipc.polling.poller import Poller
from bbipc.readiness import READABLE
from bbipc.sockets.handle import poll_mask


class PollPoller(Poller):
    """A Poller on poll(2)."""

    backend = "poll"

    def __init__(self) -> None:
        super().__init__()
        self._masks: dict[int, int] = {self._waker.number: READABLE}  # guarded by the lock
        self._changed: dict[int, object] = {self._waker.number: None}  # number -> the change; guarded by the lock
        self._poll = select.poll()  # the waiting thread's alone

    def _tell_kernel(self, number: int, old: int, new: int) -> None:
        if new:
            self._masks[number] = new
        else:
            self._masks.pop(number, None)
        self._changed[number] = object()

    def _kernel_wait(self, seconds: float | None) -> list[tuple[int, int]]:
        if self._changed:
            self._carry_out_changes()
        try:
            return self._poll.poll(None if seconds is None else milliseconds(seconds))
        except OSError as error:  # EINVAL: more sockets than this process may have descriptors
            raise SocketError(error.errno or errno.EIO, f"cannot poll {len(self._masks)} sockets") from error

    def _carry_out_changes(self) -> None:
        with self._lock:
            for number, change in tuple(self._changed.items()):
                mask = self._masks.get(number)
                if mask is not None:
                    self._poll.register(number, poll_mask(mask))
                else:
                    with contextlib.suppress(KeyError):  # it came and went between two waits
                        self._poll.unregister(number)
                # Only now, that a Ctrl-C loses none; and with no call since the look, that a signal handler adds none.
                if self._changed[number] is change:
                    del self._changed[number]

    def _release_kernel(self) -> None:
        self._masks.clear()
