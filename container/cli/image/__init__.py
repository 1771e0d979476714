"""The verbs of images, one per file."""

from __future__ import annotations
