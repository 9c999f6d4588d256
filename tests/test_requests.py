"""Request: what a handler sees of it, and exactly one reply; and how values and failures become replies."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from bbipc import MessageTooLargeError, PeerCredentials, ResponseAlreadySentError, ResponseDisabledError
from bbipc.messages import Message, MessageFlag, MessageType
from pool.requests import MAX_FAILURE_TEXT, Entry, Peer, Request, Value, call, failure_entry, reply_entry
from tests.support import wire
from tests.support.wire import BLANK, FAILED, NO_RESPONSE, TAGGED, Frame, string, tagged

TEXT = Message.string("hello")
LIMIT = 10_000


class Desk:
    """Takes replies, and keeps them."""

    def __init__(self, peer: Peer = None) -> None:
        self.peer: Peer = peer
        self.replies: list[Frame] = []

    def respond(self, request: Request, entry: Entry) -> bool:
        try:
            request.claim.pop()
        except IndexError:
            return False
        self.replies.append(frame_of(entry))
        return True

    def entry(self, message: Message, value: Value, type: MessageType | None) -> Entry:  # noqa: A002
        return reply_entry(message, value, type, LIMIT)


def frame_of(entry: Entry) -> Frame:
    return wire.decoded(b"".join(entry))


@pytest.mark.parametrize("message", [TEXT, Message.binary(b"\0\1", 32, 7), Message(MessageType.STRING, b"no nul")])
def test_a_request_shows_its_message(message: Message) -> None:
    request = Request(message, Desk(("::1", 80)))
    assert request.message == message
    assert (request.type, request.payload, request.flags) == (message.type, message.payload, message.flags)
    assert request.value == message.value
    assert request.peer == ("::1", 80)
    assert not request.no_response
    assert not request.responded


def test_a_close_has_no_value() -> None:
    assert Request(Message.close(), Desk()).value is None


def test_the_first_response_is_the_only_one() -> None:
    desk = Desk()
    request = Request(TEXT, desk)
    request.respond("one")
    assert request.responded
    for _ in range(2):
        with pytest.raises(ResponseAlreadySentError):
            request.respond("two")
    assert desk.replies == [string("one")]


def test_one_of_many_threads_responds() -> None:
    desk = Desk()
    request = Request(TEXT, desk)

    def respond(number: int) -> bool:
        try:
            request.respond(str(number))
        except ResponseAlreadySentError:
            return False
        return True

    with ThreadPoolExecutor(8) as executor:
        assert sum(executor.map(respond, range(200))) == 1
    assert len(desk.replies) == 1


def test_no_response_to_who_wants_none() -> None:
    desk = Desk()
    request = Request(Message.string("x", NO_RESPONSE), desk)
    assert request.no_response
    with pytest.raises(ResponseDisabledError):
        request.respond("x")
    assert desk.replies == []


@pytest.mark.parametrize(
    ("value", "error"), [("a\0b", ValueError), (7, TypeError), (b"x" * (LIMIT + 1), MessageTooLargeError)]
)
def test_after_a_response_that_cannot_be_sent_another_one_can(value: str, error: type[Exception]) -> None:
    desk = Desk()
    request = Request(TEXT, desk)
    with pytest.raises(error):
        request.respond(value)
    request.respond("sorry")
    assert desk.replies == [string("sorry")]


@pytest.mark.parametrize("peer", [None, ("127.0.0.1", 8), PeerCredentials(1, 2, 3)])
def test_a_copy_knows_everything_and_cannot_respond(peer: Peer) -> None:
    request = Request(Message.string("x", TAGGED, 9), Desk(peer))
    for other in (pickle.loads(pickle.dumps(request)), copy.copy(request), copy.deepcopy(request)):
        assert (other.message, other.peer, other.value) == (request.message, peer, "x")
        assert pickle.loads(pickle.dumps(other)).message == request.message
        with pytest.raises(ResponseDisabledError):
            other.respond("x")
    assert not request.responded


def test_an_executor_calls_the_handler_with_it() -> None:
    request = Request(TEXT, Desk())
    assert call(lambda request: request.value, request) == "hello"


def test_its_repr_tells_no_content() -> None:
    request = Request(Message.string("password", NO_RESPONSE), Desk(("::1", 80)))
    assert repr(request) == "<Request STRING, 9 bytes, from ('::1', 80), no response wanted>"
    answered = Request(TEXT, Desk())
    answered.respond(None)
    assert "responded" in repr(answered)


# Replies.


@pytest.mark.parametrize(
    ("value", "frame"),
    [
        ("text", string("text")),
        ("", string("")),
        (b"\0\1", Frame(wire.BINARY, b"\0\1")),
        (bytearray(b"x"), Frame(wire.BINARY, b"x")),
        (memoryview(b"x"), Frame(wire.BINARY, b"x")),
        (None, BLANK),
        (Message.string("m"), string("m")),
        (Message.close(), Frame(wire.CLOSE)),
        (Message.binary(b"m", int(MessageFlag.FAILED), 5), Frame(wire.BINARY, b"m")),
    ],
)
def test_a_value_becomes_a_reply(value: Value, frame: Frame) -> None:
    assert frame_of(reply_entry(TEXT, value, None, LIMIT)) == frame
    asked = Message.string("x", TAGGED | 64, 2**32 - 1)
    assert frame_of(reply_entry(asked, value, None, LIMIT)) == tagged(frame, 2**32 - 1)


def test_a_type_may_be_named() -> None:
    assert frame_of(reply_entry(TEXT, "x", MessageType.BINARY, LIMIT)) == Frame(wire.BINARY, b"x")
    assert frame_of(reply_entry(TEXT, b"x", MessageType.STRING, LIMIT)) == string("x")
    assert frame_of(reply_entry(TEXT, None, MessageType.BINARY, LIMIT)) == Frame(wire.BINARY)


def test_the_limit_is_the_last_that_is_allowed() -> None:
    assert len(reply_entry(TEXT, bytes(LIMIT), None, LIMIT)) == 2  # header and payload, not copied together
    with pytest.raises(MessageTooLargeError) as caught:
        reply_entry(TEXT, bytes(LIMIT + 1), None, LIMIT)
    assert (caught.value.size, caught.value.limit) == (LIMIT + 1, LIMIT)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no"), "ValueError: no"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (ValueError("a\0b"), "ValueError: a\\0b"),
        (ValueError("\ud800"), "ValueError: \\ud800"),
        (Unspeakable(), "Unspeakable"),
    ],
)
def test_a_failure_is_told_by_type_and_text(error: BaseException, text: str) -> None:
    assert frame_of(failure_entry(0, 5, error, LIMIT)) == string(text, FAILED)
    assert frame_of(failure_entry(TAGGED | NO_RESPONSE, 5, error, LIMIT)) == string(text, FAILED | TAGGED, 5)


@pytest.mark.parametrize("limit", [0, 1, 2, 20, MAX_FAILURE_TEXT, MAX_FAILURE_TEXT * 3])
@pytest.mark.parametrize("letter", ["x", "ü", "\U0001f600", "\0"])
def test_the_text_of_a_failure_is_bounded(limit: int, letter: str) -> None:
    frame = frame_of(failure_entry(0, 0, ValueError(letter * 5000), limit))
    assert len(frame.payload) <= min(limit, MAX_FAILURE_TEXT)
    assert len(frame.payload) >= min(limit, MAX_FAILURE_TEXT) - 4
    if limit:
        assert "ValueError: ".startswith(frame.text[:12])
