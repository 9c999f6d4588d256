"""SocketEvent: its names, its numbers, and the way between the face and the inside."""

from __future__ import annotations

import enum
import pickle
from functools import reduce
from operator import or_

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bbipc
from bbipc import SocketEvent, events

NAMES = (
    "CONNECTION_AVAILABLE",
    "DETERMINED",
    "CONNECTION_SUCCEEDED",
    "CONNECTION_FAILED",
    "DATA_AVAILABLE",
    "READY_TO_WRITE",
    "REMOTE_DISCONNECTED",
    "ROOM_TO_WRITE",
)


class Foreign(enum.Flag):
    """Somebody else's."""

    DATA = 16


any_events = st.sets(st.sampled_from(list(SocketEvent))).map(lambda some: reduce(or_, some, SocketEvent(0)))


def test_there_are_exactly_the_documented_events_in_their_order() -> None:
    assert tuple(event.name for event in SocketEvent) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_an_event_stands_under_the_same_name(name: str) -> None:
    assert getattr(events, name) == SocketEvent[name].value


def test_the_events_are_single_bits_without_overlap() -> None:
    values = [event.value for event in SocketEvent]
    assert all(value.bit_count() == 1 for value in values)
    assert len(set(values)) == len(values)


def test_servers_and_streams_share_no_event_and_together_have_all() -> None:
    assert not events.SERVER_EVENTS & events.STREAM_EVENTS
    assert sum(event.value for event in SocketEvent) == events.SERVER_EVENTS | events.STREAM_EVENTS


def test_an_event_is_no_int_so_that_no_foreign_mask_passes_for_one() -> None:
    assert not issubclass(SocketEvent, int)
    assert not isinstance(SocketEvent.DATA_AVAILABLE, int)


def test_an_event_carries_the_name_of_a_predicate_of_its_socket() -> None:
    for event in SocketEvent:
        kind = bbipc.StreamServer if event is SocketEvent.CONNECTION_AVAILABLE else bbipc.StreamSocket
        assert event.name is not None
        assert callable(getattr(kind, event.name.lower()))


def test_the_table_of_members_has_every_combination_at_its_number() -> None:
    assert len(events.EVENTS) == 256
    for number, member in enumerate(events.EVENTS):
        assert isinstance(member, SocketEvent)
        assert member.value == number


def test_no_events_are_falsy_and_any_event_is_truthy() -> None:
    assert not events.EVENTS[0]
    assert all(events.EVENTS[1:])


@given(any_events)
@settings(database=None, deadline=None)
def test_bits_and_the_table_undo_each_other(some: SocketEvent) -> None:
    assert events.EVENTS[events.bits(some)] == some


@given(any_events, any_events)
@settings(database=None, deadline=None)
def test_bits_of_a_union_is_the_union_of_the_bits(some: SocketEvent, more: SocketEvent) -> None:
    assert events.bits(some | more) == events.bits(some) | events.bits(more)


@pytest.mark.parametrize("value", [1, 0, True, None, "DATA_AVAILABLE", 4.0, Foreign.DATA, SocketEvent])
def test_bits_refuses_what_is_no_socket_event_and_names_its_type(value: object) -> None:
    with pytest.raises(TypeError, match="events must be a SocketEvent, not ") as caught:
        events.bits(value)  # type: ignore[arg-type]
    assert type(value).__name__ in str(caught.value)


def test_an_event_survives_pickle_as_the_same_member() -> None:
    both = SocketEvent.DATA_AVAILABLE | SocketEvent.READY_TO_WRITE
    assert pickle.loads(pickle.dumps(SocketEvent.DETERMINED)) is SocketEvent.DETERMINED
    assert pickle.loads(pickle.dumps(both)) == both
