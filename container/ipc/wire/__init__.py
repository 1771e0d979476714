"""The wire, without I/O: bytes and descriptors in, events out; no socket, no clock."""

from __future__ import annotations

from container.ipc.wire.frames import Kind as Kind
from container.ipc.wire.limits import Limits as Limits
from container.ipc.wire.machine import Machine as Machine
from container.ipc.wire.machine import ProtocolError as ProtocolError
