"""The calls of bbipc beside those of the standard library: read, write, accept, poll, wait, close, memory, echo.

Law of this file: both sides of a case are two functions of the same shape, never one function given two objects: the
interpreter specializes code for the types it has met.  What is not measured (filling, draining, making, the peers)
happens outside of the timed part.
"""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

import bbipc
from benchmarks.echo import echo
from benchmarks.measure import Effort, Row, Target, Turn, difference, pinned, ratio, take_turns
from benchmarks.memory import memory
from benchmarks.waiting import ping_pong, poll_socket, wait_for_events

IO_TARGET: Final = Target(1.25)
CLOSE_TARGET: Final = Target(2.0)
NO_SIGNAL: Final[int] = getattr(socket, "MSG_NOSIGNAL", 0)
#: bytes a call -> calls a turn: what one local socket holds without blocking
SIZES: Final = {64: 128, 4096: 24}
_BATCH: Final = 32
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER 0: no TIME_WAIT behind thousands of connections


def plain_pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def close_all(ends: Sequence[bbipc.Socket | socket.socket]) -> None:
    for end in ends:
        end.close()


# Reading and writing.


def our_reads(stream: bbipc.StreamSocket, feeder: socket.socket, size: int, count: int) -> Turn:
    data, buffer = bytes(size), bytearray(size)

    def turn() -> float:
        for _ in range(count):
            feeder.send(data)
        start = perf_counter()
        for _ in range(count):
            stream.read_into(buffer)
        return (perf_counter() - start) / count

    return turn


def peer_reads(sock: socket.socket, feeder: socket.socket, size: int, count: int) -> Turn:
    data, buffer = bytes(size), bytearray(size)

    def turn() -> float:
        for _ in range(count):
            feeder.send(data)
        start = perf_counter()
        for _ in range(count):
            sock.recv_into(buffer)
        return (perf_counter() - start) / count

    return turn


def drain(sock: socket.socket) -> None:
    try:
        while sock.recv(1 << 18):
            pass
    except BlockingIOError:
        pass


def our_writes(stream: bbipc.StreamSocket, drainer: socket.socket, size: int, count: int) -> Turn:
    data = bytes(size)

    def turn() -> float:
        start = perf_counter()
        for _ in range(count):
            stream.write(data)
        taken = perf_counter() - start
        drain(drainer)
        return taken / count

    return turn


def peer_writes(sock: socket.socket, drainer: socket.socket, size: int, count: int) -> Turn:
    data = bytes(size)

    def turn() -> float:
        start = perf_counter()
        for _ in range(count):
            sock.send(data)
        taken = perf_counter() - start
        drain(drainer)
        return taken / count

    return turn


def peer_flag_writes(sock: socket.socket, drainer: socket.socket, size: int, count: int) -> Turn:
    data, flags = bytes(size), NO_SIGNAL

    def turn() -> float:
        start = perf_counter()
        for _ in range(count):
            sock.send(data, flags)
        taken = perf_counter() - start
        drain(drainer)
        return taken / count

    return turn


def our_end() -> tuple[bbipc.StreamSocket, socket.socket]:
    """A stream of ours and its peer, a plain socket."""
    one, other = plain_pair()
    adopted = bbipc.adopt_descriptor(one.detach())
    assert isinstance(adopted, bbipc.StreamSocket)
    return adopted, other


def read_into(effort: Effort) -> list[Row]:
    rows = []
    ours, our_feeder = our_end()
    peer, peer_feeder = plain_pair()
    with ours, our_feeder, peer, peer_feeder:
        for size, count in SIZES.items():
            turns = take_turns(
                our_reads(ours, our_feeder, size, count), peer_reads(peer, peer_feeder, size, count), effort.rounds
            )
            rows.append(ratio("read_into", f"read_into {size} B", "sock.recv_into(buffer)", turns, IO_TARGET))
    return rows


def write(effort: Effort) -> list[Row]:
    rows = []
    peers = {"sock.send(data, MSG_NOSIGNAL)": peer_flag_writes, "sock.send(data)": peer_writes}
    ours, our_drainer = our_end()
    peer, peer_drainer = plain_pair()
    with ours, our_drainer, peer, peer_drainer:
        for size, count in SIZES.items():
            for name, maker in peers.items():
                turns = take_turns(
                    our_writes(ours, our_drainer, size, count), maker(peer, peer_drainer, size, count), effort.rounds
                )
                rows.append(ratio("write", f"write {size} B", name, turns, IO_TARGET))
    return rows


# Accepting.


def our_accepts(server: bbipc.IPv4TCPServer | bbipc.LocalServer, connect: Callable[[], socket.socket]) -> Turn:
    def turn() -> float:
        peers = [connect() for _ in range(_BATCH)]
        accepted: list[bbipc.StreamSocket] = []
        start = perf_counter()
        for _ in range(_BATCH):
            stream = server.accept_connection()
            accepted.append(stream)
        taken = perf_counter() - start
        close_all(peers)
        close_all(accepted)
        return taken / _BATCH

    return turn


def peer_accepts(server: socket.socket, connect: Callable[[], socket.socket], *, tcp: bool) -> Turn:
    def turn() -> float:
        peers = [connect() for _ in range(_BATCH)]
        accepted: list[socket.socket] = []
        start = perf_counter()
        for _ in range(_BATCH):
            connection, _address = server.accept()
            connection.setblocking(False)
            if tcp:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            accepted.append(connection)
        taken = perf_counter() - start
        close_all(peers)
        close_all(accepted)
        return taken / _BATCH

    return turn


def connector(family: socket.AddressFamily, address: str | tuple[str, int]) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        sock = socket.socket(family)
        if family is socket.AF_INET:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.connect(address)
        return sock

    return connect


def accept(effort: Effort) -> list[Row]:
    rounds = effort.part(0.25)
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as ours, socket.socket() as peer:
        peer.bind(("127.0.0.1", 0))
        peer.listen(128)
        our_turn = our_accepts(ours, connector(socket.AF_INET, (ours.host_address, ours.port)))
        peer_turn = peer_accepts(peer, connector(socket.AF_INET, peer.getsockname()), tcp=True)
        tcp = take_turns(our_turn, peer_turn, rounds)
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory:
        our_path, peer_path = Path(directory, "ours"), os.path.join(directory, "peer")
        with bbipc.make_local_server(our_path) as local, socket.socket(socket.AF_UNIX) as peer:
            peer.bind(peer_path)
            peer.listen(128)
            our_turn = our_accepts(local, connector(socket.AF_UNIX, str(our_path)))
            local_turns = take_turns(
                our_turn, peer_accepts(peer, connector(socket.AF_UNIX, peer_path), tcp=False), rounds
            )
    return [
        ratio("accept", "accept_connection ipv4", "accept, setblocking, TCP_NODELAY", tcp),
        ratio("accept", "accept_connection local", "accept, setblocking", local_turns),
    ]


# Closing.


def our_closes() -> float:
    pairs = [bbipc.local_stream_pair() for _ in range(_BATCH)]
    streams = [pair[0] for pair in pairs]
    others = [pair[1] for pair in pairs]
    del pairs
    start = perf_counter()
    for stream in streams:
        stream.close()
    taken = perf_counter() - start
    close_all(others)
    return taken / _BATCH


def peer_closes() -> float:
    pairs = [plain_pair() for _ in range(_BATCH)]
    socks = [pair[0] for pair in pairs]
    others = [pair[1] for pair in pairs]
    del pairs
    start = perf_counter()
    for sock in socks:
        sock.close()
    taken = perf_counter() - start
    close_all(others)
    return taken / _BATCH


def close(effort: Effort) -> list[Row]:
    turns = take_turns(our_closes, peer_closes, effort.rounds)
    return [difference("close", "close, peer open", "sock.close()", turns, CLOSE_TARGET)]


def _on_one_core(case: Callable[[Effort], list[Row]]) -> Callable[[Effort], list[Row]]:
    def run(effort: Effort) -> list[Row]:
        with pinned(0):
            return case(effort)

    return run


#: every case by its name; each gives its rows
CASES: Final[dict[str, Callable[[Effort], list[Row]]]] = {
    "read_into": _on_one_core(read_into),
    "write": _on_one_core(write),
    "accept": _on_one_core(accept),
    "poll_socket": _on_one_core(poll_socket),
    "ping_pong": _on_one_core(ping_pong),
    "wait_for_events": _on_one_core(wait_for_events),
    "close": _on_one_core(close),
    "memory": memory,
    "echo": echo,
}
