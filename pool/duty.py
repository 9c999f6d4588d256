"""Duty: what a worker does before he sleeps; for a pool that is to wait for sockets (``leader.py``).

Law of this file: the interface alone, and one who does nothing.
"""

from __future__ import annotations

from typing import Protocol

from pool.tasks import AnyTask


class Duty(Protocol):
    """What a worker does before he sleeps."""

    def perform(self) -> AnyTask | None:
        """Do it, for as long as there is nothing else; the task that was found meanwhile."""

    def wanted(self) -> bool:
        """Whether somebody has to do it, and nobody does."""
        ...

    def begin_watch(self) -> float | None:
        """About to sleep: for how many seconds at most; ``None``: without limit."""

    def leave(self) -> None:
        """About to run a task: somebody else has to watch."""

    def dismiss(self) -> None:
        """A worker ends, because the crew does."""

    def interrupt(self) -> None:
        """Look around: there is a task and nobody else to take it, or the end."""


class NoDuty:
    """Nothing to do but tasks."""

    def perform(self) -> AnyTask | None:
        """Nothing."""
        return None

    def wanted(self) -> bool:
        """No."""
        return False

    def begin_watch(self) -> float | None:
        """No limit."""
        return None

    def leave(self) -> None:
        """Nothing."""

    def dismiss(self) -> None:
        """Nothing."""

    def interrupt(self) -> None:
        """Nobody is there."""
