"""Images made on the machine, a store of them, and folders opened as callers open them."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from container.images.service import ImagesService
from container.ipc import Fd
from container.testing.busybox import Entry, write_layout

SMALL = (
    Entry("etc/", kind=b"5", mode=0o755),
    Entry("etc/name", b"small\n"),
    Entry("bin/", kind=b"5", mode=0o755),
    Entry("bin/run", b"#!/bin/sh\n", 0o755),
)
"""A layer of a few bytes, for tests that run nothing."""


@contextmanager
def opened(path: Path) -> Iterator[Fd]:
    """Open a file or folder as a caller does."""
    with Fd(os.open(path, os.O_RDONLY)) as fd:
        yield fd


def small_layout(folder: Path, name: str = "demo", **options: object) -> Path:
    """Write a layout without busybox."""
    options.setdefault("layers", [SMALL])
    write_layout(folder, name=name, base=False, **options)  # type: ignore[arg-type]
    return folder


async def load(service: ImagesService, path: Path, name: str | None = None) -> str:
    """Load an archive of one image; return its reference."""
    with opened(path) as fd:
        (summary,) = await service.load(fd, name, str(path))
    return summary.reference


def content(folder: Path) -> list[str]:
    """Return what is in a store: blobs, snapshots, holders, what is being made, references."""
    found: list[str] = []
    for part in ("blobs/sha256", "snapshots", "holders", "ingest"):
        found += [f"{part}/{name}" for name in sorted(os.listdir(folder / part))]
    document = folder / "references.json"
    found.append(document.read_text() if document.exists() else "")
    return found


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def service(store_folder: Path) -> AsyncGenerator[ImagesService]:
    async with ImagesService(store_folder) as opened_service:
        yield opened_service


@pytest.fixture(scope="session")
def busybox_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout of Debian's static busybox under the name `demo`."""
    folder = tmp_path_factory.mktemp("busybox") / "layout"
    try:
        write_layout(folder)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return folder
