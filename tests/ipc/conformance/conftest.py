"""Let a promise that is not kept say what it found."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("container.ipc.testing")
