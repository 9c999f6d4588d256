"""The examples as a user runs them: real processes, real signals, and clients that know nothing of bbipc."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.makers import PATIENCE, Worker

EXAMPLES = Path(__file__).parent.parent / "examples"
BIG = bytes(range(256)) * 8192  # 2 MiB: more than the buffers of a local socket, and of TCP where nobody reads


def start(program: str, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process that ends by itself."""
    out, err = process.communicate(timeout=6 * PATIENCE)
    return process.returncode, out.decode(), err.decode()


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    words: list[str]  # how the examples are told where it is
    address: str | tuple[str, int]
    greeting: str

    def connect(self) -> socket.socket:
        """A plain socket: what nc would be."""
        client = socket.socket(socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET)
        client.settimeout(PATIENCE)
        client.connect(self.address)
        return client

    def interrupt(self) -> tuple[int, str, str]:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        return ended(self.process)


@contextlib.contextmanager
def serving(words: list[str]) -> Iterator[Server]:
    with start("echo_server.py", *words) as process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline().decode()  # printed once it listens
            assert "listening on" in greeting, greeting
            port = re.search(r"listening on 127\.0\.0\.1 port (\d+)", greeting)
            if port:
                yield Server(process, ["--port", port[1]], ("127.0.0.1", int(port[1])), greeting)
            else:
                yield Server(process, words, words[1], greeting)
        finally:
            process.kill()


@pytest.fixture(params=["tcp", "local"])
def server(request: pytest.FixtureRequest, short_dir: Path) -> Iterator[Server]:
    words = ["--port", "0"] if request.param == "tcp" else ["--local", str(short_dir / "echo")]
    with serving(words) as started:
        yield started


def read_exactly(client: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = client.recv(count - len(data))
        assert part, "the server closed early"
        data += part
    return bytes(data)


def open_files(process: subprocess.Popen[bytes]) -> int:
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


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
def test_unsent_bytes_are_written_after_the_clients_end(size: int, short_dir: Path) -> None:
    """The client's end is there before the server could write everything: the room for the rest must still wake it.

    The sizes lie around what fits into the way back alone, and both ways together.
    """
    with serving(["--local", str(short_dir / "echo")]) as server, server.connect() as client:
        client.sendall(BIG[:size])
        client.shutdown(socket.SHUT_WR)
        assert read_exactly(client, size) == BIG[:size]
        assert client.recv(1) == b""


def test_clients_that_leave_leave_nothing_behind(server: Server) -> None:
    with server.connect() as first:
        first.sendall(b"x")
        assert read_exactly(first, 1) == b"x"
        before = open_files(server.process)
        for leave in ("close", "end", "reset"):
            with server.connect() as client:
                client.sendall(b"x")
                assert read_exactly(client, 1) == b"x"
                if leave == "end":
                    client.shutdown(socket.SHUT_WR)
                    assert client.recv(1) == b""
                elif leave == "reset":
                    client.sendall(BIG[:100])
        for _ in range(1000):  # each round is a step of the server's, which sees the ends in between
            first.sendall(b"x")
            assert read_exactly(first, 1) == b"x"
            if open_files(server.process) == before:
                return
    pytest.fail("the server keeps the connections of clients that have gone")


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


def test_the_path_is_removed_at_the_end(short_dir: Path) -> None:
    path = short_dir / "echo"
    with serving(["--local", str(path)]) as server:
        assert path.is_socket()
        server.interrupt()
        assert not path.exists()


def test_a_dead_servers_path_is_taken_over(short_dir: Path) -> None:
    words = ["--local", str(short_dir / "echo")]
    with serving(words) as first:
        first.process.kill()
        ended(first.process)
    assert (short_dir / "echo").is_socket()
    with serving(words) as second, second.connect() as client:
        client.sendall(b"x")
        assert read_exactly(client, 1) == b"x"


def one_line(code: int, out: str, err: str) -> str:
    """The one line of *err* with which a program gave up."""
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_a_port_or_path_that_is_taken_is_told_in_one_line(server: Server) -> None:
    with start("echo_server.py", *server.words) as second:
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


@pytest.mark.parametrize("program", ["echo_server.py", "echo_client.py"])
def test_a_host_name_is_told_in_one_line(program: str) -> None:
    texts = ["x"] if program == "echo_client.py" else []
    with start(program, "--host", "localhost", *texts) as process:
        assert "resolve_ipv4_address" in one_line(*ended(process))


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


@pytest.mark.parametrize("program", ["echo_server.py", "echo_demo.py"])
def test_an_example_has_fewer_than_sixty_lines(program: str) -> None:
    assert len((EXAMPLES / program).read_text().splitlines()) < 60


def foreign_client(program: str, server: Server) -> list[str]:
    if program == "socat":
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


@pytest.mark.parametrize("program", ["nc", "socat"])
def test_a_foreign_program_is_served(program: str, server: Server) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program} here")
    command = foreign_client(program, server)
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
