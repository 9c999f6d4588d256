"""Timeouts: what is accepted, how deadlines are counted, and that no wait is rounded down."""

from __future__ import annotations

import decimal
import fractions
import math
import select
import sys
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbipc
from bbipc import SocketEvent
from bbipc.polling.deadline import LONGEST_WAIT, checked_timeout, deadline_after, milliseconds, time_left

quiet = settings(database=None, deadline=None)
timeouts = st.floats(1e-9, 1e12)


class Clock:
    """time.monotonic, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


@given(timeouts)
@quiet
def test_a_positive_timeout_is_kept_to_the_last_bit(timeout: float) -> None:
    assert checked_timeout(timeout) == timeout


@given(st.integers(0, 10**12))
@quiet
def test_a_whole_number_of_seconds_is_as_good_as_a_float(timeout: int) -> None:
    checked = checked_timeout(timeout)
    assert checked == timeout
    assert isinstance(checked, float)


@pytest.mark.parametrize("zero", [0, 0.0, -0.0])
def test_zero_stays_zero_and_does_not_become_no_limit(zero: float) -> None:
    assert checked_timeout(zero) == 0.0


@pytest.mark.parametrize("timeout", [None, math.inf, 1e300, 10**400, sys.float_info.max, sys.maxsize])
def test_no_limit_and_more_than_any_clock_counts_mean_no_limit(timeout: float | None) -> None:
    assert checked_timeout(timeout) is None


@given(st.floats(max_value=-1e-300, allow_nan=False))
@quiet
def test_a_negative_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="negative or NaN"):
        checked_timeout(timeout)


@pytest.mark.parametrize("timeout", [math.nan, -math.nan, -math.inf, -1, -5e-324, -(10**400)], ids=str)
def test_what_is_no_length_of_time_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must not be negative or NaN"):
        checked_timeout(timeout)


@pytest.mark.parametrize(
    "timeout",
    [True, False, "1", "", b"1", [], (1,), 1j, decimal.Decimal(1), fractions.Fraction(1, 2), object()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_refused_by_its_type(timeout: Any) -> None:
    with pytest.raises(TypeError, match=f"seconds or None, not {type(timeout).__name__}"):
        checked_timeout(timeout)


@pytest.mark.parametrize("timeout", [math.nan, -1.0, -math.inf])
def test_every_wait_refuses_a_timeout_that_is_no_length_of_time(timeout: float) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller() as poller:
        with pytest.raises(ValueError, match="timeout"):
            bbipc.poll_socket(one, SocketEvent.DATA_AVAILABLE, timeout)
        with pytest.raises(ValueError, match="timeout"):
            bbipc.poll_sockets([(one, SocketEvent.DATA_AVAILABLE)], timeout)
        with pytest.raises(ValueError, match="timeout"):
            poller.wait_for_events(timeout)


@pytest.mark.parametrize("timeout", ["1", True, False, [0], 1j])
def test_every_wait_refuses_a_timeout_that_is_no_number(timeout: Any) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller() as poller:
        with pytest.raises(TypeError, match="timeout"):
            bbipc.poll_socket(one, SocketEvent.DATA_AVAILABLE, timeout)
        with pytest.raises(TypeError, match="timeout"):
            bbipc.poll_sockets([(one, SocketEvent.DATA_AVAILABLE)], timeout)
        with pytest.raises(TypeError, match="timeout"):
            poller.wait_for_events(timeout)
        assert poller.wait_for_events(0) == []  # a refused wait leaves no waiter behind


def test_a_deadline_is_that_many_seconds_from_now(clock: Clock) -> None:
    assert deadline_after(2.5) == 1_002.5
    assert deadline_after(0.0) == 1_000.0
    assert deadline_after(None) is None


def test_what_is_left_shrinks_with_the_clock_and_ends_at_zero(clock: Clock) -> None:
    deadline = deadline_after(2.0)
    assert time_left(deadline) == 2.0
    clock.now += 1.5
    assert time_left(deadline) == 0.5
    clock.now += 0.5
    assert time_left(deadline) == 0.0
    clock.now += 100
    assert time_left(deadline) == 0.0


def test_one_kernel_wait_is_a_day_at_most_and_what_is_left_goes_on(clock: Clock) -> None:
    deadline = deadline_after(10 * LONGEST_WAIT)
    assert time_left(deadline) == LONGEST_WAIT
    assert time_left(None) == LONGEST_WAIT
    clock.now += 9.5 * LONGEST_WAIT
    assert time_left(deadline) == 0.5 * LONGEST_WAIT


@given(timeouts)
@quiet
def test_what_is_left_is_never_negative_nor_more_than_asked(timeout: float) -> None:
    left = time_left(deadline_after(timeout))
    assert 0.0 <= left <= min(timeout * (1 + 1e-9) + 1e-9, LONGEST_WAIT)


@given(st.floats(1e-9, LONGEST_WAIT))
@quiet
def test_milliseconds_are_rounded_up_and_by_less_than_one(seconds: float) -> None:
    count = milliseconds(seconds)
    assert isinstance(count, int)
    assert count >= seconds * 1000
    assert count - 1 < seconds * 1000
    assert count >= 1


@pytest.mark.parametrize(
    ("seconds", "count"), [(0.0, 0), (1e-9, 1), (0.001, 1), (0.0010001, 2), (1.0, 1000), (0.9999, 1000)]
)
def test_milliseconds_of_a_known_length(seconds: float, count: int) -> None:
    assert milliseconds(seconds) == count


def test_the_longest_wait_fits_into_the_int_of_the_kernel() -> None:
    assert milliseconds(LONGEST_WAIT) < 2**31


def test_a_wait_of_a_moment_does_not_end_early() -> None:
    """Also where the kernel counts in milliseconds."""
    one, other = bbipc.local_stream_pair()
    with one, other:
        for timeout in (1e-9, 0.0004, 0.0015, 0.0101):
            began = time.monotonic()
            assert not bbipc.poll_socket(one, SocketEvent.DATA_AVAILABLE, timeout)
            assert time.monotonic() - began >= timeout


def test_a_poller_does_not_end_its_wait_early(backend: str) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
        for timeout in (1e-9, 0.0004, 0.0015, 0.0101):
            began = time.monotonic()
            assert poller.wait_for_events(timeout) == []
            assert time.monotonic() - began >= timeout


@pytest.mark.parametrize("timeout", [None, math.inf, 1e12, 10**400, 3 * LONGEST_WAIT])
def test_a_huge_timeout_is_handed_to_no_kernel_that_cannot_count_it(backend: str, timeout: float | None) -> None:
    one, other = bbipc.local_stream_pair()
    with one, other, bbipc.make_poller(backend) as poller:
        poller.monitor_socket(one, SocketEvent.DATA_AVAILABLE)
        poller.wake()
        assert poller.wait_for_events(timeout) == []
        assert other.write(b"x") == 1
        assert poller.wait_for_events(timeout) == [(one, SocketEvent.DATA_AVAILABLE)]
        assert bbipc.poll_socket(one, SocketEvent.DATA_AVAILABLE, timeout) is SocketEvent.DATA_AVAILABLE


@pytest.mark.skipif(not hasattr(select, "poll"), reason="this system has no poll")
def test_a_wait_without_limit_asks_the_kernel_for_a_day_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []
    one, other = bbipc.local_stream_pair()

    class Poll:
        """Sees what is asked of the real one, and makes something happen instead of sleeping."""

        def __init__(self) -> None:
            self._poll = real()
            self.register = self._poll.register

        def poll(self, timeout: int | None = None) -> list[tuple[int, int]]:
            if timeout:
                asked.append(timeout)
                assert other.write(b"x") == 1
            return self._poll.poll(0)

    real = select.poll
    with one, other:
        monkeypatch.setattr(select, "poll", Poll)
        assert bbipc.poll_socket(one, SocketEvent.DATA_AVAILABLE, None) is SocketEvent.DATA_AVAILABLE
        assert one.read() == b"x"
        assert bbipc.poll_socket(one, SocketEvent.DATA_AVAILABLE, 1e12) is SocketEvent.DATA_AVAILABLE
        monkeypatch.undo()
    assert asked == [milliseconds(LONGEST_WAIT)] * 2
