"""The pytest plugin: the whole system as a fixture, in the test's own process.

```python
async def test_a_job_fails(container_system, autojump_clock):
    await container_system.add_image("job")
    async with container_system.run("job", ["false"]) as c:
        assert (await c.wait()).code == 1
```

It needs pytest-trio. A test that names `autojump_clock` too waits for nothing; pytest-trio wants
the clock named by the test itself. pytest loads this module in every run of every project that has
`container` installed: it imports nothing else until a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from container.testing.in_process import System


@pytest.fixture
async def container_system() -> AsyncGenerator[System]:
    """A container system in this process, with played containers and no image; see `System`."""
    from container.testing.in_process import system

    async with system() as opened:
        yield opened
