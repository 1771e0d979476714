"""The verbs of the top level, one per file: parse, call, render."""

from __future__ import annotations
