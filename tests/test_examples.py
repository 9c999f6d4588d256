"""The echo in four styles as a user runs it: real processes, real signals, and clients that know nothing of bbipc."""

from __future__ import annotations

import contextlib
import errno
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import ClassVar

import pytest

import bbipc
from tests.support.makers import PATIENCE, Worker
from tests.support.programs import (
    BIG,
    EXAMPLES,
    Server,
    ended,
    loaded,
    one_line,
    open_files,
    read_exactly,
    serving,
    start,
    where,
)
from tests.support.serving import until

STYLES = ["echo_server.py", "echo_synchronous.py", "echo_futures.py", "echo_callbacks.py"]


@pytest.fixture(params=STYLES)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["tcp", "local"])
def server(program: str, request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Server]:
    with serving(program, where(request.param, short_dir)) as started:
        yield started


def test_the_client_prints_what_comes_back(server: Server) -> None:
    with start("echo_client.py", *server.words, "Hello World", "grüß", "x") as client:
        assert ended(client) == (0, "Hello World\ngrüß\nx\n", "")


def test_texts_larger_than_the_socket_buffers(server: Server) -> None:
    texts = ["a" * 120_000, "b" * 120_000, "c" * 120_000]  # a single argument has at most 128 KiB on Linux
    with start("echo_client.py", *server.words, *texts) as client:
        code, out, err = ended(client)
    assert (code, out.split(), err) == (0, texts, "")


def test_several_clients_at_once(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(start("echo_client.py", *server.words, f"text {i}")) for i in range(4)]
        assert [ended(client) for client in clients] == [(0, f"text {i}\n", "") for i in range(4)]


def test_an_idle_client_does_not_hold_up_another(server: Server) -> None:
    with server.connect(), server.connect() as busy:
        busy.sendall(b"now")
        assert read_exactly(busy, 3) == b"now"


def test_a_plain_socket_is_served(server: Server) -> None:
    with server.connect() as client:
        for text in (b"one\n", b"two\n"):
            client.sendall(text)
            assert read_exactly(client, len(text)) == text


def test_a_slow_reader_gets_everything(server: Server) -> None:
    """It sends 2 MiB before it reads a byte: the server writes what fits, and stops reading meanwhile."""
    with server.connect() as client, server.connect() as other:
        sender = Worker(lambda: client.sendall(BIG))
        other.sendall(b"not held up")
        assert read_exactly(other, 11) == b"not held up"
        assert client.recv(1, socket.MSG_PEEK) == BIG[:1]
        assert read_exactly(client, len(BIG)) == BIG
        sender.outcome()


def test_a_client_that_ends_its_sending_gets_the_rest_and_then_the_end(server: Server) -> None:
    """As nc -N and socat do.  The server owes it bytes when its end arrives."""
    with server.connect() as client:

        def send() -> None:
            client.sendall(BIG)
            client.shutdown(socket.SHUT_WR)

        sender = Worker(send)
        assert read_exactly(client, len(BIG)) == BIG
        assert client.recv(1) == b""
        sender.outcome()


@pytest.mark.parametrize("size", range(200_000, 420_000, 20_000))
def test_unsent_bytes_are_written_after_the_clients_end(program: str, size: int, short_dir: Path) -> None:
    """The client's end is there before the server could write everything: the room for the rest must still wake it.

    The sizes lie around what fits into the way back alone, and both ways together.
    """
    with serving(program, where("local", short_dir)) as server, server.connect() as client:
        client.sendall(BIG[:size])
        client.shutdown(socket.SHUT_WR)
        assert read_exactly(client, size) == BIG[:size]
        assert client.recv(1) == b""


def test_clients_that_leave_leave_nothing_behind(server: Server) -> None:
    with server.connect() as first:
        first.sendall(b"x")
        assert read_exactly(first, 1) == b"x"
        before = open_files(server.process)
        for leave in ("close", "end", "reset") * 10:
            with server.connect() as client:
                client.sendall(b"x")
                assert read_exactly(client, 1) == b"x"
                if leave == "end":
                    client.shutdown(socket.SHUT_WR)
                    assert client.recv(1) == b""
                elif leave == "reset":
                    client.sendall(BIG[:100])
        # The tombstone came with the first close.  And without a GIL a number is freed when the thread that made its
        # socket runs again: one may wait for that.
        deadline = time.monotonic() + PATIENCE
        while open_files(server.process) > before + 2:
            first.sendall(b"x")
            assert read_exactly(first, 1) == b"x"
            assert time.monotonic() < deadline, "the server keeps the connections of clients that have gone"


def test_ctrl_c_ends_the_server_cleanly(server: Server) -> None:
    assert server.interrupt() == (0, "echo server: bye\n", "")


def test_ctrl_c_with_a_client_connected(server: Server) -> None:
    with server.connect() as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"
        assert server.interrupt() == (0, "echo server: bye\n", "")
        # A reset if it was interrupted between writing the byte and taking it: what is unread at an end resets.
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


def test_the_path_is_removed_at_the_end(program: str, short_dir: Path) -> None:
    path = short_dir / "echo"
    with serving(program, ["--local", str(path)]) as server:
        assert path.is_socket()
        server.interrupt()
        assert not path.exists()


def test_a_dead_servers_path_is_taken_over(short_dir: Path) -> None:
    words = ["--local", str(short_dir / "echo")]
    with serving("echo_server.py", words) as first:
        first.process.kill()
        ended(first.process)
    assert (short_dir / "echo").is_socket()
    with serving("echo_server.py", words) as second, second.connect() as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"


def test_a_port_or_path_that_is_taken_is_told_in_one_line(program: str, server: Server) -> None:
    with start(program, *server.words) as second:
        assert "cannot listen on" in one_line(*ended(second))
    with start("echo_client.py", *server.words, "still there") as client:
        assert ended(client) == (0, "still there\n", "")


def test_a_plain_file_in_the_way_is_told_in_one_line_and_kept(short_dir: Path) -> None:
    (short_dir / "echo").write_text("precious")
    with start("echo_server.py", "--local", str(short_dir / "echo")) as server:
        assert "no socket" in one_line(*ended(server))
    assert (short_dir / "echo").read_text() == "precious"


def test_a_missing_server_is_told_in_one_line(short_dir: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port, nobody answers
        with start("echo_client.py", "--port", str(unused.getsockname()[1]), "x") as client:
            assert "Connection refused" in one_line(*ended(client))
    with start("echo_client.py", "--local", str(short_dir / "nobody"), "x") as client:
        assert "no server listens at" in one_line(*ended(client))


@pytest.mark.parametrize("program", [*STYLES, "echo_client.py"])
def test_a_host_name_is_told_in_one_line(program: str) -> None:
    texts = ["x"] if program == "echo_client.py" else []
    with start(program, "--host", "localhost", *texts) as process:
        assert "resolve_ipv4_address" in one_line(*ended(process))


@pytest.mark.parametrize("kind", ["tcp", "local"])
def test_out_of_descriptors_a_server_serves_whom_it_has_and_the_others_later(kind: str, short_dir: Path) -> None:
    with serving("echo_server.py", where(kind, short_dir)) as server, contextlib.ExitStack() as stack:
        first = stack.enter_context(server.connect())
        first.sendall(b"x")
        assert read_exactly(first, 1) == b"x"
        numbers = Path(f"/proc/{server.process.pid}/fd")
        limit = len(list(numbers.iterdir())) + 8
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        clients = [stack.enter_context(server.connect()) for _ in range(12)]
        until(lambda: len(list(numbers.iterdir())) == limit)
        for _ in range(3):  # the others knock meanwhile: it sees that in each of its turns
            first.sendall(b"x")
            assert read_exactly(first, 1) == b"x"
        for client in clients[:6]:
            client.close()
        for client in clients[6:]:
            client.sendall(b"y")
            assert read_exactly(client, 1) == b"y"
        assert server.interrupt() == (0, "echo server: bye\n", "")


@pytest.mark.parametrize("farewell", ["end", "reset"])
def test_a_server_that_has_gone_is_told_by_the_client_in_one_line(farewell: str, short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short_dir / "server"))
        listening.listen()
        listening.settimeout(PATIENCE)
        with start("echo_client.py", "--local", str(short_dir / "server"), "Hello World") as client:
            peer, _ = listening.accept()
            with peer:
                peer.settimeout(PATIENCE)
                assert peer.recv(1, socket.MSG_PEEK) == b"H"
                if farewell == "end":
                    assert peer.recv(100) == b"Hello World"
            told = one_line(*ended(client))
    assert "the server has closed the connection" in told


@pytest.mark.parametrize("words", [[], ["--tcp"]])
def test_the_demonstration(words: list[str]) -> None:
    with start("echo_demo.py", *words, "Hello World", "again") as demo:
        code, out, err = ended(demo)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("$ python examples/echo_server.py ")
    assert "listening on" in lines[1]
    assert lines[2].startswith("$ python examples/echo_client.py ")
    assert lines[3:] == ["Hello World", "again", "^C", "echo server: bye"]


def test_the_demonstration_in_the_background_of_a_script() -> None:
    """There a shell starts it with SIGINT ignored, and it must still be able to interrupt the server."""
    command = f"{shlex.quote(sys.executable)} {shlex.quote(str(EXAMPLES / 'echo_demo.py'))} x & wait $!"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shell:
        code, out, err = ended(shell)
    assert (code, err) == (0, "")
    assert out.endswith("x\n^C\necho server: bye\n")


@pytest.mark.parametrize("name", ["echo_server.py", "echo_demo.py"])
def test_an_example_has_fewer_than_sixty_lines(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 60


def foreign_client(tool: str, server: Server) -> list[str]:
    if tool == "socat":
        where = (
            f"UNIX-CONNECT:{server.address}"
            if isinstance(server.address, str)
            else f"TCP:{server.address[0]}:{server.address[1]}"
        )
        return ["socat", "-t", str(PATIENCE), "-", where]
    quit_at_end = (
        ["-N"] if "-N" in subprocess.run(["nc", "-h"], capture_output=True, text=True, check=False).stderr else []
    )
    if isinstance(server.address, str):
        return ["nc", *quit_at_end, "-U", server.address]
    return ["nc", *quit_at_end, server.address[0], str(server.address[1])]


@pytest.mark.parametrize("tool", ["nc", "socat"])
def test_a_foreign_program_is_served(tool: str, server: Server) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"there is no {tool} here")
    command = foreign_client(tool, server)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        try:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(b"Hello World\n")
            client.stdin.flush()
            assert client.stdout.readline() == b"Hello World\n"
            client.stdin.close()
        finally:
            client.kill()


def test_a_synchronous_server_with_all_workers_held_serves_the_next_when_one_leaves(short_dir: Path) -> None:
    with serving("echo_synchronous.py", where("local", short_dir), "--workers", "1") as server:
        with server.connect() as first:
            first.sendall(b"x")
            assert read_exactly(first, 1) == b"x"
            second = server.connect()
            second.sendall(b"y")
            first.sendall(b"z")
            assert read_exactly(first, 1) == b"z"
        with second:
            assert read_exactly(second, 1) == b"y"
        assert server.interrupt() == (0, "echo server: bye\n", "")


def test_a_door_that_is_closed_is_not_knocked_at_again(short_dir: Path) -> None:
    """Only a lack of descriptors passes."""
    listening = bbipc.make_local_server(short_dir / "server")
    listening.close()
    with pytest.raises(bbipc.SocketClosedError) as closed:
        listening.accept_connection()

    class Thread:
        asked = 0
        later: ClassVar[list[float]] = []

        def accept(self, _: object) -> Future[bbipc.StreamSocket]:
            self.asked += 1
            return Future()

        def call_later(self, delay: float, _: object) -> None:
            self.later.append(delay)

    for error, later in (bbipc.SocketError(errno.EMFILE, "none left"), [0.1]), (closed.value, []):
        Thread.later.clear()
        door = loaded("echo_futures.py").Door(listening, Thread())
        failed: Future[bbipc.StreamSocket] = Future()
        failed.set_exception(error)
        door._accepted(failed)
        assert (door.poller_thread.asked, Thread.later) == (1, later)


def test_a_client_with_much_to_say_does_not_have_a_server_of_futures_for_itself(short_dir: Path) -> None:
    """Neither does it lead it into ever deeper callbacks: each read finds its bytes there already."""
    with serving("echo_futures.py", where("local", short_dir)) as server:
        with server.connect() as greedy, server.connect() as other:
            sender = Worker(lambda: greedy.sendall(BIG * 8))
            reader = Worker(lambda: read_exactly(greedy, len(BIG) * 8))
            for _ in range(20):
                other.sendall(b"x")
                assert read_exactly(other, 1) == b"x"
            sender.outcome()
            assert reader.outcome() == BIG * 8
        assert server.interrupt() == (0, "echo server: bye\n", "")
