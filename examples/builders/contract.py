"""What a builder says: build one folder, and tell how far it is."""

from __future__ import annotations

from abc import abstractmethod

from attrs import frozen
from trio.abc import SendChannel

from container.ipc import Contract


@frozen
class Progress:
    """One step of a build."""

    done: int
    total: int
    name: str
    """The module that was built last."""


@frozen
class Built:
    """What a build left."""

    modules: int
    size: int
    """Bytes of all that was written."""


class Builder(Contract, name="builder"):
    """Compile Python modules to bytecode."""

    @abstractmethod
    async def build(self, source: str, target: str, progress: SendChannel[Progress]) -> Built:
        """Compile each module in a folder into another; InvalidArgument names what can't be."""
