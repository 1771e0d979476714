"""The shell of every service process: options, descriptors, logging, signals, exit status.

A process module is `def main() -> int: return run_process("container-apiserver", serve)`, and
`serve` is an async function that gets a `Context` and works until it is cancelled. What this is
*not*: it knows no contract and no service.

Why a process stops, and what it then does:

| seen | `context.stop_reason` | then |
|---|---|---|
| `serve` returns | None | its value (None is 0) is the exit status |
| SIGTERM, SIGINT | `SIGNAL` | `serve` is cancelled; exit 0. A second one ends it at once |
| end of file on the lifeline | `LIFELINE` | `serve` is cancelled; killed if it takes above 5 s |
| `ContainerError` | None | one sentence and its hint on stderr; 75 if a retry may help, 77, 69, 1 |
| any other exception | None | traceback in the log; exit 70 |
"""

from __future__ import annotations

import contextlib
import enum
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from attrs import asdict, define, field

from container.activation import handed_over, sort_out
from container.ipc.descriptor import Fd
from container.ipc.error_groups import leaves
from container.ipc.errors import (
    ContainerError,
    DeadlineExceeded,
    InvalidArgument,
    Overloaded,
    PeerGone,
    PermissionDenied,
    Unavailable,
    Unsupported,
)
from container.ipc.spawning.tree import become_subreaper as become_subreaper
from container.notify import Notifier
from container.storage.paths import Paths

LIFELINE_GRACE = 5
"""Seconds from the end of the lifeline to SIGALRM, which kills."""
LOG_BOUND = 8 * 2**20
"""Bytes of a log after which the next process that opens it moves it to `<name>.log.1`."""

EX_OK, EX_FAILED, EX_USAGE = 0, 1, 2
EX_UNAVAILABLE, EX_SOFTWARE, EX_TEMPFAIL, EX_NOPERM = 69, 70, 75, 77
"""Source: sysexits(3head)."""


class StopReason(enum.Enum):
    """Why `serve` was cancelled."""

    SIGNAL = "signal"
    LIFELINE = "lifeline"


@define
class Context:
    """What a service process was started with."""

    name: str
    """As in logs and traces: `container-apiserver`."""
    paths: Paths
    listener: socket.socket | None
    """The listening socket that the launcher (or systemd) handed over; the process owns it."""
    arguments: list[str]
    """argv after the common options."""
    owned: bool = False
    """True in a private system, whose owner's end is the end of its containers too."""
    kept: dict[str, Fd] = field(factory=dict[str, Fd])
    """What the launcher (or systemd's descriptor store) kept for this service, by name. Take out
    what is used; what is left here is closed when the process ends."""
    idle: float | None = None
    """Seconds without work after which the service is to end by itself: `open_service(idle=)`."""
    stop_reason: StopReason | None = None
    """Set before `serve` is cancelled."""
    notifier: Notifier = field(factory=Notifier)

    async def ready(self, status: str = "") -> None:
        """Say, once, that the service serves now; who starts it may wait for that."""
        await self.notifier.say({"READY": "1", "STATUS": status})

    async def say(self, status: str) -> None:
        """Say in one line what the service does; `container system status` shows it."""
        await self.notifier.say({"STATUS": status})


Serve = Callable[[Context], Awaitable[int | None]]


def run_process(name: str, serve: Serve, argv: Sequence[str] | None = None) -> int:
    """Run one service process to its end and return its exit status.

    Common options come first: `--help`, `--version`, `--log FILE|-` (default: `CONTAINER_LOG`, or
    `<root>/logs/<name>.log`). What follows them is `context.arguments`.

    Args:
        name: The process's name; a leading `container-` is left out of its log's name.
        serve: Works until it is cancelled; may return an exit status.
        argv: The arguments without the program's name; None takes `sys.argv[1:]`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    log: str | None = os.environ.get("CONTAINER_LOG")
    while arguments and arguments[0].startswith("-"):
        option, _, value = arguments[0].partition("=")
        if option in ("--help", "-h"):
            print(_usage(name, serve))
            return EX_OK
        if option == "--version":
            from container import __version__

            print(f"{name} {__version__}")
            return EX_OK
        if option != "--log":
            break
        del arguments[0]
        if not value:
            if not arguments:
                return _complain(name, InvalidArgument("--log needs a file, or - for stderr"))
            value = arguments.pop(0)
        log = value

    paths = Paths.default()
    try:
        set_up_logging(name, log or paths.logs / f"{name.removeprefix('container-')}.log")
        listener, kept = sort_out(handed_over())
        lifeline = _take_descriptor("CONTAINER_LIFELINE_FD")
        context = Context(
            name=name,
            paths=paths,
            listener=listener,
            arguments=arguments,
            kept=kept,
            idle=_idle_seconds(),
            notifier=Notifier.from_environment(),
            owned=os.environ.get("CONTAINER_OWNED") == "1",
        )
    except ContainerError as error:
        return _complain(name, error)
    trace = os.environ.get("CONTAINER_TRACE")
    if trace:
        install_trace(trace, name)

    # A process that hangs is ended by SIGABRT, and says on stderr where it hung.
    faulthandler.enable(2)

    import trio

    from container.ipc.wire_errors import set_process_name

    set_process_name(name)
    try:
        status = trio.run(_attended, context, serve, lifeline)
    except BaseException as error:
        return _status_of(name, error)
    finally:
        if context.listener is not None:
            context.listener.close()
        for left in context.kept.values():
            left.close()
        signal.alarm(0)
        logging.shutdown()
    return EX_OK if status is None else status


def install_trace(path: str, name: str) -> None:
    """Append one JSON line to `path` for each call that this process handles or makes.

    Args:
        path: The file of the whole system's trace; lines of several processes are never mixed.
        name: This process's name in the trace.
    """
    from container.ipc import tracing

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(span: tracing.Span) -> None:
        line = json.dumps({**asdict(span), "process": name}, ensure_ascii=False)
        # One write of an appended line: the kernel keeps lines of several processes apart.
        with contextlib.suppress(OSError):
            os.write(descriptor, line.encode() + b"\n")

    tracing.add_sink(write)


async def _attended(context: Context, serve: Serve, lifeline: socket.socket | None) -> int | None:
    import trio

    status: int | None = None
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            work = trio.CancelScope()

            async def watch_signals() -> None:
                async for number in signals:
                    if context.stop_reason is StopReason.SIGNAL:
                        logging.getLogger("container").warning("second signal: ending at once")
                        os._exit(128 + number)
                    context.stop_reason = context.stop_reason or StopReason.SIGNAL
                    work.cancel()

            async def watch_lifeline(line: socket.socket) -> None:
                while True:
                    await trio.lowlevel.wait_readable(line)
                    try:
                        if line.recv(64, socket.MSG_DONTWAIT):
                            continue
                    except BlockingIOError:
                        continue
                    except OSError:
                        pass  # reset: the other end is gone all the same
                    break
                context.stop_reason = context.stop_reason or StopReason.LIFELINE
                # The kernel ends this process if its clean-up hangs, even in a blocked loop.
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(LIFELINE_GRACE)
                work.cancel()

            nursery.start_soon(watch_signals)
            nursery.start_soon(context.notifier.keep_alive)
            if lifeline is not None:
                nursery.start_soon(watch_lifeline, lifeline)
            try:
                with work:
                    status = await serve(context)
                if context.stop_reason is None:
                    await context.notifier.say({"STOPPING": "1"})
            finally:
                nursery.cancel_scope.cancel()
                if lifeline is not None:
                    lifeline.close()
    return status


# --- descriptors ---


def _idle_seconds() -> float | None:
    value = os.environ.pop("CONTAINER_IDLE_SECONDS", "")
    try:
        return float(value) if value else None
    except ValueError:
        raise InvalidArgument(f"CONTAINER_IDLE_SECONDS is {value!r}, not a number") from None


def _take_descriptor(variable: str) -> socket.socket | None:
    value = os.environ.pop(variable, "")
    if not value:
        return None
    try:
        fd = int(value)
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except (ValueError, OSError) as error:
        raise InvalidArgument(f"{variable} is {value!r}, which names no socket") from error


# --- logging ---


class JsonLines(logging.Formatter):
    """Format a record as one line of JSON: time, level, process, pid, logger, message, error."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def open_log(path: str | Path) -> int:
    """Open a log for appending (mode 0600, its folder made if need be) and return the descriptor.

    A log above `LOG_BOUND` is moved to `<name>.1` first, replacing the one before it.

    Raises:
        Unavailable: it can't be opened.
    """
    path = Path(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if path.stat().st_size > LOG_BOUND:
                path.replace(path.with_name(path.name + ".1"))
        except FileNotFoundError:
            pass
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(
            f"the log {path} can't be opened: {error.strerror}",
            hint="--log - writes to stderr; CONTAINER_ROOT says where state and logs live",
        ) from error


def set_up_logging(process: str, log: str | Path) -> None:
    """Send all logging to `log` (`-` is stderr) as JSON lines, replacing earlier handlers."""
    handler: logging.Handler
    if str(log) == "-":
        handler = logging.StreamHandler(sys.stderr)
    else:
        os.close(open_log(log))
        handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(JsonLines(process))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    level = os.environ.get("CONTAINER_LOG_LEVEL", "info").upper()
    root.setLevel(level if level in logging.getLevelNamesMapping() else logging.INFO)
    logging.captureWarnings(True)


# --- how it ended ---


def _status_of(name: str, error: BaseException) -> int:
    found = list(leaves(error))
    status = EX_OK
    for leaf in found:
        if isinstance(leaf, SystemExit):
            status = max(status, leaf.code if isinstance(leaf.code, int) else EX_FAILED)
        elif isinstance(leaf, KeyboardInterrupt):
            status = max(status, 128 + signal.SIGINT)
        elif isinstance(leaf, ContainerError):
            status = max(status, _complain(name, leaf))
        else:
            logging.getLogger("container").critical("%s ended by a bug", name, exc_info=error)
            print(f"{name}: ended by a bug: {leaf!r}", file=sys.stderr)
            return EX_SOFTWARE
    return status


def _complain(name: str, error: ContainerError) -> int:
    if logging.getLogger().handlers:  # else logging itself would repeat the sentence on stderr
        logging.getLogger("container").error("%s", error.message)
    print(f"{name}: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    match error:
        case Unavailable() | Overloaded() | DeadlineExceeded() | PeerGone():
            return EX_TEMPFAIL
        case PermissionDenied():
            return EX_NOPERM
        case Unsupported():
            return EX_UNAVAILABLE
        case InvalidArgument():
            return EX_USAGE
        case _:
            return EX_FAILED


def _usage(name: str, serve: Serve) -> str:
    about = (serve.__doc__ or "Serve until stopped.").strip()
    return (
        f"Usage: {name} [--help] [--version] [--log FILE|-] [ARGUMENT...]\n\n{about}\n\n"
        "Started by the launcher; by hand only to look into it. Reads CONTAINER_ROOT,\n"
        "CONTAINER_RUN, CONTAINER_LOG, CONTAINER_LOG_LEVEL and CONTAINER_TRACE."
    )
