"""A server of coroutines: asyncio awaits the futures of a poller thread, through asyncio.wrap_future.

python examples/asyncio_bridge.py [--local PATH | --host H --port P] [--idle SECONDS]        Ctrl-C ends it.

Every line comes back in capitals.  Who has not finished a line for SECONDS is asked whether he is still there, and what
he had begun is not lost.  Ctrl-C cancels all tasks, and with them the futures they await.
"""

import argparse
import asyncio
import sys
from concurrent.futures import Future

import bbipc
from pool import FutureStream, PollerThread

LINE = 1000  # bytes


async def patiently(reading: Future[bytes], seconds: float) -> bytes | None:
    """What was read, or None when the time is up: then the read was taken back, and has taken no byte."""
    try:
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(reading)
    except TimeoutError:
        # The await is cancelled, and the future with it; unless its bytes came at the very moment.
        return None if reading.cancelled() else reading.result()


async def converse(stream: FutureStream, idle: float) -> None:
    try:
        while True:
            line = await patiently(stream.read_until(b"\n", LINE), idle)
            answer = b"still there?\n" if line is None else line.upper()
            await asyncio.wrap_future(stream.write(answer, timeout=idle))
    except (OSError, EOFError, ValueError):
        pass  # the end; a reset; too long a line; too slow a reader
    finally:
        stream.close(timeout=1)


async def serve(server: bbipc.StreamServer, thread: PollerThread, idle: float) -> None:
    print(f"asyncio server: {server!r}; Ctrl-C ends it", flush=True)  # from here on asyncio has it in hand
    async with asyncio.TaskGroup() as tasks:
        while True:
            try:
                stream = await asyncio.wrap_future(thread.accept(server))
            except bbipc.SocketClosedError:
                return
            except bbipc.SocketError:  # out of descriptors: the callers wait a little
                await asyncio.sleep(0.1)
            else:
                tasks.create_task(converse(FutureStream(stream, thread), idle))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--local", metavar="PATH")
    parser.add_argument("--host", default=bbipc.IPV4_LOOPBACK)
    parser.add_argument("--port", type=int, default=12345)
    parser.add_argument("--idle", type=float, default=60, metavar="SECONDS")
    args = parser.parse_args()
    try:
        local = bbipc.make_local_server(args.local, replace_stale=True) if args.local else None
        with local or bbipc.make_ipv4_tcp_server(args.host, args.port) as listening, PollerThread() as poller_thread:
            asyncio.run(serve(listening, poller_thread, args.idle))
    except KeyboardInterrupt:
        print("asyncio server: bye")
    except (OSError, ValueError) as error:
        sys.exit(f"asyncio server: {error}")
