"""Recorded conversations: a text that people read, and what it says.

    # what was recorded, and of whom                     (what begins with # is for the reader)
    asks: string "Hello World" -> string "Hello World"   what a client of ours is told to do, and what it must get
    handler: echo                                        what a server of ours does; see test_clients_of_the_original
    handled: string "Hello World"                        what its handler must have been given, in order
    server: accept_unsigned=True                         keywords of the server, word by word

    C 00000000 00000000 0c000000 00000000                one piece that the client sends: one call of send
    + ea1dadab efbeefbe f0a897f0 b741bc3a                the same piece, continued; spaces mean nothing
    S 48656c6c 6f                                        one piece that the server sends
    C ends                                               the client sends no more (it still reads)
    C leaves                                             the client is gone
    S ends                                               the server has closed
    S fails                                              the server says in one frame, in its own words, that it failed
    S may fail                                           it says so, or nothing at all
    connection                                           the next connection; the first needs none

Law of this file: text to data.  It knows no socket and nothing of bbipc.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

HERE: Final = Path(__file__).parent / "conversations"

Value = str | bytes | None
Who = Literal["C", "S"]


@dataclass
class Step:
    """One line: a piece of bytes, or what happens."""

    who: Who
    what: Literal["sends", "ends", "leaves", "fails", "may fail"]
    piece: bytes = b""


@dataclass(frozen=True)
class Ask:
    """What a client of ours is told to send, and the value that must come of it."""

    kind: str
    value: Value
    answer: Value


@dataclass
class Conversation:
    name: str
    title: str = ""
    connections: list[list[Step]] = field(default_factory=lambda: [[]])
    asks: list[Ask] = field(default_factory=list)
    handler: str = ""
    handled: list[tuple[str, Value]] = field(default_factory=list)
    server: dict[str, object] = field(default_factory=dict)

    def said_by(self, who: Who, connection: int = 0) -> bytes:
        """All that one side sends on a connection."""
        return b"".join(step.piece for step in self.connections[connection] if step.who == who)

    def add(self, line: str) -> None:
        """Understand one more line."""
        head, _, rest = line.partition(" ")
        if line.startswith("#"):
            self.title = self.title or line[1:].strip()
        elif head == "connection":
            if self.connections[-1]:
                self.connections.append([])
        elif head == "+":
            self.connections[-1][-1].piece += bytes.fromhex(rest)
        elif head in {"C", "S"}:
            self.connections[-1].append(_step("C" if head == "C" else "S", rest))
        else:
            self._add_key(head, rest)

    def _add_key(self, head: str, rest: str) -> None:
        if head == "asks:":
            asked, answer = rest.split(" -> ")
            kind, value = _value(asked)
            self.asks.append(Ask(kind, value, _value(answer)[1]))
        elif head == "handler:":
            self.handler = rest
        elif head == "handled:":
            self.handled.append(_value(rest))
        elif head == "server:":
            self.server |= {name: ast.literal_eval(value) for name, value in (word.split("=") for word in rest.split())}
        else:
            raise ValueError(f"{self.name}: {head} {rest}")


def _step(who: Who, rest: str) -> Step:
    match rest:
        case "ends" | "leaves" | "fails" | "may fail":
            return Step(who, rest)
        case _:
            return Step(who, "sends", bytes.fromhex(rest))


def _value(text: str) -> tuple[str, Value]:
    """``string "…"``, ``binary 00ff``, ``close``, ``nothing``."""
    kind, _, rest = text.strip().partition(" ")
    if kind == "string":
        value = ast.literal_eval(rest)
        assert isinstance(value, str)
        return kind, value
    if kind == "binary":
        return kind, bytes.fromhex(rest)
    assert kind in {"close", "nothing"}, text
    return kind, None


def read(path: Path) -> Conversation:
    conversation = Conversation(path.stem)
    for line in path.read_text(encoding="utf-8").splitlines():
        if text := line.split(";")[0].rstrip():
            conversation.add(text)
    return conversation


def all_in(folder: str) -> list[Conversation]:
    """Those of a folder, by name."""
    found = [read(path) for path in sorted((HERE / folder).glob("*.txt"))]
    assert found, folder
    return found
