"""Who owns the path of a local server: taking it, telling a live server from a dead one, giving it back.

Law of this file: it knows paths and bare sockets, no Socket.  It never removes what is not a socket, never a live
server's path, never another server's inode; it never changes the umask and never calls chmod on a path.

Everything that looks at a path and then acts on it happens under one lock, a ``flock`` on the directory, which leaves
nothing behind and is let go by the kernel when its holder dies.  Without it, with two makers A and B on a stale path:

1. A probes: refused, so stale.  B probes: refused, so stale.
2. A unlinks, binds.
3. B unlinks: that was A's file.  B binds.  Two owners (57 of 200 rounds measured).

Listening belongs under the lock too: between A's bind and A's listen a probe is refused as if A were dead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import Final

from bbipc.sockets.handle import Handle

if sys.platform != "win32":
    import fcntl

#: sun_path without its NUL: 108 bytes on Linux, 104 on the BSDs
MAX_PATH_BYTES: Final = 107 if sys.platform == "linux" else 103
#: makers hold the lock for microseconds; whoever holds it for longer is stuck or hostile
_LOCK_PATIENCE: Final = 5.0
#: giving a path back is a courtesy, for which a close must not wait long
_CLOSE_PATIENCE: Final = 1.0
_LOCK_RETRY: Final = 0.001

Inode = tuple[int, int]


def socket_path(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> bytes:
    """*path* as the kernel takes it; a leading NUL asks for Linux's abstract namespace.

    :raises TypeError: not a path
    :raises ValueError: empty, too long, holds a NUL elsewhere, or abstract where there is no such thing
    """
    name = os.fsencode(path)
    if not name.strip(b"\0"):
        raise ValueError("the path of a local socket must not be empty")
    if len(name) > MAX_PATH_BYTES:
        raise ValueError(f"the path of a local socket has at most {MAX_PATH_BYTES} bytes, not {len(name)}: {path!r}")
    if is_abstract(name):
        if sys.platform != "linux":
            raise ValueError(f"the abstract namespace is Linux's alone: {path!r}")
    elif b"\0" in name:
        raise ValueError(f"the path of a local socket must not hold a NUL: {path!r}")
    return name


def fixed(name: bytes) -> bytes:
    """*name* from the root on, so that a change of the working directory cannot make it another one.

    Not normalised: in ``link/../s`` the kernel follows the link.
    """
    if is_abstract(name) or os.path.isabs(name):
        return name
    try:
        return os.path.join(os.getcwdb(), name)
    except OSError:  # the working directory was removed: the name leads nowhere, and the kernel will say so
        return name


def for_kernel(name: bytes) -> bytes:
    """*name* fixed if that is short enough for the kernel, or as it is."""
    absolute = fixed(name)
    return absolute if len(absolute) <= MAX_PATH_BYTES else name


def is_abstract(name: bytes) -> bool:
    """Whether *name* has no file, and so no owner, no mode and nothing to remove."""
    return name.startswith(b"\0")


def permission_bits(mode: int) -> int:
    """*mode* as permission bits.

    :raises TypeError: not an int
    :raises ValueError: not in 0 to 0o777
    """
    if isinstance(mode, bool) or not isinstance(mode, int):
        raise TypeError(f"mode must be an int, not {type(mode).__name__}")
    if not 0 <= mode <= 0o777:
        raise ValueError(f"mode {mode:#o} is not in 0 to 0o777")
    return mode


def take(handle: Handle, name: bytes, *, mode: int, backlog: int, replace_stale: bool) -> Inode:
    """Bind *handle* to the path *name* and listen; the inode that is now ours.

    :raises OSError: EADDRINUSE with what is in the way, EAGAIN where the lock cannot be had, or the kernel's own
    """
    # Before bind the mode belongs to nobody's file: the path never exists with wider permissions.  The kernel masks it
    # with the umask at bind, as open() does (unix_bind_bsd).  Where fchmod refuses a socket the check below decides.
    with contextlib.suppress(OSError):
        os.fchmod(handle.fileno(), mode)
    with _directory_lock(name, _LOCK_PATIENCE) as directory:
        base = os.path.basename(name)
        try:
            handle.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _clear_the_way(name, base, directory, replace_stale=replace_stale)
            handle.bind(name)
        try:
            return _open_for_business(handle, base, directory, mode, backlog)
        except BaseException:
            _remove_socket(base, directory)
            raise


def _open_for_business(handle: Handle, base: bytes, directory: int, mode: int, backlog: int) -> Inode:
    found = os.lstat(base, dir_fd=directory)
    # Connecting needs the permission to write: these are the bits that could let in more than was asked.
    if stat.S_IMODE(found.st_mode) & ~mode & 0o222:
        raise PermissionError(errno.EPERM, "this system cannot restrict the socket file; use a private directory")
    handle.listen(backlog)
    return found.st_dev, found.st_ino


def give_back(name: bytes, ours: Inode) -> None:
    """Remove the path if it is still our inode.

    To be called while our socket is open: it keeps the inode, so that its number cannot have become another file's.
    A path that is gone, or that cannot be removed, is left: a server must be able to close.
    """
    with contextlib.suppress(OSError), _directory_lock(name, _CLOSE_PATIENCE) as directory:
        base = os.path.basename(name)
        found = os.lstat(base, dir_fd=directory)
        if (found.st_dev, found.st_ino) == ours:
            _remove_socket(base, directory)


def _remove_socket(base: bytes, directory: int) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(base, dir_fd=directory).st_mode):
            os.unlink(base, dir_fd=directory)


def _clear_the_way(name: bytes, base: bytes, directory: int, *, replace_stale: bool) -> None:
    """Something is at *name*: remove it if it is a dead server's socket and that was asked for."""
    try:
        found = os.lstat(base, dir_fd=directory)
    except FileNotFoundError:  # its owner was quicker
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EADDRINUSE, "there is a file that is no socket, which is never removed")
    if not _is_stale(name):
        raise OSError(errno.EADDRINUSE, "a live server listens there")
    if not replace_stale:
        raise OSError(errno.EADDRINUSE, "a dead server left its socket there; replace_stale=True takes it over")
    os.unlink(base, dir_fd=directory)


def _is_stale(name: bytes) -> bool:
    """Whether nobody listens behind the socket file.  Only a refused connect proves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(name) == errno.ECONNREFUSED


@contextlib.contextmanager
def _directory_lock(name: bytes, patience: float) -> Iterator[int]:
    """The lock that every maker and every closer of a path in this directory takes; the directory's descriptor."""
    number = os.open(os.path.dirname(name) or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock_patiently(number, patience)
        yield number
    finally:
        # Unlocked by name: a child that another thread forks just now holds the same open file, and a mere close would
        # leave the lock with it.
        fcntl.flock(number, fcntl.LOCK_UN)
        os.close(number)


def _lock_patiently(number: int, patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(errno.EAGAIN, f"the directory stayed locked for {patience:g} s") from None
        time.sleep(_LOCK_RETRY)
