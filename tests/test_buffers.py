"""What may be written from and read into: any contiguous buffer, counted in bytes, by itself and through a stream."""

from __future__ import annotations

import array
import contextlib
import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

import bbipc
from bbipc.sockets.buffers import octets, window, writable_window

SIXTEEN = bytes(range(16))


class Pair(ctypes.Structure):
    """Two fields of different sizes, with padding between them."""

    _fields_ = [("short", ctypes.c_int16), ("long", ctypes.c_int64)]


def filled_map() -> mmap.mmap:
    memory = mmap.mmap(-1, 16)
    memory[:] = SIXTEEN
    return memory


#: a buffer of 16 bytes, 0 to 15, of every kind
READ_WRITE: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(SIXTEEN),
    "memoryview": lambda: memoryview(bytearray(SIXTEEN)),
    "signed memoryview": lambda: memoryview(bytearray(SIXTEEN)).cast("b"),
    "memoryview of doubles": lambda: memoryview(bytearray(SIXTEEN)).cast("d"),
    "array of items of 8": lambda: array.array("q", SIXTEEN),
    "array of items of 2": lambda: array.array("H", SIXTEEN),
    "mmap": filled_map,
    "ctypes array of bytes": lambda: (ctypes.c_ubyte * 16)(*SIXTEEN),
    "ctypes array of items of 8": lambda: (ctypes.c_int64 * 2).from_buffer_copy(SIXTEEN),
    "ctypes string buffer": lambda: (ctypes.c_char * 16).from_buffer_copy(SIXTEEN),
    "ctypes structure": lambda: Pair.from_buffer_copy(SIXTEEN),
}
READ_ONLY: dict[str, Callable[[], Any]] = {
    "bytes": lambda: SIXTEEN,
    "read-only memoryview": lambda: memoryview(SIXTEEN),
    "memoryview of a table": lambda: memoryview(SIXTEEN).cast("B", (4, 4)),
    "read-only memoryview of items of 8": lambda: memoryview(SIXTEEN).cast("Q"),
}
SIXTEENS = READ_WRITE | READ_ONLY
#: no byte at all, of several kinds
EMPTY: dict[str, Callable[[], Any]] = {
    "bytearray": lambda: bytearray(0),
    "memoryview": lambda: memoryview(bytearray()),
    "array of items of 8": lambda: array.array("q"),
    "ctypes array": ctypes.c_int64 * 0,
}
NO_BUFFERS = ["text", None, 5, 1.5, [1, 2], object()]
BAD_BOUNDS = [(-1, None), (17, None), (0, 17), (0, -1), (9, 8), (-16, -8), (16, 0), (2**70, None), (0, 2**70)]


@pytest.fixture(name="pair")
def stream_pair() -> Iterator[tuple[bbipc.LocalStream, bbipc.LocalStream]]:
    one, other = bbipc.local_stream_pair()
    with one, other:
        yield one, other


LocalPair = tuple[bbipc.LocalStream, bbipc.LocalStream]


@pytest.mark.parametrize("kind", SIXTEENS)
def test_any_contiguous_buffer_is_seen_as_its_bytes(kind: str) -> None:
    view = octets(SIXTEENS[kind]())
    assert (view.format, view.ndim, view.itemsize) == ("B", 1, 1)
    assert view.nbytes == len(view) == 16
    assert view.tobytes() == SIXTEEN


@pytest.mark.parametrize("kind", EMPTY)
def test_an_empty_buffer_is_seen_as_no_bytes(kind: str) -> None:
    assert octets(EMPTY[kind]()).nbytes == 0
    assert window(EMPTY[kind](), 0, None).nbytes == 0
    assert window(EMPTY[kind](), 0, 0).nbytes == 0


@pytest.mark.parametrize("kind", SIXTEENS)
def test_a_window_counts_bytes_whatever_the_item_size(kind: str) -> None:
    assert window(SIXTEENS[kind](), 3, 13).tobytes() == SIXTEEN[3:13]
    assert window(SIXTEENS[kind](), 5, None).tobytes() == SIXTEEN[5:]
    assert window(SIXTEENS[kind](), 16, None).nbytes == 0
    assert window(SIXTEENS[kind](), 16, 16).nbytes == 0


@pytest.mark.parametrize("kind", READ_WRITE)
def test_what_is_put_into_a_writable_window_arrives_in_the_buffer(kind: str) -> None:
    buffer = READ_WRITE[kind]()
    writable_window(buffer, 7, 10)[:] = b"abc"
    assert bytes(octets(buffer)) == SIXTEEN[:7] + b"abc" + SIXTEEN[10:]


@pytest.mark.parametrize("kind", READ_ONLY)
def test_a_read_only_buffer_is_no_writable_window(kind: str) -> None:
    with pytest.raises(TypeError, match="read-write"):
        writable_window(READ_ONLY[kind](), 0, 8)


@pytest.mark.parametrize(("start", "end"), BAD_BOUNDS)
@pytest.mark.parametrize("kind", ["bytearray", "array of items of 8", "ctypes array of items of 8"])
def test_bounds_outside_the_buffer_are_refused_and_not_clipped(kind: str, start: int, end: int | None) -> None:
    for look in (window, writable_window):
        with pytest.raises(ValueError, match=r"outside the buffer of 16 bytes|is behind end"):
            look(SIXTEENS[kind](), start, end)


@pytest.mark.parametrize(("start", "end"), [(None, None), ("0", 4), (1.0, None), (0, "4"), (0, 4.0), (b"1", None)])
def test_a_bound_that_is_no_int_is_refused_and_named(start: Any, end: Any) -> None:
    with pytest.raises(TypeError, match=r"(start|end) must be an int, not "):
        window(bytearray(16), start, end)


@pytest.mark.parametrize("value", NO_BUFFERS, ids=lambda value: type(value).__name__)
def test_what_is_no_buffer_is_refused_and_named(value: Any) -> None:
    with pytest.raises(TypeError, match=f"bytes-like object is required, not {type(value).__name__}"):
        octets(value)


@pytest.mark.parametrize("part", [slice(None, None, 2), slice(None, None, -1)], ids=["every second", "backwards"])
def test_a_buffer_with_gaps_is_refused(part: slice) -> None:
    with pytest.raises(TypeError):
        octets(memoryview(bytearray(16))[part])
    with pytest.raises(TypeError):
        window(memoryview(bytearray(16))[part], 0, 4)


@given(st.binary(max_size=64), st.integers(-3, 70), st.one_of(st.none(), st.integers(-3, 70)))
@settings(database=None, deadline=None)
def test_a_window_is_the_slice_or_an_error_and_never_a_clipped_slice(data: bytes, start: int, end: int | None) -> None:
    stop = len(data) if end is None else end
    if 0 <= start <= stop <= len(data):
        assert window(data, start, end).tobytes() == data[start:stop]
    else:
        with pytest.raises(ValueError, match=r"start|end"):
            window(data, start, end)


# Through a stream.


@pytest.mark.parametrize("kind", SIXTEENS)
def test_a_write_takes_any_buffer_and_counts_bytes(pair: LocalPair, kind: str) -> None:
    one, other = pair
    assert one.write(SIXTEENS[kind]()) == 16
    assert other.read() == SIXTEEN
    assert one.write(SIXTEENS[kind](), 3, 13) == 10
    assert other.read() == SIXTEEN[3:13]
    assert one.write(SIXTEENS[kind](), 15) == 1
    assert other.read() == SIXTEEN[15:]


@pytest.mark.parametrize("kind", SIXTEENS)
def test_a_vectored_write_takes_any_buffer_and_counts_bytes(pair: LocalPair, kind: str) -> None:
    one, other = pair
    assert one.write_vector([SIXTEENS[kind](), b"-", SIXTEENS[kind]()]) == 33
    assert other.read() == SIXTEEN + b"-" + SIXTEEN


@pytest.mark.parametrize("kind", READ_WRITE)
def test_a_read_fills_any_writable_buffer_and_counts_bytes(pair: LocalPair, kind: str) -> None:
    one, other = pair
    buffer = READ_WRITE[kind]()
    assert one.write(bytes(range(100, 116))) == 16
    assert other.read_into(buffer) == 16
    assert bytes(octets(buffer)) == bytes(range(100, 116))


@pytest.mark.parametrize("kind", READ_WRITE)
def test_a_read_into_a_part_touches_nothing_around_it(pair: LocalPair, kind: str) -> None:
    one, other = pair
    buffer = READ_WRITE[kind]()
    assert one.write(b"abcdefgh") == 8
    assert other.read_into(buffer, 5, 9) == 4
    assert bytes(octets(buffer)) == SIXTEEN[:5] + b"abcd" + SIXTEEN[9:]
    assert other.read_into(buffer, 12) == 4
    assert bytes(octets(buffer)) == SIXTEEN[:5] + b"abcd" + SIXTEEN[9:12] + b"efgh"


def test_a_peek_into_a_part_leaves_the_bytes(pair: LocalPair) -> None:
    one, other = pair
    buffer = bytearray(8)
    assert one.write(b"abcd") == 4
    assert other.read_into(buffer, 2, 5, peek=True) == 3
    assert other.read_into(buffer, peek=True) == 4
    assert other.read() == b"abcd"


@pytest.mark.parametrize("kind", EMPTY)
def test_a_write_of_nothing_gives_zero_and_sends_nothing(pair: LocalPair, kind: str) -> None:
    one, other = pair
    assert one.write(EMPTY[kind]()) == 0
    assert one.write(EMPTY[kind](), 0, 0) == 0
    assert one.write(b"abc", 1, 1) == 0
    assert one.write(b"abc", 3) == 0
    assert one.write_vector([]) == 0
    assert one.write_vector([EMPTY[kind](), b""]) == 0
    assert other.read() is None


def test_a_write_of_nothing_to_a_peer_that_has_gone_gives_zero(pair: LocalPair) -> None:
    one, other = pair
    other.close()
    assert one.write(b"") == 0
    assert one.write(b"abc", 2, 2) == 0
    assert one.write_vector([b""]) == 0
    assert one.write_vector([]) == 0


@pytest.mark.parametrize("kind", EMPTY)
def test_a_read_into_no_bytes_is_refused_and_consumes_nothing(pair: LocalPair, kind: str) -> None:
    one, other = pair
    for waiting in (b"", b"abc"):
        assert one.write(waiting) == len(waiting)
        for peek in (False, True):
            with pytest.raises(ValueError, match="no bytes"):
                other.read_into(EMPTY[kind](), peek=peek)
            with pytest.raises(ValueError, match="no bytes"):
                other.read_into(bytearray(4), 2, 2, peek=peek)
            with pytest.raises(ValueError, match="no bytes"):
                other.read_into(bytearray(4), 4, peek=peek)
    assert other.read() == b"abc"


def test_a_read_into_no_bytes_is_refused_at_the_end_too(pair: LocalPair) -> None:
    one, other = pair
    one.close()
    with pytest.raises(ValueError, match="no bytes"):
        other.read_into(bytearray())
    assert other.read_into(bytearray(1)) == 0


@pytest.mark.parametrize("count", [0, -1, -(2**40)])
def test_a_read_of_no_bytes_is_refused_and_consumes_nothing(pair: LocalPair, count: int) -> None:
    one, other = pair
    assert one.write(b"abc") == 3
    with pytest.raises(ValueError, match="max_bytes"):
        other.read(count)
    assert other.read() == b"abc"


@pytest.mark.parametrize(("start", "end"), BAD_BOUNDS)
def test_bad_bounds_consume_and_send_nothing(pair: LocalPair, start: int, end: int | None) -> None:
    one, other = pair
    buffer = bytearray(SIXTEEN)
    assert one.write(b"kept") == 4
    for peek in (False, True):
        with pytest.raises(ValueError, match=r"start|end"):
            other.read_into(buffer, start, end, peek=peek)
    with pytest.raises(ValueError, match=r"start|end"):
        one.write(buffer, start, end)
    assert buffer == SIXTEEN
    assert other.read() == b"kept"
    assert other.read() is None


@pytest.mark.parametrize(("start", "end"), [(None, None), (None, 4), ("1", None), (1.0, None), (0, "4"), (0, 4.0)])
def test_a_bound_that_is_no_int_consumes_and_sends_nothing(pair: LocalPair, start: Any, end: Any) -> None:
    one, other = pair
    assert one.write(b"kept") == 4
    with pytest.raises(TypeError, match="must be an int"):
        other.read_into(bytearray(16), start, end)
    with pytest.raises(TypeError, match="must be an int"):
        one.write(bytearray(16), start, end)
    assert other.read() == b"kept"
    assert other.read() is None


@pytest.mark.parametrize("value", NO_BUFFERS, ids=lambda value: type(value).__name__)
def test_what_is_no_buffer_is_neither_written_nor_read_into(pair: LocalPair, value: Any) -> None:
    one, other = pair
    assert one.write(b"kept") == 4
    calls: list[Callable[[], object]] = [
        lambda: one.write(value),
        lambda: one.write(value, 0, 1),
        lambda: one.write_vector([value]),
        lambda: one.write_vector([b"first", value]),
        lambda: other.read_into(value),
        lambda: other.read_into(value, 0, 1),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert other.read() == b"kept"
    assert other.read() is None


def test_a_text_is_not_a_vector_of_buffers(pair: LocalPair) -> None:
    with pytest.raises(TypeError):
        pair[0].write_vector("text")  # type: ignore[arg-type]
    assert pair[1].read() is None


@pytest.mark.parametrize("kind", READ_ONLY)
def test_a_read_into_a_read_only_buffer_is_refused_and_consumes_nothing(pair: LocalPair, kind: str) -> None:
    one, other = pair
    assert one.write(b"kept") == 4
    with pytest.raises(TypeError):
        other.read_into(READ_ONLY[kind]())
    with pytest.raises(TypeError, match="read-write"):
        other.read_into(READ_ONLY[kind](), 0, 4)
    assert other.read() == b"kept"


@pytest.mark.parametrize("part", [slice(None, None, 2), slice(None, None, -1)], ids=["every second", "backwards"])
def test_a_buffer_with_gaps_is_neither_written_nor_read_into(pair: LocalPair, part: slice) -> None:
    one, other = pair
    gaps: Buffer = memoryview(bytearray(16))[part]
    assert one.write(b"kept") == 4
    calls: list[Callable[[], object]] = [
        lambda: one.write(gaps),
        lambda: one.write(gaps, 1),
        lambda: one.write_vector([gaps]),
        lambda: other.read_into(gaps),
        lambda: other.read_into(gaps, 1),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert other.read() == b"kept"
    assert other.read() is None


def test_a_released_memoryview_is_refused_and_nothing_moves(pair: LocalPair) -> None:
    one, other = pair
    view = memoryview(bytearray(4))
    view.release()
    assert one.write(b"kept") == 4
    calls: list[Callable[[], object]] = [
        lambda: one.write(view),
        lambda: other.read_into(view),
        lambda: other.read_into(view, 0, 2),
    ]
    for call in calls:
        with pytest.raises((ValueError, TypeError), match=r"released|read-write"):  # as CPython's own sockets say it
            call()
    assert other.read() == b"kept"


def test_the_stream_lets_go_of_a_buffer_when_the_call_is_over(pair: LocalPair) -> None:
    one, other = pair
    buffer = bytearray(8)
    assert one.write(buffer, 2, 6) == 4
    assert other.read_into(buffer, 1, 3) == 2
    with contextlib.suppress(ValueError):
        other.read_into(buffer, 9)
    assert other.read_into(buffer) == 2
    assert other.read_into(buffer) is None
    buffer.clear()  # BufferError while anybody holds a view of it
    assert buffer == b""
