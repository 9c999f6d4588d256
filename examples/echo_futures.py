"""The echo server with futures: each step of a connection begins in the callback of the step before; no thread waits.

python examples/echo_futures.py [--local PATH | --host H --port P]        Ctrl-C ends it.

What is read next is asked for when the write before is done, and that is when at most the write limit (64 KiB) waits
here.  So a client that does not read its echo is not read from, and costs no more than that.
"""

import argparse
import contextlib
import sys
import time
from concurrent.futures import Future

import bbipc
from pool import FutureStream, PollerThread

PATIENCE = 30.0  # seconds for a client that has ended its sending to take what is left


class Door:
    """Lets clients in, one after the other."""

    def __init__(self, server: bbipc.StreamServer, poller_thread: PollerThread) -> None:
        self.server = server
        self.poller_thread = poller_thread
        self._ask()

    def _ask(self) -> None:
        self.poller_thread.accept(self.server).add_done_callback(self._accepted)

    def _accepted(self, accepting: Future[bbipc.StreamSocket]) -> None:
        with contextlib.suppress(bbipc.PollerClosedError, bbipc.SocketClosedError):  # the server stops
            error = accepting.exception()
            if isinstance(error, bbipc.SocketError) and not isinstance(error, bbipc.SocketClosedError):
                self.poller_thread.call_later(0.1, self._ask)  # out of descriptors: the callers wait a little
            else:
                Echo(FutureStream(accepting.result(), self.poller_thread), self.poller_thread)
                self.poller_thread.call_later(0, self._ask)


class Echo:
    """One connection: read, write, read, …"""

    def __init__(self, stream: FutureStream, poller_thread: PollerThread) -> None:
        self.stream = stream
        self.poller_thread = poller_thread
        self._ask()

    def _ask(self) -> None:
        reading = self.stream.read()
        if not reading.done():
            reading.add_done_callback(self._received)
            return
        with contextlib.suppress(bbipc.PollerClosedError):  # the server stops
            # Not as a callback, which would run here and now: a greedy client would lead us deeper and deeper.
            self.poller_thread.call_later(0, self._received, reading)

    def _received(self, reading: Future[bytes]) -> None:
        if reading.exception():  # reset, or the server stops
            self.stream.close(flush=False)
        elif data := reading.result():
            self.stream.write(data).add_done_callback(self._written)
        else:
            self.stream.close(timeout=PATIENCE)  # when all is sent: who only listens now still gets his answer

    def _written(self, writing: Future[int]) -> None:
        if writing.exception():
            self.stream.close(flush=False)
        else:
            self._ask()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening, PollerThread() as thread:
            Door(listening, thread)
            print(f"echo server: {listening!r}; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(1)  # in short sleeps: a Ctrl-C that comes just before one is noticed when it ends
    except KeyboardInterrupt:
        print("echo server: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"echo server: {error}")
