"""``bbipc serve``: a server that prints the messages as they come, and answers them.

Law of this file: its handler runs on workers, and prints before it answers, so that the order on the screen is that of
the requests.  What a peer has written is made harmless before it is printed.  Errors of peers and handlers are one line
each on stderr.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import bbipc
from bbipc import Address, PeerCredentials
from bbipc.messages import Message, MessageType
from bbipc.sockets.locks import make_lock
from pool import MessageServer, StopReport, WorkerPool
from pool.cli.exits import Exit, OutputGoneError, ProblemError
from pool.cli.replies import Command, make_reply
from pool.cli.terminal import Terminal
from pool.cli.text import amount, counted, plain, reason_of
from pool.requests import Peer, Request
from pool.stopping import GRACE

#: as much of a message as is printed
_SHOWN_LETTERS: Final = 400
_SHOWN_BYTES: Final = 24
#: whose warnings are for an operator: of connections and limits; others tell a programmer of slow callbacks
_LOGS: Final = ("pool.accepting", "pool.message_server", "pool.message_service")
#: of a path, unless the command line says otherwise
_MODE: Final = 0o600


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    address: Address
    reply: str
    command_timeout: float
    messages: int | None
    stop_on_close: bool
    quiet: bool
    workers: int | None
    max_message_size: int
    max_connections: int
    max_in_flight: int
    idle_timeout: float | None
    allow_uid: list[int] | None
    accept_unsigned: bool
    replace_stale: bool
    mode: int | None
    backlog: int
    reuse_port: bool
    stop_timeout: float


def run(options: Options, terminal: Terminal) -> Exit:
    """Serve until a signal, a CLOSE or a number of messages ends it."""
    return Serving(options, terminal).run()


class Serving:
    """One server at work, and what it has done so far."""

    def __init__(self, options: Options, terminal: Terminal) -> None:
        self._options = options
        self._terminal = terminal
        limit = options.max_message_size
        self._reply = make_reply(options.reply, timeout=options.command_timeout, limit=limit)
        self._lock = make_lock()  # guards what follows
        self._counts = dict.fromkeys(MessageType, 0)
        self._bytes = 0
        self._errors = 0
        self._output_error: OutputGoneError | ProblemError | None = None

    def run(self) -> Exit:
        """Serve until the end, and print the summary.

        :raises OutputGoneError, ProblemError: nothing can be printed any more, or there is nothing to begin with
        """
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            if isinstance(self._reply, Command):
                stack.callback(self._reply.end)
            workers = WorkerPool(self._options.workers)
            stack.callback(workers.shutdown, timeout=GRACE)
            stack.enter_context(_logged(self._terminal))
            self._workers = workers
            self._server = self._make_server(workers)
            stack.callback(self._server.stop, 0)
            report = self._serve()
        if self._output_error is not None:
            raise self._output_error
        self._terminal.line(self._summary(time.monotonic() - began, report))
        return Exit.OK

    def _make_server(self, workers: WorkerPool) -> MessageServer:
        options = self._options
        listening = _listen(options)
        try:
            return MessageServer(
                listening,
                self._handle,
                workers=workers,
                on_error=self._tell,
                on_close=self._take_close,
                max_message_size=options.max_message_size,
                max_connections=options.max_connections,
                max_in_flight=options.max_in_flight,
                idle_timeout=options.idle_timeout,
                allowed_uids=options.allow_uid,
                accept_unsigned=options.accept_unsigned,
                stop_on_close=options.stop_on_close,
            )
        except BaseException as error:
            listening.close()
            if isinstance(error, ValueError):  # a limit that makes no sense
                limit, _, problem = str(error).partition(" ")
                raise ProblemError(Exit.USAGE, f"--{limit.replace('_', '-')} {problem}") from error
            raise

    def _serve(self) -> StopReport:
        address = Address.of(self._server.servers[0])
        try:
            self._terminal.line(f"listening on {plain(str(address))}; Ctrl-C ends it")
            return self._server.serve_forever(stop_timeout=self._options.stop_timeout)
        except KeyboardInterrupt:  # the second one, or one before it serves
            if isinstance(self._reply, Command):
                self._reply.end()
            return self._server.stop(0)

    # On workers.

    def _handle(self, request: Request) -> Message | None:
        if not self._options.quiet and not self._print(_described(request)):
            raise RuntimeError("the server is being stopped") from self._output_error
        try:
            return self._reply(request)
        finally:
            self._count(request.type, _size(request))

    def _take_close(self, peer: Peer) -> None:
        """A peer has sent a CLOSE, and was answered whatever came before it."""
        if not self._options.quiet:
            self._print(f"<- CLOSE ({_shown_peer(peer)})")
        self._count(MessageType.CLOSE, 0)

    def _print(self, line: str) -> bool:
        """False: nothing can be printed any more, and the server ends."""
        try:
            self._terminal.line(line)
        except (OutputGoneError, ProblemError) as error:
            self._output_error = error
            self._stop()
            return False
        return True

    def _count(self, kind: MessageType, size: int) -> None:
        with self._lock:
            self._counts[kind] += 1
            self._bytes += size
            enough = sum(self._counts.values()) == self._options.messages
        if enough:
            self._stop()

    def _stop(self) -> None:
        """Let the server end: the thread that waits for it is told, and this worker goes on."""
        self._workers.poller_thread.call_later(0, self._server.stop, self._options.stop_timeout)

    def _tell(self, error: BaseException, peer: Peer) -> None:
        with self._lock:
            self._errors += 1
        if self._output_error is None:
            self._terminal.error(f"{_shown_peer(peer)}: {type(error).__name__}: {reason_of(error)}")

    def _summary(self, seconds: float, report: StopReport) -> str:
        kinds = ", ".join(f"{count:,} {kind.name}" for kind, count in self._counts.items() if count)
        total = sum(self._counts.values())
        cut = report.forced + report.abandoned
        return (
            f"{counted(total, 'message')}{f' ({kinds})' if kinds else ''}, {amount(self._bytes)}, "
            f"{counted(self._errors, 'error')}, {counted(self._server.stats().accepted, 'connection')}, "
            f"{seconds:.1f} s{f'; {cut} cut short' if cut else ''}"
        )


class _Log(logging.Handler):
    """What the library warns of, as lines on stderr; what ``on_error`` is told is there already."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Print it."""
        if not (record.exc_info or getattr(record, "told", False)):
            self._terminal.error(record.getMessage())


@contextlib.contextmanager
def _logged(terminal: Terminal) -> Iterator[None]:
    handler = _Log(terminal)
    for name in _LOGS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in _LOGS:
            logging.getLogger(name).removeHandler(handler)


def _listen(options: Options) -> bbipc.StreamServer:
    address, backlog, stale = options.address, options.backlog, options.replace_stale
    try:
        if address.kind == "local":
            no_file = str(address.path).startswith("\0")  # in the abstract namespace: nobody is kept out by it
            about_the_file = {"--mode": options.mode is not None and no_file, "--replace-stale": stale and no_file}
            _refuse(address, {"--reuse-port": options.reuse_port, **about_the_file})
            mode = _MODE if options.mode is None else options.mode
            return address.listen(backlog=backlog, mode=mode, replace_stale=stale)
        uids, mode_given = options.allow_uid is not None, options.mode is not None
        _refuse(address, {"--mode": mode_given, "--replace-stale": stale, "--allow-uid": uids})
        return address.listen(backlog=backlog, reuse_port=options.reuse_port)
    except OSError as error:
        reason = reason_of(error).replace("replace_stale=True", "--replace-stale")
        raise ProblemError(Exit.FAILED, reason) from error


def _refuse(address: Address, given: dict[str, bool]) -> None:
    for name, is_given in given.items():
        if is_given:
            raise ProblemError(Exit.USAGE, f"{name} means nothing at {address}")


def _shown_peer(peer: Peer) -> str:
    if isinstance(peer, PeerCredentials):
        return f"pid {peer.pid}, uid {peer.uid}"
    return "unknown peer" if peer is None else f"{peer[0]} port {peer[1]}"


def _size(request: Request) -> int:
    """Bytes of its value: the NUL behind a text is none of it."""
    payload = request.payload
    return len(payload) - (request.type == MessageType.STRING and payload.endswith(b"\0"))


def _described(request: Request) -> str:
    value, size = request.value, _size(request)
    head = f"<- {request.type.name} ({size:,} bytes, {_shown_peer(request.peer)})"
    if isinstance(value, str):
        return f"{head}: {plain(value[:_SHOWN_LETTERS])}{' …' if len(value) > _SHOWN_LETTERS else ''}"
    shown = request.payload[:_SHOWN_BYTES].hex(" ")
    return f"{head}: {shown}{' …' if size > _SHOWN_BYTES else ''}"
