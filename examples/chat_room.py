"""A chat room for line clients like nc and telnet: everybody hears everybody, and nobody waits for a slow reader.

python examples/chat_room.py [--local PATH | --host H --port P] [--backlog BYTES]        Ctrl-C ends it.

What a member has not taken yet waits here, at most BYTES of it; whoever is further behind is told so and dropped.
Everything in Room runs on the poller thread, so nothing in it needs a lock.
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

LINE = 1000  # bytes in a line, with its end
PATIENCE = 5.0  # seconds for somebody who leaves, or is dropped, to take what he was sent


class Room:
    """Who is here, and who hears what; all on the poller thread."""

    def __init__(self, server: bbipc.StreamServer, poller_thread: PollerThread, backlog: int) -> None:
        self.server = server
        self.poller_thread = poller_thread
        self.backlog = backlog
        self.names: dict[FutureStream, str] = {}  # "" while somebody has not told his
        self.door = poller_thread.monitor(server, SocketEvent.CONNECTION_AVAILABLE, self._knocked)

    def _knocked(self, *_: object) -> None:
        try:
            guest = FutureStream(self.server.accept_connection(), self.poller_thread, write_limit=self.backlog)
        except bbipc.NoConnectionAvailableError:
            return
        except bbipc.SocketError:  # out of descriptors: those outside wait a little
            self.door.pause()
            self.poller_thread.call_later(0.1, self.door.resume)
            return
        self.names[guest] = ""
        self._tell(guest, "* your name?")
        self._listen(guest)

    def _listen(self, member: FutureStream) -> None:
        line = member.read_until(b"\n", LINE)
        if line.done():
            self._soon(self._heard, member, line)  # it is there already: by turns, or who talks fast would talk alone
        else:
            line.add_done_callback(partial(self._heard, member))

    def _heard(self, member: FutureStream, line: Future[bytes]) -> None:
        if isinstance(line.exception(), bbipc.SeparatorNotFoundError):
            self._leave(member, f"wrote a line of more than {LINE} bytes")
        elif line.exception():  # the end, a reset; or we have closed it
            self._leave(member)
        else:
            words = line.result().decode(errors="replace").strip()
            self._act(member, "".join(letter for letter in words if letter.isprintable()))  # no codes for a terminal
            self._listen(member)

    def _act(self, member: FutureStream, text: str) -> None:
        name = self.names.get(member)
        if name and text:
            self._tell_all(f"{name}: {text}", but=member)
        elif name == "" and (not text or len(text) > 20 or text in self.names.values()):
            self._tell(member, "* another one, please: not taken, of 1 to 20 letters")
        elif name == "":
            self._tell_all(f"* {text} joins", but=member)
            self.names[member] = text
            self._tell(member, f"* here: {', '.join(filter(None, self.names.values()))}")

    def _tell_all(self, text: str, but: FutureStream) -> None:
        for member, name in self.names.items():
            if name and member is not but:
                self._tell(member, text)

    def _tell(self, member: FutureStream, text: str) -> None:
        data = text.encode() + b"\n"
        if member.pending_bytes + len(data) <= self.backlog:
            member.write(data)  # done at once; if he is gone, listening to him tells
        else:
            self._soon(self._leave, member, "reads too slowly")

    def _leave(self, member: FutureStream, why: str = "") -> None:
        name = self.names.pop(member, None)
        if name is None:
            return  # has left already
        if why:
            member.write(f"* you are dropped: {name or 'somebody'} {why}\n".encode())  # comes behind the backlog
        member.close(timeout=PATIENCE)
        if name:
            self._tell_all(f"* {name} {why and why + ' and '}leaves", but=member)

    def _soon(self, fn: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(bbipc.PollerClosedError):  # the room is closed just now
            self.poller_thread.call_later(0, fn, *args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    parser.add_argument("--backlog", type=int, default=65536, metavar="BYTES")
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening, PollerThread() as thread:
            thread.call_later(0, Room, listening, thread, args.backlog).result()
            print(f"chat room: {listening!r}; Ctrl-C ends it", flush=True)
            while True:
                time.sleep(1)  # in short sleeps: a Ctrl-C that comes just before one is noticed when it ends
    except KeyboardInterrupt:
        print("chat room: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"chat room: {error}")
