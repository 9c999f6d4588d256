"""Who owns the path of a local server: hazards 13, 56, 57 and 58 of the field, on real files."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.sockets import paths
from bbipc.sockets.handle import Handle
from tests.support.makers import PATIENCE, Worker


def leave_stale(path: Path) -> int:
    """The socket file of a server that died; its inode."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fsencode(path))
        dead.listen(1)
    return os.lstat(path).st_ino


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o000, 0o777])
@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_the_file_has_the_mode_that_was_asked_for_masked_by_the_umask(short_dir: Path, mode: int, umask: int) -> None:
    program = f"""
        import os, bbipc
        os.umask({umask})
        with bbipc.make_local_server("s", mode={mode}):
            print(os.lstat("s").st_mode & 0o777, os.umask(0))
    """
    assert run(program, short_dir).split() == [str(mode & ~umask), str(umask)]


def test_the_mode_stands_before_the_path_does(short_dir: Path) -> None:
    """At the moment of bind the descriptor has the mode already: there is no window (HAZARDS 57)."""
    modes = []
    original = Handle.bind

    def bind(handle: Handle, name: bytes) -> None:
        modes.append(stat.S_IMODE(os.fstat(handle.fileno()).st_mode))
        original(handle, name)

    with mock.patch.object(Handle, "bind", bind), bbipc.make_local_server(short_dir / "s", mode=0o640):
        assert modes == [0o640]


def test_a_system_that_cannot_restrict_the_file_is_refused(short_dir: Path) -> None:
    """Where fchmod does nothing, and the umask lets others write, the server is not made and the path is gone."""
    before = os.umask(0)
    try:
        with mock.patch("os.fchmod", side_effect=OSError(errno.EINVAL, "not on a socket")):
            with pytest.raises(bbipc.SocketError) as caught:
                bbipc.make_local_server(short_dir / "s", mode=0o600)
    finally:
        os.umask(before)
    assert caught.value.errno == errno.EPERM
    assert not (short_dir / "s").exists()


def test_a_live_server_keeps_its_path(short_dir: Path) -> None:
    with bbipc.make_local_server(short_dir / "s") as server:
        inode = os.lstat(short_dir / "s").st_ino
        for replace in (False, True):
            with pytest.raises(bbipc.SocketError, match="live server") as caught:
                bbipc.make_local_server(short_dir / "s", replace_stale=replace)
            assert caught.value.errno == errno.EADDRINUSE
        assert os.lstat(short_dir / "s").st_ino == inode
        with bbipc.connect_to_local_server(server.path) as stream:
            assert stream.connection_succeeded()


def test_a_live_server_with_a_full_backlog_is_not_stale(short_dir: Path) -> None:
    with bbipc.make_local_server(short_dir / "s", backlog=0), bbipc.connect_to_local_server(short_dir / "s"):
        with bbipc.connect_to_local_server(short_dir / "s") as waiting:
            assert not waiting.determined()
            with pytest.raises(bbipc.SocketError, match="live server"):
                bbipc.make_local_server(short_dir / "s", replace_stale=True)


def test_a_datagram_socket_is_not_stale(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fsencode(short_dir / "s"))
        with pytest.raises(bbipc.SocketError, match="live server"):
            bbipc.make_local_server(short_dir / "s", replace_stale=True)
        with pytest.raises(bbipc.ConnectionFailedError) as caught:
            bbipc.connect_to_local_server(short_dir / "s")
        assert caught.value.errno == errno.EPROTOTYPE


def test_a_stale_path_is_taken_only_when_asked(short_dir: Path) -> None:
    inode = leave_stale(short_dir / "s")
    with pytest.raises(bbipc.SocketError, match="replace_stale") as caught:
        bbipc.make_local_server(short_dir / "s")
    assert caught.value.errno == errno.EADDRINUSE
    assert os.lstat(short_dir / "s").st_ino == inode
    with bbipc.make_local_server(short_dir / "s", replace_stale=True):
        with bbipc.connect_to_local_server(short_dir / "s") as stream:
            assert stream.connection_succeeded()


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "dangling symlink", "fifo"])
def test_what_is_no_socket_is_never_removed(short_dir: Path, kind: str) -> None:
    path = short_dir / "s"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "symlink":
            leave_stale(short_dir / "target")
            path.symlink_to(short_dir / "target")
        case "dangling symlink":
            path.symlink_to(short_dir / "nowhere")
        case "fifo":
            os.mkfifo(path)
    before = os.lstat(path)
    with pytest.raises(bbipc.SocketError, match="no socket") as caught:
        bbipc.make_local_server(path, replace_stale=True)
    assert caught.value.errno == errno.EADDRINUSE
    assert os.lstat(path) == before


def test_a_close_removes_the_path_only_while_it_is_ours(short_dir: Path) -> None:
    path = short_dir / "s"
    with bbipc.make_local_server(path):
        assert path.is_socket()
    assert not path.exists()
    with bbipc.make_local_server(path, delete_on_close=False):
        pass
    assert path.is_socket()
    path.unlink()
    first = bbipc.make_local_server(path)
    path.unlink()
    with bbipc.make_local_server(path) as second:
        first.close()
        assert path.is_socket()
        with bbipc.connect_to_local_server(second.path) as stream:
            assert stream.connection_succeeded()
    with bbipc.make_local_server(path):
        path.unlink()
        path.write_text("a plain file by now")
    assert path.read_text() == "a plain file by now"


def test_a_relative_path_is_removed_wherever_the_program_has_gone(short_dir: Path) -> None:
    program = """
        import os, bbipc
        server = bbipc.make_local_server("s")
        os.mkdir("elsewhere"); os.chdir("elsewhere")
        server.close()
        print(os.path.exists("../s"), server.path)
    """
    assert run(program, short_dir).split() == ["False", "s"]


@pytest.mark.parametrize(
    "path",
    ["", b"", "\0", "\0\0", "a\0b", "a" * 108, b"/" + b"a" * 107, "\0" + "a" * 107],
    ids=["empty", "no bytes", "NUL", "NULs", "NUL inside", "108", "108 bytes", "abstract 108"],
)
def test_impossible_paths_are_value_errors(path: str | bytes) -> None:
    for make in (bbipc.make_local_server, bbipc.connect_to_local_server):
        with pytest.raises(ValueError):
            make(path)


@pytest.mark.parametrize("path", [None, 3, ["s"], 1.5])
def test_what_is_no_path_is_a_type_error(path: object) -> None:
    for make in (bbipc.make_local_server, bbipc.connect_to_local_server):
        with pytest.raises(TypeError):
            make(path)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "error"), [(-1, ValueError), (0o1000, ValueError), ("600", TypeError), (True, TypeError)]
)
def test_impossible_modes(short_dir: Path, mode: int, error: type[Exception]) -> None:
    with pytest.raises(error):
        bbipc.make_local_server(short_dir / "s", mode=mode)
    assert not (short_dir / "s").exists()


def test_paths_may_be_str_bytes_or_path_of_107_bytes(short_dir: Path) -> None:
    room = 107 - len(os.fsencode(short_dir)) - 1
    for path in (str(short_dir / "s"), os.fsencode(short_dir / "b"), short_dir / "p", short_dir / ("l" * room)):
        with bbipc.make_local_server(path) as server, bbipc.connect_to_local_server(path) as stream:
            assert server.path == os.fspath(path) == stream.path


@pytest.mark.skipif(sys.platform != "linux", reason="the abstract namespace is Linux's alone")
def test_the_abstract_namespace_has_no_file(short_dir: Path) -> None:
    name = f"\0bbipc-{os.getpid()}-{short_dir.name}"
    with bbipc.make_local_server(name) as server, bbipc.connect_to_local_server(name) as stream:
        assert stream.connection_succeeded()
        assert server.path == name
        with pytest.raises(bbipc.SocketError) as caught:
            bbipc.make_local_server(name, replace_stale=True)
        assert caught.value.errno == errno.EADDRINUSE
    with pytest.raises(bbipc.NoLocalServerError):
        bbipc.connect_to_local_server(name)


def test_nothing_listens(short_dir: Path) -> None:
    leave_stale(short_dir / "stale")
    (short_dir / "file").write_text("plain")
    for name, number in (("absent", errno.ENOENT), ("stale", errno.ECONNREFUSED), ("file", errno.ECONNREFUSED)):
        with pytest.raises(bbipc.NoLocalServerError) as caught:
            bbipc.connect_to_local_server(short_dir / name)
        assert caught.value.errno == number
        assert caught.value.path == str(short_dir / name)


def test_a_missing_directory_is_named(short_dir: Path) -> None:
    with pytest.raises(bbipc.SocketError, match="cannot listen on") as caught:
        bbipc.make_local_server(short_dir / "nowhere" / "s")
    assert caught.value.errno == errno.ENOENT


def test_a_failure_after_bind_leaves_no_file(short_dir: Path) -> None:
    with mock.patch.object(Handle, "listen", side_effect=OSError(errno.ENOMEM, "no")):
        with pytest.raises(bbipc.SocketError):
            bbipc.make_local_server(short_dir / "s")
    assert not (short_dir / "s").exists()


def test_a_locked_directory_is_waited_for_and_then_named(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_LOCK_PATIENCE", 0.05)
    monkeypatch.setattr(paths, "_CLOSE_PATIENCE", 0.05)
    server = bbipc.make_local_server(short_dir / "open")
    number = os.open(short_dir, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        with pytest.raises(bbipc.SocketError, match="locked") as caught:
            bbipc.make_local_server(short_dir / "s")
        assert caught.value.errno == errno.EAGAIN
        server.close()  # a close must come to its end; the path stays
        assert (short_dir / "open").is_socket()
        maker = Worker(lambda: bbipc.make_local_server(short_dir / "s"))
        monkeypatch.setattr(paths, "_LOCK_PATIENCE", PATIENCE)
        maker2 = Worker(lambda: bbipc.make_local_server(short_dir / "t"))
    finally:
        os.close(number)
    made = maker2.outcome()
    assert isinstance(made, bbipc.LocalServer)
    made.close()
    try:
        first = maker.outcome()
    except bbipc.SocketError:
        return
    assert isinstance(first, bbipc.LocalServer)
    first.close()


def test_the_lock_is_not_kept_by_a_child_forked_meanwhile(short_dir: Path) -> None:
    """A child that inherits the open directory must not inherit the lock with it."""
    forked = threading.Event()
    children: list[int] = []
    original = Handle.bind

    def bind(handle: Handle, name: bytes) -> None:
        original(handle, name)
        child = os.fork()
        if child == 0:
            signal.pause()  # a child that just lives on: killed below
            os._exit(0)
        children.append(child)
        forked.set()

    try:
        with mock.patch.object(Handle, "bind", bind):
            first = bbipc.make_local_server(short_dir / "s")
        assert forked.is_set()
        with bbipc.make_local_server(short_dir / "t"):
            first.close()
        assert not (short_dir / "s").exists()
    finally:
        for child in children:
            os.kill(child, 9)
            os.waitpid(child, 0)


def test_one_owner_each_in_400_rounds_of_three_processes(short_dir: Path) -> None:
    """Aligned takers of one stale path: one owner each round, and the path leads to it (HAZARDS 56)."""
    program = """
        import os, sys, bbipc
        for line in sys.stdin:
            try:
                server = bbipc.make_local_server("s", replace_stale=True)
            except bbipc.SocketError as error:
                print("lost", error.strerror.split(": ")[-1], flush=True)
                continue
            print("won", flush=True)
            if sys.stdin.readline() == "die\\n":  # leave the file behind, as a killed server would
                server._inode = None
            server.close()
    """
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=short_dir,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for _ in range(3)
    ]
    leave_stale(short_dir / "s")
    owners = []
    try:
        for number in range(400):
            for taker in takers:
                assert taker.stdin is not None
                taker.stdin.write("go\n")
            answers = []
            for taker in takers:
                assert taker.stdout is not None
                answers.append(taker.stdout.readline().strip())
            assert sorted(answer.split()[0] for answer in answers) == ["lost", "lost", "won"], (number, answers)
            with bbipc.connect_to_local_server(short_dir / "s") as stream:
                assert stream.connection_succeeded()
            winner = takers[[answer == "won" for answer in answers].index(True)]
            owners.append(winner)
            assert winner.stdin is not None
            winner.stdin.write("die\n" if number % 2 else "leave\n")
    finally:
        for taker in takers:
            taker.communicate(timeout=PATIENCE)
    assert all(taker.returncode == 0 for taker in takers)


def test_a_full_backlog_is_connecting_and_never_a_false_success(short_dir: Path) -> None:
    """Backlog 1, 200 connects, none accepted at first, then all: 0 false successes, all complete (HAZARDS 13)."""
    with bbipc.make_local_server(short_dir / "s", backlog=1) as server:
        streams = [bbipc.connect_to_local_server(short_dir / "s") for _ in range(200)]
        waiting = [stream for stream in streams if not stream.determined()]
        assert len(waiting) >= 190
        rows = [(stream, SocketEvent.DETERMINED) for stream in waiting]
        assert not any(bbipc.poll_sockets(rows, 0.05))
        for stream in waiting:
            assert stream.read() is None
            assert stream.write(b"?") == 0
        with bbipc.make_poller() as poller:
            for stream in waiting:
                poller.monitor_socket(stream, SocketEvent.DETERMINED)
            poller.monitor_socket(server, SocketEvent.CONNECTION_AVAILABLE)
            accepted: list[bbipc.LocalStream] = []
            while len(accepted) < 200:
                for socket_, _ in poller.wait_for_events(PATIENCE):
                    if socket_ is server:
                        accepted.append(server.accept_connection())
                    else:
                        poller.unmonitor_socket(socket_)
        for stream in streams:
            assert bbipc.poll_socket(stream, SocketEvent.CONNECTION_SUCCEEDED, PATIENCE)
            assert stream.write(b"!") == 1
        for stream in [*streams, *accepted]:
            stream.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_somebody_else_never_gets_in(short_dir: Path) -> None:
    """300 servers with umask 0 and mode 0600 against another user who connects without pause (HAZARDS 57)."""
    os.chmod(short_dir, 0o755)
    attack = """
        import os, socket, sys
        os.setuid(65534)
        print("ready", flush=True)
        tried = got_in = 0
        while tried < 300_000 and not os.path.exists("stop"):
            with socket.socket(socket.AF_UNIX) as attacker:
                attacker.setblocking(False)
                tried += 1
                got_in += attacker.connect_ex("s") == 0
        print(got_in, flush=True)
    """
    attacker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(attack)], cwd=short_dir, stdout=subprocess.PIPE, text=True
    )
    assert attacker.stdout is not None
    assert attacker.stdout.readline() == "ready\n"
    program = """
        import os, bbipc
        os.umask(0)
        for _ in range(300):
            bbipc.make_local_server("s").close()
    """
    run(program, short_dir)
    (short_dir / "stop").touch()
    assert attacker.communicate(timeout=30)[0] == "0\n"


def test_another_threads_chdir_moves_nothing(short_dir: Path) -> None:
    """A relative path means the directory of the call: for the file that is removed, and for a connect that waits."""
    program = """
        import os, bbipc
        from bbipc.sockets.handle import Handle
        os.mkdir("a"); os.mkdir("b"); os.chdir("a")
        bind = Handle.bind
        def bind_and_move(handle, name):
            bind(handle, name)
            os.chdir("../b")
            open("s", "w").close()
        Handle.bind = bind_and_move
        server = bbipc.make_local_server("s", backlog=0)
        Handle.bind = bind
        os.chdir("../a")
        first, waiting = bbipc.connect_to_local_server("s"), bbipc.connect_to_local_server("s")
        assert not waiting.determined()
        os.chdir("../b"); os.unlink("s")
        with bbipc.make_local_server("s") as other:
            assert not waiting.determined()
            assert not other.connection_available()
        open("s", "w").close()
        server.close()
        for thing in (first, waiting): thing.close()
        print(os.path.isfile("s"), os.path.exists("../a/s"))
    """
    assert run(program, short_dir).split() == ["True", "False"]


def test_a_name_through_a_link_is_removed_where_the_kernel_made_it(short_dir: Path) -> None:
    (short_dir / "deep" / "er").mkdir(parents=True)
    (short_dir / "link").symlink_to(short_dir / "deep" / "er")
    path = f"{short_dir}/link/../s"
    with bbipc.make_local_server(path):
        assert (short_dir / "deep" / "s").is_socket()
    assert not (short_dir / "deep" / "s").exists()


def run(program: str, directory: Path) -> str:
    """What a program prints that is run in *directory*."""
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(program)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=True, timeout=60).stdout
