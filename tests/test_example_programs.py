"""The other examples as a user runs them; the echo is in ``test_examples.py``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import bbipc
from bbipc import SocketEvent
from pool import PollerThread
from tests.support.makers import PATIENCE, Worker
from tests.support.programs import (
    BIG,
    EXAMPLES,
    Server,
    ended,
    loaded,
    one_line,
    read_exactly,
    read_line,
    read_to_end,
    serving,
    start,
    where,
)

DATA_OR_END = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED
#: what it needs besides where to listen, and its farewell to a Ctrl-C
SERVERS = {
    "worker_server.py": ([], "\nworker server: StopReport(drained=0, forced=0, abandoned=0)\n"),
    "chat_room.py": ([], "chat room: bye\n"),
    "port_forwarder.py": (["/nowhere/at/all"], "port forwarder: bye\n"),
    "asyncio_bridge.py": ([], "asyncio server: bye\n"),
    "pass_to_process.py": ([], "pass to process: bye\n"),
}


@pytest.fixture(params=["tcp", "local"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def connect_all(server: Server, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    return [stack.enter_context(server.connect()) for _ in range(count)]


# What all servers have in common.


@pytest.mark.parametrize("program", SERVERS)
def test_ctrl_c_ends_a_server_cleanly_and_removes_its_path(program: str, kind: str, short_dir: Path) -> None:
    more, farewell = SERVERS[program]
    with serving(program, where(kind, short_dir), *more) as server:
        code, out, err = server.interrupt()
    assert (code, err) == (0, "")
    assert out.endswith(farewell)
    assert not list(short_dir.iterdir())


@pytest.mark.parametrize("program", SERVERS)
def test_a_place_that_is_taken_is_told_in_one_line(program: str, kind: str, short_dir: Path) -> None:
    more, _ = SERVERS[program]
    with serving(program, where(kind, short_dir), *more) as server, start(program, *server.words, *more) as second:
        assert "cannot listen on" in one_line(*ended(second))


@pytest.mark.parametrize("program", SERVERS)
def test_a_host_name_is_told_in_one_line(program: str) -> None:
    with start(program, "--host", "localhost", *SERVERS[program][0]) as process:
        assert "resolve_ipv4_address" in one_line(*ended(process))


# A server that hands connections to workers.


@pytest.fixture(params=["connection", "readiness"])
def per(request: pytest.FixtureRequest) -> list[str]:
    return ["--per", request.param]


def test_every_line_comes_back_in_capitals(per: list[str], kind: str, short_dir: Path) -> None:
    with serving("worker_server.py", where(kind, short_dir), *per) as server:
        with contextlib.ExitStack() as stack:
            for number, client in enumerate(connect_all(server, 5, stack)):
                for text in (b"one %d\n" % number, b"two\nthree\n"):
                    client.sendall(text)
                    assert read_exactly(client, len(text)) == text.upper()
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
        code, _, err = server.interrupt()
        assert (code, err) == (0, "")


def test_much_is_answered_although_its_client_has_ended_its_sending(per: list[str], kind: str, short_dir: Path) -> None:
    with serving("worker_server.py", where(kind, short_dir), *per) as server, server.connect() as client:

        def send() -> None:
            client.sendall(BIG)
            client.shutdown(socket.SHUT_WR)

        sender = Worker(send)
        assert read_to_end(client) == BIG.upper()
        sender.outcome()


def test_a_silent_client_holds_no_worker(per: list[str], short_dir: Path) -> None:
    with serving("worker_server.py", where("local", short_dir), *per, "--workers", "1") as server:
        with server.connect(), server.connect() as client:
            client.sendall(b"x\n")
            assert read_exactly(client, 2) == b"X\n"


def test_two_workers_serve_two_hundred_idle_clients(short_dir: Path) -> None:
    words = ["--per", "readiness", "--workers", "2"]
    with serving("worker_server.py", where("local", short_dir), *words) as server, contextlib.ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(server.connect())
            client.sendall(b"x\n")
            assert read_exactly(client, 2) == b"X\n"
        while "200 connections" not in (line := server.line()):
            assert line
        assert "2 of 2 threads" in line
        assert "200 accepted, 0 turned away, 0 errors" in line


def test_ctrl_c_ends_conversations_that_are_going_on(per: list[str], short_dir: Path) -> None:
    with serving("worker_server.py", where("local", short_dir), *per) as server, server.connect() as client:
        client.sendall(b"x\n")
        assert read_exactly(client, 2) == b"X\n"
        code, out, err = server.interrupt()
        assert (code, err) == (0, "")
        drained, forced = (0, 1) if "connection" in per else (1, 0)
        assert out.endswith(f"StopReport(drained={drained}, forced={forced}, abandoned=0)\n")
        assert client.recv(1) == b""


@contextlib.contextmanager
def on_a_terminal(program: str, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A program whose stdout is a terminal, and the number to read it by."""
    ours, theirs = os.openpty()
    try:
        with start(program, *words, stdout=theirs) as process:
            try:
                yield process, ours
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)


def read_terminal(number: int, until: bytes, count: int = 1) -> bytes:
    data = b""
    while data.count(until) < count:
        assert select.select([number], [], [], PATIENCE)[0], data
        data += os.read(number, 65536)
    return data


def test_figures_are_redrawn_in_place_on_a_terminal() -> None:
    with on_a_terminal("worker_server.py", "--port", "0") as (process, terminal):
        screen = read_terminal(terminal, b"\r\x1b[K", 3)
        first, *figures = screen.split(b"\r\x1b[K")
        assert first.endswith(b"Ctrl-C ends it\r\n")
        assert not any(b"\n" in line for line in figures)
        process.send_signal(signal.SIGINT)
        read_terminal(terminal, b"StopReport")
        assert process.wait(PATIENCE) == 0


def test_the_demonstrations_figures_are_redrawn_in_place_on_a_terminal() -> None:
    with on_a_terminal("worker_demo.py", "--seconds", "1", "--clients", "4") as (process, terminal):
        screen = read_terminal(terminal, b"StopReport")
        assert screen.count(b"\x1b[2A\r") >= 2
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("words", [[], ["--tcp"]])
def test_the_demonstration_ends_by_itself(words: list[str]) -> None:
    with start("worker_demo.py", "--seconds", "1", "--clients", "10", *words) as demo:
        code, out, err = ended(demo)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("$ python examples/worker_server.py ")
    assert "listening on" in lines[1]
    assert re.match(r"server:  [1-9]\d* connections, ", lines[2])
    assert re.match(r"clients: [1-9][\d,]* answers; round trip p50 \d+\.\d\d ms", lines[-2])
    assert "StopReport" in lines[-1]


def test_the_demonstration_ends_on_ctrl_c() -> None:
    with start("worker_demo.py", "--seconds", "600", "--clients", "4") as demo:
        assert demo.stdout is not None
        while b"clients: " not in demo.stdout.readline():
            assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        code, out, err = ended(demo)
    assert (code, err) == (0, "")
    assert "^C\n" in out
    assert "StopReport" in out.splitlines()[-1]


def test_the_demonstration_in_the_background_of_a_script() -> None:
    """There a shell starts it with SIGINT ignored, and it must still be able to interrupt the server."""
    program = shlex.quote(str(EXAMPLES / "worker_demo.py"))
    command = f"{shlex.quote(sys.executable)} {program} --seconds 0.5 --clients 2 & wait $!"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shell:
        code, out, err = ended(shell)
    assert (code, err) == (0, "")
    assert "StopReport" in out


def test_a_demonstration_that_cannot_begin_says_so_in_one_line() -> None:
    with start("worker_demo.py", "--clients", "0") as demo:
        code, _, err = ended(demo)
    assert code == 1
    assert err == "worker server: max_workers must be greater than 0\n"


# Calls in flight.


def test_calls_in_flight_by_itself() -> None:
    with start("calls_in_flight.py", "--calls", "500") as process:
        code, out, err = ended(process)
    assert (code, err) == (0, "")
    assert out.startswith("500 calls, 100 in flight: ")
    assert int(out.splitlines()[1].split()[0]) > 0  # overtaken


@contextlib.contextmanager
def called(kind: str, directory: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """The client, and a connection of its as a plain server sees it."""
    with socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX) as listening:
        listening.settimeout(PATIENCE)
        listening.bind(("127.0.0.1", 0) if kind == "tcp" else str(directory / "calls"))
        listening.listen()
        place = ["--port", str(listening.getsockname()[1])] if kind == "tcp" else ["--local", str(directory / "calls")]
        with start("calls_in_flight.py", *place, *words) as process:
            try:
                connection, _ = listening.accept()
                connection.settimeout(PATIENCE)
                with connection:
                    yield process, connection
            finally:
                process.kill()


def test_a_hundred_calls_are_in_flight_and_one_more_for_each_that_is_answered(kind: str, short_dir: Path) -> None:
    with called(kind, short_dir, "--calls", "150") as (process, connection):
        waiting = [read_line(connection) for _ in range(100)]
        assert waiting == [f"{number} call {number}" for number in range(1, 101)]
        for number in range(101, 151):
            connection.sendall(waiting.pop(50).upper().encode() + b"\n")
            waiting.append(read_line(connection))
            assert waiting[-1] == f"{number} call {number}"
        connection.sendall("".join(f"{line.upper()}\n" for line in reversed(waiting)).encode())
        code, out, err = ended(process)
    assert (code, err) == (0, "")
    assert out.startswith("150 calls, 100 in flight: ")


def test_an_end_in_the_middle_is_told_in_one_line(short_dir: Path) -> None:
    with called("local", short_dir) as (process, connection):
        read_line(connection)
        connection.close()
        one_line(*ended(process))


def test_an_answer_that_nobody_asked_for_is_told_in_one_line(short_dir: Path) -> None:
    with called("local", short_dir) as (process, connection):
        read_line(connection)
        connection.sendall(b"nonsense\n")
        assert "nobody has asked for the answer 'nonsense'" in one_line(*ended(process))


def test_ctrl_c_ends_calls_in_flight(short_dir: Path) -> None:
    with called("local", short_dir) as (process, connection):
        for _ in range(100):
            read_line(connection)
        process.send_signal(signal.SIGINT)
        assert ended(process) == (0, "calls in flight: bye\n", "")


def test_a_missing_server_is_told_in_one_line(short_dir: Path) -> None:
    with start("calls_in_flight.py", "--local", str(short_dir / "nobody")) as process:
        assert "no server listens at" in one_line(*ended(process))


# The chat room.


@pytest.fixture
def room(kind: str, short_dir: Path) -> Iterator[Server]:
    with serving("chat_room.py", where(kind, short_dir)) as server:
        yield server


def join(room: Server, name: str, stack: contextlib.ExitStack) -> socket.socket:
    member = stack.enter_context(room.connect())
    assert read_line(member) == "* your name?"
    member.sendall(name.encode() + b"\r\n")  # as telnet does
    assert read_line(member).startswith("* here: ")
    return member


def test_everybody_hears_everybody_else(room: Server) -> None:
    with contextlib.ExitStack() as stack:
        ann, bob = (join(room, name, stack) for name in ("ann", "bob"))
        assert read_line(ann) == "* bob joins"
        cleo = stack.enter_context(room.connect())
        assert read_line(cleo) == "* your name?"
        cleo.sendall("bob\ncleö\n\nwho is \x1b[31m\there?\n".encode())  # taken; then in one piece
        assert read_line(cleo) == "* another one, please: not taken, of 1 to 20 letters"
        assert read_line(cleo) == "* here: ann, bob, cleö"
        for other in (ann, bob):
            assert read_line(other) == "* cleö joins"
            assert read_line(other) == "cleö: who is [31mhere?"  # no codes for their terminals
        ann.sendall(b"me")
        bob.sendall(b"I am\n")
        assert read_line(ann) == read_line(cleo) == "bob: I am"
        ann.sendall(b" too\n")
        assert read_line(bob) == read_line(cleo) == "ann: me too"
        ann.close()
        bob.shutdown(socket.SHUT_WR)
        assert read_line(bob) in {"* ann leaves", ""}
        assert sorted(read_line(cleo) for _ in range(2)) == ["* ann leaves", "* bob leaves"]
        assert room.interrupt() == (0, "chat room: bye\n", "")
        assert read_line(cleo) == ""


def test_who_ends_his_sending_hears_what_was_said_before(room: Server) -> None:
    with contextlib.ExitStack() as stack:
        ann = join(room, "ann", stack)
        bob = stack.enter_context(room.connect())
        bob.sendall(b"bob\nhello\n")
        bob.shutdown(socket.SHUT_WR)
        assert read_to_end(bob) == b"* your name?\n* here: ann, bob\n"
        assert [read_line(ann) for _ in range(3)] == ["* bob joins", "bob: hello", "* bob leaves"]


def test_a_reset_is_a_leave(room: Server) -> None:
    with contextlib.ExitStack() as stack:
        ann, bob = (join(room, name, stack) for name in ("ann", "bob"))
        assert read_line(ann) == "* bob joins"
        ann.sendall(b"hello\n")
        assert select.select([bob], [], [], PATIENCE)[0]
        bob.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bob.close()  # with something unread
        assert read_line(ann) == "* bob leaves"
        assert room.interrupt() == (0, "chat room: bye\n", "")


def test_too_long_a_line_is_told_and_its_writer_dropped(room: Server) -> None:
    with contextlib.ExitStack() as stack:
        ann, bob = (join(room, name, stack) for name in ("ann", "bob"))
        assert read_line(ann) == "* bob joins"
        bob.sendall(b"x" * 1000)
        assert read_line(bob) == "* you are dropped: bob wrote a line of more than 1000 bytes"
        assert read_line(ann) == "* bob wrote a line of more than 1000 bytes and leaves"
        ann.sendall(b"x" * 999 + b"\n")
        assert room.interrupt() == (0, "chat room: bye\n", "")


def test_a_slow_reader_is_dropped_and_told_and_holds_up_nobody(short_dir: Path) -> None:
    words = ["--backlog", "10000"]
    with serving("chat_room.py", where("local", short_dir), *words) as room, contextlib.ExitStack() as stack:
        writer, slow, other = (join(room, name, stack) for name in ("writer", "slow", "other"))
        assert [read_line(writer) for _ in range(2)] == ["* slow joins", "* other joins"]
        assert read_line(slow) == "* other joins"
        line, said = "y" * 900, 0
        while said < 10000:
            writer.sendall(line.encode() + b"\n")
            said += 1
            if (text := read_line(other)) != f"writer: {line}":
                break
        assert text == read_line(writer) == "* slow reads too slowly and leaves"
        heard = read_to_end(slow).decode().splitlines()
        assert heard[-1] == "* you are dropped: slow reads too slowly"
        assert 100 < len(heard) - 1 <= said
        assert set(heard[:-1]) == {f"writer: {line}"}


def test_many_writers_at_once(room: Server) -> None:
    with contextlib.ExitStack() as stack:
        members = [join(room, f"member {number}", stack) for number in range(8)]

        def talk(member: socket.socket) -> None:
            for number in range(50):
                member.sendall(b"line %d\n" % number)

        talkers = [Worker(partial(talk, member)) for member in members]
        for number, member in enumerate(members):
            heard: dict[str, list[str]] = {}
            while sum(map(len, heard.values())) < 7 * 50:
                name, colon, text = read_line(member).partition(": ")
                if colon and name != "* here":
                    heard.setdefault(name, []).append(text)
            assert f"member {number}" not in heard
            assert all(texts == [f"line {n}" for n in range(50)] for texts in heard.values())
        for talker in talkers:
            talker.outcome()
        assert room.interrupt() == (0, "chat room: bye\n", "")


# The port forwarder.


@dataclass
class Forwarder:
    server: Server
    target: socket.socket

    def link(self, stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
        """(client, what the target accepted for it)"""
        client = stack.enter_context(self.server.connect())
        far, _ = self.target.accept()
        far.settimeout(PATIENCE)
        return client, stack.enter_context(far)


@pytest.fixture
def forwarder(kind: str, short_dir: Path) -> Iterator[Forwarder]:
    """From TCP to a local target, or the other way round."""
    with socket.socket(socket.AF_UNIX if kind == "tcp" else socket.AF_INET) as target:
        target.settimeout(PATIENCE)
        target.bind(str(short_dir / "target") if kind == "tcp" else ("127.0.0.1", 0))
        target.listen(100)
        to = str(short_dir / "target") if kind == "tcp" else f"127.0.0.1:{target.getsockname()[1]}"
        with serving("port_forwarder.py", where(kind, short_dir), to) as server:
            yield Forwarder(server, target)


@pytest.mark.parametrize("first", ["client", "target"])
def test_each_direction_ends_for_itself(first: str, forwarder: Forwarder) -> None:
    with contextlib.ExitStack() as stack:
        one, other = forwarder.link(stack)
        if first == "target":
            one, other = other, one
        one.sendall(b"question")
        one.shutdown(socket.SHUT_WR)
        assert read_to_end(other) == b"question"
        for part in (b"the ", b"answer"):
            other.sendall(part)
            assert read_exactly(one, len(part)) == part
        other.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
        assert forwarder.server.interrupt() == (0, "port forwarder: bye\n", "")


def test_much_goes_both_ways_at_once(forwarder: Forwarder) -> None:
    with contextlib.ExitStack() as stack:
        client, far = forwarder.link(stack)

        def send(source: socket.socket) -> None:
            source.sendall(BIG * 2)
            source.shutdown(socket.SHUT_WR)

        threads = [Worker(partial(send, source)) for source in (client, far)]
        threads += [Worker(partial(read_to_end, sink)) for sink in (client, far)]
        assert [thread.outcome() for thread in threads] == [None, None, BIG * 2, BIG * 2]


def test_who_does_not_read_is_not_sent_to(forwarder: Forwarder) -> None:
    """The kernel's buffers fill, and 128 KiB in the forwarder; then the sender has to wait.  Nothing is lost."""
    with contextlib.ExitStack() as stack:
        client, far = forwarder.link(stack)
        before = resident(forwarder.server.process)
        client.setblocking(False)
        sent = 0
        while select.select([], [client], [], 0.3)[1]:
            sent += client.send(BIG[sent % len(BIG) :])
            assert sent < 40 * len(BIG), "the forwarder takes everything"
        assert resident(forwarder.server.process) - before < 2 << 20
        other, far_other = forwarder.link(stack)  # nobody else has to wait
        other.sendall(b"x")
        assert read_exactly(far_other, 1) == b"x"
        reader = Worker(lambda: read_exactly(far, sent))
        assert reader.outcome() == (BIG * (sent // len(BIG) + 1))[:sent]


def resident(process: subprocess.Popen[bytes]) -> int:
    """Bytes of memory."""
    pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def test_a_reset_cuts_both_sides(forwarder: Forwarder) -> None:
    with contextlib.ExitStack() as stack:
        client, far = forwarder.link(stack)
        client.sendall(b"x")
        assert select.select([far], [], [], PATIENCE)[0]
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()  # with something unread
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert forwarder.server.interrupt() == (0, "port forwarder: bye\n", "")


def test_fifty_links_at_once(forwarder: Forwarder) -> None:
    with contextlib.ExitStack() as stack:
        links = [forwarder.link(stack) for _ in range(50)]
        for number, (client, far) in enumerate(links):
            client.sendall(b"%d\n" % number)
            far.sendall(b"%d!\n" % number)
        for number, (client, far) in enumerate(links):
            assert (read_line(client), read_line(far)) == (f"{number}!", str(number))
        assert forwarder.server.interrupt() == (0, "port forwarder: bye\n", "")


def test_a_target_that_is_not_there_costs_its_client_and_nothing_else(kind: str, short_dir: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, nobody answers
        to = f"127.0.0.1:{unused.getsockname()[1]}"
        with serving("port_forwarder.py", where(kind, short_dir), to) as server:
            for _ in range(2):
                with server.connect() as client:
                    assert client.recv(1) == b""
                assert "Connection refused" in server.line()
            assert server.interrupt() == (0, "port forwarder: bye\n", "")


# Coroutines.


def test_coroutines_answer_in_capitals(kind: str, short_dir: Path) -> None:
    with serving("asyncio_bridge.py", where(kind, short_dir)) as server, contextlib.ExitStack() as stack:
        clients = connect_all(server, 5, stack)
        for client in clients:
            client.sendall(b"one\ntwo\n")
            assert [read_line(client), read_line(client)] == ["ONE", "TWO"]
        clients[0].shutdown(socket.SHUT_WR)
        assert clients[0].recv(1) == b""
        clients[1].sendall(b"x" * 1000)
        assert clients[1].recv(1) == b""
        assert server.interrupt() == (0, "asyncio server: bye\n", "")
        assert clients[2].recv(1) == b""


def test_a_read_whose_time_was_up_has_taken_nothing(short_dir: Path) -> None:
    with serving("asyncio_bridge.py", where("local", short_dir), "--idle", "0.2") as server:
        with server.connect() as client:
            client.sendall(b"hel")
            assert read_line(client) == "still there?"
            client.sendall(b"lo\n")
            while (line := read_line(client)) == "still there?":
                pass
            assert line == "HELLO"
        assert server.interrupt() == (0, "asyncio server: bye\n", "")


def test_coroutines_end_when_their_server_is_closed(short_dir: Path) -> None:
    bridge = loaded("asyncio_bridge.py")
    server = bbipc.make_local_server(short_dir / "server")
    with PollerThread() as thread:
        thread.call_later(0.05, server.close)
        asyncio.run(asyncio.wait_for(bridge.serve(server, thread, 1.0), PATIENCE))


# Connections that are passed to other processes.


def server_of(client: socket.socket) -> int:
    """The number of the process that serves *client*."""
    client.sendall(b"x\n")
    number, _, text = read_line(client).partition(": ")
    assert text == "x"
    return int(number)


def kill(number: int) -> None:
    """Kill a process, and wait until it is dead."""
    descriptor = os.pidfd_open(number)
    try:
        os.kill(number, signal.SIGKILL)
        assert select.select([descriptor], [], [], PATIENCE)[0]
    finally:
        os.close(descriptor)


def test_connections_are_served_by_other_processes_in_turn(kind: str, short_dir: Path) -> None:
    with serving("pass_to_process.py", where(kind, short_dir), "--processes", "3") as server:
        with contextlib.ExitStack() as stack:
            clients = connect_all(server, 6, stack)
            numbers = [server_of(client) for client in clients]
            assert len(set(numbers[:3])) == 3
            assert numbers[3:] == numbers[:3]
            assert server.process.pid not in numbers
            assert [server_of(client) for client in clients] == numbers
            clients[0].shutdown(socket.SHUT_WR)
            assert clients[0].recv(1) == b""
            assert server.interrupt() == (0, "pass to process: bye\n", "")
            assert clients[1].recv(1) == b""
        for number in set(numbers):
            with pytest.raises(ProcessLookupError):
                os.kill(number, 0)


def test_when_a_process_dies_the_others_take_its_turns(short_dir: Path) -> None:
    with serving("pass_to_process.py", where("local", short_dir), "--processes", "2") as server:
        with server.connect() as one, server.connect() as other:
            dead, alive = server_of(one), server_of(other)
            kill(dead)
            assert one.recv(1) == b""
        for _ in range(3):
            with server.connect() as client:
                assert server_of(client) == alive
        kill(alive)
        code, out, err = ended(server.process)
        assert (code, out, err) == (1, "", "pass to process: no process is left to serve\n")


def test_a_process_that_takes_no_client_costs_only_him(monkeypatch: pytest.MonkeyPatch) -> None:
    program = loaded("pass_to_process.py")
    monkeypatch.setattr(program, "PATIENCE", 0.05)
    channel, _process = bbipc.local_stream_pair()
    client, caller = bbipc.local_stream_pair()
    with channel, _process, client, caller:
        while channel.write(bytes(65536)):
            pass
        passing = Worker(partial(program.pass_on, client, channel))
        assert bbipc.poll_socket(caller, DATA_OR_END, PATIENCE)
        assert caller.read() == b""
        passing.outcome()
