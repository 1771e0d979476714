"""A system's folders with an image and a container, made without any process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from container.apiserver.store import ContainerStore
from container.audit import Finding, audit
from container.contracts.apiserver import Container, ContainerStatus
from container.contracts.images import Platform
from container.contracts.runtime import ProcessSpec, Resources
from container.images.service import ImagesService
from container.storage.paths import Paths
from tests.images.conftest import load, small_layout

ID = "0123456789ab"


@pytest.fixture
def paths() -> Iterator[Paths]:
    """Folders of a system that does not run."""
    folder = Path(tempfile.mkdtemp(prefix="ca-", dir="/tmp"))
    made = Paths(folder / "root", folder / "run")
    made.root.mkdir(mode=0o700)
    made.run.mkdir(mode=0o700)
    yield made
    shutil.rmtree(folder)


def container(digest: str, container_id: str = ID) -> Container:
    """Return a container that was created and never started."""
    return Container(
        id=container_id,
        name=f"name-{container_id[:4]}",
        image="localhost/demo:latest",
        image_digest=digest,
        platform=Platform("linux", "amd64"),
        status=ContainerStatus.CREATED,
        created_at=datetime.now(UTC),
        process=ProcessSpec(arguments=("true",)),
        resources=Resources(),
        mounts=(),
        network="none",
        hostname="demo",
        labels={},
        auto_remove=False,
        keep_log=True,
        read_only_root=False,
        stop_signal="SIGTERM",
    )


@pytest.fixture
async def system(paths: Paths, tmp_path: Path) -> Paths:
    """A system at rest with the image `demo` and a container of it."""
    async with ImagesService(paths.images) as images:
        await load(images, small_layout(tmp_path / "layout"))
        snapshot = await images.prepare("demo", ID)
    store = ContainerStore(paths.containers)
    store.create(container(snapshot.image.manifest_digest))
    store.save_layers(ID, snapshot.layers)
    return paths


async def found(paths: Paths, **options: object) -> dict[str, Finding]:
    """Audit at once; return the findings by kind."""
    report = await audit(paths, settle=0, **options)  # type: ignore[arg-type]
    kinds = {finding.kind.value: finding for finding in report.findings}
    assert len(kinds) == len(report.findings), report.findings
    return kinds
