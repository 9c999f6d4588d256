"""What is left to be done when a lock is let go, and one error told to many."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from bbipc import PollerClosedError, RemoteDisconnectedError, WriteTimeoutError
from pool.afterwards import Afterwards
from pool.told import again, with_facts


def test_everything_is_done_once_and_in_order() -> None:
    after, done = Afterwards(), list[int]()
    for number in range(5):
        after.add(done.append, number)
    after.do()
    after.do()
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_everything_is_done_whatever_is_raised(kind: type[BaseException]) -> None:
    after, done = Afterwards(), list[int]()

    def spoil(text: str) -> None:
        raise kind(text)

    after.add(spoil, "first")
    after.add(done.append, 1)
    after.add(spoil, "second")
    after.add(done.append, 2)
    with pytest.raises(kind, match="first"):
        after.do()
    assert done == [1, 2]


def test_what_is_done_may_leave_more_to_be_done() -> None:
    after, done = Afterwards(), list[int]()
    after.add(after.add, done.append, 1)
    after.do()
    assert done == [1]


def test_a_call_that_a_ctrl_c_left_on_the_list_may_be_made_twice() -> None:
    """Between a call and its crossing off: a future that was settled is not settled again, and nothing is skipped."""
    after = Afterwards()
    first: Future[int] = Future()
    second: Future[int] = Future()
    first.set_running_or_notify_cancel()
    first.set_result(1)
    after.add(first.set_result, 1)
    after.add(second.set_result, 2)
    after.do()
    assert (first.result(0), second.result(0)) == (1, 2)


ERRORS: list[Callable[[], Exception]] = [
    lambda: RemoteDisconnectedError(errno.EPIPE, "gone", socket=ERRORS),
    lambda: WriteTimeoutError("late", sent=1, unsent=2),
    lambda: PollerClosedError("closed"),
]


@pytest.mark.parametrize("make", ERRORS)
def test_one_more_of_an_error_has_its_facts_and_its_cause_and_is_not_the_same(make: Callable[[], Exception]) -> None:
    error = make()
    other = again(error)
    assert type(other) is type(error)
    assert other is not error
    assert (str(other), vars(other)) == (str(error), vars(error))
    assert other.__cause__ is error
    error.__cause__ = OSError(1, "why")
    assert again(error).__cause__ is error.__cause__


@pytest.mark.parametrize("make", ERRORS)
def test_the_facts_of_a_write_are_those_of_its_owner(make: Callable[[], Exception]) -> None:
    error = make()
    before = dict(vars(error))
    told = with_facts(error, sent=7, unsent=8)
    assert (vars(told)["sent"], vars(told)["unsent"]) == (7, 8)
    assert vars(error) == before
