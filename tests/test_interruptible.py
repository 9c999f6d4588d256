"""Where a Ctrl-C may come: no frame of the main thread that holds something jumps back past its own handlers."""

from __future__ import annotations

import dis
from collections.abc import Callable

import pytest

from bbipc.polling.poller import Poller
from pool.conversation import Conversation
from pool.crew import Crew
from pool.outgoing import Outgoing
from pool.replies import Reading
from pool.stopping import Stopping
from pool.turn import Turn

HOLDERS = [
    *[Conversation.ask, Conversation.tell, Conversation._hear_out, Reading.attend, Reading.look, Turn.run, Turn.pause],
    *[Crew.end, Poller._shut, Outgoing.drop, Stopping.serve_until_end],
]


def holes(function: Callable[..., object]) -> list[int]:
    """Lines of jumps back that have no entry in the exception table, though where they lead to has one.

    A Ctrl-C is raised at such a jump, among other places, and would leave the frame without its ``finally``.
    """
    code = dis.Bytecode(function)
    entries = getattr(code, "exception_entries", ())

    def handlers(offset: int) -> set[int]:
        return {entry.target for entry in entries if entry.start <= offset < entry.end}

    jumps = [one for one in code if one.opname == "JUMP_BACKWARD"]
    return [jump.offset for jump in jumps if handlers(jump.argval) - handlers(jump.offset)]


@pytest.mark.parametrize("function", HOLDERS, ids=lambda function: function.__qualname__)
def test_no_jump_back_goes_past_a_handler(function: Callable[..., object]) -> None:
    assert holes(function) == []
