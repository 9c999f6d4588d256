"""Programs of examples/ as a user runs them: real processes, real signals, and clients that know nothing of bbipc."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tests.support.makers import PATIENCE

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
BIG = bytes(range(256)) * 8192  # 2 MiB: more than the buffers of a local socket, and of TCP where nobody reads


def loaded(program: str) -> ModuleType:
    """A program of examples/ as a module, for what no process shows in good time."""
    spec = importlib.util.spec_from_file_location(program.removesuffix(".py"), EXAMPLES / program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(program: str, *words: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), *words],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a process that ends by itself; one that hangs is killed, and fails its test."""
    try:
        out, err = process.communicate(timeout=6 * PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out.decode(), err.decode()


def one_line(code: int, out: str, err: str) -> str:
    """The one line of *err* with which a program gave up."""
    assert (code, out) == (1, "")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


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
        try:
            client.connect(self.address)
        except OSError:
            client.close()
            raise
        return client

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def interrupt(self) -> tuple[int, str, str]:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        return ended(self.process)


@contextlib.contextmanager
def serving(program: str, where: list[str], *more: str) -> Iterator[Server]:
    """A server of examples/ that listens *where*: ["--port", "0"] or ["--local", path]."""
    with start(program, *where, *more) as process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline().decode()  # printed once it listens
            if "listening on" not in greeting:
                process.kill()
                raise AssertionError(ended(process))
            port = re.search(r"listening on 127\.0\.0\.1 port (\d+)", greeting)
            if port:
                yield Server(process, ["--port", port[1]], ("127.0.0.1", int(port[1])), greeting)
            else:
                yield Server(process, where, where[1], greeting)
        finally:
            process.kill()


def where(kind: str, directory: Path) -> list[str]:
    """Where a server may listen; *kind*: "tcp" or "local"."""
    return ["--port", "0"] if kind == "tcp" else ["--local", str(directory / "server")]


def read_exactly(client: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = client.recv(count - len(data))
        assert part, f"the server closed early, after {bytes(data[-100:])!r}"
        data += part
    return bytes(data)


def read_to_end(client: socket.socket) -> bytes:
    data = bytearray()
    while part := client.recv(65536):
        data += part
    return bytes(data)


def read_line(client: socket.socket) -> str:
    """The next line, without its end; "" is the end.  Byte by byte, so that nothing behind it is taken."""
    data = bytearray()
    while not data.endswith(b"\n"):
        part = client.recv(1)
        if not part:
            break
        data += part
    return data.decode().rstrip("\n")


def open_files(process: subprocess.Popen[bytes]) -> int:
    """How many, without the wakers of whoever waits just now."""
    names = []
    for link in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            names.append(os.readlink(link))
    return sum(not name.startswith("anon_inode") for name in names)


@dataclass
class Served:
    """A server of messages: its process, and where it listens, as text."""

    process: subprocess.Popen[bytes]
    address: str

    def interrupt(self) -> tuple[int, str, str]:
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)
        return ended(self.process)


@contextlib.contextmanager
def serving_at(program: str, address: str, *words: str) -> Iterator[Served]:
    """A server of examples/ that is told its *address* as ``parse_address`` takes it, once it listens."""
    with start(program, address, *words) as process:
        try:
            assert process.stdout is not None
            greeting = process.stdout.readline().decode()
            match = re.search(r"listening on (\S+);", greeting)
            if match is None:
                process.kill()
                raise AssertionError(ended(process))
            yield Served(process, match[1])
        finally:
            process.kill()
