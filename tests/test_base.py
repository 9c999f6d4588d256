"""A close that is interrupted, and one that comes from inside another call: signal handlers and finalizers."""

from __future__ import annotations

import fcntl
import gc
import os
import pkgutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

import bbipc
from bbipc import SocketEvent
from bbipc.polling.registry import Registry
from bbipc.polling.watch import Watch
from tests.support.makers import PATIENCE, Worker, sleeping

DATA = SocketEvent.DATA_AVAILABLE


class Interrupt(BaseException):
    """A Ctrl-C, at a place of our choosing."""


@pytest.mark.parametrize("kind", ["pair", "local server", "ipv4 server", "ipv6 server"])
def test_what_a_ctrl_c_leaves_half_made_is_collected_in_silence(kind: str, tmp_path: Path) -> None:
    """Nobody has held it, and nothing is missing of it to its finalizer, whose complaint would be an error here."""
    makers: dict[str, Callable[[], object]] = {
        "pair": bbipc.local_stream_pair,
        "local server": lambda: bbipc.make_local_server(tmp_path / "s"),
        "ipv4 server": lambda: bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0),
        "ipv6 server": lambda: bbipc.make_ipv6_tcp_server(bbipc.IPV6_LOOPBACK, 0),
    }
    with mock.patch("bbipc.sockets.fork.lock_for", side_effect=Interrupt), pytest.raises(Interrupt):
        makers[kind]()
    gc.collect()


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize(
    "place",
    [
        "bbipc.sockets.base.end",
        "bbipc.LocalServer._before_end",
        "bbipc.polling.registry.Registry.socket_closing",
        "bbipc.polling.registry.Registry._remove_locked",
        "bbipc.polling.registry.Registry.socket_closed",
        "bbipc.polling.epoll.EpollPoller._tell_kernel",
    ],
)
def test_a_close_that_a_ctrl_c_interrupts_is_done_all_the_same(short_dir: Path, place: str, behind: bool) -> None:
    """Interrupted at each step: closed is closed, for the poller, the peer, the path and the number."""
    owner, _, name = place.rpartition(".")
    target = pkgutil.resolve_name(owner)
    original = getattr(target, name)
    came: list[bool] = []

    def interrupted(*args: object, **named: object) -> object:
        result = original(*args, **named) if came or behind else None
        if not came:
            came.append(True)
            raise Interrupt
        return result

    numbers = len(os.listdir("/proc/self/fd"))
    with bbipc.make_poller("epoll") as poller:
        server = bbipc.make_local_server(short_dir / "s")
        poller.monitor_socket(server, SocketEvent.CONNECTION_AVAILABLE)
        with mock.patch.object(target, name, interrupted), pytest.raises(Interrupt):
            server.close()
        assert server.closed
        assert poller.monitored_sockets() == ()
        assert poller.wait_for_events(0) == []
        assert not (short_dir / "s").exists()
        with pytest.raises(bbipc.NoLocalServerError):
            bbipc.connect_to_local_server(short_dir / "s")
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == numbers


def test_a_ctrl_c_while_a_server_waits_to_give_its_path_back(short_dir: Path, backend: str) -> None:
    """The server left its pollers before it began to wait, and is closed although the wait was broken off."""
    server = bbipc.make_local_server(short_dir / "s")
    with bbipc.connect_to_local_server(server.path), bbipc.make_poller(backend) as poller:
        poller.monitor_socket(server, SocketEvent.CONNECTION_AVAILABLE)
        directory = os.open(short_dir, os.O_RDONLY)
        fcntl.flock(directory, fcntl.LOCK_EX)
        closer = Worker(server.close)
        try:
            with sleeping(0.05):
                assert poller.wait_for_events(0.2) in ([], [(server, SocketEvent.CONNECTION_AVAILABLE)])
                assert poller.monitored_sockets() == ()
                assert poller.wait_for_events(0.2) == []
        finally:
            os.close(directory)
        closer.outcome()
        assert not (short_dir / "s").exists()


@pytest.mark.parametrize("by", ["signal handler", "finalizer"])
def test_a_close_from_inside_a_pollers_lock_does_not_deadlock(by: str) -> None:
    """1. A thread is changing a poller.  2. Another wants to monitor B there.  3. The first is made to close B.

    B's lock must be had while the second thread waits for the poller's: a socket's lock is never held in a wait.
    """

    class Owner:
        def __init__(self, socket: bbipc.Socket) -> None:
            self.socket, self.cycle = socket, self

        def __del__(self) -> None:
            self.socket.close()

    a, a_peer = bbipc.local_stream_pair()
    b, b_peer = bbipc.local_stream_pair()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: b.close())
    forget = Registry._forget_answers_locked
    others: list[Worker] = []
    with a, a_peer, b, b_peer, bbipc.make_poller() as poller:
        poller.monitor_socket(a, DATA)
        if by == "finalizer":
            Owner(b)

        def in_the_middle(registry: Registry, watch: Watch) -> None:
            if not others:
                others.append(Worker(lambda: poller.monitor_socket(b, DATA)))
                others[0].join(0.05)
                if by == "finalizer":
                    gc.collect()
                else:
                    signal.raise_signal(signal.SIGUSR1)
            forget(registry, watch)

        with mock.patch.object(Registry, "_forget_answers_locked", in_the_middle):
            changer = threading.Timer(PATIENCE, os.abort)
            changer.start()
            poller.set_monitored_events(a, SocketEvent.READY_TO_WRITE)
            changer.cancel()
            changer.join()
        with pytest.raises(bbipc.SocketClosedError):
            others[0].outcome()
        assert poller.monitored_sockets() == (a,)
    signal.signal(signal.SIGUSR1, before)


def test_garbage_of_one_cycle_may_be_finalized_in_any_order() -> None:
    """An owner that closes its socket in its finalizer, and is collected together with it: no noise."""
    program = """
import bbipc, gc
class Owner:
    def __init__(self, socket): self.socket, self.cycle = socket, self
    def __del__(self): self.socket.close()
for _ in range(100):
    one, other = bbipc.local_stream_pair()
    Owner(one); Owner(other)
    del one, other
gc.collect()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
