"""Limits of a MessageServer, and what it tells of itself.

Law of this file: numbers only.  What is done at a limit stands where it is done: reading in ``message_inbox.py`` and
``message_flow.py``, handlers in ``message_serving.py``, time in ``message_sweep.py``, the memory of incomplete messages
in ``unverified.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from bbipc.messages.message import MAX_WORD
from bbipc.polling.deadline import checked_timeout
from pool.arguments import checked_count

#: seconds, and bytes: how long a connection is read after its last reply, so that a peer which still sends finds the
#: reply and not a reset
LINGER_TIME: Final = 2.0
LINGER_SIZE: Final = 8 << 20
#: the largest *max_in_flight*: each connection has a list of so many places, of 8 bytes each, from its beginning
MOST_IN_FLIGHT: Final = 65535


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What :class:`pool.MessageServer` takes by these names.

    :raises ValueError: a number that makes no sense
    :raises TypeError: no number
    """

    max_message_size: int
    max_connections: int | None
    max_in_flight: int
    max_in_flight_total: int
    max_unsent: int | None
    max_unverified: int
    idle_timeout: float | None
    header_timeout: float | None
    body_timeout: float | None
    min_body_rate: int
    stall_timeout: float | None

    def __post_init__(self) -> None:
        for name in ("max_connections", "max_in_flight", "max_in_flight_total", "max_unsent", "max_unverified"):
            number = getattr(self, name)
            if number is not None:
                checked_count(name, number)
        if self.max_in_flight > MOST_IN_FLIGHT:
            raise ValueError(f"max_in_flight must be at most {MOST_IN_FLIGHT}, not {self.max_in_flight}")
        checked_count("max_message_size", self.max_message_size, least=0)
        if self.max_message_size > MAX_WORD:
            raise ValueError(f"max_message_size must be 0 to {MAX_WORD}, not {self.max_message_size}")
        checked_count("min_body_rate", self.min_body_rate, least=0)
        for name, seconds in self._named_timeouts().items():
            if seconds == 0:
                raise ValueError(f"{name} of 0 s would end every connection")

    def timeouts(self) -> list[float]:
        """Those that there are, in seconds.

        :raises ValueError: a negative or NaN timeout
        """
        return [seconds for seconds in self._named_timeouts().values() if seconds is not None]

    def _named_timeouts(self) -> dict[str, float | None]:
        names = ("idle_timeout", "header_timeout", "body_timeout", "stall_timeout")
        return {name: checked_timeout(getattr(self, name), name) for name in names}

    @property
    def most_held(self) -> int:
        """Bytes of requests that wait for their answer, with which a connection is still read."""
        return 2 * self.max_message_size if self.max_unsent is None else self.max_unsent

    @property
    def most_unsent(self) -> int:
        """Bytes of unsent replies with which one more request is answered: the largest reply still fits in."""
        return max(self.most_held - self.max_message_size, 0)


@dataclass(frozen=True)
class MessageServerStats:
    """What a message server is doing at one moment, and what it has done so far.

    Now: ``connections``; ``in_flight`` (requests given to a handler and not answered yet); ``waiting`` (requests read,
    that wait for a worker or for their turn); ``unverified`` (bytes of messages that have not come in full, where it is
    more than 4 KiB); ``unsent`` (bytes of replies that their peers have not taken); ``paused`` (whether nobody is
    accepted just now).

    So far, connections: ``accepted``; ``shed`` (turned away for want of descriptors); ``refused`` (closed at once,
    because the workers took nothing any more; not counted as accepted); ``refused_uids`` (accepted, and closed at once:
    not in *allowed_uids*).

    So far, messages: ``requests`` (read and found good); ``replies`` (given to the kernel in full); ``dropped_replies``
    (their peer had gone, or the server was stopped); ``dropped_requests`` (read, and not given to a handler: their
    connection was cut, or the server was stopped by force); ``handler_errors`` (also replies that could not be sent as
    they were); ``protocol_errors`` (connections that were ended for what the peer sent, or in the middle of a message);
    ``hook_errors`` (what the server's hooks have raised, or the log).

    So far, limits: ``too_large`` (messages of more than *max_message_size*, a part of ``protocol_errors``);
    ``held_for_connections`` (how often *max_connections* were reached, and nobody was accepted until one left);
    ``cut_for_header``, ``cut_for_body``, ``cut_for_idle``, ``cut_for_stall`` (connections cut by the
    timeout of that name; *stall*: the peer did not read its replies); ``cut_for_memory`` (who did not deliver while
    there was more than *max_unverified*); ``held_for_requests``, ``held_for_replies``, ``held_for_memory`` (how often a
    connection was read no further for a while: *max_in_flight* and *max_in_flight_total*; *max_unsent*;
    *max_unverified*); ``cut_for_lingering`` (ended connections whose peer went on sending).
    """

    connections: int
    in_flight: int
    waiting: int
    unverified: int
    unsent: int
    paused: bool
    accepted: int
    shed: int
    refused: int
    refused_uids: int
    requests: int
    replies: int
    dropped_replies: int
    dropped_requests: int
    handler_errors: int
    protocol_errors: int
    hook_errors: int
    too_large: int
    cut_for_header: int
    cut_for_body: int
    cut_for_idle: int
    cut_for_stall: int
    cut_for_memory: int
    cut_for_lingering: int
    held_for_connections: int
    held_for_requests: int
    held_for_replies: int
    held_for_memory: int


#: those that a server's connections count
COUNTED: Final = (
    *("refused_uids", "requests", "replies", "dropped_replies", "dropped_requests", "handler_errors"),
    *("protocol_errors", "hook_errors", "too_large", "cut_for_header", "cut_for_body", "cut_for_idle"),
    *("cut_for_stall", "cut_for_memory", "cut_for_lingering", "held_for_connections", "held_for_requests"),
    *("held_for_replies", "held_for_memory"),
)
