"""Arguments: what callers give, looked at before anything is made of it.

Law of this file: it says who is wrong, by the name that the caller knows, and changes nothing.
"""

from __future__ import annotations


def checked_kind(name: str, value: object, kind: type, what: str = "") -> None:
    """*value* of the parameter *name* is a *kind*; *what*: how that is told.

    :raises TypeError: it is not
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what or f'a {kind.__name__}'}, not {type(value).__name__}")


def checked_callable(name: str, value: object) -> None:
    """*value* of the parameter *name* can be called.

    :raises TypeError: it cannot
    """
    if not callable(value):
        raise TypeError(f"{name} must be a callable, not {type(value).__name__}")


def checked_hook(name: str, value: object) -> None:
    """The same, or there is none."""
    if value is not None:
        checked_callable(name, value)


def checked_count(name: str, value: object, *, least: int = 1) -> None:
    """*value* of the parameter *name* is a whole number, and at least *least*.

    :raises TypeError: no int
    :raises ValueError: less
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
