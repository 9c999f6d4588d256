"""Errands: what was left to whoever leads, until somebody begins it.

Law of this file: no thread, no call.  A name that ends in ``_locked`` needs the lock of the stations; whether anything
is ``due``, or for ``later``, is asked without it, too.

What is *due* is begun by the leader behind the calls of what he was told; what is for *later* is due with the next look
at the sockets.  What is left by an errand itself, and where calls are made apart, is always for later; the rest, when
MOST were begun since the last look.  So the sockets are looked at however often an errand is left, and by however many:
one that was due at once, whoever left it, kept all workers busy with one client for seconds.

None stands here twice.  Who begins one has taken it out before, and finds what was to be done when it was left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from pool.tasks import Errand

#: so many are begun between two looks at the sockets, where all is quick
MOST: Final = 16


class Errands:
    """Those of one crew.  ``begun``: how many since the last look at the sockets."""

    __slots__ = ("due", "later", "begun")

    def __init__(self) -> None:
        self.due: Final[OrderedDict[Errand, None]] = OrderedDict()
        self.later: Final[dict[Errand, None]] = {}
        self.begun = 0

    def leave_locked(self, errand: Errand, *, soon: bool = False) -> None:
        """*errand* is to be begun; *soon*: before the next look at the sockets, if there is no end of that."""
        if errand not in self.due and errand not in self.later:
            (self.due if soon and self.begun < MOST else self.later)[errand] = None

    def look_locked(self, more: Iterable[Errand] = ()) -> None:
        """The sockets are about to be looked at: all is due behind that, and *more*."""
        self.due.update(self.later)
        self.later.clear()
        self.due.update(dict.fromkeys(more))

    def take_locked(self) -> Errand | None:
        """The next one that is due, to be begun."""
        if not self.due:
            return None
        self.begun += 1
        return self.due.popitem(last=False)[0]
