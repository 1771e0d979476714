"""What a container has received and sent is told by its interfaces, without loopback."""

from __future__ import annotations

import os
from pathlib import Path

from container.runtime.traffic import traffic

DEV = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:     100       1    0    0    0     0          0         0      100       1    0    0
  eth0:    1000      10    0    0    0     0          0         0     2000      20    0    0
  eth1:5       1    0    0    0     0          0         0     7       1    0    0
"""


def test_interfaces_are_summed_up_without_loopback(tmp_path: Path) -> None:
    (tmp_path / "7" / "net").mkdir(parents=True)
    (tmp_path / "7" / "net" / "dev").write_text(DEV)
    assert traffic(7, tmp_path) == (1005, 2007)


def test_a_process_that_is_gone_has_none(tmp_path: Path) -> None:
    assert traffic(8, tmp_path) is None


def test_this_kernels_counters_can_be_read() -> None:
    found = traffic(os.getpid())
    assert found is not None
    assert min(found) >= 0
