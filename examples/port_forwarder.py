"""A port forwarder: every connection is passed on to TO, from TCP to a local socket or the other way round.

python examples/port_forwarder.py [--local PATH | --host H --port P] TO        TO: PATH or HOST:PORT; Ctrl-C ends it.

Each direction ends for itself: when one side has ended its sending, the other is told, and its answer still comes
back.  Neither direction takes more than it can pass on: at most 64 KiB wait here, and as much is in hand.  All
connections share one poller thread.
"""

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import bbipc
from bbipc import SocketEvent
from pool import FutureStream, PollerThread

PATIENCE = 10.0  # seconds to connect
Connect = Callable[[], Future[FutureStream]]


class Door:
    """Lets clients in, and connects for each."""

    def __init__(self, server: bbipc.StreamServer, poller_thread: PollerThread, connect: Connect) -> None:
        self.server = server
        self.poller_thread = poller_thread
        self.connect = connect
        self.monitor = poller_thread.monitor(server, SocketEvent.CONNECTION_AVAILABLE, self._knocked)

    def _knocked(self, *_: object) -> None:
        try:
            client = FutureStream(self.server.accept_connection(), self.poller_thread)
            self.connect().add_done_callback(partial(self._connected, client))
        except bbipc.NoConnectionAvailableError:
            pass
        except bbipc.SocketError:  # out of descriptors: the callers wait a little
            self.monitor.pause()
            self.poller_thread.call_later(0.1, self.monitor.resume)

    def _connected(self, client: FutureStream, connection: Future[FutureStream]) -> None:
        if error := connection.exception():
            print(f"port forwarder: {error}", flush=True)
            client.close()
        else:
            Link(client, connection.result(), self.poller_thread)


class Link:
    """Two streams; what comes from one goes to the other."""

    def __init__(self, one: FutureStream, other: FutureStream, poller_thread: PollerThread) -> None:
        self.streams = one, other
        self.poller_thread = poller_thread
        self.directions = 2
        self._pull(one, other)
        self._pull(other, one)

    def _pull(self, source: FutureStream, sink: FutureStream) -> None:
        reading = source.read()
        if not reading.done():
            reading.add_done_callback(partial(self._push, source, sink))
            return
        with contextlib.suppress(bbipc.PollerClosedError):  # the forwarder stops
            # It is there already: by turns, so that a greedy source leaves the others theirs.
            self.poller_thread.call_later(0, self._push, source, sink, reading)

    def _push(self, source: FutureStream, sink: FutureStream, reading: Future[bytes]) -> None:
        if reading.exception():
            self._cut()
        elif data := reading.result():
            sink.write(data).add_done_callback(partial(self._pushed, source, sink))
        else:
            sink.shutdown_write().add_done_callback(self._ended)  # when all is sent

    def _pushed(self, source: FutureStream, sink: FutureStream, writing: Future[int]) -> None:
        if writing.exception():
            self._cut()
        else:
            self._pull(source, sink)

    def _ended(self, ending: Future[None]) -> None:
        self.directions -= 1
        if ending.exception() or not self.directions:
            self._cut()

    def _cut(self) -> None:
        for stream in self.streams:
            stream.close(flush=False)


def connector(to: str, poller_thread: PollerThread) -> Connect:
    host, colon, port = to.rpartition(":")
    if colon and "/" not in to and port.isdecimal():
        return partial(poller_thread.connect_ipv4, host, int(port), timeout=PATIENCE)
    return partial(poller_thread.connect_local, to, timeout=PATIENCE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    parser.add_argument("to", metavar="TO")
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening, PollerThread() as thread:
            thread.call_later(0, Door, listening, thread, connector(args.to, thread)).result()
            print(f"port forwarder: {listening!r} to {args.to}; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(1)  # in short sleeps: a Ctrl-C that comes just before one is noticed when it ends
    except KeyboardInterrupt:
        print("port forwarder: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"port forwarder: {error}")
