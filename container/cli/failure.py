"""From an error to one sentence, one hint and a status.

`container: <sentence>` and `hint: <hint>` go to stderr. A traceback is shown only to those who
asked for it. Several errors at once (of several containers) are shown one below the other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from container.ipc import ContainerError

PROCESS_FAILURE = 125
"""Of commands whose status is else their container's: it was our fault."""
INTERRUPTED = 130
OUTPUT_GONE = 141
"""128 + SIGPIPE: what a program that does not catch it ends with."""


class OutputGone(Exception):
    """The reader of our output is gone: nothing is said, since nobody listens."""


class Ended(Exception):
    """End with a status; what there is to say has been said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Refused(Exception):
    """A request that we refuse or can't do, in one sentence.

    Args:
        message: The sentence, in the user's own words, without a full stop.
        hint: What to do instead.
        status: The exit status, or None for the command's usual one.
    """

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if status is not None:
            self.__dict__["container_status"] = status


class UsageRefused(click.UsageError):
    """A command line that makes no sense, in our words rather than click's."""

    def __init__(
        self, message: str, *, hint: str | None = None, context: click.Context | None = None
    ) -> None:
        super().__init__(message, context)
        self.hint = hint


def report(error: BaseException, *, debug: bool = False) -> int:
    """Say what went wrong on stderr and return the exit status."""
    leaves = list(leaves_of(error))
    if any(isinstance(leaf, (KeyboardInterrupt, click.Abort)) for leaf in leaves):
        return INTERRUPTED
    if any(isinstance(leaf, (OutputGone, BrokenPipeError)) for leaf in leaves):
        return OUTPUT_GONE
    ends = [leaf for leaf in leaves if isinstance(leaf, Ended)]
    if ends:
        return ends[0].status
    if debug:
        import traceback

        traceback.print_exception(error)
    for leaf in leaves:
        say(*describe(leaf))
    # A group, not its leaves, has passed through the command and got its status.
    return _status_of(leaves[0], getattr(error, "container_status", 1))


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Return the errors of a group, however nested; an error that is no group is its own leaf.

    As `container.ipc.error_groups.leaves`, which usage errors must not import the framework for.
    """
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves_of(inner)
    else:
        yield error


def say(sentence: str, hint: str | None = None) -> None:
    """Write a sentence and a hint to stderr, if that is still there."""
    try:
        print(f"container: {_one_line(sentence)}", file=sys.stderr)
        if hint:
            print(f"hint: {_one_line(hint)}", file=sys.stderr)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def describe(error: BaseException) -> tuple[str, str | None]:
    """Return the sentence and the hint of an error."""
    if isinstance(error, Refused):
        return error.message, error.hint
    if isinstance(error, click.ClickException):
        return _describe_usage(error)
    contained = _as_container_error(error)
    if contained is not None:
        return _describe_contained(contained)
    if (
        type(error).__module__.partition(".")[0] == "trio"
        and type(error).__name__ == "TooSlowError"
    ):
        return (
            "the system did not answer in time",
            'see "container system status", or the logs in its root folder',
        )
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror[:1].lower()}{error.strerror[1:]}", None
    return (
        f"internal error: {type(error).__name__}: {error}",
        "this is a bug: CONTAINER_DEBUG=1 shows where",
    )


def _describe_usage(error: click.ClickException) -> tuple[str, str | None]:
    message = error.format_message().rstrip(".").replace(". (Did", " (did")
    hint = getattr(error, "hint", None)
    context: click.Context | None = getattr(error, "ctx", None)
    if hint is None and context is not None:
        hint = f'see "{context.command_path} --help"'
    return message[:1].lower() + message[1:], hint


def _as_container_error(error: BaseException) -> ContainerError | None:
    # When nobody has imported it, nobody can have raised it.
    module = sys.modules.get("container.ipc.errors")
    if module is not None and isinstance(error, module.ContainerError):
        return cast("ContainerError", error)
    return None


def _describe_contained(error: ContainerError) -> tuple[str, str | None]:
    from container.ipc.errors import Incompatible, InternalError, PeerGone

    hint = error.hint
    message = error.message
    if isinstance(error, Incompatible) and not hint:
        hint = 'a system of another version runs: "container system stop", then try again'
    elif isinstance(error, InternalError) and not hint and "id" in error.details:
        hint = f"this is a bug: look for {error.details['id']} in the logs in the root folder"
    elif isinstance(error, PeerGone) and not hint:
        hint = 'see "container system status"'
    return message.rstrip("."), hint


def _status_of(error: BaseException, default: int) -> int:
    contained = _as_container_error(error)
    if contained is not None and default == PROCESS_FAILURE:
        status = contained.details.get("exit_status")
        return status if isinstance(status, int) else default
    if isinstance(error, click.UsageError):
        context = error.ctx
        return getattr(context.command, "usage_status", 2) if context is not None else 2
    return getattr(error, "container_status", default)


def _one_line(text: str) -> str:
    return " ".join(text.split())
