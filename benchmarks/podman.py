"""podman as a peer, with storage of its own: the user's podman is neither read nor changed."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from benchmarks.worker import PeerUnavailable


@frozen
class Podman:
    """A podman that works in one folder."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def call(self, *arguments: str) -> str:
        """Run a podman command to its end and return what it printed."""
        done = subprocess.run(
            self.argv(*arguments), env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PeerUnavailable(f"podman {arguments[0]}: {done.stderr.strip().splitlines()[-1]}")
        return done.stdout.strip()

    def argv(self, *arguments: str) -> list[str]:
        """Return the whole command line."""
        return [*self.command, *arguments]


@contextmanager
def open_podman(layout: Path, image: str, within: str | None = None) -> Generator[Podman]:
    """Hold a podman whose only image is `image`, taken from an OCI layout directory.

    All of its state is in a folder within `within`, or the temporary folder.

    Raises:
        PeerUnavailable: it is not installed, or does not work here.
    """
    program = shutil.which("podman")
    if program is None:
        raise PeerUnavailable("podman is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-podman-", dir=within) as folder:
        configuration = Path(folder) / "containers.conf"
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # Its defaults raise limits, which a machine without CAP_SYS_RESOURCE refuses; and its
        # cgroup manager is systemd's, which need not be there.
        configuration.write_text(
            f'[containers]\ndefault_ulimits=["nofile={files}:{files}","nproc=4096:4096"]\n'
            '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\nruntime="runc"\n'
        )
        podman = Podman(
            command=(program, "--root", f"{folder}/root", "--runroot", f"{folder}/run"),
            environment={**os.environ, "CONTAINERS_CONF": str(configuration)},
        )
        try:
            loaded = podman.call("pull", "--quiet", f"oci:{layout}")
            podman.call("tag", loaded, image)
            yield podman
        finally:
            for arguments in (
                ("rm", "--all", "--force", "--time", "0"),
                ("rmi", "--all", "--force"),
            ):
                subprocess.run(
                    podman.argv(*arguments),
                    env=podman.environment,
                    capture_output=True,
                    check=False,
                )
            # podman leaves its own bind mount of the storage folder behind.
            subprocess.run(
                ["umount", "--lazy", f"{folder}/root/overlay"], capture_output=True, check=False
            )
