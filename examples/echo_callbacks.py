"""The echo server with callbacks: one poller thread calls back whenever a socket is ready.

python examples/echo_callbacks.py [--local PATH | --host H --port P]        Ctrl-C ends it.

The least work for each byte.  All callbacks run on the poller thread, so what they share needs no lock; and none may
wait for anything, because all others wait for it.
"""

import argparse
import sys
import time

import bbipc
from bbipc import SocketEvent
from pool import PollerThread

DATA_OR_END = SocketEvent.DATA_AVAILABLE | SocketEvent.REMOTE_DISCONNECTED


class Door:
    """Lets clients in."""

    def __init__(self, server: bbipc.StreamServer, poller_thread: PollerThread) -> None:
        self.server = server
        self.poller_thread = poller_thread
        self.monitor = poller_thread.monitor(server, SocketEvent.CONNECTION_AVAILABLE, self._knocked)

    def _knocked(self, *_: object) -> None:
        try:
            Echo(self.server.accept_connection(), self.poller_thread)
        except bbipc.NoConnectionAvailableError:
            pass  # the caller has gone again
        except bbipc.SocketError:  # out of descriptors: the callers go on waiting, and so do we
            self.monitor.pause()
            self.poller_thread.call_later(0.1, self.monitor.resume)


class Echo:
    """One connection.  What its client does not take stays in the kernel unread, and so is not read from the client."""

    def __init__(self, client: bbipc.StreamSocket, poller_thread: PollerThread) -> None:
        self.client = client
        self.wanted = DATA_OR_END
        self.monitor = poller_thread.monitor(client, DATA_OR_END, self._ready, on_close=lambda _: client.close())

    def _ready(self, *_: object) -> None:
        try:
            data = self.client.read(peek=True)
            sent = self.client.write(data or b"")
            if sent:
                self.client.read(sent)
        except bbipc.RemoteDisconnectedError:
            data, sent = b"", 0
        if data == b"":
            self.client.close()  # its monitor ends by itself
        elif (wanted := DATA_OR_END if sent == len(data or b"") else SocketEvent.ROOM_TO_WRITE) is not self.wanted:
            self.wanted = wanted
            self.monitor.set_events(wanted)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening, PollerThread() as thread:
            thread.call_later(0, Door, listening, thread).result()
            print(f"echo server: {listening!r}; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(1)  # in short sleeps: a Ctrl-C that comes just before one is noticed when it ends
    except KeyboardInterrupt:
        print("echo server: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"echo server: {error}")
