"""A bundle for running `runc` by itself: the configuration that ours gives it, and a plain root."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from benchmarks.system import IMAGE, System
from benchmarks.worker import PeerUnavailable


@frozen
class Bundle:
    """A folder that `runc run` takes."""

    path: Path
    state: Path

    def argv(self, name: str) -> list[str]:
        """Return the command line that runs a container of this bundle to its end."""
        return self.runc("run", "--bundle", str(self.path), name)

    def runc(self, *arguments: str) -> list[str]:
        """Return a command line of runc, its state in a folder of its own."""
        return ["runc", "--root", str(self.state), *arguments]


def write_bundle(system: System, arguments: Sequence[str]) -> Bundle:
    """Write a bundle with the configuration of a container of ours, and another command.

    Namespaces, capabilities, seccomp and mounts are the same; the root is a plain directory where
    ours is an overlay, so that a mount and an unmount are on our side of the scales alone.
    """
    if shutil.which("runc") is None:
        raise PeerUnavailable("runc is not installed")
    container = system.call("run", "--detach", "--network", "none", IMAGE, "sleep", "60")
    try:
        found = sorted((system.folder / "root" / "containers").glob("*/bundle/**/config.json"))
        if not found:
            raise PeerUnavailable("the bundle of a running container was not found")
        configuration: dict[str, Any] = json.loads(found[0].read_text())
        folder = system.folder / "bundle"
        folder.mkdir()
        for mount in configuration["mounts"]:
            source = Path(mount.get("source", ""))
            if source.is_relative_to(found[0].parent):
                mount["source"] = shutil.copy(source, folder)
    finally:
        system.call("rm", "--force", container)
    root = folder / "rootfs"
    root.mkdir()
    _unpack(system.layout, root)
    configuration["root"] = {"path": "rootfs", "readonly": False}
    configuration["process"]["args"] = list(arguments)
    configuration["process"]["terminal"] = False
    configuration.pop("hooks", None)
    for namespace in configuration["linux"]["namespaces"]:
        # Ours is the runtime helper's, and gone with the container; runc makes one for each.
        namespace.pop("path", None)
    configuration["linux"]["cgroupsPath"] = "/bench-runc"
    (folder / "config.json").write_text(json.dumps(configuration))
    return Bundle(path=folder, state=system.folder / "runc")


def _unpack(layout: Path, root: Path) -> None:
    def blob(descriptor: dict[str, Any]) -> Path:
        return layout / "blobs" / descriptor["digest"].replace(":", "/")

    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(index["manifests"][0]).read_text())
    for layer in manifest["layers"]:
        subprocess.run(["tar", "-xzf", blob(layer), "-C", root], check=True)
