"""Errors as wire values, and back. Never a pickle.

An error is code, message, hint, details, hops, cause; a group is message and group. A bug is not
translated: it becomes `InternalError` with an id, and its traceback goes to this process's log
under that id. Of a group only what is left after removing cancellations travels; one leaf alone
travels as that leaf.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from typing import Any, cast

import trio

from container.ipc.errors import (
    ERROR_CLASSES,
    ContainerError,
    ErrorCode,
    Fate,
    Hop,
    InternalError,
    PeerGone,
)

logger = logging.getLogger("container.ipc")

_process_name: str | None = None
DEPTH = 16
"""Causes and groups deeper than this are cut."""
WIDTH = 64
"""Leaves of one group beyond this are cut."""
LENGTH = 16384
"""Characters of one text beyond this are cut."""


def set_process_name(name: str) -> None:
    """Name this process in the provenance of errors, in hellos and in traces."""
    global _process_name
    _process_name = name


def process_name() -> str:
    """Return this process's name: as set, else the program's."""
    return _process_name or os.path.basename(sys.argv[0] or "python") or "python"


def to_wire(error: BaseException, route: str, depth: int = 0) -> dict[str, object]:
    """Return an error as a wire value; this process and `route` are added to its provenance."""
    if isinstance(error, BaseExceptionGroup):
        leaves = cast("BaseExceptionGroup[BaseException]", error)
        rest = leaves.split(trio.Cancelled)[1]
        if rest is None:
            return {"code": ErrorCode.CANCELLED.value, "message": "the call was cancelled"}
        if len(rest.exceptions) == 1:
            return to_wire(rest.exceptions[0], route, depth)
        if depth >= DEPTH:
            return {"code": ErrorCode.UNKNOWN.value, "message": _text(rest.message)}
        return {
            "code": ErrorCode.UNKNOWN.value,
            "message": _text(rest.message),
            "group": [to_wire(leaf, route, depth + 1) for leaf in rest.exceptions[:WIDTH]],
        }
    if not isinstance(error, ContainerError):
        error = _bug(error, route)
    hops = [*error.provenance, Hop(process=process_name(), pid=os.getpid(), route=route)]
    body: dict[str, object] = {
        "code": error.code.value,
        "message": _text(error.message),
        "hops": [[_text(hop.process), hop.pid, _text(hop.route)] for hop in hops[-DEPTH:]],
    }
    if error.hint is not None:
        body["hint"] = _text(error.hint)
    if error.details:
        body["details"] = _plain(error.details)
    cause = error.__cause__
    if isinstance(cause, ContainerError) and depth < DEPTH:
        body["cause"] = to_wire(cause, route, depth + 1)
    return body


def _bug(error: BaseException, route: str) -> InternalError:
    number = uuid.uuid4().hex[:12]
    logger.error("bug %s in %s", number, route, exc_info=error, extra={"bug": number})
    return InternalError(
        f"{route} failed in {process_name()}: a bug ({type(error).__name__})",
        hint=f"the log of {process_name()} has the traceback under {number}",
        details={"id": number},
    )


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
            return ExceptionGroup(message, leaves)
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
    error = cls(message, **fields)
    for hop in hops:
        error.add_note(f"in {hop.process} (pid {hop.pid}), {hop.route}")
    cause = body.get("cause")
    if isinstance(cause, dict) and depth < DEPTH:
        error.__cause__ = from_wire(cast("dict[str, Any]", cause), depth + 1)
    return error


def _named(details: object) -> dict[str, object] | None:
    if not isinstance(details, dict):
        return None
    return {str(key): value for key, value in cast("dict[object, object]", details).items()}
