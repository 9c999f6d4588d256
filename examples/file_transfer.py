"""Files from one program to another, with progress; a transfer that was interrupted goes on where it was.

python examples/file_transfer.py ADDRESS receive DIRECTORY    the server; Ctrl-C ends it
python examples/file_transfer.py ADDRESS send FILE...         the client

ADDRESS: a path, abstract:NAME, ipv4:HOST:PORT or ipv6:[HOST]:PORT.

A file travels as chunks, one message each, several in flight.  They are written to a file that has the digest of the
whole for its name; so a later run finds it and goes on, and two senders of one file do not disturb each other.  At the
end the receiver computes the digest of what it has, and only what is right gets its name.  A file that is there is not
replaced.  Whoever can connect can fill the disk, up to LIMIT for each file.
"""

import argparse
import hashlib
import os
import re
import struct
import sys
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import bbipc
from bbipc import Address, parse_address
from pool import MessageClient, MessageServer, Request

CHUNK = 256 * 1024  # bytes
IN_FLIGHT = 8  # chunks
LIMIT = 16 * 1024**3  # bytes of a file
PATIENCE = 30.0  # seconds for an answer
HEAD = struct.Struct("<32sQ")  # of a chunk: the file's digest, the offset
MIB = 1024 * 1024


class Receiver:
    """Its handler runs on any number of workers at once: chunks are written where they belong, in any order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def handle(self, request: Request) -> str | None:
        """The answer; on a worker."""
        value = request.value
        if isinstance(value, bytes):
            self._write(value)
            return None
        order, digest, *name = str(value).split(" ", 2)
        if order == "begin":
            return self._begin(digest)
        if order == "finish" and name:
            self._finish(digest, name[0])
            return None
        raise ValueError(f"there is no order {order!r}")

    def _part(self, digest: str) -> Path:
        """Where the chunks go."""
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError("this is no digest")
        return self.directory / f".{digest}.part"

    def _open(self, digest: str) -> int:
        """The descriptor of that file, which is for us alone, and no link that somebody has put there."""
        return os.open(self._part(digest), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def _begin(self, digest: str) -> str:
        """How much is there."""
        with open(self._open(digest), "ab") as file:
            return str(file.tell())

    def _write(self, chunk: bytes) -> None:
        digest, offset = HEAD.unpack_from(chunk)
        rest = memoryview(chunk)[HEAD.size :]
        if offset + len(rest) > LIMIT:
            raise ValueError("a file that is too long")
        with open(self._open(digest.hex()), "wb", buffering=0) as file:
            file.seek(offset)
            while rest:
                rest = rest[file.write(rest) or 0 :]

    def _finish(self, digest: str, name: str) -> None:
        if name != Path(name).name or name.startswith("."):
            raise ValueError("a name that is none")
        part = self._part(digest)
        with part.open("rb") as file:
            right = hashlib.file_digest(file, "sha256").hexdigest() == digest
        if right:
            os.link(part, self.directory / name)  # fails where there is one
        part.unlink()
        if not right:
            raise ValueError(f"{name} did not arrive as it was sent, and was dropped; send it again")
        print(f"file receiver: {name}", flush=True)


class Progress:
    """One line for a file, redrawn on a terminal."""

    def __init__(self, name: str, size: int, start: int) -> None:
        self.name, self.size, self.start = name, size, start
        self.began = self.shown = time.monotonic()
        self.terminal = sys.stdout.isatty()

    def show(self, done: int, end: bool = False) -> None:
        """*done*: bytes, of the whole file."""
        now = time.monotonic()
        if end or (self.terminal and now - self.shown > 0.1):
            self.shown = now
            rate = (done - self.start) / MIB / max(now - self.began, 1e-6)
            line = f"{self.name}: {done / MIB:,.1f} of {self.size / MIB:,.1f} MiB, {rate:,.0f} MiB/s"
            print(f"\r\x1b[K{line}" if self.terminal else line, end="\n" if end else "", flush=True)


def send(client: MessageClient, path: Path) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        size = file.tell()
        there = int(str(client.send(f"begin {digest.hexdigest()}")))
        # Of the last chunks of an interrupted transfer some may be missing: those are sent again.
        start = max(0, min(there, size) - IN_FLIGHT * CHUNK)
        if start:
            print(f"{path.name}: {start / MIB:,.1f} MiB are there already", flush=True)
        progress = Progress(path.name, size, start)
        sent: deque[tuple[int, Future[str | bytes | None]]] = deque()
        file.seek(start)
        for offset in range(start, size, CHUNK):
            if len(sent) == IN_FLIGHT:
                progress.show(oldest(sent))
            chunk = file.read(CHUNK)
            sent.append((offset + len(chunk), client.submit(HEAD.pack(digest.digest(), offset) + chunk)))
        while sent:
            progress.show(oldest(sent))
    client.send(f"finish {digest.hexdigest()} {path.name}")
    progress.show(size, end=True)


def oldest(sent: "deque[tuple[int, Future[str | bytes | None]]]") -> int:
    """Wait until the oldest chunk is written; where it ends."""
    end, answer = sent.popleft()
    answer.result()
    return end


def receive(address: Address, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    listening = address.listen(replace_stale=True)
    server = MessageServer(listening, Receiver(directory).handle, max_message_size=HEAD.size + CHUNK)
    server.start()
    print(f"file receiver: listening on {Address.of(listening)}; Ctrl-C ends it", flush=True)
    server.serve_forever()
    print("file receiver: bye")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="ADDRESS")
    parser.add_argument("order", choices=["receive", "send"])
    parser.add_argument("paths", nargs="+", type=Path, metavar="DIRECTORY | FILE")
    args = parser.parse_args()
    try:
        where = parse_address(args.address)
        if args.order == "receive":
            receive(where, *args.paths)
        else:
            with MessageClient(where, timeout=PATIENCE) as sender:
                for each in args.paths:
                    send(sender, each)
    except KeyboardInterrupt:
        print("\nfile send: interrupted; what has arrived is kept")
    except (OSError, ValueError, bbipc.RemoteHandlerError) as error:
        sys.exit(f"file {args.order}: {error}")
