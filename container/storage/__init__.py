"""State on disk: atomic documents, content-addressed blobs, locks, paths."""

from __future__ import annotations
