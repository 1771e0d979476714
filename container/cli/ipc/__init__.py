"""`container ipc`: look at a running service, and call it without its classes."""

from __future__ import annotations
