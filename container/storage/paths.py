"""Where state and sockets live: one root and one run directory per system.

For root the root is `/var/lib/container` and the run directory `/run/container`; for another user
`$XDG_DATA_HOME/container` and `$XDG_RUNTIME_DIR/container`. `CONTAINER_ROOT` and `CONTAINER_RUN`
override them. The run directory is short, since a socket's path has at most 107 bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen


@frozen
class Paths:
    """The folders and sockets of one system."""

    root: Path
    """State that survives a reboot."""
    run: Path
    """Sockets and locks: mode 0700, gone at reboot."""

    @classmethod
    def default(cls) -> Paths:
        """Return the paths of this user's system, environment overrides applied."""
        uid = os.geteuid()
        home = Path(os.environ.get("HOME") or "/")
        if uid == 0:
            root, run = Path("/var/lib/container"), Path("/run/container")
        else:
            data = os.environ.get("XDG_DATA_HOME") or home / ".local/share"
            runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/container-{uid}"
            root, run = Path(data) / "container", Path(runtime) / "container"
        return cls(
            root=Path(os.environ.get("CONTAINER_ROOT") or root).absolute(),
            run=Path(os.environ.get("CONTAINER_RUN") or run).absolute(),
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that make a child process use these paths."""
        return {"CONTAINER_ROOT": str(self.root), "CONTAINER_RUN": str(self.run)}

    @property
    def images(self) -> Path:
        """Content store and snapshots, of the images helper alone."""
        return self.root / "images"

    @property
    def containers(self) -> Path:
        """One folder per container: `container.json` of the API server, `bundle/` and `log/` of
        its helper."""
        return self.root / "containers"

    @property
    def networks(self) -> Path:
        """One folder per network, by id: `network.json` of the API server, `configuration.json`
        for the helper, and the helper's own state."""
        return self.root / "networks"

    @property
    def volumes(self) -> Path:
        """One folder per volume: `volume.json` of the API server, and what the driver keeps."""
        return self.root / "volumes"

    @property
    def logs(self) -> Path:
        """One log per process, JSON lines."""
        return self.root / "logs"

    @property
    def launcher_socket(self) -> Path:
        """Where the launcher serves `Launcher`."""
        return self.run / "launcher.sock"

    @property
    def apiserver_socket(self) -> Path:
        """Where the API server serves `Containers`, `Plugins` and `Health`."""
        return self.run / "apiserver.sock"

    @property
    def images_socket(self) -> Path:
        """Where the images helper serves `Images`."""
        return self.run / "images.sock"

    @property
    def cli_socket(self) -> Path:
        """Where the zygote serves command lines of the same user."""
        return self.run / "cli.sock"

    def runtime_socket(self, container_id: str) -> Path:
        """Where a runtime helper serves `SandboxGate`."""
        return self.run / "runtime" / f"{container_id}.sock"

    def network_socket(self, network_id: str) -> Path:
        """Where a network helper serves `Network`."""
        return self.run / "network" / f"{network_id}.sock"

    def volume_socket(self, driver: str) -> Path:
        """Where the helper of a volume driver serves `VolumeDriver`."""
        return self.run / "volume" / f"{driver}.sock"
