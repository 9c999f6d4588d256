"""Messages as bytes: the format to the bit, every split, every flip, every limit, and what it costs in memory."""

from __future__ import annotations

import array
import itertools
import json
import random
import struct
import subprocess
import sys
import sysconfig
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from bbipc import (
    ChecksumError,
    InvalidMessageError,
    MessageError,
    MessageTooLargeError,
    TruncatedMessageError,
)
from bbipc.messages import MAX_MESSAGE_SIZE, Decoder, Message, MessageFlag, MessageType, encode, encode_header
from bbipc.messages.frames import HEADER_SIZE, SMALL, encode_parts
from bbipc.messages.message import MAX_WORD
from tests.support import wire
from tests.support.makers import Worker
from tests.support.wire import Frame

GOLDEN = json.loads((Path(__file__).parent / "support" / "golden_frames.json").read_text())
GOOD = encode(Message.string("good"))

binaries = st.binary(max_size=200)
words = st.integers(0, MAX_WORD)
texts = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100)
flags = st.sampled_from([0, 1, 2, 8, 16, MAX_WORD & ~4])
messages = st.builds(Message.string, texts, flags, words) | st.builds(
    Message, st.sampled_from([MessageType.BINARY, MessageType.CLOSE]), binaries, flags, words
)


def decode(pieces: Iterable[Buffer], **options: Any) -> tuple[list[Message], MessageError | None, int]:
    """The messages, the error, and how many bytes are pending, of a decoder that was fed until an error."""
    decoder = Decoder(**options)
    found: list[Message] = []
    for piece in pieces:
        found += decoder.feed(piece)
        if decoder.error is not None:
            break
    return found, decoder.error, decoder.pending


def refused(data: bytes, kind: type[MessageError], **options: Any) -> MessageError:
    found, error, pending = decode([data], **options)
    assert type(error) is kind
    assert (found, pending) == ([], 0)
    return error


def cut(data: bytes, *places: int) -> list[bytes]:
    return [data[start:end] for start, end in itertools.pairwise([0, *places, len(data)])]


# The format, said by somebody else.


@pytest.mark.parametrize("frame", GOLDEN["frames"], ids=lambda frame: frame["name"])
def test_a_frame_of_the_original_decodes_and_encodes_to_the_byte(frame: dict[str, Any]) -> None:
    data = bytes.fromhex(frame["frame_hex"])
    for pieces in ([data], [data[:7], data[7:]], [data[i : i + 1] for i in range(len(data))]):
        found, error, pending = decode(pieces, accept_unsigned=not frame["signed"])
        assert (error, pending) == (None, 0)
        [message] = found
        assert tuple(message) == (
            frame["type"],
            bytes.fromhex(frame["payload_hex"]),
            frame["flags"],
            frame["unused_field"],
        )
        assert encode(message) == b"".join(encode_parts(*message)) == data
        assert encode_header(message) == data[:HEADER_SIZE]


def test_the_checksum_of_the_test_is_the_one_of_the_format() -> None:
    assert wire.crc64(b"123456789") == int(GOLDEN["crc"]["check_123456789"], 16)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 100, 1000])
def test_what_is_written_is_what_the_format_says(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    for kind, flags, tag in ((1, 0, 0), (2, 16, MAX_WORD), (1, 0xFFFFFFFB, 0x01020304)):
        header = struct.pack("<IIIIQ", kind, flags, size, tag, wire.MAGIC)
        check = wire.crc64(header + struct.pack("<Q", wire.MAGIC) + payload)
        message = Message(MessageType(kind), payload, flags, tag)
        assert encode(message) == header + struct.pack("<Q", check) + payload
        assert b"".join(encode_parts(kind, payload, flags, tag)) == encode(message)
        assert decode([encode(message)]) == ([message], None, 0)


@pytest.mark.parametrize("size", [SMALL - 1, SMALL, SMALL + 1, 70_000, MAX_MESSAGE_SIZE])
def test_large_payloads_have_the_same_format(size: int) -> None:
    payload = random.Random(1).randbytes(size)
    message = Message.binary(payload, 16, 5)
    frame = encode(message)
    if size <= 100_000:  # the oracle takes a second for the largest
        assert frame == Frame(1, payload, 16, 5).encoded()
    for pieces in ([frame], cut(frame, 32), cut(frame, 40, 5000 if size > 5000 else 41)):
        assert decode(pieces) == ([message], None, 0)
    assert b"".join(encode_parts(*message)) == frame == encode_header(message) + payload


def test_an_unsigned_message_repeats_the_magic() -> None:
    for size in (0, 5, SMALL + 1):
        message = Message.binary(bytes(size), MessageFlag.UNSIGNED)
        frame = Frame(1, bytes(size), wire.UNSIGNED).encoded()
        assert encode(message) == b"".join(encode_parts(*message)) == frame
        assert decode([frame], accept_unsigned=True) == ([message], None, 0)
        refused(frame, InvalidMessageError)


def test_an_unsigned_message_with_anything_else_there_is_refused_even_if_unsigned_ones_are_not() -> None:
    signed = Frame(1, b"abc", wire.UNSIGNED)
    check = wire.crc64(signed.header(check=wire.MAGIC) + b"abc")
    for other in (check, 0, wire.MAGIC ^ 1):
        refused(signed.header(check=other) + b"abc", InvalidMessageError, accept_unsigned=True)


def test_small_messages_are_one_buffer_and_large_ones_two() -> None:
    small, large = bytes(SMALL), bytes(SMALL + 1)
    assert [len(part) for part in encode_parts(1, small, 0, 0)] == [32 + SMALL]
    header, payload = encode_parts(1, large, 0, 0)
    assert len(header) == 32
    assert payload is large


# Whatever pieces the bytes come in.


THREE = [Message.string("first", 16, 1), Message.binary(b"", 3), Message.binary(bytes(range(40)))]
STREAM = b"".join(map(encode, THREE))


def test_three_messages_cut_at_every_pair_of_places() -> None:
    places = range(len(STREAM) + 1)
    for pair in itertools.combinations_with_replacement(places, 2):
        assert decode(cut(STREAM, *pair)) == (THREE, None, 0)


def test_three_messages_in_pieces_of_every_size() -> None:
    for size in range(1, len(STREAM) + 1):
        assert decode(STREAM[i : i + size] for i in range(0, len(STREAM), size)) == (THREE, None, 0)


def test_every_message_comes_with_its_last_byte_and_not_before() -> None:
    ends = set(itertools.accumulate(len(encode(message)) for message in THREE))
    decoder = Decoder()
    for count, octet in enumerate(STREAM, 1):
        before = decoder.wanted
        assert before > 0
        assert bool(decoder.feed(bytes([octet]))) == (count in ends)
        assert decoder.wanted == (before - 1 or decoder.wanted)


def test_five_thousand_random_segmentations() -> None:
    dice = random.Random(4)
    stream_messages = [
        Message.binary(dice.randbytes(size), 16, size) for size in (0, 3, 600, 32, SMALL + 200, 1, 17_000, 64, 90_000)
    ]
    stream = b"".join(map(encode, stream_messages))
    for _ in range(5000):
        places = sorted(dice.randrange(len(stream) + 1) for _ in range(dice.choice((1, 2, 3, 10, 30))))
        assert decode(cut(stream, *places)) == (stream_messages, None, 0)


@given(st.lists(messages, max_size=5), st.data())
@settings(max_examples=300, deadline=None)
def test_any_messages_in_any_pieces(sent: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(encode, sent))
    places = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    assert decode(cut(stream, *places)) == (sent, None, 0)


@given(texts, st.integers(0, 140))
@settings(max_examples=2000, deadline=None)
def test_any_text_is_read_as_it_was_written(text: str, place: int) -> None:
    frame = encode(Message.string(text))
    found, error, pending = decode(cut(frame, min(place, len(frame))))
    assert (error, pending) == (None, 0)
    assert [message.value for message in found] == [text]
    assert frame == Frame(0, text.encode() + b"\0").encoded()


@given(st.binary(max_size=60), st.integers(0, 92))
@settings(max_examples=2000, deadline=None)
def test_a_string_comes_exactly_if_it_is_utf_8(payload: bytes, place: int) -> None:
    frame = Frame(0, payload).encoded()
    found, error, _ = decode(cut(frame, min(place, len(frame))))
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        assert found == []
        assert type(error) is InvalidMessageError
    else:
        assert error is None
        assert [message.payload for message in found] == [payload]
        assert found[0].value == text.removesuffix("\0")


@pytest.mark.parametrize("size", [10, SMALL + 10])
def test_a_large_text_is_looked_at_too_however_it_comes(size: int) -> None:
    for end, fine in (("ü".encode(), True), (b"\xc3", False)):
        frame = Frame(0, b"a" * size + end).encoded()
        for pieces in ([frame], cut(frame, 50)):
            found, error, _ = decode(pieces)
            assert (len(found), error is None) == (int(fine), fine)


def test_any_buffer_can_be_fed_and_used_again() -> None:
    frame = encode(Message.binary(b"x" * 1000))  # 1032 bytes, a multiple of 8
    for make in (bytearray, memoryview, lambda data: array.array("Q", data)):
        assert decode([make(frame), make(frame)]) == ([Message.binary(b"x" * 1000)] * 2, None, 0)
    changing = bytearray(frame[:800])
    decoder = Decoder()
    decoder.feed(changing)
    changing[:] = bytes(800)
    assert decoder.feed(frame[800:]) == [Message.binary(b"x" * 1000)]


def test_what_is_no_buffer_is_refused_and_changes_nothing() -> None:
    decoder = Decoder()
    decoder.feed(GOOD[:5])
    for thing in ("text", 5, None, memoryview(b"abcd")[::2]):
        with pytest.raises(TypeError):
            decoder.feed(thing)  # type: ignore[arg-type]
    assert decoder.feed(b"") == []
    assert decoder.feed(GOOD[5:]) == [Message.string("good")]


# Damage.


def verdicts(damaged: Iterable[bytes], **options: Any) -> Iterator[tuple[list[Message], Decoder]]:
    for data in damaged:
        decoder = Decoder(**options)
        yield decoder.feed(data), decoder


def flipped(frame: bytes, masks: Iterable[int], behind: bytes = b"") -> Iterator[bytes]:
    number, size = int.from_bytes(frame, "little"), len(frame)
    for mask in masks:
        yield (number ^ mask).to_bytes(size, "little") + behind


def none_is_accepted(damaged: Iterable[bytes], **options: Any) -> int:
    """How many there were.  A length that was made longer waits for more, and gives nothing either."""
    count = 0
    for found, decoder in verdicts(damaged, **options):
        assert not found
        assert decoder.error or decoder.pending
        with pytest.raises(MessageError):
            decoder.finish()
        count += 1
    return count


@pytest.mark.parametrize("accept_unsigned", [False, True])
@pytest.mark.parametrize("size", [0, 1, 64, 1024])
def test_no_flipped_bit_is_accepted(size: int, accept_unsigned: bool) -> None:
    frame = encode(Message.binary(random.Random(size).randbytes(size), 16, 77))
    masks = [1 << bit for bit in range(8 * len(frame))]
    # What comes behind must not complete what was damaged.
    for behind in (b"", encode(Message.binary(bytes(2000)))):
        damaged = flipped(frame, masks, behind)
        assert none_is_accepted(damaged, accept_unsigned=accept_unsigned) == 8 * (HEADER_SIZE + size)


def test_no_two_flipped_bits_of_the_empty_message_are_accepted() -> None:
    for message in (Message.binary(b""), Message.close(16, 9)):
        masks = (1 << one | 1 << two for one, two in itertools.combinations(range(256), 2))
        assert none_is_accepted(flipped(encode(message), masks)) == 32_640


def test_no_burst_is_accepted() -> None:
    dice = random.Random(5)
    frame = encode(Message.binary(dice.randbytes(64)))
    masks = [
        (dice.getrandbits(62) << 1 | 1 | 1 << 63) >> (64 - length) << dice.randrange(8 * len(frame) - length)
        for length in (dice.randint(1, 64) for _ in range(20_000))
    ]
    masks = [mask for mask in masks if mask]
    assert len(masks) == 20_000
    assert none_is_accepted(flipped(frame, masks)) == 20_000


def test_a_payload_in_pieces_is_checked_as_well() -> None:
    frame = bytearray(encode(Message.binary(bytes(3000))))
    frame[2500] ^= 4
    found, error, pending = decode(cut(bytes(frame), 32, 1000, 2000))
    assert type(error) is ChecksumError
    assert (found, error.size, pending) == ([], 3000, 0)


DAMAGED: list[tuple[bytes, type[MessageError]]] = [
    (Frame(3).encoded(), InvalidMessageError),
    (Frame(MAX_WORD).encoded(), InvalidMessageError),
    (Frame(1).header(magic=wire.MAGIC ^ 1), InvalidMessageError),
    (Frame(1, b"x", wire.UNSIGNED).encoded(), InvalidMessageError),
    (Frame(0, b"\xff").encoded(), InvalidMessageError),
    (Frame(1).header(check=0), ChecksumError),
    (Frame(1, b"abc").header(check=wire.MAGIC) + b"abc", ChecksumError),
    (Frame(1).header(MAX_MESSAGE_SIZE + 1), MessageTooLargeError),
    (bytes(32), InvalidMessageError),
    (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n", InvalidMessageError),
]

each_damage = pytest.mark.parametrize(("frame", "kind"), DAMAGED, ids=range(len(DAMAGED)))


@each_damage
def test_an_error_ends_the_decoder(frame: bytes, kind: type[MessageError]) -> None:
    decoder = Decoder()
    assert decoder.feed(GOOD + frame + GOOD) == [Message.string("good")]
    first = decoder.error
    assert type(first) is kind
    assert (decoder.pending, decoder.wanted) == (0, 0)
    for call in (lambda: decoder.feed(GOOD), lambda: decoder.feed(b""), decoder.check, decoder.finish):
        with pytest.raises(kind, match=str(first)) as caught:
            call()
        assert caught.value is not first  # nobody's traceback is added to it
        assert vars(caught.value) == vars(first)
    assert decoder.error is first
    assert first.__traceback__ is None


@each_damage
def test_an_error_is_the_same_however_the_bytes_come(frame: bytes, kind: type[MessageError]) -> None:
    whole = decode([GOOD + frame])
    for pieces in ([(GOOD + frame)[i : i + 1] for i in range(len(GOOD + frame))], [GOOD, frame]):
        found, error, pending = decode(pieces)
        assert (found, type(error), str(error), pending) == (whole[0], kind, str(whole[1]), 0)


@each_damage
def test_nothing_behind_an_error_is_read(frame: bytes, kind: type[MessageError]) -> None:
    for pieces in ([frame + GOOD * 3], [frame, GOOD], [frame[:20], frame[20:] + GOOD]):
        found, error, _ = decode(pieces)
        assert found == []
        assert type(error) is kind


def test_the_header_alone_is_enough_to_refuse_it() -> None:
    for frame in (Frame(3), Frame(1, b"", wire.UNSIGNED)):
        refused(frame.header(100, check=wire.MAGIC), InvalidMessageError)
    refused(Frame(1).header(100, magic=5), InvalidMessageError)


def test_an_error_does_not_show_what_was_sent() -> None:
    for damaged in (Frame(0, b"secret\xff").encoded(), Frame(1, b"secret").header(check=1) + b"secret"):
        error = decode([damaged])[1]
        assert error is not None
        assert "secret" not in f"{error!r} {error} {vars(error)} {error.__context__!r} {error.__cause__!r}"


LENGTHS = [0, 1, MAX_MESSAGE_SIZE, MAX_MESSAGE_SIZE + 1, 1 << 31, MAX_WORD]


@pytest.mark.parametrize("length", LENGTHS)
def test_the_limit_is_looked_at_in_the_header(length: int) -> None:
    header = Frame(1, b"", wire.TAGGED, 0xABCD).header(length, check=1)
    decoder = Decoder()
    assert decoder.feed(header) == []
    if length > MAX_MESSAGE_SIZE:
        assert isinstance(decoder.error, MessageTooLargeError)
        assert (decoder.error.size, decoder.error.limit, decoder.error.tag) == (length, MAX_MESSAGE_SIZE, 0xABCD)
    elif length:
        assert decoder.error is None
        assert (decoder.pending, decoder.wanted) == (HEADER_SIZE, length)
    else:
        assert isinstance(decoder.error, ChecksumError)


def test_a_message_too_large_without_a_tag_says_so() -> None:
    error = refused(Frame(1, b"", 0, 0xABCD).header(MAX_WORD, check=1), MessageTooLargeError)
    assert isinstance(error, MessageTooLargeError)
    assert error.tag is None


@pytest.mark.parametrize("limit", [0, 1, 100, MAX_WORD])
def test_a_limit_of_ones_own_holds_at_the_limit_and_one_past_it(limit: int) -> None:
    if limit < 1000:
        message = Message.binary(bytes(limit))
        assert decode([encode(message)], max_message_size=limit) == ([message], None, 0)
        refused(encode(Message.binary(bytes(limit + 1))), MessageTooLargeError, max_message_size=limit)
    else:
        assert decode([Frame(1).header(limit, check=1)], max_message_size=limit) == ([], None, HEADER_SIZE)


@pytest.mark.parametrize("limit", [-1, MAX_WORD + 1])
def test_a_limit_that_cannot_be_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="max_message_size"):
        Decoder(max_message_size=limit)


def test_a_payload_longer_than_its_header_can_say_is_refused() -> None:
    class Long(bytes):
        def __len__(self) -> int:
            return MAX_WORD + 1

    message = tuple.__new__(Message, (MessageType.BINARY, Long(), 0, 0))
    for encoder in (encode, encode_header):
        with pytest.raises(MessageTooLargeError) as caught:
            encoder(message)
        assert (caught.value.size, caught.value.limit) == (MAX_WORD + 1, MAX_WORD)


def test_the_largest_message_is_one_byte_less_than_five_mebibytes() -> None:
    assert GOLDEN["constants"]["max_data_len_exclusive"] == MAX_MESSAGE_SIZE + 1


@given(st.lists(st.binary(max_size=80) | st.just(GOOD) | st.just(GOOD[:24]), max_size=6), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_messages_or_one_documented_error(pieces: list[bytes], accept_unsigned: bool) -> None:
    together = decode([b"".join(pieces)], accept_unsigned=accept_unsigned)
    apart = decode(pieces, accept_unsigned=accept_unsigned)
    assert (apart[0], type(apart[1]), str(apart[1]), apart[2]) == (
        together[0],
        type(together[1]),
        str(together[1]),
        together[2],
    )


# The end of the stream.


def test_an_end_inside_a_message_tells_how_much_is_missing() -> None:
    for have in range(1, len(GOOD)):
        decoder = Decoder()
        assert decoder.feed(GOOD + GOOD[:have]) == [Message.string("good")]
        need = len(GOOD) if have >= HEADER_SIZE else HEADER_SIZE
        assert (decoder.pending, decoder.wanted) == (have, need - have)
        for _ in range(2):
            with pytest.raises(TruncatedMessageError) as caught:
                decoder.finish()
            assert (caught.value.have, caught.value.need) == (have, need)
        with pytest.raises(TruncatedMessageError):
            decoder.feed(GOOD[have:])


def test_an_end_between_messages_is_a_clean_one() -> None:
    decoder = Decoder()
    decoder.finish()
    decoder.feed(GOOD)
    decoder.finish()
    decoder.check()
    assert (decoder.error, decoder.pending, decoder.wanted) == (None, 0, HEADER_SIZE)


# What it costs.


def traced(fn: Callable[[], object]) -> tuple[int, int]:
    """How many bytes *fn* left allocated, and how many there were at the most.

    The least of three times: what other threads allocate meanwhile counts as well, and xdist has some.
    """
    times = [traced_once(fn) for _ in range(3)]
    return min(now for now, _ in times), min(peak for _, peak in times)


def traced_once(fn: Callable[[], object]) -> tuple[int, int]:
    tracemalloc.start()
    try:
        kept = fn()
        now, peak = tracemalloc.get_traced_memory()
        del kept
    finally:
        tracemalloc.stop()
    return now, peak


def test_a_header_that_claims_much_allocates_nothing() -> None:
    header = Frame(1).header(MAX_MESSAGE_SIZE, check=1)

    def claim() -> list[Decoder]:
        decoders = [Decoder() for _ in range(100)]
        for decoder in decoders:
            decoder.feed(header)
        return decoders

    assert traced(claim)[1] < 100 * 1000


@pytest.mark.parametrize("size", [1, 2, 31, 1500, 16383, 16384, 65536])
def test_memory_follows_the_bytes_however_small_they_come(size: int) -> None:
    header = Frame(1).header(MAX_MESSAGE_SIZE, check=1)
    total = size * 40 if size > 1000 else 60_000 // size * size

    def dribble() -> Decoder:
        decoder = Decoder()
        decoder.feed(header)
        for _ in range(total // size):
            decoder.feed(bytes(bytearray(size)))  # a new object each time
        assert decoder.pending == HEADER_SIZE + total
        return decoder

    assert traced(dribble)[1] < 1.2 * total + 4000


def test_memory_follows_what_was_read_however_much_a_read_asked_for() -> None:
    """What the system gave for a large read may stay larger than what the read was given: not told by tracemalloc."""
    program = """
import os, socket, sys
from bbipc.messages import Decoder
from tests.support.wire import Frame

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

ours, peer = socket.socketpair()
kept, header = [], Frame(1).header(5242879, check=1)
for size in (60, 600, 6000, 20000):
    before, piece = resident(), bytes(size)
    kept.append(Decoder())
    kept[-1].feed(header)
    for _ in range((4 << 20) // size):
        peer.sendall(piece)
        kept[-1].feed(ours.recv(1 << 18))
    print(size, (resident() - before) >> 20)
"""
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    grown = {size: int(mebibytes) for size, mebibytes in (line.split() for line in done.stdout.splitlines())}
    assert len(grown) == 4
    assert max(grown.values()) <= 7, grown


def test_a_small_beginning_does_not_hold_the_large_buffer_that_it_came_in() -> None:
    many = encode(Message.binary(bytes(60_000)))

    def feed() -> Decoder:
        decoder = Decoder()
        decoder.feed(many + many[:20_000])
        return decoder

    now, _ = traced(feed)
    assert now < 22_000


def test_a_payload_that_comes_as_one_piece_is_not_copied() -> None:
    payload = bytes(100_000)
    frame = encode(Message.binary(payload))
    decoder = Decoder()
    decoder.feed(frame[:HEADER_SIZE])
    [message] = decoder.feed(payload)
    assert message.payload is payload


def test_a_payload_that_comes_with_its_header_is_copied_once() -> None:
    size = 1_000_000
    frame = encode(Message.binary(bytes(size)))
    assert traced(lambda: Decoder().feed(frame))[1] < size + 5000


@pytest.mark.parametrize("offset", [0, 1, 32, 100])
def test_a_payload_that_comes_in_pieces_is_copied_once(offset: int) -> None:
    size = 1 << 20
    frame = encode(Message.binary(bytes(size)))
    pieces = cut(frame, *range(offset or 65536, len(frame), 65536))

    def feed() -> list[Message]:
        decoder = Decoder()
        return [message for piece in pieces for message in decoder.feed(piece)]

    assert traced(feed)[1] < size + 40_000  # of the first piece and of the last some bytes are copied twice


def test_a_payload_whose_end_comes_with_more_is_copied_once() -> None:
    size = 1_000_000
    pieces = cut(encode(Message.binary(bytes(size))) + GOOD, 42)

    def feed() -> list[Message]:
        decoder = Decoder()
        return [message for piece in pieces for message in decoder.feed(piece)]

    assert traced(feed)[1] < size + 5000


def test_a_large_payload_is_not_copied_for_writing() -> None:
    message = Message.binary(bytes(1_000_000))
    assert encode_parts(*message)[1] is message.payload
    assert traced(lambda: encode_parts(*message))[1] < 5000
    assert traced(lambda: encode_header(message))[1] < 5000
    assert traced(lambda: encode(message))[1] < 1_005_000


def seconds(fn: Callable[[], object]) -> float:
    """Of processor time, the best of three."""
    times = []
    for _ in range(3):
        start = time.thread_time()
        fn()
        times.append(time.thread_time() - start)
    return min(times)


@pytest.mark.parametrize(("size", "piece"), [(12_500, 1), (500_000, 1000)])
def test_many_pieces_cost_a_multiple_of_one(size: int, piece: int) -> None:
    """Eight times the bytes cost about eight times as much, not 64 times."""

    def feed(total: int) -> Callable[[], object]:
        frame = encode(Message.binary(bytes(total)))
        pieces = [frame[start : start + piece] for start in range(0, len(frame), piece)]
        return lambda: decode(pieces)

    assert seconds(feed(8 * size)) < 25 * seconds(feed(size))


# Threads.


def test_many_threads_encode_and_decode_at_once() -> None:
    start = threading.Barrier(8)

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            sent = [Message.binary(bytes([number]) * size, 16, number) for size in (0, 10, 1000, SMALL + number)]
            stream = b"".join(map(encode, sent))
            start.wait()
            for _ in range(100):
                assert decode(cut(stream, 20, 200)) == (sent, None, 0)
                assert b"".join(map(encode, sent)) == stream

        return run

    for worker in [Worker(work(number)) for number in range(8)]:
        worker.outcome()


def test_the_checksum_does_not_switch_the_lock_of_the_interpreter_on() -> None:
    """An extension that is not made for a free-threaded interpreter would, for the whole program."""
    program = "import sys, bbipc.messages; print(getattr(sys, '_is_gil_enabled', lambda: None)())"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    built_without = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "False" or not built_without


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_a_payload_in_another_buffer_is_copied_once(kind: type[bytearray | memoryview]) -> None:
    size = 1_000_000
    frame = encode(Message.binary(bytes(size)))
    buffer = kind(GOOD * 3 + frame + GOOD)

    def feed() -> list[Message]:
        return Decoder().feed(buffer)

    assert [len(message.payload) for message in feed()] == [5, 5, 5, size, 5]
    assert traced(feed)[1] < size + 5000


def test_another_buffer_is_taken_in_pieces_and_may_be_used_again() -> None:
    frame = encode(Message.binary(bytes(range(256)) * 1000))
    stream = bytearray((GOOD + frame) * 2)
    for cut_at in (10, 37, 60, 100, 200_000, len(stream)):
        decoder = Decoder()
        got = decoder.feed(memoryview(stream)[:cut_at])
        pending = decoder.pending
        rest = bytearray(stream[cut_at:])
        got += decoder.feed(rest)
        rest[:] = bytes(len(rest))
        assert [encode(message) for message in got] == [GOOD, frame] * 2
        assert pending < len(frame)


def test_garbage_in_another_buffer_ends_it_behind_what_was_good() -> None:
    decoder = Decoder()
    assert decoder.feed(bytearray(GOOD + bytes(100_000))) == [Message.string("good")]
    assert isinstance(decoder.error, InvalidMessageError)


@pytest.mark.parametrize("letter", ["x", "ü", "€"])
def test_a_long_text_is_not_copied_more_than_once(letter: str) -> None:
    """An eighth more for the NUL: where it is put the whole grows in its place."""
    text = letter * (1_000_000 // len(letter.encode()))
    octets = text.encode()
    frame = encode(Message.string(text))
    size = len(octets)
    assert traced(lambda: Message.string(text))[1] < 1.13 * size + 400_000
    assert traced(lambda: Message.of(octets, MessageType.STRING))[1] < 1.13 * size + 400_000
    message = Message.of(octets + b"\0", MessageType.STRING)
    assert traced(lambda: Message.of(message.payload, MessageType.STRING))[1] < 400_000
    assert traced(lambda: Decoder().feed(frame))[1] < size + 400_000
    if letter == "x":  # of others the interpreter makes a wider text on its way
        assert traced(lambda: message.value)[1] < size + 1000
    assert message.value == Message.string(text).value == text


@pytest.mark.parametrize("size", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_001])
@pytest.mark.parametrize("start", ["", "x", "xx"])
def test_long_texts_are_told_from_what_is_none(size: int, start: str) -> None:
    """Its letters of three bytes lie over every end of a piece."""
    text = start + "€" * (size // 3)
    octets = text.encode()
    assert Message.of(octets, MessageType.STRING) == Message.string(text)
    for payload in (octets, octets + b"\0"):
        message = Message(MessageType.STRING, payload)
        assert (message.value, message.payload) == (text, payload)
        assert Decoder().feed(encode(message)) == [message]
    for bad in (octets[:-1], octets[:70_000] + b"\xff" + octets[70_000:], octets + b"\xe2"):
        with pytest.raises(UnicodeDecodeError) as caught:
            Message(MessageType.STRING, bad)
        assert len(caught.value.object) == len(bad)
    for wrong in (text + "\0", text + "\0x"):
        with pytest.raises(ValueError, match=f"a NUL in a text of {len(wrong.encode())} bytes"):
            Message.string(wrong)
    with pytest.raises(ValueError, match=f"a NUL in a text of {len(octets) + 1} bytes"):
        Message.of(octets + b"\0\0", MessageType.STRING)
