"""Measurements of this project beside its peers: `scripts/bench`, or `python -m benchmarks`.

A figure is a ratio of medians over interleaved rounds (A B A B ...), so that a change of the
machine's mood meets both sides. What is *not* here: absolute promises; compare only within one run.
"""

from __future__ import annotations
