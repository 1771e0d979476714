"""The pytest plugin: the whole system as a fixture, in the test's own process.

pytest loads this module in every run of every project that has `container` installed: it imports
nothing else until a test asks for the fixture.
"""

from __future__ import annotations
