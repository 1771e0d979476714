"""How much is measured: what the command line may change, with its defaults."""

from __future__ import annotations

from attrs import frozen


@frozen
class Options:
    """Sizes and numbers of rounds."""

    rounds: int = 30
    fewer: int = 1
    """A round of `ipc.call.*` and `ipc.cancel.*` has so many times fewer calls."""
    log_rounds: int = 5
    """Of `stdio.log.*`: each moves the size twice, to disk once."""
    size: int = 4096
    """MiB of `stdio.*`."""
    channel_items: int = 10_000
    """Small items of a round."""
    channel_size: int = 1024
    """MiB of a round of `ipc.channel.bytes*`."""
    idle_rounds: int = 5
    """Each starts both servers afresh: memory that was used once is not given back."""
    idle_connections: int = 5000
    memory_calls: int = 100_000
    """Of `ipc.memory.*`; a tenth as many more are cancelled, and a tenth carry a descriptor."""
    containers: int = 50
    """That run while parts of the system are killed."""
    fault_rounds: int = 15
    """Of `heal.*` and `wedged.*`."""
    held_containers: int = 200


FULL_MEMORY_CALLS = 1_000_000
SMOKE = Options(
    rounds=2,
    fewer=10,
    log_rounds=1,
    size=16,
    channel_items=200,
    channel_size=8,
    idle_rounds=1,
    idle_connections=50,
    memory_calls=1000,
    containers=3,
    fault_rounds=1,
    held_containers=4,
)
"""Shows that a row can be measured, and says nothing else."""
