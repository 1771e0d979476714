"""What each process promises: one module per process, the attrs models beside its contract."""

from __future__ import annotations
