"""Build folders at once, one a process: `python client.py TARGET FOLDER...`."""

from __future__ import annotations

import sys
from pathlib import Path

import trio
from contract import Builder, Progress
from service import BuilderService
from trio.abc import ReceiveChannel

from container.ipc import ContainerError, open_channel, spawn_pool


async def show(folder: str, steps: ReceiveChannel[Progress]) -> None:
    """Print each step, until the build has ended."""
    async for step in steps:
        print(f"{folder}: {step.done}/{step.total} {step.name}", flush=True)


async def build(builders: Builder, target: Path, folder: str) -> None:
    """Build one folder by whichever worker is free."""
    sending, receiving = open_channel(Progress, capacity=16)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(show, folder, receiving)
        try:
            built = await builders.build(folder, str(target / Path(folder).name), sending)
            end = f"{built.modules} modules built"
        except ContainerError as error:  # a broken module, or a worker that was killed
            end = f"{type(error).__name__}: {error}"
    print(f"{folder}: {end}", flush=True)


async def main(target: str, *folders: str) -> None:
    """Build all; Ctrl-C ends the builds and their processes."""
    async with (
        spawn_pool(Builder, BuilderService, workers=2) as builders,
        trio.open_nursery() as nursery,
    ):
        for folder in folders:
            nursery.start_soon(build, builders, Path(target), folder)


if __name__ == "__main__":
    try:
        trio.run(main, *sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(130)
