"""The errors of a contract: values that cross processes, one class per code.

The code says what the caller can do, the message is for the person, the hint says what to do next,
details are for programs. Each hop an error crosses is added to its provenance. A cause chain and
exception groups travel too; a pickle never does. What is *not* here: bugs. An exception that is no
`ContainerError` becomes `InternalError` with an id that finds its traceback in the callee's log.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import frozen


class ErrorCode(enum.Enum):
    """What the caller can do about an error."""

    UNKNOWN = "unknown"
    INVALID_ARGUMENT = "invalid-argument"
    NOT_FOUND = "not-found"
    ALREADY_EXISTS = "already-exists"
    INVALID_STATE = "invalid-state"
    PERMISSION_DENIED = "permission-denied"
    UNSUPPORTED = "unsupported"
    UNKNOWN_ROUTE = "unknown-route"
    INCOMPATIBLE = "incompatible"
    UNAVAILABLE = "unavailable"
    OVERLOADED = "overloaded"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    PEER_GONE = "peer-gone"
    DATA_LOSS = "data-loss"
    INTERNAL = "internal"


@frozen
class Hop:
    """One process that an error crossed on its way to the caller."""

    process: str
    """Name of the process, as in its logs: `container-apiserver`."""
    pid: int
    route: str
    """`contract/method` that failed there."""


class ContainerError(Exception):
    """Base of all errors that a contract can carry.

    A service may have classes of its own, each with a wire name:

    ```python
    class LeaseTaken(AlreadyExists, name="leases.taken"): ...
    ```

    It arrives as that class at a caller that has imported it, and as the class of its code at
    others, which pass the name on. What travels is what the base has: other values of such a class
    belong in `details`, since its constructor is not called where it arrives. A subclass without a
    name travels as what it is derived from.

    Args:
        message: One sentence for the person, in the person's own words.
        hint: What to do next, or None.
        details: Values for programs: str, int, float, bool, None, and lists and dicts of them.

    Class arguments:
        name: The wire name; lower-case words joined by `-` or `.`, one class each.
    """

    code: ClassVar[ErrorCode] = ErrorCode.UNKNOWN
    error_type: str = ""
    """The wire name of its class; of one that arrived, also if the class is not known here."""

    def __init_subclass__(cls, *, name: str | None = None, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if name is None:
            return
        if not name.replace("-", "").replace(".", "").isalnum() or name != name.lower():
            raise TypeError(f"error name {name!r} is not lower-case words joined by - or .")
        known = ERROR_TYPES.get(name)
        if known is not None and _place(known) != _place(cls):
            raise TypeError(f"error name {name!r} is that of {known.__qualname__} already")
        cls.error_type = name
        ERROR_TYPES[name] = cls

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        details: Mapping[str, object] | None = None,
        provenance: tuple[Hop, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details: dict[str, object] = dict(details or {})
        self.provenance = provenance


ERROR_TYPES: dict[str, type[ContainerError]] = {}
"""The classes that have wire names."""


def _place(cls: type) -> tuple[str, str]:
    # A module that is loaded again makes its classes again.
    return cls.__module__, cls.__qualname__


class InvalidArgument(ContainerError):
    """The request itself is wrong: change it."""

    code = ErrorCode.INVALID_ARGUMENT


class NotFound(ContainerError):
    """What was named does not exist."""

    code = ErrorCode.NOT_FOUND


class AlreadyExists(ContainerError):
    """The name is taken."""

    code = ErrorCode.ALREADY_EXISTS


class InvalidState(ContainerError):
    """Right request, wrong moment: the thing is in a state that does not allow it."""

    code = ErrorCode.INVALID_STATE


class PermissionDenied(ContainerError):
    """The policy did not admit the sender."""

    code = ErrorCode.PERMISSION_DENIED


class Unsupported(ContainerError):
    """This machine or this version cannot do it."""

    code = ErrorCode.UNSUPPORTED


class UnknownRoute(ContainerError):
    """The server has no such route: it may be of another version."""

    code = ErrorCode.UNKNOWN_ROUTE


class Incompatible(ContainerError):
    """Both sides work, but do not understand each other: versions or types differ."""

    code = ErrorCode.INCOMPATIBLE


class Unavailable(ContainerError):
    """The service is not up, or is going down: try again later."""

    code = ErrorCode.UNAVAILABLE


class ScopeEnded(Unavailable, name="scope-ended"):
    """The callee ended a scope while it was held."""


class HolderFailed(Exception):
    """Raised in a scope's body, at its `yield`, when its holder's block failed; never travels."""


class Overloaded(ContainerError):
    """A limit was reached; nothing was done: try again with less."""

    code = ErrorCode.OVERLOADED


class CallCancelled(ContainerError):
    """The work was cancelled by somebody other than this caller."""

    code = ErrorCode.CANCELLED


class DeadlineExceeded(ContainerError):
    """The deadline passed before the work was done."""

    code = ErrorCode.DEADLINE


class DataLoss(ContainerError):
    """Stored or sent data is broken: a digest does not match, a document is torn."""

    code = ErrorCode.DATA_LOSS


class InternalError(ContainerError):
    """A bug in the callee; `details["id"]` finds its traceback in the callee's log."""

    code = ErrorCode.INTERNAL


class Fate(enum.Enum):
    """What is known of a call whose peer is gone."""

    NOT_SENT = "not-sent"
    """Fewer than all bytes reached the kernel, or the peer won't start it: safe to retry."""
    UNKNOWN = "unknown"
    """It was sent; whether it ran is not known."""
    REFUSED = "refused"
    """The connection was not admitted, or nobody listens: nothing was done."""


class PeerGone(ContainerError):
    """The connection ended before the call did.

    `fate` says whether the call may have run, `why` how the peer went: closed, died, unresponsive,
    protocol.
    """

    code = ErrorCode.PEER_GONE

    def __init__(
        self,
        message: str,
        *,
        fate: Fate = Fate.UNKNOWN,
        why: str = "closed",
        hint: str | None = None,
        details: Mapping[str, object] | None = None,
        provenance: tuple[Hop, ...] = (),
    ) -> None:
        merged = {"fate": fate.value, "why": why, **(details or {})}
        super().__init__(message, hint=hint, details=merged, provenance=provenance)
        self.fate = fate
        self.why = why


ERROR_CLASSES: dict[ErrorCode, type[ContainerError]] = {
    cls.code: cls
    for cls in (
        ContainerError,
        InvalidArgument,
        NotFound,
        AlreadyExists,
        InvalidState,
        PermissionDenied,
        Unsupported,
        UnknownRoute,
        Incompatible,
        Unavailable,
        Overloaded,
        CallCancelled,
        DeadlineExceeded,
        DataLoss,
        InternalError,
        PeerGone,
    )
}
"""The class of each code; an unknown code arrives as `ContainerError`."""
