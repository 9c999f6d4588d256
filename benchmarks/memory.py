"""Memory of a connection that is monitored and idle: a server's thousands are mostly that.

Law of this file: only our side is counted.  The peers are plain sockets, made before tracemalloc starts.
"""

from __future__ import annotations

import gc
import socket
import sys
import tempfile
import tracemalloc
from pathlib import Path
from typing import Final

import bbipc
from bbipc import SocketEvent
from benchmarks.measure import Effort, Row, Target

if sys.platform != "win32":
    import resource

TARGET: Final = Target(1536)
_STREAMS: Final = 2000
_DATA: Final = SocketEvent.DATA_AVAILABLE


def room_for(streams: int) -> int:
    """As many *streams*, with their peers, as the limits of this process and of the backlog allow."""
    wanted = 2 * streams + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    longest = Path("/proc/sys/net/core/somaxconn")
    backlog = int(longest.read_text()) if longest.exists() else 128
    return min((wanted - 200) // 2, backlog, streams)


def traced(poller: bbipc.Poller, server: bbipc.LocalServer, peers: list[socket.socket]) -> tuple[float, float]:
    """Bytes a stream: as long as it is idle, and after it has been ready and read once."""
    count = len(peers)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(count):
            poller.monitor_socket(server.accept_connection(), _DATA)
        gc.collect()
        idle = tracemalloc.get_traced_memory()[0]
        for peer in peers:
            peer.send(b"x")
        read_one_each(poller, count)
        gc.collect()
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return (idle - before) / count, (used - before) / count


def read_one_each(poller: bbipc.Poller, count: int) -> None:
    """Read the one byte that each of *count* streams was sent."""
    buffer = bytearray(1)
    while count:
        for stream, _ in poller.wait_for_events(10.0):
            assert isinstance(stream, bbipc.StreamSocket)
            count -= stream.read_into(buffer) or 0


def memory(_effort: Effort) -> list[Row]:
    """Every round gives the same but for a few bytes: one is enough."""
    count = room_for(_STREAMS)
    peers: list[socket.socket] = []
    with tempfile.TemporaryDirectory(prefix="bbipc-") as directory:
        path = str(Path(directory, "s"))
        with bbipc.make_local_server(path, backlog=count) as server, bbipc.make_poller() as poller:
            for _ in range(count):
                peers.append(socket.socket(socket.AF_UNIX))
                peers[-1].connect(path)
            idle, used = traced(poller, server, peers)
            bare = size_of_plain(count)
            for stream in poller.monitored_sockets():
                stream.close()
            for peer in peers:
                peer.close()
    return [
        Row("memory", "idle monitored stream", "socket.socket in a dict", idle, bare, "bytes", idle, "bytes", TARGET),
        Row("memory", "the same, once read", "socket.socket in a dict", used, bare, "bytes", used, "bytes"),
    ]


def size_of_plain(count: int) -> float:
    """The same for plain sockets, kept by their number as a hand-written loop keeps them."""
    made = [socket.socketpair()[0].detach() for _ in range(count)]
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        table = {number: socket.socket(fileno=number) for number in made}
        size = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    for sock in table.values():
        sock.close()
    return size
