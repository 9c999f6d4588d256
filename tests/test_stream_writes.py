"""The order of writes, and who is told when, without any I/O."""

from __future__ import annotations

import random
from concurrent.futures import Future

import pytest

from bbipc import RemoteDisconnectedError
from pool.afterwards import Afterwards
from pool.stream_writes import CHUNK, Held, Kind, SendWaiter, WriteQueue


class Writes:
    """A queue, and what its owner does with it."""

    def __init__(self, limit: int) -> None:
        self.queue = WriteQueue(limit)
        self.sent = bytearray()
        self.reached: list[Kind] = []

    def write(self, data: bytes | bytearray, already: int = 0) -> Held | None:
        """None: done at once."""
        view = memoryview(data)[already:]
        if self.queue.promise(view):
            return None
        held = Held(view, len(data), lambda held, future: None)
        self.queue.hold(held)
        return held

    def wait(self, kind: Kind = Kind.FLUSH) -> SendWaiter:
        waiter = SendWaiter(kind)
        self.queue.wait(waiter)
        return waiter

    def kernel_takes(self, count: int) -> int:
        after = Afterwards()
        chunk = self.queue.next_bytes(after)
        taken = 0
        if chunk is not None:
            data = bytes(chunk)[:count]
            if isinstance(chunk, memoryview):
                chunk.release()
            self.sent += data
            taken = len(data)
            self.queue.taken(taken, after)
        self.look(after)
        return taken

    def withdraw(self, held: Held) -> bool:
        after = Afterwards()
        done = self.queue.withdraw(held, after)
        self.queue.promise_more(after)
        self.look(after)
        return done

    def look(self, after: Afterwards) -> None:
        for waiter in self.queue.reached(after):
            self.reached.append(waiter.kind)
            after.add(waiter.future.set_result, None)
        after.do()


def test_what_fits_under_the_limit_is_copied_and_done() -> None:
    writes = Writes(10)
    data = bytearray(b"0123456789")
    assert writes.write(data) is None
    data.clear()  # it is the caller's again
    assert (writes.queue.pending, writes.queue.promised) == (10, 10)
    assert writes.write(b"x") is not None
    assert (writes.queue.pending, writes.queue.promised) == (11, 10)


def test_a_write_is_done_as_soon_as_what_is_left_fits_under_the_limit() -> None:
    writes = Writes(4)
    data = bytearray(b"0123456789")
    held = writes.write(data)
    assert held is not None
    writes.kernel_takes(5)
    assert not held.future.done()
    with pytest.raises(BufferError):  # it is still needed
        data.clear()
    writes.kernel_takes(1)
    assert held.future.result(0) == 10
    data.clear()
    assert writes.queue.pending == 4
    writes.kernel_takes(99)
    assert writes.sent == b"0123456789"


def test_nobody_overtakes_one_for_whom_there_is_room_since_another_was_taken_back() -> None:
    writes = Writes(10)
    assert writes.write(b"01234") is None
    first, second = writes.write(b"x" * 99), writes.write(b"abc")
    assert first is not None
    assert second is not None
    after = Afterwards()
    assert writes.queue.withdraw(first, after)
    assert writes.write(b"de") is not None, "it would be sent before the other"
    while writes.kernel_takes(99):
        pass
    assert writes.sent == b"01234abcde"


def test_a_limit_of_nothing_is_done_when_all_is_sent() -> None:
    writes = Writes(0)
    held = writes.write(b"abc")
    assert held is not None
    writes.kernel_takes(2)
    assert not held.future.done()
    writes.kernel_takes(1)
    assert held.future.result(0) == 3


def test_a_write_behind_is_done_only_when_those_before_leave_room_for_it() -> None:
    writes = Writes(4)
    first, second = writes.write(b"0123456789"), writes.write(b"abc")
    assert first is not None
    assert second is not None
    writes.kernel_takes(6)
    assert first.future.result(0) == 10
    assert not second.future.done()
    writes.kernel_takes(3)
    assert second.future.result(0) == 3
    assert writes.queue.promised == 4


def test_nobody_overtakes() -> None:
    writes = Writes(4)
    assert writes.write(b"01234567") is not None
    assert writes.write(b"a") is not None, "there is no room for it, although it is small"
    while writes.kernel_takes(3):
        pass
    assert writes.sent == b"01234567a"


def test_a_write_may_be_cancelled_until_its_first_byte_is_handed_out() -> None:
    writes = Writes(0)
    first, second = writes.write(b"abc"), writes.write(b"def")
    assert first is not None
    assert second is not None
    writes.kernel_takes(1)
    assert not first.future.cancel()
    assert second.future.cancel()
    while writes.kernel_takes(9):
        pass
    assert writes.sent == b"abc"
    with pytest.raises(RuntimeError):  # told once that it is cancelled
        second.future.set_running_or_notify_cancel()


def test_a_write_that_was_begun_elsewhere_cannot_be_cancelled() -> None:
    held = Writes(0).write(b"abcdef", already=2)
    assert held is not None
    assert (held.sent, held.started, held.future.cancel()) == (2, True, False)


def test_a_withdrawn_write_gives_its_buffer_back_and_is_not_sent() -> None:
    writes = Writes(2)
    data = bytearray(b"0123456789")
    first, second = writes.write(data), writes.write(b"abc")
    assert first is not None
    assert second is not None
    assert writes.withdraw(first)
    assert not writes.withdraw(first)
    data.clear()
    assert writes.queue.pending == 3
    writes.kernel_takes(9)
    assert writes.sent == b"abc"


def test_a_flush_waits_for_what_was_before_it_and_for_nothing_else() -> None:
    writes = Writes(100)
    writes.write(b"abc")
    flush = writes.wait()
    writes.write(b"def")
    writes.kernel_takes(2)
    assert not flush.future.done()
    writes.kernel_takes(1)
    assert flush.future.result(0) is None
    assert writes.queue.pending == 3


def test_a_flush_does_not_wait_for_a_write_that_was_taken_back() -> None:
    writes = Writes(0)
    first, second = writes.write(b"abc"), writes.write(b"def")
    flush = writes.wait()
    third = writes.write(b"ghi")
    last = writes.wait()
    assert first is not None
    assert second is not None
    assert third is not None
    writes.kernel_takes(3)
    assert writes.withdraw(second)
    assert flush.future.done()
    writes.kernel_takes(2)
    assert not last.future.done()
    writes.kernel_takes(1)
    assert last.future.done()


def test_waiters_are_served_in_their_order() -> None:
    writes = Writes(9)
    writes.write(b"abc")
    for kind in (Kind.FLUSH, Kind.SHUTDOWN, Kind.CLOSE):
        assert not writes.queue.ending or kind is not Kind.SHUTDOWN
        writes.wait(kind)
    assert writes.queue.ending
    writes.kernel_takes(9)
    assert writes.reached == [Kind.FLUSH, Kind.SHUTDOWN, Kind.CLOSE]


def test_a_failure_tells_every_write_how_much_of_it_went() -> None:
    writes = Writes(2)
    first, second, cancelled = (writes.write(data) for data in (bytearray(b"0123456789"), b"abc", b"def"))
    flush = writes.wait()
    assert first is not None
    assert second is not None
    assert cancelled is not None
    writes.kernel_takes(4)
    cancelled.future.cancel()
    after = Afterwards()
    error = RemoteDisconnectedError(32, "gone", socket=writes)
    assert writes.queue.fail(error, after) == [flush]
    after.do()
    for held, sent, unsent in ((first, 4, 6), (second, 0, 3)):
        told = held.future.exception(0)
        assert isinstance(told, RemoteDisconnectedError)
        assert (told.sent, told.unsent, told.errno, told.socket) == (sent, unsent, 32, writes)
        assert told.__cause__ is error
    assert error.sent is None
    assert (writes.queue.pending, writes.queue.promised) == (0, 0)
    assert not flush.future.done()


def test_a_write_that_has_failed_still_knows_how_much_of_it_went() -> None:
    """Its buffer is the caller's again; who was about to give it up comes behind that."""
    writes = Writes(0)
    held = writes.write(b"0123456789", already=2)
    assert held is not None
    writes.kernel_takes(3)
    writes.queue.fail(RemoteDisconnectedError(32, "gone", socket=writes), Afterwards())
    assert (held.sent, held.unsent) == (5, 5)


def test_a_turn_is_bounded() -> None:
    writes = Writes(0)
    writes.write(bytes(CHUNK * 3))
    assert writes.kernel_takes(CHUNK * 9) == CHUNK


@pytest.mark.parametrize("seed", range(20))
def test_any_writes_taken_in_any_pieces_arrive_in_order_and_whole(seed: int) -> None:
    """20 x 200 writes, a quarter of them cancelled."""
    rng = random.Random(seed)
    writes = Writes(rng.choice([0, 5, 50]))
    futures: list[tuple[bytes, Future[int] | None]] = []
    flushes: list[tuple[SendWaiter, int]] = []
    helds: list[Held | None] = []
    for number in range(200):
        data = bytes([number % 256]) * rng.randint(1, 30)
        held = writes.write(data)
        futures.append((data, held.future if held else None))
        helds.append(held)
        assert writes.queue.promised <= writes.queue.limit
        if rng.random() < 0.3:
            chosen = rng.choice(helds)
            if chosen is not None and chosen.future.cancel() and rng.random() < 0.5:
                writes.queue.withdraw(chosen, Afterwards())
        if rng.random() < 0.1:
            flushes.append((writes.wait(), len(futures)))
        writes.kernel_takes(rng.randint(0, 25))
        for waiter, count in flushes:
            if waiter.future.done():
                kept = sum(len(data) for data, future in futures[:count] if not (future and future.cancelled()))
                assert len(writes.sent) >= kept
    while writes.kernel_takes(99):
        pass
    assert writes.sent == b"".join(data for data, future in futures if not (future and future.cancelled()))
    assert all(waiter.future.done() for waiter, _ in flushes)
