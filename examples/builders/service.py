"""The builder of each worker. It computes, and blocks its process: the pool has others."""

from __future__ import annotations

import marshal
from pathlib import Path

from contract import Builder, Built, Progress
from trio.abc import SendChannel

from container.ipc import InvalidArgument


class BuilderService(Builder):
    """Compiles one folder at a time."""

    async def build(self, source: str, target: str, progress: SendChannel[Progress]) -> Built:
        modules = modules_of(source)
        size = 0
        for done, module in enumerate(modules, start=1):
            size += translate(module, Path(target))
            # Waits if nobody reads, and is where a cancelled build ends.
            await progress.send(Progress(done, len(modules), module.name))
        return Built(len(modules), size)


def modules_of(folder: str) -> list[Path]:
    """Return the modules of a folder in their order."""
    return sorted(Path(folder).glob("*.py"))


def translate(module: Path, target: Path) -> int:
    """Write a module's bytecode into a folder; return how many bytes it has."""
    try:
        code = compile(module.read_bytes(), module.name, "exec", optimize=2)
    except SyntaxError as error:
        raise InvalidArgument(f"{module.name}, line {error.lineno}: {error.msg}") from error
    target.mkdir(parents=True, exist_ok=True)
    return (target / f"{module.stem}.code").write_bytes(marshal.dumps(code))
