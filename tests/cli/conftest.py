"""The command line in this process, over a fake system."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

FAKE = Path(__file__).with_name("fake_system.py")


def _load() -> ModuleType:
    # Test folders are no packages, so a module beside the tests is loaded by its path.
    name = "container_cli_fake_system"
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, FAKE)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return sys.modules[name]


class Said(NamedTuple):
    """What one command line did."""

    status: int
    out: str
    err: str


@pytest.fixture
def fake() -> ModuleType:
    """The module of fakes."""
    return _load()


@pytest.fixture
def fake_program() -> str:
    """The path of a program that is `container` over a fake system."""
    return str(FAKE)


@pytest.fixture
def session(fake: ModuleType) -> Iterator[Any]:
    """A session over fakes; the temporary logs go at the end."""
    session = fake.FakeSession()
    yield session
    for sandbox in session.fake_containers.sandboxes.values():
        for process in sandbox.processes.values():
            process.close()
            if process.popen is not None:
                process.popen.kill()
                process.popen.wait()
            for thread in process.threads:
                thread.join()
        if sandbox.log is not None:
            sandbox.log.folder.cleanup()


@pytest.fixture
def run(session: Any, capfd: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command line."""
    from container.cli.main import main

    def run(*arguments: str) -> Said:
        capfd.readouterr()
        status = main(list(arguments), session)
        return Said(status, *capfd.readouterr())

    return run
