"""Tests of what is spoken with `container.ipc`, for our transports and for those of others.

`PROMISES` are checked over any transport; `FaultyTransport` lets things go wrong on one;
`no_leaks` counts what is open; `every_checkpoint` cancels an operation wherever it can be.
See `docs/how-to/conformance.md`.
"""

from __future__ import annotations

# Each of these adds to PROMISES.
from container.ipc.testing import promised_calls as promised_calls
from container.ipc.testing import promised_channels as promised_channels
from container.ipc.testing import promised_descriptors as promised_descriptors
from container.ipc.testing import promised_scopes as promised_scopes
from container.ipc.testing.checkpoints import Attempt as Attempt
from container.ipc.testing.checkpoints import every_checkpoint as every_checkpoint
from container.ipc.testing.faults import Faults as Faults
from container.ipc.testing.faults import FaultyTransport as FaultyTransport
from container.ipc.testing.leaks import LeakFound as LeakFound
from container.ipc.testing.leaks import no_leaks as no_leaks
from container.ipc.testing.promises import PROMISES as PROMISES
from container.ipc.testing.promises import Link as Link
from container.ipc.testing.promises import Pair as Pair
from container.ipc.testing.promises import Promise as Promise
from container.ipc.testing.promises import Reach as Reach
from container.ipc.testing.promises import over_pair as over_pair
