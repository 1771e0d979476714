"""The public socket of a runtime helper: one route, which hands out private endpoints."""

from __future__ import annotations

from container.contracts.runtime import Sandbox, SandboxGate
from container.ipc import Gate


class RuntimeGate(Gate[Sandbox], SandboxGate):
    """Hand out endpoints of a container's sandbox: `RuntimeGate(Sandbox, service)`."""
