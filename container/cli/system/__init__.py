"""The verbs of the system itself, one per file."""

from __future__ import annotations
