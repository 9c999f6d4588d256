"""A message connection between two threads: what each interleaving of reading, writing, answering and ending comes to.

The interleavings are made, not hoped for: the stream and the monitor are the test's, and do the other thread's part in
the middle of a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from bbipc import RemoteDisconnectedError
from bbipc.events import EVENTS
from bbipc.messages import Message, encode
from pool.message_limits import Limits
from pool.message_service import Service
from pool.message_serving import DirectConnection, WorkerConnection
from pool.requests import Request, reply_entry
from tests.support.makers import PATIENCE, Worker
from tests.support.serving import until
from tests.support.wire import TAGGED, Frame, decoded, string, tagged

DATA, ROOM, END = EVENTS[16], EVENTS[128], EVENTS[64]


class Stream:
    """Gives what is in ``incoming``, and takes ``room`` bytes."""

    def __init__(self) -> None:
        self.incoming: list[bytes | None] = []
        self.sent = bytearray()
        self.room = 1 << 30
        self.closed = self.shut = False
        self.in_read: Callable[[], object] = lambda: None
        self.in_write: Callable[[], object] = lambda: None

    def read(self, max_bytes: int = 65536, *, peek: bool = False) -> bytes | None:
        what, self.in_read = self.in_read, lambda: None
        what()
        return self.incoming.pop(0) if self.incoming else None

    def write(self, data: bytes) -> int:
        what, self.in_write = self.in_write, lambda: None
        what()
        if self.closed:
            raise RemoteDisconnectedError(104)
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.sent += taken
        return len(taken)

    def write_vector(self, buffers: Any) -> int:
        return self.write(b"".join(map(bytes, buffers)))

    def data_available(self) -> bool:
        return bool(self.incoming)

    def shutdown_write(self) -> None:
        self.shut = True

    def close(self) -> None:
        self.closed = True

    def frames(self) -> list[Frame]:
        """What was sent, in whole frames."""
        data, found = bytes(self.sent), []
        while data:
            size = 32 + int.from_bytes(data[8:12], "little")
            found.append(decoded(data[:size]))
            data = data[size:]
        return found


class Monitor:
    """Remembers what it is to tell."""

    active = True

    def __init__(self) -> None:
        self.events = DATA | END

    def set_events(self, events: Any) -> None:
        self.events = events

    def pause(self) -> None:
        self.events = EVENTS[0]

    def resume(self) -> None:
        raise AssertionError("the events are always said")

    def cancel(self) -> None:
        raise AssertionError("a close does that")


class Connection(DirectConnection):
    """Its requests are answered when the test says so."""

    __slots__ = ("asked", "turn")
    asked: list[Any]
    turn: int

    def again(self) -> None:
        self.start(self)

    def call_back(self) -> None:
        self.start(self)


def echo(request: Request) -> Any:
    return request.value


@pytest.fixture
def service() -> Service:
    return make_service()


def make_service(handler: Callable[[Request], Any] = echo, **options: Any) -> Service:
    limits: dict[str, Any] = {"max_message_size": 1 << 20, "max_connections": 9, "max_in_flight": 4}
    limits |= {"max_in_flight_total": 8, "max_unsent": 1000, "max_unverified": 1 << 20, "min_body_rate": 1}
    limits |= dict.fromkeys(["idle_timeout", "header_timeout", "body_timeout", "stall_timeout"])
    service = Service(
        handler,
        Limits(**{**limits, **options}),
        None,
        on_leave=lambda: None,
        on_close=lambda: None,
        accept_unsigned=False,
    )
    service.sweep.watch = lambda client: None  # type: ignore[method-assign]
    return service


def make(service: Service) -> tuple[Connection, Stream, Monitor]:
    stream, monitor, asked = Stream(), Monitor(), list[Any]()
    connection = Connection(service, stream, None, asked.append)  # type: ignore[arg-type]
    connection.asked, connection.turn = asked, 16
    connection.monitored_by(monitor)
    assert service.table.add(connection)
    return connection, stream, monitor


def feed(connection: Connection, *messages: Message, events: Any = DATA) -> None:
    stream: Any = connection.stream
    stream.incoming.append(b"".join(encode(message) for message in messages))
    connection.on_ready(stream, events)


def text(number: int, flags: int = 0) -> Message:
    return Message.string(str(number), flags, number if flags & TAGGED else 0)


def is_over(connection: Connection) -> bool:
    stream: Any = connection.stream
    return stream.closed and len(connection.service.table) == 0


# Writing.


def test_a_reply_that_comes_while_another_is_written_goes_behind_it(service: Service) -> None:
    connection, stream, _ = make(service)
    second = reply_entry(text(2), "2", None, 100)
    stream.in_write = lambda: connection.send(second)
    connection.send(reply_entry(text(1), "1", None, 100))
    assert stream.frames() == [string("1"), string("2")]
    assert connection.replies == 2


def test_a_reply_that_comes_while_the_kernel_fills_goes_behind_the_rest(service: Service) -> None:
    connection, stream, monitor = make(service)
    stream.room = 10
    stream.in_write = lambda: connection.send(reply_entry(text(2), "2", None, 100))
    connection.send(reply_entry(text(1), "1", None, 100))
    assert connection.blocked
    assert monitor.events == DATA | END | ROOM
    stream.room = 1 << 20
    connection.on_ready(stream, ROOM)  # type: ignore[arg-type]
    assert stream.frames() == [string("1"), string("2")]
    assert monitor.events == DATA | END


@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_a_connection_that_is_lost_while_the_kernel_fills_is_over(service: Service, waiting: int) -> None:
    """The writer finds no room, and says so, when the other has done all that he does at a loss."""
    connection, stream, _ = make(service)
    stream.room = 10 if not waiting else 0
    for number in range(waiting):
        connection.send(reply_entry(text(number), "x", None, 100))
    if waiting:
        stream.room, connection.blocked = 10, False

    def lose() -> None:
        connection.lose()
        connection.conclude()
        stream.closed = False  # the write had begun before

    stream.in_write = lose
    connection.send(reply_entry(text(9), "y", None, 100))
    connection.conclude()
    assert not connection.blocked
    assert connection.unsent() == 0
    assert len(service.table) == 0
    assert connection.dropped == waiting + 1


def test_any_pieces_that_the_kernel_takes_come_to_the_same(service: Service) -> None:
    connection, stream, _ = make(service)
    stream.room = 0
    frames = [string(str(number) * number * 700) for number in range(1, 9)]
    for frame in frames:
        connection.send(reply_entry(text(1), frame.text, None, 1 << 20))
    while connection.unsent():
        stream.room = 997
        connection.on_ready(stream, ROOM)  # type: ignore[arg-type]
    assert stream.frames() == frames
    assert connection.replies == len(frames)


# Answering.


class SlowClaim(list[None]):
    """A claim whose taker stops behind it until the test lets him go on."""

    def __init__(self) -> None:
        super().__init__([None])
        self.taken, self.go_on = threading.Event(), threading.Event()

    def pop(self, at: Any = -1) -> None:
        super().pop(at)
        self.taken.set()
        assert self.go_on.wait(PATIENCE)


def test_a_response_is_in_the_queue_before_its_request_is_done(service: Service) -> None:
    """Or the connection might be closed between the two, if this was its last request."""
    connection, stream, _ = make(service)
    request = Request(text(1), connection)
    claim = request.claim = SlowClaim()
    responding = Worker(lambda: request.respond("early"))
    assert claim.taken.wait(PATIENCE)
    returning = Worker(lambda: connection.settle(request, "late"))
    returning.join(0.05)
    assert returning.is_alive()
    claim.go_on.set()
    assert returning.outcome() is None
    responding.outcome()
    assert stream.frames() == [string("early")]


def test_who_takes_a_turn_over_sends_what_was_left_unsent(service: Service) -> None:
    """A handler blocks; before it others of the same turn were answered."""
    reached: list[object] = []

    def handler(request: Request) -> str:
        if request.value == "2":
            assert connection.waiting() > 0
            assert stream.frames() == []
            reached.append(Worker(connection.run).outcome())  # a colleague, as the leader's successor does
            assert stream.frames() == [tagged(string("1"), 1)]
        return str(request.value)

    service.handler = handler
    connection, stream, _ = make(service)
    feed(connection, text(1, TAGGED), text(2, TAGGED))
    connection.run()
    assert reached == [0]
    assert stream.frames() == [tagged(string(str(number)), number) for number in (1, 2)]


def test_nobody_is_called_for_requests_that_he_could_not_answer() -> None:
    """Workers who came for them would come again and again, and nobody would wait for the kernel's room meanwhile."""
    service = make_service(max_in_flight=3, max_in_flight_total=4)
    connection, stream, _ = make(service)
    feed(connection, *[text(number, TAGGED) for number in range(4)])
    assert connection.waiting() == 3  # as many as it has places
    stolen = [service.places.pop() for _ in range(2)]
    assert connection.waiting() == 2  # as many as the server has
    stolen += [service.places.pop() for _ in range(2)]
    assert connection.waiting() == 1  # and who finds none there writes that down
    assert (connection.run(), list(service.starved)) == (0, [connection])
    service.places.extend(stolen)
    service.starved.clear()
    places, connection.places = connection.places, []
    assert connection.waiting() == 0
    connection.places = places
    stream.room = 0
    connection.send(reply_entry(text(9, TAGGED), bytes(2000), None, 1 << 20))
    assert connection.choked()
    assert connection.waiting() == 0
    assert connection.run() == 0
    stream.room = 1 << 30
    connection.on_ready(stream, ROOM)  # type: ignore[arg-type]
    assert connection.waiting() == 3
    connection.discards = True
    assert connection.waiting() == 0


class Checked(list[None]):
    """Places that whoever counts them in another thread finds as they are when the test lets him go on."""

    def __init__(self, places: list[None]) -> None:
        super().__init__(places)
        self.owner = threading.current_thread()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __len__(self) -> int:
        if threading.current_thread() is not self.owner:
            self.reached.set()
            assert self.go_on.wait(PATIENCE)
        return super().__len__()


def test_untagged_requests_are_in_one_place_at_every_moment(service: Service) -> None:
    """Somebody looks for the end while the next one is on its way from the lane to the queue, and counts afterwards."""
    connection, stream, _ = make(service)
    connection.turn = 1
    feed(connection, text(1), text(2))
    places = connection.places = Checked(connection.places)
    lookers: list[Worker] = []
    queue = connection.queue

    class Watched(type(queue)):  # type: ignore[misc]
        def append(self, message: Message) -> None:
            assert not connection._turn
            lookers.append(Worker(connection.conclude))
            until(lambda: places.reached.is_set() or not lookers[0].is_alive())
            super().append(message)

    connection.queue = Watched(queue)
    connection.ending = True
    connection.run()
    places.go_on.set()
    lookers[0].outcome()
    assert not stream.closed
    connection.run()
    assert stream.frames() == [string("1"), string("2")]
    assert is_over(connection)


def test_a_request_that_is_answered_on_its_way_into_the_queue_is_answered_once(service: Service) -> None:
    """The next one leaves the lane, and is answered by a colleague before who has put it there goes on."""
    connection, stream, _ = make(service)
    connection.turn = 1
    feed(connection, *map(text, range(1, 5)))

    class Quick(type(connection.queue)):  # type: ignore[misc]
        def append(self, message: Message) -> None:
            super().append(message)
            Worker(connection.run).outcome()

    connection.queue = Quick(connection.queue)
    connection.run()
    assert sorted(frame.text for frame in stream.frames()) == ["1", "2", "3", "4"]


# Holding, and places.


class Overtaken(Connection):
    """Between finding that it is to be held, and holding it, the cause goes away."""

    __slots__ = ()

    def _hold(self, why: int) -> None:
        while len(self.places) < 4:
            self.places.append(None)
        super()._hold(why)


def test_what_was_in_the_way_may_go_before_anybody_knows_of_it(service: Service) -> None:
    connection, stream, monitor = make(service)
    connection.__class__ = Overtaken
    connection.places.clear()
    feed(connection, text(1))
    assert connection.holds == 0
    assert monitor.events == DATA | END
    connection.on_ready(stream, DATA)  # type: ignore[arg-type]
    assert connection.requests == 1


@pytest.mark.parametrize("one_past", [0, 1])
def test_nothing_is_begun_where_its_reply_might_pass_the_limit(one_past: int) -> None:
    service = make_service(max_message_size=100, max_unsent=300)
    connection, stream, monitor = make(service)
    stream.room = 0
    connection.send((bytes(200 + one_past),))
    assert (connection.blocked, connection.unsent()) == (True, 200 + one_past)
    connection.queue.append(text(1, TAGGED))
    connection.run()
    assert len(connection.queue) == one_past
    assert service.counts()["held_for_replies"] == one_past
    assert monitor.events == ROOM if one_past else DATA | END | ROOM
    stream.room = 1 << 20
    connection.on_ready(stream, ROOM)  # type: ignore[arg-type]
    assert monitor.events == DATA | END
    assert connection.asked == [connection] * one_past
    connection.run()
    assert not connection.queue
    assert connection.unsent() == 0
    assert len(stream.sent) == 200 + one_past + 32 + len("1\0")


def test_replies_that_come_much_later_do_not_stop_the_reading_of_others(service: Service) -> None:
    connection, stream, _ = make(service)
    connection.places.clear()
    feed(connection, text(1, TAGGED))
    assert connection.holds
    connection.places.append(None)  # three of four are still with the handler
    connection.go_on()
    assert not connection.holds
    connection.on_ready(stream, DATA)  # type: ignore[arg-type]
    assert connection.requests == 1


def test_with_few_places_of_the_server_one_place_wakes_one_connection(service: Service) -> None:
    connections = [make(service)[0] for _ in range(3)]
    service.places.clear()
    for connection in connections:
        feed(connection, text(1, TAGGED))
        assert connection.holds
    for left in (2, 1, 0):
        service.places.append(None)
        service.relieve()
        assert [bool(connection.holds) for connection in connections].count(True) == left


def ends_with_a_reply_to_come(connection: Connection, stream: Stream) -> None:
    connection.places.pop()
    connection.cut()
    assert len(connection.service.table) == 2


def is_choked(connection: Connection, stream: Stream) -> None:
    stream.room = 0
    feed(connection, text(1, TAGGED))
    connection.send((bytes(2000),))
    assert connection.choked()
    assert connection.run() == 0


def holds_too_much(connection: Connection, stream: Stream) -> None:
    connection.service.unverified.change(connection, 2 << 20)
    connection._known_part = 2 << 20
    connection.service.unverified._favourite = object()  # type: ignore[assignment]
    connection.on_ready(stream, DATA)  # type: ignore[arg-type]
    assert connection.holds


def told(incoming: bytes) -> Callable[[Connection, Stream], None]:
    def read(connection: Connection, stream: Stream) -> None:
        stream.incoming.append(incoming)
        connection.on_ready(stream, DATA)  # type: ignore[arg-type]

    return read


@pytest.mark.parametrize(
    "happens",
    [
        told(encode(text(1))[:10]),
        told(b""),
        told(bytes(40)),
        told(encode(Message.close())),
        lambda connection, stream: connection.cut(),
        ends_with_a_reply_to_come,
        is_choked,
        holds_too_much,
    ],
    ids=["part", "end", "garbage", "close", "cut", "cut with a reply to come", "choked", "too much memory"],
)
def test_who_was_let_go_on_and_needs_no_place_passes_that_on(
    service: Service, happens: Callable[[Connection, Stream], None]
) -> None:
    (waits, waiting, _), (first, stream, _) = make(service), make(service)
    service.places.clear()
    for connection in (waits, first):
        connection.on_ready(connection.stream, DATA)
    service.places.append(None)
    service.relieve()
    assert (bool(waits.holds), first.holds) == (True, 0)
    happens(first, stream)
    assert not waits.holds
    feed(waits, text(2, TAGGED))
    waits.run()
    assert waiting.frames() == [tagged(string("2"), 2)]


def test_who_ends_when_it_is_his_turn_to_be_read_is_passed_over(service: Service) -> None:
    """The others look for his end before, or after; here it comes before."""
    waits, gone = make(service)[0], make(service)[0]
    service.places.clear()
    for connection in (waits, gone):
        connection.on_ready(connection.stream, DATA)
    gone.begin_end(None, patient=False)
    service.places.append(None)
    service.relieve()
    assert not waits.holds
    assert not service.held


class Patient(Stream):
    """One in whose reads one may wait."""

    def _let_reads_wait(self, seconds: float) -> None:
        pass

    def _read_patiently(self, kept: object, max_bytes: int) -> bytes | None:
        return self.read(max_bytes)


def test_who_is_waited_for_in_the_read_and_needs_no_place_passes_that_on(service: Service) -> None:
    waits, stream = make(service)[0], Patient()
    listener = WorkerConnection(service, stream, None, mock.Mock())  # type: ignore[arg-type]
    service.places.clear()
    for connection in (waits, listener):
        connection.on_ready(connection.stream, DATA)
    service.places.append(None)
    service.relieve()
    stream.incoming.append(encode(text(1))[:10])
    assert waits.holds
    assert listener.listen(1)
    assert not waits.holds


def test_a_place_is_used_by_one_of_those_who_wait_for_it(service: Service) -> None:
    """Who was read on, and has read a request, has use for it."""
    waits, first = make(service)[0], make(service)[0]
    service.places.clear()
    for connection in (waits, first):
        connection.on_ready(connection.stream, DATA)
    service.places.append(None)
    service.relieve()
    feed(first, text(1, TAGGED))
    assert waits.holds
    first.run()
    assert not waits.holds


def test_a_place_that_is_given_back_while_somebody_starves_is_his(service: Service) -> None:
    connection, _, _ = make(service)
    feed(connection, text(1, TAGGED))
    connection.asked.clear()
    connection.places.pop()
    connection.starve()  # who has found none, and there are all of them again
    assert connection.asked == [connection]
    assert service.starved == {}


def test_who_starves_passes_on_what_he_does_not_need() -> None:
    """Two of three that found no place have nothing to do any more when there is one."""
    service = make_service(max_in_flight_total=1)
    one, two, three = (make(service)[0] for _ in range(3))
    for connection in (one, two, three):
        service.starved[connection] = None
    feed(three, text(1, TAGGED))
    for connection in (one, two, three):
        connection.asked.clear()
    service.feed_starved()
    for connection in (one, two, three):
        assert connection.asked == [connection]
        connection.run()
    assert service.starved == {}
    assert three.replies == 1


class Exact(Stream):
    """Gives no more than is asked for."""

    def read(self, max_bytes: int = 65536, *, peek: bool = False) -> bytes | None:
        data = super().read()
        if data is not None and len(data) > max_bytes:
            self.incoming.insert(0, data[max_bytes:])
        return None if data is None else data[:max_bytes]


def has_no_place(connection: Connection) -> None:
    connection.places.clear()


def is_crowded(connection: Connection) -> None:
    connection.service.places.clear()


def weighs_much(connection: Connection) -> None:
    connection._weigh(2000)


def owes_replies(connection: Connection) -> None:
    stream: Any = connection.stream
    stream.room = 0
    connection.send((bytes(2000),))
    connection.hold_for_replies()


@pytest.mark.parametrize("obstacle", [has_no_place, is_crowded, weighs_much, owes_replies])
def test_who_is_to_finish_his_message_is_read_to_its_end_and_not_further(
    obstacle: Callable[[Connection], None],
) -> None:
    """All others wait for him; and then for the one that has the least to go, whatever is in his way."""
    service = make_service(max_unverified=10_000)
    data = encode(Message.binary(bytes(30_000), TAGGED, 1))
    made = [make(service) for _ in range(2)]
    (first, _, _), (second, _, monitor) = made

    def comes(connection: Connection, piece: bytes) -> None:
        stream: Any = connection.stream
        stream.incoming.append(piece)
        connection.on_ready(stream, DATA)

    for connection in (first, second):
        connection.stream = Exact()  # type: ignore[assignment]
        comes(connection, data[:20_000])
    for connection in (first, second):
        obstacle(connection)
    comes(first, data[20_000:25_000])
    assert (first.part, first.holds) == (25_000, 0)
    comes(second, data[20_000:] + data)
    assert (second.part, monitor.events & DATA) == (20_000, EVENTS[0])
    comes(first, data[25_000:] + data)
    assert (second.holds, monitor.events & DATA) == (0, DATA)
    second.on_ready(second.stream, DATA)
    for connection in (first, second):
        assert (connection.part, connection.requests) == (0, 1)
        connection.on_ready(connection.stream, DATA)
        assert connection.holds
        assert (connection.part, connection.requests) == (0, 1)


def test_what_is_found_in_the_way_of_who_is_to_finish_his_message_is_not(service: Service) -> None:
    """A worker finds that too many replies wait: nothing more is begun, but he is read."""
    connection, _, monitor = make(service)
    service.unverified.change(connection, 2 << 20)
    connection._known_part = 2 << 20
    assert service.unverified.may_go_on(connection)
    owes_replies(connection)
    assert connection.choked()
    assert (connection.holds, monitor.events) == (0, DATA | END | ROOM)


# The end.


@pytest.mark.parametrize("way", ["end", "lose", "cut"])
def test_the_end_waits_for_the_reader(service: Service, way: str) -> None:
    """What is read when the end is asked for is answered, or dropped by who cuts; nothing is left over."""
    connection, stream, _ = make(service)

    def ask_for_the_end() -> None:
        Worker(getattr(connection, way)).outcome()
        assert len(service.table) == 1

    stream.in_read = ask_for_the_end
    feed(connection, text(1, TAGGED))
    assert len(service.table) == (0 if way == "cut" else 1)  # the reader himself drops what he has read
    connection.run()
    assert is_over(connection)
    assert stream.frames() == ([tagged(string("1"), 1)] if way == "end" else [])
    assert len(connection.places) == 4
    assert len(service.places) == 8


@pytest.mark.parametrize("way", ["end", "lose", "cut"])
def test_the_end_waits_for_the_handler(service: Service, way: str) -> None:
    def handler(request: Request) -> str:
        Worker(getattr(connection, way)).outcome()
        assert len(service.table) == 1
        return str(request.value)

    service.handler = handler
    connection, stream, _ = make(service)
    feed(connection, text(1, TAGGED), text(2, TAGGED))
    connection.run()
    assert is_over(connection)
    assert len(stream.frames()) == (2 if way == "end" else 0)
    assert service.counts()["dropped_requests"] == (1 if way == "cut" else 0)


def test_an_end_with_bytes_unread_is_told_before_it_is_made(service: Service) -> None:
    connection, stream, _ = make(service)
    stream.incoming.append(b"unread")
    connection.end()
    assert stream.shut
    assert not stream.closed
    connection.on_ready(stream, DATA)  # type: ignore[arg-type]
    stream.incoming.append(b"")
    connection.on_ready(stream, END)  # type: ignore[arg-type]
    assert is_over(connection)


def test_who_waits_for_its_events_may_end_before_the_reply(service: Service) -> None:
    """The reply goes out, as far as the kernel takes it; nobody waits for the rest."""

    def handler(request: Request) -> str:
        connection.stream_closed(RuntimeError("the pool was shut down"))
        assert not stream.closed
        return str(request.value)

    service.handler = handler
    for room in (1 << 20, 10):
        connection, stream, _ = make(service)
        stream.room = room
        feed(connection, text(1, TAGGED))
        connection.run()
        assert is_over(connection)
        assert (connection.replies, connection.dropped) == ((1, 0) if room > 10 else (0, 1))


def test_what_waits_when_nobody_runs_it_any_more_is_dropped(service: Service) -> None:
    connection, stream, _ = make(service)
    feed(connection, text(1, TAGGED), text(2), text(3))
    connection.stream_closed(RuntimeError("the pool was shut down"))
    assert is_over(connection)
    assert stream.frames() == []
    assert service.counts()["dropped_requests"] == 3


@pytest.mark.parametrize("while_reading", [False, True])
def test_a_lost_connection_holds_no_part_of_a_message(service: Service, *, while_reading: bool) -> None:
    """A request of it is with the handler, for as long as that takes."""
    connection, stream, _ = make(service)
    connection.places.pop()
    if while_reading:
        stream.in_read = connection.cut
    stream.incoming.append(encode(Message.binary(bytes(100_000)))[:50_000])
    connection.on_ready(stream, DATA)  # type: ignore[arg-type]
    if not while_reading:
        assert service.unverified.total == connection.part == 50_000
        connection.cut()
    assert len(service.table) == 1
    assert service.unverified.total == connection.part == 0
    connection.places.append(None)
    connection.conclude()
    assert is_over(connection)


def test_the_monitor_may_come_after_its_first_call(service: Service) -> None:
    connection, stream, monitor = make(service)
    connection._monitor = None
    stream.room = 10
    connection.send(reply_entry(text(1), "1", None, 100))
    assert monitor.events == DATA | END
    connection.monitored_by(monitor)
    assert monitor.events == DATA | END | ROOM
