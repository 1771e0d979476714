"""What an audit says: findings, each with its subject, what is wrong, and the remedy."""

from __future__ import annotations

import enum

from attrs import field, frozen


class Kind(enum.Enum):
    """What is wrong, in one word. Documented for people in docs/how-to/check.md."""

    BROKEN = "broken"
    """A document that can't be read."""
    ASIDE = "set-aside"
    """Something that was broken and was set aside."""
    LEFTOVER = "leftover"
    """Half of something that was being made or removed."""
    REMOVAL = "removal"
    """A container whose removal was begun and not finished."""
    STRANGER = "stranger"
    """A thing that is nothing of ours, among ours."""
    STATUS = "status"
    """A container that runs and is said not to, or the other way."""
    RUN = "run"
    """State of a run that is over."""
    HELPER = "helper"
    """A container that runs without its runtime helper."""
    PROCESS = "process"
    """A process of ours that belongs to nothing."""
    SERVICE = "service"
    """A service that failed or does not answer."""
    CGROUP = "cgroup"
    MOUNT = "mount"
    SOCKET = "socket"
    """A socket behind which nobody listens, or of no container."""
    LEASE = "lease"
    """A hold on an image without its container, or a container without one."""
    BLOB = "blob"
    """Missing, or of the wrong digest."""
    UNNEEDED = "unneeded"
    """A blob or snapshot that nothing needs."""
    VOLUME = "volume"
    """A volume without its data, or a container without its volume."""
    LAYER = "layer"
    """A container's layer that is not there."""
    INTERFACE = "interface"
    """A network interface of ours that belongs to nothing."""
    ADDRESS = "address"
    """An address that is held, and by nobody who could use it."""
    RULES = "rules"
    """Firewall rules of a network that is not there."""


class Remedy(enum.Enum):
    """What `repair` does about a finding."""

    PERSON = "person"
    """Nothing: a person must decide."""
    START = "start"
    """Nothing: the next start of the system, or the running one in a moment, does it."""
    REMOVE = "remove"
    """Remove a file or folder that was never acknowledged."""
    KILL = "kill"
    """Kill a process that belongs to nothing."""
    UNMOUNT = "unmount"
    REMOVE_GROUP = "remove-group"
    """Remove an empty control group."""
    RELEASE = "release"
    """Release a hold of a container that is gone."""
    HOLD = "hold"
    """Have a container's image prepared again."""
    SWEEP = "sweep"
    """Have the images helper remove what nothing needs."""
    SET_ASIDE = "set-aside"
    """Take a changed blob out of the store, and keep it."""
    AWAKEN = "awaken"
    """Start a container's helper, which takes it up."""
    DISMISS = "dismiss"
    """Have the launcher end a helper of no container."""
    UNPLUG = "unplug"
    """Remove bridge, ports and rules of a network that is gone."""


@frozen
class Finding:
    """One thing that is wrong."""

    kind: Kind
    subject: str
    """A path, a process, a container, a digest."""
    what: str
    """One sentence: what is wrong."""
    remedy: str
    """One sentence: what `--repair` would do, or what a person must."""
    action: Remedy = Remedy.PERSON
    target: str = ""
    """What the action is done to, where the subject does not say: a path, a digest, an id."""
    pid: int = 0
    started: int = 0
    """Of the process: with `pid` it names one process for ever."""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same finding in a second look."""
        return self.kind.value, self.subject


@frozen
class Report:
    """What an audit found."""

    running: bool
    """Whether the system runs: its launcher holds the lock."""
    findings: tuple[Finding, ...]
    looked_at: dict[str, int] = field(factory=dict[str, int])
    """How many things of each sort were looked at."""
    deep: bool = False
    """Whether the bytes of all blobs were read."""

    @property
    def clean(self) -> bool:
        """True when nothing was found."""
        return not self.findings
