"""Services in child processes that cannot outlive the block that made them.

`spawn` starts one, `spawn_pool` as many as there is work for, `open_zygote` a process to fork them
from.
"""

from __future__ import annotations
