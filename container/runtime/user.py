"""Who a container's process runs as: `name[:group]` or `uid[:gid]` in the container's own files.

`/etc/passwd` and `/etc/group` are read through the container's root, never the host's.
"""

from __future__ import annotations

from attrs import field, frozen

from container.ipc import InvalidArgument, NotFound
from container.runtime.inside import InsideRoot

_ID_MAX = 2**32 - 2
"""-1 as an unsigned number means "leave it" to chown(2) and setuid(2)."""


@frozen
class User:
    """A resolved user."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = field(default=())
    home: str = "/"


@frozen
class _Passwd:
    name: str
    uid: int
    gid: int
    home: str


@frozen
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(text: str, root: InsideRoot) -> User:
    """Resolve a user as the image or the command line names it; empty is root.

    Supplementary groups come from the group file if no group was named.

    Raises:
        NotFound: a name that the container does not know.
        InvalidArgument: a number that is no id.
    """
    user_text, colon, group_text = text.partition(":")
    users = _users(root)
    groups = _groups(root)
    wanted = user_text or "0"
    known = next((user for user in users if user.name == wanted), None)
    if known is None and _is_number(wanted):
        uid = _number(wanted, text)
        known = next((user for user in users if user.uid == uid), None)
        if known is None:
            known = _Passwd(name="", uid=uid, gid=0, home="/")
    if known is None:
        raise NotFound(
            f"the container has no user {user_text!r}",
            hint="use a name of its /etc/passwd, or a number",
        )
    if colon and group_text:
        gid = _group(group_text, groups, text)
        return User(known.uid, gid, (), known.home)
    additional = tuple(sorted({g.gid for g in groups if known.name and known.name in g.members}))
    return User(known.uid, known.gid, additional, known.home)


def _group(name: str, groups: tuple[_Group, ...], text: str) -> int:
    for group in groups:
        if group.name == name:
            return group.gid
    if _is_number(name):
        return _number(name, text)
    raise NotFound(
        f"the container has no group {name!r}", hint="use a name of its /etc/group, or a number"
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, whole: str) -> int:
    # The bound on digits comes first: int() of a very long text is refused by Python itself.
    if len(text) > 10 or int(text) > _ID_MAX:
        raise InvalidArgument(f"user {whole!r}: {text} is no user or group id")
    return int(text)


def _lines(text: str) -> list[list[str]]:
    return [line.split(":") for line in text.splitlines() if line and not line.startswith("#")]


def _users(root: InsideRoot) -> tuple[_Passwd, ...]:
    return tuple(
        _Passwd(parts[0], int(parts[2]), int(parts[3]), parts[5] or "/")
        for parts in _lines(root.read_text("/etc/passwd"))
        if len(parts) >= 6 and _is_id(parts[2]) and _is_id(parts[3])
    )


def _groups(root: InsideRoot) -> tuple[_Group, ...]:
    return tuple(
        _Group(parts[0], int(parts[2]), tuple(filter(None, parts[3].split(","))))
        for parts in _lines(root.read_text("/etc/group"))
        if len(parts) >= 4 and _is_id(parts[2])
    )


def _is_id(text: str) -> bool:
    return _is_number(text) and len(text) <= 10 and int(text) <= _ID_MAX
