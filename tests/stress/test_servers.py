"""Servers under load, in a flood, out of descriptors, and stopped in the middle of it all.

Each race states its rounds.  The bug that each is for was planted once, and seen (see ``docs/design-notes.md``).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import bbipc
from bbipc import SocketEvent, StreamSocket
from pool.connections import Connection, Session
from pool.server import ConnectionServer
from pool.stopping import StopReport
from pool.worker_pool import WorkerPool
from tests.stress import fd_exhaustion
from tests.stress.close_race import switch_interval
from tests.support.makers import PATIENCE, Namespace, Worker, make_namespace
from tests.support.serving import HANDLERS, Per, answer, ask, at_end, until

DATA = SocketEvent.DATA_AVAILABLE
END = SocketEvent.REMOTE_DISCONNECTED


@pytest.fixture
def ipv4(short_dir: Path) -> Namespace:
    return make_namespace("ipv4", short_dir)


@pytest.fixture(params=["connection", "readiness"])
def per(request: pytest.FixtureRequest) -> Per:
    return "connection" if request.param == "connection" else "readiness"


# Descriptors.


def test_a_server_survives_without_descriptors() -> None:
    """HAZARDS 10, as sized there: 64 numbers, 58 clients held as far as they go, 30 late ones, 20 leave, 3 thieves."""
    figures = fd_exhaustion.measure()
    assert figures.held > 40, figures
    assert figures.unanswered == 0, figures
    assert figures.late < 1, figures
    # 5 %, or, where 400 to 500 clients a second are turned away by a slow processor, 0.3 ms for each (60 to 130 us were
    # seen on the same machine within a week); a server that accepts again at once takes all there is.
    assert figures.cpu < max(0.05, 0.0003 * figures.connects / fd_exhaustion.HAMMERED), figures
    assert figures.connects > 100, figures
    assert figures.served_again < (0.2 if figures.lag < 0.005 else 1), figures  # 1: other work has the processors
    assert figures.stolen > 0, figures
    assert figures.unanswered_among_thieves == 0, figures
    # Thieves leave it to chance when a number is free: on a loaded machine one round in twenty takes more than 1 s.
    assert sorted(figures.late_among_thieves)[2] < 1, figures
    assert figures.log_lines < 30, figures


def test_numbers_come_back(ipv4: Namespace, per: Per) -> None:
    """1,000 connections, 10 at once: the server keeps no number of theirs (the fixture counts)."""
    server = ipv4.make_server()
    with ConnectionServer(server, HANDLERS[per], per=per, workers=None) as served:
        for _ in range(100):
            with contextlib.ExitStack() as stack:
                peers = [stack.enter_context(ipv4.connect_plainly(server)) for _ in range(10)]
                for peer in peers:
                    assert ask(peer) == b"hello"
                    peer.shutdown(socket.SHUT_WR)
                    assert at_end(peer)
        until(lambda: served.stats().connections == 0)
        assert served.stats().accepted == 1000


# Clients that vanish, that flood, that are slow.


def test_clients_that_reset_harm_nobody(ipv4: Namespace, per: Per) -> None:
    """HAZARDS 11: 1,000 connect and reset, 1,000 good ones between them, in 4 threads; all good ones are served."""
    server = ipv4.make_server(backlog=1024)

    def be_good_or_bad(seed: int) -> int:
        served, order = 0, random.Random(seed)
        kinds = [True, False] * 250
        order.shuffle(kinds)
        for good in kinds:
            with ipv4.connect_plainly(server) as peer:
                if good:
                    served += ask(peer) == b"hello"
                else:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return served

    with ConnectionServer(server, HANDLERS[per], per=per) as served:
        clients = [Worker(lambda seed=seed: be_good_or_bad(seed)) for seed in range(4)]  # type: ignore[misc]
        assert [client.outcome(60) for client in clients] == [250] * 4
        until(lambda: served.stats().connections == 0)
    assert served.stats().handler_errors == 0
    assert served.stats().refused == 0


SERVER = """
    import sys, bbipc
    from pool.server import ConnectionServer
    def answer(stream):
        data = stream.read()
        if data:
            stream.write(data)
    server = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0, backlog=1024)
    with ConnectionServer(server, answer, per="readiness"):
        print(server.port, flush=True)
        sys.stdin.read()
"""
FLOOD = """
    import socket, sys, time
    begin, count = time.monotonic(), 0
    while time.monotonic() < begin + 3:
        for _ in range(50):
            with socket.socket() as peer:
                peer.connect(("127.0.0.1", int(sys.argv[1])))
        count += 50
        time.sleep(max(0, begin + count / 5000 - time.monotonic()))
    print(count, time.process_time())
"""


def busy_seconds() -> float:
    """Of all processors, whoever had them: other machines, too."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def seconds_of(pid: int) -> float:
    """What the process *pid* has had of them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def program(text: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(text), *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def measure(peer: socket.socket, over: Callable[[], bool]) -> float:
    """99 of 100 answers come within so many seconds, in most half seconds."""
    times: dict[int, list[float]] = {}
    first, count = time.perf_counter(), 0
    while not over() or count < 200:
        begin = time.perf_counter()
        assert ask(peer) == b"hello"
        times.setdefault(int((begin - first) / 0.5), []).append(time.perf_counter() - begin)
        count += 1
    return statistics.median(sorted(some)[int(len(some) * 0.99)] for some in times.values())


def measured_flood() -> tuple[float, tuple[int, float, float]]:
    """How many processors had others meanwhile; how many connects there were; the measures without them, and with."""
    with program(SERVER) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as peer:
            begin, busy = time.monotonic(), busy_seconds() - seconds_of(os.getpid()) - seconds_of(server.pid)
            calm = measure(peer, lambda: True)
            with program(FLOOD, str(port)) as flood:
                flooded = measure(peer, lambda: flood.poll() is not None)
                assert flood.stdout is not None
                count, spent = flood.stdout.read().split()
            busy = busy_seconds() - seconds_of(os.getpid()) - seconds_of(server.pid) - busy - float(spent)
            return busy / (time.monotonic() - begin), (int(count), calm, flooded)


#: what the same client needs without a flood is what the machine of the moment makes of it: 0.2 ms where the flood's 99
#: of 100 are 2, 0.7 where they are 43
SLOWNESS = 40


def test_a_flood_of_connects_starves_nobody() -> None:
    """HAZARDS 12: up to 5,000 connects a second for 3 s, while one client measures.

    The limit is that of an idle machine (20 ms for 99 of 100), or as much more as the same client needs without a
    flood.  It is held to in most half seconds: a flood that starves does so in all, a processor that was lent to
    another machine (1 % of the time is 99 of 100) in some.

    Three processes share two processors with whatever else runs.  So where others have more than a quarter of the
    processors, as the tests of another worker do, three times the limit has to do; and where they have more than half
    nothing is said of the server, and it is measured once more.
    """
    processors = os.cpu_count() or 1
    for _ in range(5):
        others, (count, calm, flooded) = measured_flood()
        if others <= processors / 2:
            break
    else:
        pytest.skip("others had the processors each time")
    limit = 0.02 if others <= processors / 4 else 0.06
    assert count > 1000
    assert flooded < limit + SLOWNESS * calm, (count, calm, flooded, others)


def test_slow_senders_cost_no_worker(ipv4: Namespace) -> None:
    """HAZARDS 48: 4 workers, 200 clients that say nothing and 100 that say a byte now and then; 300 honest calls."""
    server = ipv4.make_server(backlog=512)
    over = threading.Event()

    def answer_lines(stream: StreamSocket) -> None:
        if (stream.read(100, peek=True) or b"").endswith(b"\n"):
            answer(stream)
        else:
            stream.read()

    with WorkerPool(4) as workers, contextlib.ExitStack() as stack:
        stack.enter_context(ConnectionServer(server, answer_lines, per="readiness", workers=workers))
        peers = [stack.enter_context(ipv4.connect_plainly(server)) for _ in range(300)]

        def drip() -> None:
            while not over.is_set():
                for peer in peers[:100]:
                    peer.sendall(b"x")
                over.wait(0.05)

        dripping = Worker(drip)
        honest = stack.enter_context(ipv4.connect_plainly(server))
        times: list[float] = []
        for _ in range(300):
            begin = time.perf_counter()
            assert ask(honest, b"hello\n") == b"hello\n"
            times.append(time.perf_counter() - begin)
        over.set()
        dripping.outcome()
    assert statistics.quantiles(times, n=100)[98] < 0.05


def test_handlers_that_raise_harm_nobody(ipv4: Namespace, per: Per) -> None:
    """HAZARDS 34: of 1,200 calls in 4 threads, 1 in 20 raises one of six kinds; all others are answered."""
    kinds = (Exception, OSError, RecursionError, SystemExit, KeyboardInterrupt, GeneratorExit)
    counter = iter(range(10**6))

    def handler(stream: StreamSocket) -> None:
        data = stream.read()
        if data == b"raise":
            raise kinds[next(counter) % 6]
        if data:
            stream.write(data)

    def call(_number: int) -> Counter[bool]:
        answers: Counter[bool] = Counter()
        for round_ in range(300):
            bad = round_ % 20 == 0
            with ipv4.connect_plainly(server) as peer:
                peer.sendall(b"raise" if bad else b"hello")
                answers[peer.recv(100) == (b"" if bad else b"hello")] += 1
        return answers

    server = ipv4.make_server(backlog=512)
    with ConnectionServer(server, handler, per=per) as served, ThreadPoolExecutor(4) as clients:
        assert sum(clients.map(call, range(4)), Counter()) == {True: 1200}
        until(lambda: served.stats().connections == 0)
        assert served.stats().handler_errors == 60


@pytest.mark.parametrize("name", ["ipv4", "local"])
def test_half_closed_peers_get_their_answers(short_dir: Path, per: Per, name: str) -> None:
    """HAZARDS 24: 1,000 requests with the end behind them."""
    namespace = make_namespace(name, short_dir)
    server = namespace.make_server()

    def handler(stream: StreamSocket) -> None:
        data = stream.read()
        if data:
            stream.write(data[::-1])

    with ConnectionServer(server, handler, per=per) as served:
        for _ in range(1000):
            with namespace.connect_plainly(server) as peer:
                peer.sendall(b"abc")
                peer.shutdown(socket.SHUT_WR)
                assert peer.recv(100) == b"cba"
                assert peer.recv(100) == b""
        until(lambda: served.stats().connections == 0)
    assert served.stats().handler_errors == 0


# Races.


class Ledger:
    """The home of connections: how often each has left, and who was in its handler meanwhile."""

    loop = None

    def __init__(self) -> None:
        self.left_count: Counter[Connection] = Counter()
        self.busy: set[Connection] = set()
        self.overlaps = 0

    def left(self, connection: Connection) -> None:
        self.left_count[connection] += 1
        self.overlaps += connection in self.busy

    def failed(self, error: BaseException, stream: StreamSocket) -> None:
        raise AssertionError(error)

    refused = failed


@pytest.mark.parametrize("kind", [Connection, Session])
@pytest.mark.parametrize("ways", ["call-end", "end-end", "call-end-end"])
def test_a_connection_is_buried_once_and_never_in_its_call(kind: type[Connection], ways: str) -> None:
    """A call against one or two who want its end: 3,000 rounds at 1e-6.

    Planted: ``_over`` set after the token was not found (the end is lost); no token at all (buried in its call).
    """
    rounds = 3000
    actors = ways.split("-")
    barrier = threading.Barrier(len(actors) + 1)
    ledger = Ledger()
    current: list[Connection] = []
    one, other = bbipc.local_stream_pair()

    def handler(_stream: StreamSocket) -> None:
        ledger.busy.add(current[0])
        ledger.busy.discard(current[0])

    def act(what: str) -> None:
        for _ in range(rounds):
            barrier.wait(PATIENCE)
            if what == "call":
                current[0].call(one, DATA)
            else:
                current[0].end()
            barrier.wait(PATIENCE)

    workers = [Worker(lambda what=what: act(what)) for what in actors]  # type: ignore[misc]
    with switch_interval(1e-6), one, other:
        for _ in range(rounds):
            current[:] = [kind(ledger, one, handler)]
            barrier.wait(PATIENCE)
            barrier.wait(PATIENCE)
            assert ledger.left_count.pop(current[0], 0) == 1
    for worker in workers:
        worker.outcome()
    assert ledger.overlaps == 0


def test_doors_are_never_left_shut(ipv4: Namespace, per: Per) -> None:
    """A limit of 1, and 4 threads that connect, ask and leave 200 times each, at 1e-6: everybody is served.

    Planted: a connection that leaves while the doors are being shut does not open them again.
    """
    server = ipv4.make_server()

    def call(_number: int) -> int:
        served = 0
        for _ in range(200):
            with ipv4.connect_plainly(server) as peer:
                served += ask(peer) == b"hello"
        return served

    with switch_interval(1e-6), ConnectionServer(server, HANDLERS[per], per=per, max_connections=1):
        with ThreadPoolExecutor(4) as clients:
            assert list(clients.map(call, range(4))) == [200] * 4


def test_a_stop_in_full_traffic(per: Per) -> None:
    """20 rounds: 8 clients ask and ask, one of them in a new connection each time; the server is stopped.

    Everybody sees an end, nobody is forgotten or forced, and no handler runs when it is over.  Planted: connections are
    let in while it stops.
    """
    entered: list[None] = []
    returned: list[None] = []

    def handler(stream: StreamSocket) -> None:
        entered.append(None)
        try:
            HANDLERS["readiness"](stream)
        finally:
            returned.append(None)

    def hammer(port: int, anew: bool) -> int:
        asked = 0
        with contextlib.suppress(OSError):
            while True:
                with socket.create_connection(("127.0.0.1", port), PATIENCE) as peer:
                    while ask(peer) == b"hello":
                        asked += 1
                        if anew:
                            break
                    else:
                        break
        return asked

    for _ in range(20):
        server = bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0)
        with ConnectionServer(server, handler, per=per) as served, ThreadPoolExecutor(8) as clients:
            asking = [clients.submit(hammer, server.port, number == 0) for number in range(8)]
            until(lambda served=served: served.stats().accepted > 20)  # type: ignore[misc]
            report = served.stop(PATIENCE)
            assert (report.forced, report.abandoned) == (0, 0)
            assert served.stats().connections == 0
            assert len(entered) == len(returned)
            assert sum(future.result(PATIENCE) for future in asking) > 0


def test_who_serves_for_ever_always_comes_back() -> None:
    """100 rounds: serve_forever in two threads, against stop in a third."""
    for round_ in range(100):
        served = ConnectionServer(bbipc.make_local_server(f"\0bbipc-{threading.get_native_id()}-{round_}"), answer)
        serving = [Worker(lambda served=served: serve(served)) for _ in range(2)]  # type: ignore[misc]
        assert served.stop() == StopReport()
        assert all(worker.outcome() in (StopReport(), None) for worker in serving)


def serve(served: ConnectionServer) -> StopReport | None:
    try:
        return served.serve_forever()
    except (RuntimeError, bbipc.SocketClosedError):  # it was stopped before
        return None


def test_many_stops_at_once_give_one_report(ipv4: Namespace) -> None:
    """50 rounds: 4 threads and a handler stop a server with 3 idle connections."""
    barrier = threading.Barrier(5)
    current: list[ConnectionServer] = []
    reports: list[StopReport] = []

    def stop() -> StopReport:
        barrier.wait(PATIENCE)
        return current[-1].stop()

    def handler(stream: StreamSocket) -> None:
        if stream.read():
            reports.append(stop())

    for _ in range(50):
        server = ipv4.make_server()
        with ConnectionServer(server, handler, per="readiness") as served, contextlib.ExitStack() as stack:
            current.append(served)
            peers = [stack.enter_context(ipv4.connect_plainly(server)) for _ in range(4)]
            until(lambda served=served: served.stats().connections == 4)  # type: ignore[misc]
            stopping = [Worker(stop) for _ in range(4)]
            peers[0].sendall(b"x")
            assert {worker.outcome() for worker in stopping} == {StopReport(drained=4)}
            assert all(at_end(peer) for peer in peers)
    assert reports == [StopReport(drained=4)] * 50
