"""One image, for the command line's tests."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from container.contracts.images import (
    DeletedImage,
    Image,
    ImageConfig,
    Images,
    ImageSummary,
    Platform,
    Scheme,
)
from container.ipc import Fd, NotFound

LINUX = Platform("linux", "amd64")
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

SUMMARY = ImageSummary(
    reference="docker.io/library/demo:latest",
    name="demo",
    tag="latest",
    digest="sha256:0123456789abcdef" + "0" * 48,
    size=12_345_678,
    created=WHEN,
    platforms=(LINUX,),
)


class FakeImages(Images):
    """One image, `demo`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def list(self) -> tuple[ImageSummary, ...]:
        return (SUMMARY,)

    async def get(self, reference: str, platform: Platform | None = None) -> Image:
        self.calls.append(("get", reference, platform))
        if reference != "demo":
            raise NotFound(f'no image "{reference}"', hint='did you mean "demo"?')
        return Image(SUMMARY, LINUX, "sha256:m", "sha256:c", ImageConfig(command=("sh",)), ())

    async def pull(
        self, reference: str, platform: Platform | None = None, scheme: Scheme = Scheme.AUTO
    ) -> ImageSummary:
        self.calls.append(("pull", reference, platform, scheme))
        return SUMMARY

    async def load(
        self, archive: Fd, name: str | None = None, source: str | None = None
    ) -> tuple[ImageSummary, ...]:
        self.calls.append(("load", os.fstat(archive.fileno()).st_ino, name, source))
        return (SUMMARY,)

    async def tag(self, source: str, target: str) -> ImageSummary:
        self.calls.append(("tag", source, target))
        return SUMMARY

    async def delete(self, reference: str, force: bool = False) -> DeletedImage:
        self.calls.append(("delete", reference, force))
        return DeletedImage(SUMMARY.reference, 10)

    async def sweep(self) -> int:
        return 0

    async def _never(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    prepare = release = usage = prune = _never
