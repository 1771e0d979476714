"""The audit: what a system has on disk and in the kernel, against what it should have.

`audit` looks and changes nothing; `repair` does for one finding what is safe. This package is at
the level of the processes and imports none of them: it knows the forms on disk, the contracts, and
the kernel's own word.
"""

from __future__ import annotations

from container.audit.auditing import SETTLE_SECONDS, audit
from container.audit.finding import Finding, Kind, Remedy, Report
from container.audit.repairing import repair

__all__ = ["SETTLE_SECONDS", "Finding", "Kind", "Remedy", "Report", "audit", "repair"]
