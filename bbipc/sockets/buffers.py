"""What a caller may hand in to be written from or read into: any contiguous buffer, counted in bytes.

Law of this file: pure.  The hot paths hand a whole buffer to the kernel without coming here; this is for parts of
one, and for telling what is wrong with one that the kernel call refused.
"""

from __future__ import annotations

from typing_extensions import Buffer


def octets(buffer: Buffer) -> memoryview:
    """*buffer* as a view of bytes.

    :raises TypeError: no buffer, or one whose bytes are not contiguous
    """
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(f"a bytes-like object is required, not {type(buffer).__name__}") from None
    return view if view.format == "B" and view.ndim == 1 and view.c_contiguous else view.cast("B")


def window(buffer: Buffer, start: int, end: int | None) -> memoryview:
    """The bytes *start* to *end* (``None``: the last) of *buffer*.

    :raises TypeError: no contiguous buffer, or a bound that is no int
    :raises ValueError: not 0 <= start <= end <= its length in bytes
    """
    view = octets(buffer)
    size = view.nbytes
    for name, bound in (("start", start), ("end", size if end is None else end)):
        if not isinstance(bound, int):
            raise TypeError(f"{name} must be an int, not {type(bound).__name__}")
        if not 0 <= bound <= size:
            raise ValueError(f"{name} {bound} is outside the buffer of {size} bytes")
    stop = size if end is None else end
    if start > stop:
        raise ValueError(f"start {start} is behind end {stop}")
    return view[start:stop]


def writable_window(buffer: Buffer, start: int, end: int | None) -> memoryview:
    """The same of a buffer to read into.

    :raises TypeError: it is read-only, too
    """
    view = window(buffer, start, end)
    if view.readonly:
        raise TypeError(f"a read-write bytes-like object is required, not {type(buffer).__name__}")
    return view
