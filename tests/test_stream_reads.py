"""The order of reads and the bytes they are given, without any I/O."""

from __future__ import annotations

import random
from concurrent.futures import Future

import pytest

from bbipc import IncompleteReadError, RemoteDisconnectedError, SeparatorNotFoundError
from pool.afterwards import Afterwards
from pool.stream_reads import Exactly, ReadQueue, ReadRequest, Until, UpTo


class Reads:
    """A queue, and what its owner does with it."""

    def __init__(self) -> None:
        self.queue = ReadQueue()

    def add(self, request: ReadRequest) -> Future[bytes]:
        request.future = Future()
        self.queue.add(request)
        return request.future

    def feed(self, data: bytes) -> None:
        after = Afterwards()
        self.queue.feed(data, after)
        after.do()

    def serve(self) -> None:
        after = Afterwards()
        self.queue.serve(after)
        after.do()

    def fail(self, error: Exception) -> None:
        after = Afterwards()
        self.queue.fail(error, after)
        after.do()


@pytest.fixture
def reads() -> Reads:
    return Reads()


def test_a_read_of_up_to_some_bytes_is_given_what_there_is(reads: Reads) -> None:
    first, second = reads.add(UpTo(4)), reads.add(UpTo(4))
    assert reads.queue.lacks() == 4
    reads.feed(b"abc")
    assert (first.result(0), second.done()) == (b"abc", False)
    reads.feed(b"defg")
    assert second.result(0) == b"defg"


def test_a_read_of_a_number_of_bytes_is_given_no_fewer(reads: Reads) -> None:
    future = reads.add(Exactly(5))
    reads.feed(b"abc")
    assert not future.done()
    assert reads.queue.lacks() == 2
    reads.feed(b"de")
    assert future.result(0) == b"abcde"
    assert not reads.queue.buffer


def test_a_whole_answer_in_one_piece_is_passed_on_as_it_is(reads: Reads) -> None:
    data = b"12345"
    future = reads.add(Exactly(5))
    reads.feed(data)
    assert future.result(0) is data
    other = reads.add(UpTo(9))
    reads.feed(data)
    assert other.result(0) is data


def test_a_line_may_come_in_any_pieces(reads: Reads) -> None:
    future = reads.add(Until(b"\r\n", 100))
    for piece in (b"ab\r", b"c\n", b"\n\r", b"\nrest"):
        assert not future.done()
        reads.feed(piece)
    assert future.result(0) == b"ab\rc\n\n\r\n"
    assert bytes(reads.queue.buffer) == b"rest"


def test_a_separator_is_searched_for_once_a_byte(reads: Reads) -> None:
    request = Until(b"\n", 1 << 20)
    future = reads.add(request)
    for _ in range(1 << 10):
        reads.feed(bytes(1 << 9))
        assert request._searched == len(reads.queue.buffer)
    reads.feed(b"\n")
    assert len(future.result(0)) == (1 << 19) + 1


@pytest.mark.parametrize(("size", "found"), [(9, True), (10, True), (11, False)])
def test_a_line_may_be_as_long_as_its_limit_with_the_separator(reads: Reads, size: int, found: bool) -> None:
    line = b"x" * (size - 2) + b"\r\n"
    future = reads.add(Until(b"\r\n", 10))
    reads.feed(line)
    if found:
        assert future.result(0) == line
    else:
        error = future.exception(0)
        assert isinstance(error, SeparatorNotFoundError)
        assert (error.max_bytes, error.separator) == (10, b"\r\n")
        assert reads.queue.buffer == line, "the bytes stay to be read"


def test_the_end_serves_everybody(reads: Reads) -> None:
    some, line, exact, nothing, none = (
        reads.add(request) for request in (Exactly(2), Until(b"\n", 9), Exactly(4), UpTo(1), Exactly(0))
    )
    reads.feed(b"abcd")
    reads.feed(b"")
    assert some.result(0) == b"ab"
    error = line.exception(0)
    assert isinstance(error, IncompleteReadError)
    assert (error.partial, error.expected) == (b"cd", None)
    error = exact.exception(0)
    assert isinstance(error, IncompleteReadError)
    assert (error.partial, error.expected) == (b"", 4)
    assert nothing.result(0) == b""
    assert none.result(0) == b""
    assert not len(reads.queue)


def test_a_reset_leaves_what_had_come_to_those_whom_it_suffices(reads: Reads) -> None:
    exact, some, none = (reads.add(request) for request in (Exactly(5), UpTo(9), UpTo(9)))
    reads.feed(b"abc")
    socket = object()
    error = RemoteDisconnectedError(104, "lost", socket=socket)
    reads.fail(error)
    assert some.result(0) == b"abc"
    for future in (exact, none):
        told = future.exception(0)
        assert isinstance(told, RemoteDisconnectedError)
        assert told is not error
        assert (told.errno, told.socket, told.__cause__) == (104, socket, error)
    assert exact.exception(0) is not none.exception(0)


def test_a_cancelled_read_takes_no_byte(reads: Reads) -> None:
    first, second = reads.add(Exactly(3)), reads.add(UpTo(9))
    assert first.cancel()
    reads.feed(b"abc")
    assert second.result(0) == b"abc"
    with pytest.raises(RuntimeError):  # it was told that it is cancelled, once; a second time would be an error
        first.set_running_or_notify_cancel()


def test_a_read_that_was_taken_out_takes_no_byte(reads: Reads) -> None:
    first, second = Exactly(5), UpTo(2)
    futures = reads.add(first), reads.add(second)
    reads.feed(b"abc")
    assert reads.queue.drop(first)
    assert not reads.queue.drop(first)
    reads.serve()
    assert (futures[0].done(), futures[1].result(0)) == (False, b"ab")


def test_memory_follows_what_arrives(reads: Reads) -> None:
    reads.add(Exactly(1 << 40))
    reads.feed(b"abc")
    assert reads.queue.lacks() == (1 << 40) - 3
    assert reads.queue.buffer.__sizeof__() < 1000


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: UpTo(0), ValueError),
        (lambda: UpTo(1.0), TypeError),  # type: ignore[arg-type]
        (lambda: Exactly(-1), ValueError),
        (lambda: Exactly("1"), TypeError),  # type: ignore[arg-type]
        (lambda: Until(b"", 9), ValueError),
        (lambda: Until("\n", 9), TypeError),  # type: ignore[arg-type]
        (lambda: Until(3, 9), TypeError),  # type: ignore[arg-type]
        (lambda: Until(b"ab", 1), ValueError),
    ],
)
def test_nonsense_is_refused(make: object, error: type[Exception]) -> None:
    assert callable(make)
    with pytest.raises(error):
        make()


def test_a_separator_may_be_any_buffer_and_is_copied() -> None:
    separator = bytearray(b"\n")
    request = Until(memoryview(separator), 9)
    separator[:] = b"x"
    assert request.ready(bytearray(b"a\n"), False)


@pytest.mark.parametrize("seed", range(20))
def test_any_requests_over_any_pieces_are_given_the_stream_in_order(seed: int) -> None:
    """20 x 2,000 requests, of which a third is cancelled."""
    rng = random.Random(seed)
    reads = Reads()
    stream = bytes(rng.choices(b"abc\n", k=20000))
    futures: list[Future[bytes]] = []
    position = 0
    for _ in range(2000):
        kind = rng.randrange(3)
        made: ReadRequest = (
            UpTo(rng.randint(1, 9)) if kind == 0 else Exactly(rng.randint(0, 9)) if kind == 1 else Until(b"\n", 8)
        )
        futures.append(reads.add(made))
        if rng.random() < 0.3 and rng.choice(futures).cancel():
            reads.serve()
        while len(reads.queue) > 5:
            piece = stream[position : position + rng.randint(1, 7)]
            position += len(piece)
            reads.feed(piece)
    got = b""
    for future in futures:
        if future.done() and not future.cancelled():
            error = future.exception(0)
            assert error is None or isinstance(error, SeparatorNotFoundError)
            got += b"" if error else future.result(0)
    assert got + reads.queue.buffer == stream[:position]
