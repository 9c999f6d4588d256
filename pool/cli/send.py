"""``bbipc send``: one message to a server, and its answer on stdout.

Law of this file: what is sent and what is shown.  How the two travel stands in ``exchange.py``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bbipc import Address
from bbipc.messages import Decoder, Message, MessageFlag, MessageType
from pool.cli.exchange import Exchange
from pool.cli.exits import Exit, ProblemError
from pool.cli.terminal import Terminal, read_stdin
from pool.cli.text import plain, reason_of


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    address: Address
    text: str | None
    literal: bool
    kind: MessageType
    no_response: bool
    timeout: float | None
    output: str | None
    max_message_size: int
    accept_unsigned: bool


def run(options: Options, terminal: Terminal) -> Exit:
    """Send the message, and print its answer."""
    message = _message(options)
    decoder = Decoder(max_message_size=options.max_message_size, accept_unsigned=options.accept_unsigned)
    with terminal.progress() as meter:
        answer = Exchange(options.address, decoder, timeout=options.timeout, meter=meter).ask(message)
    if answer is None or answer.flags & MessageFlag.DISCARD:
        return Exit.OK
    if answer.flags & MessageFlag.FAILED:
        raise ProblemError(Exit.REMOTE_FAILED, f"the server failed: {_text(answer.payload)}")
    if options.output is not None:
        _save(answer, options.output)
    else:
        terminal.answer(_shown(answer, drawn=terminal.draws_out))
    return Exit.OK


def _message(options: Options) -> Message:
    payload = _payload(options)
    size, limit = len(payload), options.max_message_size
    if size > limit:
        read = options.text is not None and options.text.startswith(("-", "@")) and not options.literal
        more = "or more " if read else ""  # no more was read
        raise ProblemError(Exit.BAD_MESSAGE, f"a message of {size} {more}bytes; --max-message-size is {limit}")
    flags = MessageFlag.NO_RESPONSE if options.no_response else 0
    try:
        return Message.of(payload, options.kind, flags)
    except UnicodeDecodeError as error:
        raise ProblemError(Exit.BAD_MESSAGE, "this is no UTF-8 text; send it with --binary") from error
    except ValueError as error:
        raise ProblemError(Exit.BAD_MESSAGE, f"{error}; send it with --binary") from error


def _payload(options: Options) -> bytes:
    text = options.text
    if text is None:
        return b""
    if text == "-" and not options.literal:
        return read_stdin(options.max_message_size)
    if text == "@" and not options.literal:
        raise ProblemError(Exit.USAGE, "@ wants the name of a file; to send an @ itself, say --literal")
    if text.startswith("@") and not options.literal:
        return _content(text[1:], options.max_message_size)
    return os.fsencode(text)


def _content(name: str, limit: int) -> bytes:
    """What is in the file, or its first *limit* + 1 bytes: it may be a device that never ends."""
    try:
        with open(name, "rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ProblemError(Exit.FAILED, f"cannot read {name}: {reason_of(error)}") from error


def _save(answer: Message, name: str) -> None:
    try:
        Path(name).write_bytes(_bytes(answer))
    except (OSError, ValueError) as error:
        raise ProblemError(Exit.FAILED, f"cannot write {name}: {reason_of(error)}") from error


def _shown(answer: Message, *, drawn: bool) -> bytes:
    """A text as a line or lines of its own, anything else as it is; on a terminal without what could steer it."""
    data = _bytes(answer)
    if drawn:
        data = plain(_text(data), keep="\n\t").encode()
    text = answer.type == MessageType.STRING and not answer.flags & MessageFlag.DISCARD
    if (text or (drawn and data)) and not data.endswith(b"\n"):
        data += b"\n"
    return data


def _bytes(answer: Message) -> bytes:
    return answer.payload.removesuffix(b"\0") if answer.type == MessageType.STRING else answer.payload


def _text(payload: bytes) -> str:
    return payload.removesuffix(b"\0").decode("utf-8", "backslashreplace")
