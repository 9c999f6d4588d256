"""Local (Unix domain) sockets: servers, streams, pairs; who the peer is; passing descriptors.

Law of this file: a connect is told as a success only when the peer is confirmed.  The kernel answers EAGAIN where
the server's backlog is full, and from then on polls the unconnected socket as writable with no error: there is no
edge to wait for, so such a stream is *connecting*, and whoever looks at it or waits for it tries again.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from typing_extensions import Buffer

from bbipc.errors import ConnectionFailedError, NoLocalServerError, SocketClosedError, SocketError
from bbipc.readiness import Stage
from bbipc.sockets import paths
from bbipc.sockets.addresses import backlog_size
from bbipc.sockets.base import Socket
from bbipc.sockets.buffers import octets
from bbipc.sockets.handle import AT_ONCE, CLOSED, NO_SIGNAL, Handle, make_handle
from bbipc.sockets.server import StreamServer
from bbipc.sockets.stream import MAX_READ, StreamSocket

#: what the kernel takes in one message (SCM_MAX_FD of Linux)
MAX_DESCRIPTORS: Final = 253
#: None where Python has no local sockets (Windows)
_FAMILY: Final[socket.AddressFamily | None] = getattr(socket, "AF_UNIX", None)
_NOBODY: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED})
#: <sys/un.h> of macOS and FreeBSD
_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_LOCAL_PEERPID: Final = 2
_INT: Final = struct.Struct("i")

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class PeerCredentials(NamedTuple):
    """Who was at the other end when the connection was made.

    Decide on ``uid`` and ``gid`` only: a process may be gone and its ``pid`` another's by now, and a pid of 0 is one
    that this process cannot see.
    """

    pid: int
    uid: int
    gid: int


class LocalStream(StreamSocket):
    """A local connection.  ``path``: the server's, as it was given; "" for a stream pair."""

    __slots__ = ("path", "_name")
    _connect_has_edge = False

    def __init__(
        self, handle: Handle, stage: Stage, path: str | bytes, name: bytes = b"", error: OSError | None = None
    ) -> None:
        self.path = path
        self._name = name  # what to connect to again while connecting
        super().__init__(handle, stage, error)

    def peer_credentials(self) -> PeerCredentials:
        """Who was at the other end when the connection was made, as the kernel knows it.

        :raises SocketClosedError: it was closed
        :raises ConnectionFailedError: it never was connected
        :raises SocketError: ENOTCONN while connecting; EOPNOTSUPP where the system does not tell
        """
        if not self._connected_meanwhile():
            raise SocketError(errno.ENOTCONN, "still connecting: there is no peer yet", socket=self)
        try:
            if sys.platform == "linux":
                ucred = self._handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                return PeerCredentials(*struct.unpack("3i", ucred))
            xucred = self._handle.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 128)
            pid = self._handle.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID) if sys.platform == "darwin" else 0
            return credentials_of_xucred(xucred, pid)
        except OSError as error:
            self._raise_translated(error)

    def send_descriptors(self, descriptors: Sequence[Socket | int], data: Buffer = b"\0") -> int:
        """Pass open files to the peer's process, together with *data*; how many bytes of it the kernel took.

        0: nothing went, no descriptor either; try again when READY_TO_WRITE.  More: all descriptors went with the
        first byte, and the rest of *data* is for ``write``.  A Socket that was passed on is shared from then on:
        closing it here frees its number and leaves the connection (or the server's path) to its new holder.

        :raises SocketClosedError: this stream, or a socket to be passed, was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer is gone
        :raises ValueError: no descriptors or more than 253, a number that is not a descriptor's, or no byte of data to
            carry them
        :raises TypeError: neither a Socket nor an int
        """
        if not 0 < len(descriptors) <= MAX_DESCRIPTORS:
            raise ValueError(f"1 to {MAX_DESCRIPTORS} descriptors go in one message, not {len(descriptors)}")
        for item in descriptors:
            if not isinstance(item, Socket | int):
                raise TypeError(f"a descriptor is a Socket or an int, not {type(item).__name__}")
            if isinstance(item, int) and not 0 <= item < 2**31:
                raise ValueError(f"{item} is no descriptor number")
        size = octets(data).nbytes
        if not size:
            raise ValueError("descriptors travel with at least one byte of data")
        if self._io is CLOSED and not self._connected_meanwhile():
            return 0
        try:
            return self._pass_on(descriptors, data)
        except BlockingIOError:
            return 0
        except SocketClosedError:
            raise
        except OSError as error:
            if error.errno == errno.EBADF:  # one of the descriptors, or a close of this stream
                self._raise_translated(error)
            self._may_write_again(error, size)
            return 0

    def _pass_on(self, descriptors: Sequence[Socket | int], data: Buffer) -> int:
        """One sendmsg.  The handles are held meanwhile, so that a close in another thread cannot free a number; and the
        sockets count as shared before they are, so that it cannot shut down what the peer is just being given.
        """
        sockets = [item for item in descriptors if isinstance(item, Socket)]
        held: list[Handle] = []
        sent = 0
        try:
            for item in sockets:
                item._share(1)
                held.append(item._open_handle())
            numbers = array.array("i", [item.fileno() if isinstance(item, Socket) else item for item in descriptors])
            sent = self._io.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)], NO_SIGNAL | AT_ONCE)
            return sent
        finally:
            if not sent:
                for item in sockets[: len(held) + 1]:
                    item._share(-1)
            held.clear()

    def receive_descriptors(self, max_descriptors: int, max_bytes: int = 65536) -> tuple[bytes, list[int]] | None:
        """Read bytes and the open files that came with them, as close-on-exec numbers that are the caller's to close.

        ``None``: nothing there now.  ``(b"", [])``: the end.  ``adopt_descriptor`` makes a socket of a number.  The
        other reading calls throw passed descriptors away unopened, so a peer cannot fill this process with them.

        :raises SocketClosedError: it was closed
        :raises ConnectionFailedError: it never was connected
        :raises RemoteDisconnectedError: the peer reset the connection, and all that had come was read
        :raises SocketError: EMSGSIZE: more than *max_descriptors* came, or this process may open no more.  Those that
            came are closed again, and the bytes that carried them are gone: give the connection up
        :raises ValueError: *max_bytes* is less than 1, or *max_descriptors* not in 1 to 253
        """
        if not 0 < max_descriptors <= MAX_DESCRIPTORS:
            raise ValueError(f"max_descriptors must be 1 to {MAX_DESCRIPTORS}, not {max_descriptors}")
        if max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        space = socket.CMSG_SPACE(max_descriptors * _INT.size)
        close_on_exec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        try:
            data, extra, flags, _ = self._io.recvmsg(min(max_bytes, MAX_READ), space, close_on_exec | AT_ONCE)
        except BlockingIOError:
            return None
        except OSError as error:
            if not self._may_read_again(error):
                return None
            return self.receive_descriptors(max_descriptors, max_bytes)
        numbers = _received(extra)
        if flags & socket.MSG_CTRUNC:
            for number in numbers:
                os.close(number)
            reason = f"more than {max_descriptors} descriptors came, or this process may open no more"
            raise SocketError(errno.EMSGSIZE, reason, socket=self)
        if not data:
            self._check_end()
        return data, numbers

    def _decide(self, flags: int) -> None:
        number = self._handle.connect_ex(self._name)
        if number in (0, errno.EISCONN):
            self._settle(Stage.CONNECTED)
        elif number in _NOBODY:
            self._settle(Stage.FAILED, OSError(number, f"no server listens any more: {os.strerror(number)}"))
        elif number not in (errno.EAGAIN, errno.EALREADY, errno.EINPROGRESS, errno.EINTR):
            self._settle(Stage.FAILED, OSError(number, os.strerror(number)))

    def _peer_text(self) -> str:
        return f"local peer {self.path!r}" if self.path else "local peer"

    def _describe(self) -> str:
        return f"{self._stage.value} path={self.path!r}"


class LocalServer(StreamServer):
    """A server on a path.  ``path``: as it was given, readable for ever."""

    __slots__ = ("path", "_file", "_inode")

    def __init__(self, handle: Handle, path: str | bytes, file: bytes, inode: paths.Inode | None) -> None:
        self.path = path
        self._file = file
        self._inode = inode  # None: nothing to remove at close
        super().__init__(handle)

    def accept_connection(self) -> LocalStream:
        """The next connection, connected.  Never blocks.

        :raises NoConnectionAvailableError: nobody waits
        :raises SocketClosedError: the server was closed
        :raises SocketError: EMFILE, ENFILE, ENOMEM: the system is out of something; the peer goes on waiting
        """
        number, _ = self._accept()
        return LocalStream(_make_handle(number), Stage.CONNECTED, self.path)

    def _before_end(self) -> None:
        # While the socket still listens: its inode cannot be another file's yet, and no prober takes it for stale.
        if self._inode is not None and self._acts_for_all():
            paths.give_back(self._file, self._inode)

    def _describe(self) -> str:
        return f"listening on {self.path!r}"


def make_local_server(
    path: Path, *, backlog: int = 128, mode: int = 0o600, delete_on_close: bool = True, replace_stale: bool = False
) -> LocalServer:
    """A server that listens on *path*, which it owns: see ``paths.py``.

    *mode*: the permission bits of the socket file from its first moment on, masked by the umask.  *delete_on_close*:
    remove the file at close, if it is still this server's.  *replace_stale*: take over the file of a server that
    died. A leading NUL in *path* asks for Linux's abstract namespace, where there is no file, no mode and no owner.
    Any thread.  It waits for at most 5 s, and its close for at most 1 s, while another program holds the directory's
    lock.

    :raises ValueError: an empty, too long or NUL-holding path, or a number out of range
    :raises TypeError: *path* is not a path
    :raises SocketError: EADDRINUSE and what is in the way (a live server, a dead one, a plain file), EACCES, ENOENT …
    """
    name = paths.socket_path(path)
    file = paths.fixed(name)  # the program may change its directory before it closes the server
    paths.permission_bits(mode)
    backlog_size(backlog)
    try:
        handle = _make_handle()
        if paths.is_abstract(name):
            handle.bind(name)
            handle.listen(backlog)
            return LocalServer(handle, os.fspath(path), name, None)
        inode = paths.take(handle, paths.for_kernel(name), mode=mode, backlog=backlog, replace_stale=replace_stale)
    except OSError as error:
        reason = f"cannot listen on {os.fspath(path)!r}: {error.strerror}"
        raise SocketError(error.errno or errno.EIO, reason) from error
    return LocalServer(handle, os.fspath(path), file, inode if delete_on_close else None)


def connect_to_local_server(path: Path) -> LocalStream:
    """Connect to the server on *path*; connected at once, or *connecting* while the server's backlog is full.

    Never blocks; any thread.

    :raises NoLocalServerError: nothing listens there: no such file, or its server is dead
    :raises ConnectionFailedError: the server cannot be connected to (EACCES, EPROTOTYPE …)
    :raises ValueError: an empty, too long or NUL-holding path
    :raises TypeError: *path* is not a path
    :raises SocketError: there are no descriptors left
    """
    name = paths.for_kernel(paths.socket_path(path))
    shown = os.fspath(path)
    try:
        handle = _make_handle()
    except OSError as error:
        raise SocketError(error.errno or errno.EIO, f"cannot connect to {shown!r}: {error.strerror}") from error
    number = handle.connect_ex(name)
    if number == errno.EAGAIN:
        return LocalStream(handle, Stage.CONNECTING, shown, name)
    if number in _NOBODY:
        raise NoLocalServerError(number, shown)
    if number:
        raise ConnectionFailedError(number, f"cannot connect to {shown!r}: {os.strerror(number)}")
    return LocalStream(handle, Stage.CONNECTED, shown, name)


def local_stream_pair() -> tuple[LocalStream, LocalStream]:
    """Two local streams, connected with each other.  Any thread.

    :raises SocketError: there are no descriptors left
    """
    try:
        _family()
        one, other = socket.socketpair()
        first, second = _make_handle(one.detach()), _make_handle(other.detach())
    except OSError as error:
        raise SocketError(error.errno or errno.EIO, f"cannot make a stream pair: {error.strerror}") from error
    return LocalStream(first, Stage.CONNECTED, ""), LocalStream(second, Stage.CONNECTED, "")


def _family() -> socket.AddressFamily:
    if _FAMILY is None:
        raise OSError(errno.EAFNOSUPPORT, "this system's Python has no local sockets")
    return _FAMILY


def _make_handle(fileno: int | None = None) -> Handle:
    return make_handle(_family(), fileno=fileno)


def _received(extra: Sequence[tuple[int, int, bytes]]) -> list[int]:
    numbers: list[int] = []
    for level, kind, content in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(content) - len(content) % _INT.size  # a truncated message may end inside a number
            numbers += [number for (number,) in _INT.iter_unpack(content[:whole])]
    if not hasattr(socket, "MSG_CMSG_CLOEXEC"):
        for number in numbers:
            os.set_inheritable(number, False)
    return numbers


def credentials_of_xucred(content: bytes, pid: int) -> PeerCredentials:
    """<sys/ucred.h> of macOS and FreeBSD: u_int version, uid_t uid, short number of groups, then the groups.

    The first group is the peer's own; FreeBSD aligns the array to 4 bytes as macOS does.
    """
    _, uid, groups = struct.unpack_from("=IIh", content)
    gid = struct.unpack_from("=I", content, 12)[0] if groups > 0 else -1
    return PeerCredentials(pid, uid, gid)
