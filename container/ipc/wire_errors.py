"""Errors as wire values, and back. Never a pickle.

An error is code, message, hint, details, hops, notes, cause, and the wire name of its class; a
group is message, notes and group. A bug is not translated: it becomes `InternalError` with an id,
and its traceback goes to this process's log under that id; the caller gets its lines, as a note,
without any value. A handler whose channel or stream broke is `Unavailable`, not a bug. Of a group
only what is left after removing cancellations travels; one leaf alone travels as that leaf.

A cause (`raise NotFound(...) from error`) that is no `ContainerError` travels as the name of its
type and its sentence: whoever wrote `from` chose to say why. The causes of a bug stay in the log.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import uuid
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import trio

from container.ipc.errors import (
    ERROR_CLASSES,
    ERROR_TYPES,
    ContainerError,
    ErrorCode,
    Fate,
    Hop,
    InternalError,
    PeerGone,
    Unavailable,
)

logger = logging.getLogger("container.ipc")

_process_name: str | None = None
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
"""What the machine or the process has none left of: descriptors, disk, memory."""
DEPTH = 16
"""Causes and groups deeper than this are cut."""
WIDTH = 64
"""Leaves of one group beyond this are cut."""
LENGTH = 16384
"""Characters of one text beyond this are cut."""
NOTES = 16
"""Notes of one error beyond this are cut."""
FRAMES = 32
"""Lines of a remote traceback; of a longer one the innermost are kept."""
BYTES = 60_000
"""An error of more is sent without notes and details, then without causes: every peer accepts
frames of 64 KiB, and an error has nobody else to tell."""


def set_process_name(name: str) -> None:
    """Name this process in the provenance of errors, in hellos and in traces."""
    global _process_name
    _process_name = name


def process_name() -> str:
    """Return this process's name: as set, else the program's."""
    return _process_name or os.path.basename(sys.argv[0] or "python") or "python"


def to_wire(error: BaseException, route: str) -> dict[str, object]:
    """Return an error as a wire value; this process and `route` are added to its provenance."""
    body = _lowered(error, route, 0)
    if _size(body) > BYTES:
        for spared in ({"notes", "details"}, {"cause"}, {"hint", "hops"}):
            _spare(body, spared)
            if _size(body) <= BYTES:
                return body
        body = {"code": body["code"], "message": str(body["message"])[: BYTES // 8]}
    return body


def _lowered(error: BaseException, route: str, depth: int) -> dict[str, object]:
    if isinstance(error, BaseExceptionGroup):
        leaves = cast("BaseExceptionGroup[BaseException]", error)
        rest = leaves.split(trio.Cancelled)[1]
        if rest is None:
            return {"code": ErrorCode.CANCELLED.value, "message": "the call was cancelled"}
        if len(rest.exceptions) == 1:
            return _lowered(rest.exceptions[0], route, depth)
        body: dict[str, object] = {"code": ErrorCode.UNKNOWN.value, "message": _text(rest.message)}
        if depth < DEPTH:
            _add_notes(body, rest, [])
            body["group"] = [_lowered(leaf, route, depth + 1) for leaf in rest.exceptions[:WIDTH]]
        return body
    if isinstance(error, trio.BrokenResourceError):
        # No bug: who was at the other end of the handler's channel or stream has gone.
        error = _caused(Unavailable(f"{route}: {str(error) or 'a stream broke'}"), error.__cause__)
    elif isinstance(error, OSError) and error.errno in EXHAUSTED:
        # No bug either: the machine has none left, and whoever asks later may be lucky.
        sentence = f"{route} failed in {process_name()}: {os.strerror(error.errno).lower()}"
        logger.error("%s", sentence, exc_info=error)
        error = _caused(Unavailable(sentence, details={"errno": error.errno}), error.__cause__)
    elif not isinstance(error, ContainerError):
        error = _bug(error, route)
    hops = [*error.provenance, Hop(process=process_name(), pid=os.getpid(), route=route)]
    body = {
        "code": error.code.value,
        "message": _text(error.message),
        "hops": [[_text(hop.process), hop.pid, _text(hop.route)] for hop in hops[-DEPTH:]],
    }
    if error.error_type:
        body["error_type"] = _text(error.error_type)
    if error.hint is not None:
        body["hint"] = _text(error.hint)
    if error.details:
        body["details"] = _plain(error.details)
    # Where it crossed processes is in `hops`: the notes that say so were made on arrival.
    _add_notes(body, error, [_hop_note(hop) for hop in error.provenance])
    if error.__cause__ is not None and depth < DEPTH:
        cause = _cause(error.__cause__, route, depth + 1)
        if cause is not None:
            body["cause"] = cause
    return body


def _caused(error: ContainerError, cause: BaseException | None) -> ContainerError:
    error.__cause__ = cause
    return error


def _cause(error: BaseException, route: str, depth: int) -> dict[str, object] | None:
    """Return a cause as a wire value; one that is no `ContainerError` by its type and sentence."""
    if isinstance(error, ContainerError):
        return _lowered(error, route, depth)
    if isinstance(error, trio.Cancelled):
        return None
    if isinstance(error, BaseExceptionGroup):
        leaves = cast("BaseExceptionGroup[BaseException]", error)
        code = ErrorCode.UNKNOWN.value
        body: dict[str, object] = {"code": code, "message": _text(leaves.message)}
        if depth < DEPTH:
            found = [_cause(leaf, route, depth + 1) for leaf in leaves.exceptions[:WIDTH]]
            body["group"] = [leaf for leaf in found if leaf is not None]
        return body
    name = type(error).__name__
    sentence = str(error)
    body = {
        "code": ErrorCode.UNKNOWN.value,
        "message": _text(f"{name}: {sentence}" if sentence else name),
        "hops": [[_text(process_name()), os.getpid(), _text(route)]],
        "details": {"exception": name},
    }
    if error.__cause__ is not None and depth < DEPTH:
        cause = _cause(error.__cause__, route, depth + 1)
        if cause is not None:
            body["cause"] = cause
    return body


def _add_notes(body: dict[str, object], error: BaseException, left_out: list[str]) -> None:
    notes = [_text(note) for note in getattr(error, "__notes__", ()) if note not in left_out]
    if notes:
        body["notes"] = notes[:NOTES]


def _hop_note(hop: Hop) -> str:
    return f"in {hop.process} (pid {hop.pid}), {hop.route}"


def _bug(error: BaseException, route: str) -> InternalError:
    number = uuid.uuid4().hex[:12]
    logger.error("bug %s in %s", number, route, exc_info=error, extra={"bug": number})
    made = InternalError(
        f"{route} failed in {process_name()}: a bug ({type(error).__name__})",
        hint=f"the log of {process_name()} has the traceback under {number}",
        details={"id": number},
    )
    made.add_note("\n".join(_traceback_lines(error)))
    return made


def _traceback_lines(error: BaseException) -> Iterator[str]:
    """Yield where an exception went, innermost last, without any value or source line."""
    frames = [
        (frame.f_code.co_filename, number, frame.f_code.co_qualname)
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    yield f"remote traceback in {process_name()} (pid {os.getpid()}), innermost last:"
    if len(frames) > FRAMES:
        yield f"  ... {len(frames) - FRAMES} more"
    for file, number, function in frames[-FRAMES:]:
        yield f"  {file}:{number} {function}"
    yield f"  {type(error).__name__}"


def _size(body: dict[str, object]) -> int:
    return len(msgspec.msgpack.encode(body))


def _spare(body: dict[str, object], spared: set[str]) -> None:
    """Take fields away from an error, its causes and its leaves."""
    for field in spared:
        body.pop(field, None)
    inner = [*cast("list[object]", body.get("group") or ()), body.get("cause")]
    for part in inner:
        if isinstance(part, dict):
            _spare(cast("dict[str, object]", part), spared)


def _text(value: object) -> str:
    # A file name that is no UTF-8 has surrogates in Python, which can't be encoded.
    text = str(value)
    if len(text) > LENGTH:
        text = f"{text[: LENGTH - 3]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def _plain(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return _text(value)
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else str(value)
    if depth < DEPTH and isinstance(value, dict):
        entries = cast("dict[object, object]", value)
        return {_text(key): _plain(item, depth + 1) for key, item in entries.items()}
    if depth < DEPTH and isinstance(value, (list, tuple)):
        return [_plain(item, depth + 1) for item in cast("list[object]", value)]
    return _text(value)


def from_wire(body: dict[str, Any], depth: int = 0) -> Exception:
    """Return the exception of a wire value; what is missing or strange in it is tolerated."""
    message = str(body.get("message", "no message"))
    group = body.get("group")
    if isinstance(group, list) and group and depth < DEPTH:
        leaves = [
            from_wire(cast("dict[str, Any]", leaf), depth + 1)
            for leaf in cast("list[object]", group)[:WIDTH]
            if isinstance(leaf, dict)
        ]
        if leaves:
            made = ExceptionGroup(message, leaves)
            for note in _notes(body):
                made.add_note(note)
            return made
    hint = body.get("hint")
    details = body.get("details")
    hops: list[Hop] = []
    listed = body.get("hops")
    for hop in cast("list[object]", listed) if isinstance(listed, list) else ():
        if isinstance(hop, list) and len(cast("list[object]", hop)) >= 3:
            process, pid, route = cast("list[Any]", hop)[:3]
            hops.append(Hop(str(process), pid if isinstance(pid, int) else 0, str(route)))
    try:
        cls = ERROR_CLASSES[ErrorCode(body.get("code"))]
    except (ValueError, KeyError):
        cls = ContainerError
    fields: dict[str, Any] = {
        "hint": hint if isinstance(hint, str) else None,
        "details": _named(details),
        "provenance": tuple(hops),
    }
    if cls is PeerGone:
        known = cast("dict[str, object]", fields["details"] or {})
        try:
            fields["fate"] = Fate(known.get("fate"))
        except ValueError:
            fields["fate"] = Fate.UNKNOWN
        fields["why"] = str(known.get("why", "closed"))
    error = _made(cls, body.get("error_type"), message, fields)
    for hop in hops:
        error.add_note(_hop_note(hop))
    for note in _notes(body):
        error.add_note(note)
    cause = body.get("cause")
    if isinstance(cause, dict) and depth < DEPTH:
        error.__cause__ = from_wire(cast("dict[str, Any]", cause), depth + 1)
    return error


def _made(
    cls: type[ContainerError], named: object, message: str, fields: dict[str, Any]
) -> ContainerError:
    if not isinstance(named, str) or not named:
        return cls(message, **fields)
    known = ERROR_TYPES.get(named)
    # A name must not turn one code into another: `except` relies on the code.
    if known is None or not issubclass(known, cls) or known.code is not cls.code:
        known = cls
    error = known.__new__(known)
    # Not its own constructor, whose parameters nobody here knows.
    cls.__init__(error, message, **fields)
    error.error_type = named
    return error


def _notes(body: dict[str, Any]) -> list[str]:
    notes = body.get("notes")
    if not isinstance(notes, list):
        return []
    return [note for note in cast("list[object]", notes)[:NOTES] if isinstance(note, str)]


def _named(details: object) -> dict[str, object] | None:
    if not isinstance(details, dict):
        return None
    return {str(key): value for key, value in cast("dict[object, object]", details).items()}
