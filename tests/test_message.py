"""Message: values, types, flags and tags; what is refused, what is shown, and what survives a journey."""

from __future__ import annotations

import array
import copy
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from bbipc.messages import Message, MessageFlag, MessageType
from bbipc.messages.message import MAX_WORD, encoded

SECRET = "correct horse"


def test_types_and_flags_have_the_numbers_of_the_wire() -> None:
    assert {kind.name: int(kind) for kind in MessageType} == {"STRING": 0, "BINARY": 1, "CLOSE": 2}
    assert {flag.name: int(flag) for flag in MessageFlag} == {
        "NO_RESPONSE": 1,
        "DISCARD": 2,
        "UNSIGNED": 4,
        "FAILED": 8,
        "TAGGED": 16,
    }


# Values.


@pytest.mark.parametrize(
    ("text", "payload"),
    [
        ("", b"\0"),
        ("a", b"a\0"),
        ("grün", b"gr\xc3\xbcn\0"),
        ("\U0001f600", b"\xf0\x9f\x98\x80\0"),
        ("\x01", b"\x01\0"),
    ],
)
def test_a_string_is_utf_8_with_a_nul_behind_it(text: str, payload: bytes) -> None:
    message = Message.string(text)
    assert tuple(message) == (MessageType.STRING, payload, 0, 0)
    assert message.value == text


@pytest.mark.parametrize("text", ["\0", "a\0", "\0a", "a\0b", "a\0\0"])
def test_a_nul_in_a_text_is_refused(text: str) -> None:
    for make in (Message.string, Message.of, lambda text: Message.of(text.encode() + b"\0", MessageType.STRING)):
        with pytest.raises(ValueError, match="NUL"):
            make(text)


def test_a_text_that_has_no_utf_8_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        Message.string("\ud800")


@pytest.mark.parametrize(
    ("payload", "value"),
    [(b"", ""), (b"\0", ""), (b"a", "a"), (b"a\0", "a"), (b"a\0\0", "a\0"), (b"a\0b", "a\0b"), (b"\0\0", "\0")],
)
def test_the_value_of_a_string_loses_one_nul_at_most(payload: bytes, value: str) -> None:
    message = Message(MessageType.STRING, payload)
    assert (message.value, message.payload) == (value, payload)


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(max_examples=500, deadline=None)
def test_every_text_without_a_nul_comes_back(text: str) -> None:
    assert Message.string(text).value == text
    assert Message.of(text) == Message.string(text) == Message.of(text.encode(), MessageType.STRING)
    assert Message.of(text, MessageType.BINARY).value == text.encode()


@pytest.mark.parametrize(
    "buffer",
    [
        b"abcd",
        bytearray(b"abcd"),
        memoryview(b"xabcd")[1:],
        array.array("I", [0x64636261]),
        memoryview(b"abcd").cast("H"),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_any_buffer_is_binary(buffer: Buffer) -> None:
    for message in (Message.binary(buffer), Message.of(buffer)):
        assert tuple(message) == (MessageType.BINARY, b"abcd", 0, 0)
        assert type(message.payload) is bytes
        assert message.value == b"abcd"


def test_bytes_are_not_copied_and_what_can_change_is() -> None:
    content = b"never copied"
    assert Message.binary(content).payload is content
    assert Message.of(content).payload is content
    changing = bytearray(b"old")
    message = Message.binary(changing)
    changing[:] = b"new"
    assert message.payload == b"old"


def test_a_kind_of_bytes_becomes_plain_bytes() -> None:
    class Kind(bytes):
        pass

    assert type(Message.binary(Kind(b"x")).payload) is bytes


def test_none_is_a_close_and_a_close_has_no_value() -> None:
    assert Message.of(None) == Message.close() == Message(MessageType.CLOSE, b"")
    assert Message(MessageType.CLOSE, b"reason").value is None
    assert Message(MessageType.CLOSE, b"reason").payload == b"reason"


@pytest.mark.parametrize(
    ("value", "kind", "payload"),
    [
        ("text", MessageType.STRING, b"text\0"),
        ("te\0xt", MessageType.BINARY, b"te\0xt"),
        ("text", MessageType.CLOSE, b"text"),
        (b"text", MessageType.STRING, b"text\0"),
        (b"text\0", MessageType.STRING, b"text\0"),
        (bytearray(b"text"), MessageType.STRING, b"text\0"),
        (b"\xff", MessageType.BINARY, b"\xff"),
        (b"\xff", MessageType.CLOSE, b"\xff"),
        (None, MessageType.CLOSE, b""),
        (None, MessageType.BINARY, b""),
        (None, MessageType.STRING, b"\0"),
    ],
)
def test_a_named_type_decides_what_a_value_becomes(
    value: str | bytes | None, kind: MessageType, payload: bytes
) -> None:
    assert Message.of(value, kind) == Message(kind, payload)
    assert encoded(value, kind) == (kind, payload)
    assert Message.of(value, kind).type is kind


def test_a_message_is_taken_as_it_is_and_gets_the_flags_and_the_tag_that_are_asked_for() -> None:
    message = Message(MessageType.STRING, b"a\0b", MessageFlag.NO_RESPONSE, 4)
    assert Message.of(message, MessageType.BINARY) == Message(MessageType.STRING, b"a\0b")
    assert Message.of(message, None, MessageFlag.TAGGED, 5) == Message(MessageType.STRING, b"a\0b", 16, 5)


@pytest.mark.parametrize(
    "value", [3, 2.5, object(), ["a"], memoryview(b"abcd")[::2]], ids=lambda value: type(value).__name__
)
def test_what_is_no_value_is_refused(value: object) -> None:
    for kind in (None, MessageType.STRING, MessageType.BINARY):
        with pytest.raises(TypeError):
            Message.of(value, kind)  # type: ignore[arg-type]


def test_bytes_that_are_no_text_are_no_string() -> None:
    for make in (Message, lambda kind, payload: Message.of(payload, kind)):
        with pytest.raises(UnicodeDecodeError):
            make(MessageType.STRING, b"\xff")


@pytest.mark.parametrize("number", [-1, 3, 7, 1 << 40])
def test_what_is_no_type_is_refused(number: int) -> None:
    for make in (Message, lambda kind, payload: Message.of(payload, kind)):
        with pytest.raises(ValueError, match="MessageType"):
            make(number, b"")  # type: ignore[arg-type]


def test_a_plain_number_is_a_type_too() -> None:
    assert Message(2, b"").type is MessageType.CLOSE  # type: ignore[arg-type]
    assert Message.of("x", 0).type is MessageType.STRING  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [-1, MAX_WORD + 1])
def test_flags_and_tags_have_32_bits(number: int) -> None:
    for name in ("flags", "tag"):
        assert getattr(Message.close(**{name: MAX_WORD}), name) == MAX_WORD
        with pytest.raises(ValueError, match=name):
            Message.close(**{name: number})
        with pytest.raises(TypeError, match=f"{name} must be an int, not str"):
            Message.close(**{name: "1"})  # type: ignore[arg-type]


def test_flags_are_a_plain_int_whatever_was_given() -> None:
    message = Message.string("x", MessageFlag.TAGGED | MessageFlag.FAILED, tag=9)
    assert type(message.flags) is int
    assert message.flags == 24
    assert MessageFlag(message.flags) == MessageFlag.TAGGED | MessageFlag.FAILED


def test_flags_that_nobody_knows_are_kept() -> None:
    assert Message.binary(b"", flags=1 << 31 | 64).flags == 1 << 31 | 64


# What it is to its holder.


def test_a_message_does_not_change() -> None:
    message = Message.string("x")
    for name in ("type", "payload", "flags", "tag", "value", "more"):
        with pytest.raises(AttributeError):
            setattr(message, name, 1)
    assert not hasattr(message, "__dict__")


def test_messages_are_equal_if_all_that_travels_is() -> None:
    message = Message.string("x", 16, 1)
    assert message == Message.string("x", 16, 1)
    assert hash(message) == hash(Message.string("x", 16, 1))
    others = [Message.string("y", 16, 1), Message.string("x", 17, 1), Message.string("x", 16, 2)]
    others.append(Message(MessageType.BINARY, message.payload, 16, 1))
    assert len({message, *others}) == 5
    assert message not in others


def test_a_message_is_no_tuple_to_those_who_compare() -> None:
    message = Message.close()
    assert message != (MessageType.CLOSE, b"", 0, 0)
    plain = (MessageType.CLOSE, b"", 0, 0)
    assert plain != message
    assert message != "close"


def test_a_message_unpacks_into_its_fields() -> None:
    kind, payload, flags, tag = Message.binary(b"x", 16, 3)
    assert (kind, payload, flags, tag) == (MessageType.BINARY, b"x", 16, 3)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_message_travels_through_pickle(protocol: int) -> None:
    for message in (Message.string("ü", 16, 3), Message.binary(b"\0"), Message.close(1 << 30)):
        back = pickle.loads(pickle.dumps(message, protocol))
        assert type(back) is Message
        assert back == message
        assert back.type is message.type


def test_a_message_can_be_copied() -> None:
    message = Message.string("x", 16, 3)
    for back in (copy.copy(message), copy.deepcopy(message)):
        assert back == message
        assert type(back) is Message


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (Message.string(SECRET), "<Message STRING, 14 bytes>"),
        (Message.binary(SECRET.encode(), 1), "<Message BINARY, 13 bytes, flags=NO_RESPONSE>"),
        (Message.close(16, 7), "<Message CLOSE, 0 bytes, flags=TAGGED, tag=7>"),
        (Message.close(0, 7), "<Message CLOSE, 0 bytes>"),
        (Message.close(1 << 31 | 10, 7), "<Message CLOSE, 0 bytes, flags=DISCARD|FAILED|0x80000000>"),
    ],
)
def test_a_message_shows_everything_but_its_content(message: Message, shown: str) -> None:
    assert repr(message) == str(message) == f"{message}" == shown


def test_an_error_of_a_text_with_a_nul_does_not_show_it() -> None:
    with pytest.raises(ValueError, match="NUL") as caught:
        Message.string(f"{SECRET}\0")
    assert SECRET not in str(caught.value)


def test_a_message_is_small() -> None:
    assert sys.getsizeof(Message.close()) <= 120
