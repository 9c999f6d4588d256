"""The pages about messages: their frames are those that were recorded, their names and limits those of the code."""

from __future__ import annotations

import builtins
import inspect
import json
import re

import pytest

import bbipc
import pool
from bbipc import messages
from bbipc.messages import Decoder, Message, MessageFlag, MessageType, encode
from pool import MessageClient, MessageServer
from tests.test_docs import TOP, blocks, rows_under

GOLDEN = TOP / "tests/support/golden_frames.json"
WIRE = TOP / "docs/wire-format.md"
EVERY_BYTE = bytes(range(256))


def frames_of_the_page() -> dict[str, tuple[list[int], bytes, bytes]]:
    """Name -> (type, flags, reserved), payload, the whole frame."""
    frames = {}
    for name, *numbers, payload, data in rows_under(WIRE, "frame"):
        content = EVERY_BYTE if payload == "…" else bytes.fromhex(payload.strip("`").replace("none", ""))
        frames[name] = [int(n) for n in numbers], content, bytes.fromhex(data.strip("`").replace("…", EVERY_BYTE.hex()))
    return frames


def test_the_frames_of_the_page_are_those_that_were_recorded() -> None:
    recorded = {frame["name"]: frame for frame in json.loads(GOLDEN.read_text())["frames"]}
    told = frames_of_the_page()
    assert list(told)[: len(recorded)] == list(recorded)
    for name, frame in recorded.items():
        numbers, payload, data = told[name]
        assert numbers == [frame["type"], frame["flags"], frame["unused_field"]], name
        assert (len(payload), data.hex()) == (frame["data_len"], frame["frame_hex"]), name


@pytest.mark.parametrize("name", frames_of_the_page())
def test_the_codec_agrees_with_the_frames_of_the_page(name: str) -> None:
    (kind, flags, reserved), payload, data = frames_of_the_page()[name]
    message = Message(MessageType(kind), payload, flags, reserved)
    assert encode(message) == data
    decoder = Decoder(accept_unsigned=True)
    assert decoder.feed(data) == [message]
    decoder.finish()


def test_the_pages_own_encoder_makes_its_frames() -> None:
    namespace: dict[str, object] = {}
    for _, code in list(blocks(WIRE, "python"))[:2]:
        exec(code, namespace)
    for (kind, flags, reserved), payload, data in frames_of_the_page().values():
        if not flags & MessageFlag.UNSIGNED:
            assert namespace["frame"](kind, payload, flags, reserved) == data  # type: ignore[operator]


def test_types_and_flags_of_the_page_are_those_of_the_code() -> None:
    assert {name: int(value) for name, value, _ in rows_under(WIRE, "flag")} == {
        str(flag.name): int(flag) for flag in MessageFlag
    }
    assert [row[0] for row in rows_under(WIRE, "type")] == [kind.name for kind in MessageType]


HOMES = (bbipc, messages, pool)
#: what the pages name of a class that is not at the face, or by a variable
FILES = {"lisp", "py", "socket"}
INSTANCES = {"request": "Request", "client": "MessageClient", "server": "MessageServer"}
PAGES = ["messages", "wire-format", "for-cl-sipc-users", "security"]


def found(name: str) -> object | None:
    return next((getattr(home, name) for home in HOMES if hasattr(home, name)), None)


@pytest.mark.parametrize("page", PAGES)
def test_the_names_that_a_page_uses_are_there(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (TOP / f"docs/{page}.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = [span for span in re.findall(r"`([^`\n]+)`", text) if "/" not in span]
    checked = 0
    for span in spans:
        for owner, name in re.findall(r"\b([A-Za-z]\w*)\.([a-z]\w*)", span):
            kind = found(INSTANCES.get(owner, owner)) if name not in FILES else None
            if isinstance(kind, type):
                assert hasattr(kind, name) or name in getattr(kind, "__annotations__", {}), span
                checked += 1
        for name in re.findall(r"\b([A-Z][A-Za-z]+Error)\b", span):
            assert found(name) or hasattr(builtins, name), span
            checked += 1
    assert checked >= 3


#: what is told elsewhere on the page
NO_LIMITS = {"server", "handler", "workers", "on_close", "on_error", "stop_on_close"}
NO_LIMITS |= {"address", "timeout", "reconnect", "spin", "poller_thread"}


@pytest.mark.parametrize(("kind", "heading"), [(MessageServer, "Of a server:"), (MessageClient, "Of a client:")])
def test_the_table_of_limits_is_that_of_the_code(kind: type, heading: str) -> None:
    text = (TOP / "docs/messages.md").read_text()
    lines = text[text.index(heading) :].splitlines()[4:]
    parameters = inspect.signature(kind).parameters
    shown = {
        "5 MiB - 1": messages.MAX_MESSAGE_SIZE,
        "64 MiB": 64 << 20,
        "none": None,
        "everybody": None,
        "2 x `max_message_size`": None,  # how the code says it
        "`False`": False,
    }
    keywords = set()
    for line in lines[: lines.index("")]:
        keyword, default, _ = (cell.strip() for cell in line.strip("|").split("|"))
        number = default.removesuffix(" s").replace(",", "")
        expected = shown[default] if default in shown else float(number)
        keywords.add(keyword.strip("`"))
        assert parameters[keyword.strip("`")].default == expected, keyword
    assert keywords == set(parameters) - NO_LIMITS


def test_the_files_that_the_design_notes_name_are_there() -> None:
    text = (TOP / "docs/design-notes.md").read_text()
    files = set(re.findall(r"`((?:bbipc|pool)/[\w/]+(?:\.py|/))`", text))
    assert len(files) > 30
    assert [file for file in files if not (TOP / file).exists()] == []
