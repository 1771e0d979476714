"""`Malformed`: what came does not have the form that it must have, as opposed to the wrong digest.

Who knows where it came from turns it into an error about that: a corrupt archive is the caller's
(`InvalidArgument`), a corrupt answer of a registry is the registry's (`DataLoss`, as it is).
"""

from __future__ import annotations

from container.ipc import DataLoss


class Malformed(DataLoss):
    """A document or a tar that can't be read."""
