"""One module a peer: an echo of a string and a number, written as the peer's manual has it."""

from __future__ import annotations
