"""The inputs that were worth keeping, replayed without a fuzzer, and whether the harness would notice anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typing_extensions import Buffer

from bbipc import ChecksumError, InvalidMessageError, MessageTooLargeError
from bbipc.messages import Decoder, Message
from tests.fuzz import harness

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())


def replayed() -> Iterator[tuple[str, harness.Verdict]]:
    for path in CORPUS:
        try:
            yield path.name, harness.run(path.read_bytes())
        except Exception as error:
            error.add_note(f"with {path.name}")
            raise


def test_every_input_gives_what_the_reference_gives_in_pieces_and_at_once() -> None:
    verdicts = dict(replayed())
    assert len(verdicts) > 40
    # Against a corpus that reaches nothing.
    assert {verdict.error for verdict in verdicts.values()} == {
        None,
        InvalidMessageError,
        ChecksumError,
        MessageTooLargeError,
    }
    assert {frame.type for verdict in verdicts.values() for frame in verdict.frames} == {0, 1, 2}
    assert {frame.flags & 4 for verdict in verdicts.values() for frame in verdict.frames} == {0, 4}
    assert any(verdict.pending for verdict in verdicts.values())
    assert max(len(verdict.frames) for verdict in verdicts.values()) > 3


class Forgetful(Decoder):
    """Loses a message that comes in the same piece as another."""

    def feed(self, buffer: Buffer) -> list[Message]:
        return super().feed(buffer)[:1]


class Credulous(Decoder):
    """Does not look at the checksum of what comes in pieces."""

    def feed(self, buffer: Buffer) -> list[Message]:
        found = super().feed(buffer)
        return [Message.binary(b"made up")] if isinstance(self.error, ChecksumError) else found


class Greedy(Decoder):
    """Does not keep to its limit."""

    def __init__(self, *, max_message_size: int, accept_unsigned: bool) -> None:
        super().__init__(max_message_size=max_message_size + 1, accept_unsigned=accept_unsigned)


class Crashing(Decoder):
    """Lets another exception out."""

    def feed(self, buffer: Buffer) -> list[Message]:
        found = super().feed(buffer)
        if isinstance(self.error, InvalidMessageError):
            raise IndexError
        return found


@pytest.mark.parametrize("broken", [Forgetful, Credulous, Greedy, Crashing])
def test_the_harness_notices_a_broken_decoder(broken: type[Decoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "Decoder", broken)
    with pytest.raises((AssertionError, IndexError)):
        list(replayed())
