"""Calls, the table of those that are pending, and requests on their way out; no client."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import CancelledError, Future, wait
from unittest import mock

import pytest

import bbipc
from bbipc import RemoteDisconnectedError, RemoteHandlerError
from bbipc.messages import Decoder, Message, MessageType
from bbipc.polling.vigil import Vigil
from bbipc.sockets.stream import StreamSocket
from pool.calls import Call, CallFuture, Unsent, Waiter, outgoing, value_of
from pool.outgoing import Outgoing
from pool.pending import ECHOES, IN_ORDER, MASK, NO_REPLY, UNKNOWN, Distrust, Pending
from tests.support.makers import PATIENCE, Worker, drain, fill, wait_until_asleep
from tests.support.messaging import FAILED, TAGGED

DISCARD = 2


class Keeper:
    """What a future needs of a conversation."""

    def __init__(self) -> None:
        self.given_up: list[object] = []
        self.called_back: list[CallFuture] = []

    def attend_to(self, future: CallFuture, timeout: float | None) -> None:
        """Nobody reads."""

    def give_up(self, call: object) -> None:
        self.given_up.append(call)

    def call_back(self, future: CallFuture) -> None:
        self.called_back.append(future)


def reply(payload: bytes = b"x", flags: int = TAGGED, tag: int = 0, kind: MessageType = MessageType.BINARY) -> Message:
    return Message(kind, payload, flags, tag)


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (reply(b"abc"), b"abc"),
        (reply(b"abc\0", kind=MessageType.STRING), "abc"),
        (reply(b"abc\0\0", kind=MessageType.STRING), "abc\0"),
        (reply(b"", DISCARD | 1), None),
        (reply(b"abc", DISCARD), None),
        (reply(b"abc", kind=MessageType.CLOSE), None),
    ],
)
def test_what_a_reply_says(message: Message, value: object) -> None:
    assert value_of(message) == value
    future = CallFuture(Keeper())
    future.settle(message)
    assert future.result() == value


def test_what_is_sent() -> None:
    assert outgoing("a", None) == (0, b"a\0")
    assert outgoing(b"a", None) == (1, b"a")
    assert outgoing(None, None) == (2, b"")
    assert outgoing(Message.string("a"), None) == (0, b"a\0")


# Futures.


def test_the_first_outcome_of_a_future_counts() -> None:
    for first, second in [("settle", "fail"), ("fail", "settle"), ("settle", "settle")]:
        future = CallFuture(Keeper())
        for name in (first, second):
            future.settle(reply(name.encode())) if name == "settle" else future.fail(OSError("fail"))
        assert future.over
        if first == "settle":
            assert future.result() == b"settle"
            assert future.exception() is None
        else:
            assert isinstance(future.exception(), OSError)
        assert not future.cancel()


def test_a_cancelled_future_takes_no_reply_and_its_waiters_know() -> None:
    keeper = Keeper()
    future = CallFuture(keeper)
    assert future.cancel()
    assert future.cancel()
    future.settle(reply())
    assert keeper.given_up == [future]
    assert wait([future], 0).done == {future}
    with pytest.raises(CancelledError):
        future.result()


def test_a_failed_reply_is_an_error() -> None:
    future = CallFuture(Keeper())
    future.settle(reply(b"ValueError: \xff\0", TAGGED | FAILED))
    with pytest.raises(RemoteHandlerError, match=r"^ValueError: \ufffd$"):
        future.result()


def test_callbacks_are_left_to_the_keeper() -> None:
    keeper, called = Keeper(), list[Future[object]]()
    futures = [CallFuture(keeper) for _ in range(3)]
    for future in futures[:2]:
        future.add_done_callback(called.append)  # type: ignore[arg-type]
    for future in futures:
        future.settle(reply())
    assert called == []
    assert keeper.called_back == futures[:2]
    for future in keeper.called_back:
        future.call_back()
    assert called == futures[:2]
    futures[2].add_done_callback(called.append)  # type: ignore[arg-type]
    assert called == futures


def test_a_future_whose_settling_was_interrupted_is_not_left_locked() -> None:
    """A Ctrl-C inside of Condition.__enter__ leaves the lock held; nobody else could ask for the result."""
    future = CallFuture(Keeper())

    def locked(value: object) -> None:
        future._condition.acquire()
        raise KeyboardInterrupt

    with mock.patch.object(future, "set_result", locked), pytest.raises(KeyboardInterrupt):
        future.settle(reply())
    future.settle(reply(b"again"))
    assert Worker(future.exception).outcome() is None
    assert future.result() == b"again"


# Pending.


def test_tags_wrap_and_those_in_flight_are_not_given_out_again() -> None:
    pending = Pending(MASK - 1)
    old = Call()
    old.tag = 0
    pending.table[0] = old
    assert [pending.add(Call()) for _ in range(4)] == [MASK - 1, MASK, 1, 2]


def test_a_tagged_reply_is_its_calls_whatever_the_order() -> None:
    pending = Pending()
    calls = [Call() for _ in range(3)]
    for call in calls:
        pending.add(call)
    pending.deal_out(deque(reply(b"%d" % tag, tag=tag) for tag in (2, 0, 7, 1, 1)))
    assert [call.reply and call.reply.payload for call in calls] == [b"0", b"1", b"2"]
    assert (pending.style, pending.late, pending.table) == (ECHOES, 2, {})


def test_replies_without_tags_are_dealt_out_in_order_until_one_was_given_up() -> None:
    pending = Pending()
    calls = [Call() for _ in range(3)]
    pending.order.extend(pending.add(call) for call in calls)
    assert pending.style == UNKNOWN
    pending.remove(calls[1])
    with pytest.raises(Distrust):
        pending.deal_out(deque(reply(b"%d" % index, 0, 0xDEAD) for index in range(3)))
    assert pending.style == IN_ORDER
    assert [call.reply and call.reply.payload for call in calls] == [b"0", None, None]


def test_a_complaint_without_a_tag_is_the_only_calls_or_the_connections() -> None:
    for count, concerned in [(1, True), (2, False)]:
        pending = Pending()
        calls = [Call() for _ in range(count)]
        for call in calls:
            pending.add(call)
        pending.style = ECHOES
        pending.deal_out(deque([reply(b"no", FAILED)]))
        assert isinstance(pending.complaint, RemoteHandlerError)
        assert (calls[0].reply is not None) is concerned


# Outgoing.


def test_what_the_kernel_does_not_take_keeps_its_place_in_front() -> None:
    """While A is inside of its write, B queues a request: it must not go out in the middle of A's."""
    one, other = bbipc.local_stream_pair()
    with one, other:
        pending = Pending()
        pending.style = ECHOES
        out = Outgoing(one, pending)
        original = StreamSocket.write

        def halved(stream: StreamSocket, buffer: bytes) -> int:
            assert not out.send("B", 1, (b"BBBB",))
            return original(stream, buffer[: len(buffer) // 2])

        with mock.patch.object(StreamSocket, "write", halved):
            assert not out.send("A", 0, (b"AAAAAAAA",))
        assert out.stuck
        assert out.flush("A")
        assert not out.stuck
        assert drain(other, 12) == b"AAAAAAAABBBB"


def test_a_request_that_was_given_up_is_taken_out_of_the_queue_unless_it_has_begun() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        pending = Pending()
        out = Outgoing(one, pending)
        fill(one)
        waiter = Waiter()
        assert not out.send("begun", 0, (b"begun", bytes(100_000)))
        assert not out.send("dropped", 1, (b"dropped",))
        assert not out.send(waiter, -1, (b"told",))
        out.drop("begun")
        out.drop("dropped")
        assert [parcel.tag for parcel in out.queue] == [0, -1]
        assert out.unsent() == 100_009
        while other.read():
            out.flush("somebody")
        assert waiter.over
        assert list(pending.order) == [0, NO_REPLY]


def test_a_request_of_which_nothing_left_says_so() -> None:
    one, other = bbipc.local_stream_pair()
    with one:
        other.close()
        out = Outgoing(one, Pending())
        for _ in range(2):
            with pytest.raises(Unsent) as caught:
                out.send("A", 0, (b"A",))
            assert isinstance(caught.value.__cause__, RemoteDisconnectedError)


# A vigil.


def test_a_vigil_ends_with_bytes_the_end_room_a_wake_or_the_time() -> None:
    one, other = bbipc.local_stream_pair()
    with one, other:
        vigil = Vigil(one)
        assert not vigil.wait(0)
        assert not vigil.wait(0.01)
        assert vigil.wait(0, room=True)
        fill(one)
        assert not vigil.wait(0, room=True)
        vigil.wake()
        vigil.wake()
        assert vigil.wait(None)
        assert not vigil.wait(0)
        other.write(b"x")
        assert vigil.wait(None)
        one.read()
        other.close()
        assert vigil.wait(PATIENCE)
        del vigil


def test_a_close_in_another_thread_ends_a_vigil() -> None:
    one, other = bbipc.local_stream_pair()
    with other:
        vigil = Vigil(one)
        thread = threading.Thread(target=vigil.wait, args=(PATIENCE,))
        thread.start()
        wait_until_asleep(thread)
        one.close()
        thread.join(PATIENCE / 2)
        assert not thread.is_alive()
        assert vigil.wait(PATIENCE)
        assert Decoder().feed(b"") == []
        del vigil
