"""Names: what one may look like, where a container's comes from, how one is looked up.

A container or network has an id of 12 hex digits that never changes and a name that is unique. An
argument of a user is first a name, then an id, then a unique prefix of an id: a name is never
hidden by an id.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Collection, Mapping

from container.ipc import InvalidArgument, NotFound

ID_DIGITS = 12
NAME_LENGTH_MAX = 63
"""A name is also a host name's label at most (RFC 1035)."""
NAME_RULE = (
    f"a name has 1 to {NAME_LENGTH_MAX} letters, digits, '_', '.' and '-', "
    "and begins with a letter or digit"
)
_NAME = re.compile(rf"[a-zA-Z0-9][a-zA-Z0-9_.-]{{0,{NAME_LENGTH_MAX - 1}}}")
_LISTS = {
    "container": "`container list` shows all containers",
    "network": "`container network list` shows all networks",
}
_PREFIX = re.compile(rf"[0-9a-f]{{1,{ID_DIGITS}}}")

# fmt: off
_QUALITIES = (
    "able", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "eager",
    "early", "fair", "fast", "fine", "fond", "frank", "free", "fresh", "gentle", "glad", "grand",
    "happy", "keen", "kind", "light", "lively", "lucky", "merry", "mild", "neat", "nimble",
    "noble", "patient", "plain", "proud", "quick", "quiet", "ready", "sharp", "silent", "smooth",
    "snug", "solid", "steady", "still", "swift", "tidy", "true", "warm", "wise",
)
_THINGS = (
    "acorn", "alder", "ash", "aspen", "badger", "beech", "birch", "brook", "cedar", "clover",
    "crane", "delta", "dune", "elm", "falcon", "fern", "finch", "fjord", "fox", "glade", "grove",
    "hare", "hawk", "hazel", "heron", "hill", "iris", "island", "ivy", "juniper", "lake", "larch",
    "lark", "linden", "lynx", "maple", "marten", "meadow", "moss", "oak", "otter", "pine",
    "plover", "poplar", "raven", "reed", "ridge", "river", "robin", "rowan", "sparrow", "spruce",
    "stone", "swallow", "tern", "thistle", "valley", "willow", "wren", "yew",
)
# fmt: on


def new_id(taken: Collection[str]) -> str:
    """Return a random id that is not in `taken`."""
    while True:
        candidate = secrets.token_hex(ID_DIGITS // 2)
        if candidate not in taken:
            return candidate


def new_name(taken: Collection[str]) -> str:
    """Return a readable name that is not in `taken`: `quick-otter`, later `quick-otter-17`."""
    while True:
        candidate = f"{secrets.choice(_QUALITIES)}-{secrets.choice(_THINGS)}"
        if candidate in taken:
            candidate = f"{candidate}-{secrets.randbelow(1000)}"
        if candidate not in taken:
            return candidate


def check_name(name: str, what: str = "container") -> str:
    """Return `name` if it may name a container, or what else it shall name.

    Raises:
        InvalidArgument: it may not; the message says the rule.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"{name!r} can't name a {what}: {NAME_RULE}")
    return name


def resolve(
    argument: str, names: Mapping[str, str], ids: Collection[str], what: str = "container"
) -> str:
    """Return the id of the container, or what else is named, that a user means.

    Args:
        argument: A name, an id, or a unique prefix of an id.
        names: From name to id.
        ids: All ids.
        what: Of what they are.

    Raises:
        NotFound: no such thing; the hint names a close match if there is one.
        InvalidArgument: the prefix fits several.
    """
    if argument in names and names[argument] in ids:
        return names[argument]
    if argument in ids:
        return argument
    if _PREFIX.fullmatch(argument):
        fitting = sorted(known for known in ids if known.startswith(argument))
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            shown = ", ".join(fitting[:5]) + (", ..." if len(fitting) > 5 else "")
            raise InvalidArgument(
                f"{argument!r} is the beginning of {len(fitting)} {what} ids: {shown}",
                hint="give more digits, or the name",
            )
    known = [name for name, owner in names.items() if owner in ids]
    close = difflib.get_close_matches(argument, [*known, *ids], n=1)
    hint = f"did you mean {close[0]!r}?" if close else _LISTS.get(what)
    raise NotFound(f"no {what} {argument!r}", hint=hint)
