"""The terminal: `container`, one verb per file, rendering and exit statuses.

What is *not* here: state, and any knowledge of how containers run. A verb parses, calls a contract
and renders. Modules of this package import no Trio and no framework at import time, so that help,
version and completion answer at once and without any daemon.
"""

from __future__ import annotations
