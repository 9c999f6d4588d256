"""The examples that go beyond one process, as a user runs them; the cluster's is in ``test_cluster.py``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

import bbipc
from bbipc import RemoteHandlerError
from pool import MessageClient
from tests.support.makers import PATIENCE
from tests.support.programs import ended, one_line, serving_at, start
from tests.support.serving import until

PROGRAMS = ["process_pool_server.py", "reuse_port_servers.py"]
ANYWHERE = "ipv4:127.0.0.1:0"


@pytest.mark.parametrize("program", [*PROGRAMS, "cluster_server.py"])
def test_the_head_tells_how_to_call_it(program: str) -> None:
    text = (Path(__file__).parent.parent / "examples" / program).read_text()
    assert f"\npython examples/{program} ADDRESS" in text


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctrl_c_ends_it(program: str) -> None:
    with serving_at(program, ANYWHERE) as server:
        code, out, err = server.interrupt()
    assert (code, err) == (0, "")
    assert out.endswith(f"{program.removesuffix('.py').replace('_', ' ')}: bye\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_place_that_cannot_be_had_is_told_in_one_line(program: str) -> None:
    with bbipc.make_ipv4_tcp_server(bbipc.IPV4_LOOPBACK, 0) as taken:
        with start(program, f"ipv4:127.0.0.1:{taken.port}") as process:
            assert "cannot listen on" in one_line(*ended(process))


# process_pool_server.py


def counted_by(answer: object) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+) primes below \d+, counted by process (\d+)", str(answer))
    assert found, answer
    return int(found[1]), int(found[2])


def test_primes_are_counted_in_other_processes(short_dir: Path) -> None:
    with serving_at("process_pool_server.py", str(short_dir / "server"), "--processes", "2") as server:
        with MessageClient(server.address, timeout=3 * PATIENCE) as client:
            assert [counted_by(client.send(limit))[0] for limit in ("0", "2", "3", "100", "100000")] == [
                0,
                0,
                1,
                25,
                9592,
            ]
            with pytest.raises(RemoteHandlerError, match="ValueError: 5000001 is too much"):
                client.send("5000001")
            with pytest.raises(RemoteHandlerError, match="ValueError: invalid literal"):
                client.send("many")
            assert counted_by(client.send("10"))[1] != server.process.pid


def test_a_process_that_is_lost_is_replaced(short_dir: Path) -> None:
    with serving_at("process_pool_server.py", str(short_dir / "server"), "--processes", "1") as server:
        with MessageClient(server.address, timeout=3 * PATIENCE) as client:
            _, lost = counted_by(client.send("10"))
            os.kill(lost, signal.SIGKILL)

            def another_answers() -> bool:
                """The first requests may come before the death is noticed, and fail by its name."""
                with contextlib.suppress(RemoteHandlerError):
                    return counted_by(client.send("10"))[1] != lost
                return False

            until(another_answers)
        assert server.interrupt()[0] == 0


# reuse_port_servers.py


def test_two_processes_answer_on_one_port_and_say_what_they_did() -> None:
    with serving_at("reuse_port_servers.py", ANYWHERE) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(20):  # so many that the kernel gives some to each
                client = stack.enter_context(MessageClient(server.address, timeout=PATIENCE))
                assert client.send(b"\1\2") == (31 + 2).to_bytes(4, "little")
        code, out, err = server.interrupt()
    assert (code, err) == (0, "")
    served = re.findall(r"process (\d+): served (\d+) requests", out)
    assert len({process for process, _ in served}) == 2
    counts = [int(count) for _, count in served]
    assert sum(counts) == 20
    assert min(counts) > 0


def test_the_gain_is_measured() -> None:
    with start("reuse_port_servers.py", "--measure", "0.2") as process:
        code, out, err = ended(process)
    assert (code, err) == (0, "")
    one, two, gain = [line for line in out.splitlines() if ": served" not in line]
    rates = [float(line.split()[2].replace(",", "")) for line in (one, two)]
    assert (one.split()[:2], two.split()[:2]) == (["1", "process:"], ["2", "processes:"])
    assert min(rates) > 0
    assert re.fullmatch(r"gain: x\d+\.\d\d", gain)


def test_a_path_is_not_shared(short_dir: Path) -> None:
    with start("reuse_port_servers.py", str(short_dir / "server")) as process:
        assert "a path has one owner" in one_line(*ended(process))
