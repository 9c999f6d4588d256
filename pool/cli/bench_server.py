"""The other side of ``bbipc bench``: a process that echoes in four ways, each on a path of its own.

Law of this file: ours and the peers' do the same work: a message in, the same message out.  It ends when its stdin
does.  The peers' threads wait in blocking calls, and end with the process.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Final

import bbipc
from pool import MessageServer
from pool.cli.children import be_child, stdin_ended, tell
from pool.requests import Request

LENGTH: Final = struct.Struct("<I")


def echo(request: Request) -> bytes:
    """Ours."""
    return request.payload


def receive(connection: socket.socket) -> bytes:
    """A message of the plain sockets': four bytes of length, then so many.  ``b""`` at the end."""
    return receive_exactly(connection, LENGTH.unpack(head)[0]) if (head := receive_exactly(connection, 4)) else b""


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or ``b""`` at the end."""
    data = connection.recv(size)
    if len(data) == size:
        return data
    parts, left = [data], size - len(data)
    while left and parts[-1]:
        parts.append(connection.recv(left))
        left -= len(parts[-1])
    return b"" if left else b"".join(parts)


def serve(words: list[str]) -> None:
    """Serve in the directory that is named."""
    directory = Path(words[0])
    with (
        MessageServer(bbipc.make_local_server(directory / "workers"), echo),
        MessageServer(bbipc.make_local_server(directory / "inline"), echo, workers="inline"),
        Listener(str(directory / "multiprocessing")) as listener,
        socket.socket(socket.AF_UNIX) as plain,
    ):
        plain.bind(str(directory / "plain"))
        plain.listen()
        _begin(lambda: _echo_connection(listener.accept()))
        _begin(lambda: _echo_plainly(plain.accept()[0]))
        tell({"ready": True})
        stdin_ended(None)


def _begin(serve_next: Callable[[], None]) -> None:
    """One client after the other, on a thread."""

    def serve_all() -> None:
        try:
            while True:
                serve_next()
        except OSError:  # the end
            return

    threading.Thread(target=serve_all, daemon=True).start()


def _echo_connection(connection: Connection) -> None:
    with connection:
        try:
            while True:
                connection.send_bytes(connection.recv_bytes())
        except EOFError:
            return


def _echo_plainly(connection: socket.socket) -> None:
    with connection:
        while message := receive(connection):
            connection.sendall(LENGTH.pack(len(message)) + message)


if __name__ == "__main__":
    be_child(serve)
