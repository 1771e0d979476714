"""The images helper: content store, registry transport, unpacking, snapshots."""

from __future__ import annotations

import enum
from abc import abstractmethod
from datetime import datetime

from attrs import field, frozen

from container.ipc import Contract, Fd


@frozen
class Platform:
    """What a binary is built for, in OCI's words."""

    os: str
    architecture: str
    """`amd64`, `arm64`, `arm`, `riscv64`, ..."""
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@frozen
class ImageHealthCheck:
    """The health check that an image asks for; None is what the image leaves to its user.

    Source: `HEALTHCHECK` of Dockerfiles; Docker image specification v1.3, `Healthcheck`.
    """

    command: tuple[str, ...] | None = None
    """The whole argv. Empty is no check at all."""
    interval: float | None = None
    """Seconds."""
    timeout: float | None = None
    """Seconds."""
    start_period: float | None = None
    """Seconds."""
    retries: int | None = None
    problems: tuple[str, ...] = ()
    """What else the image says, and why it counts for nothing."""


@frozen
class ImageConfig:
    """The execution parameters of an image (OCI image-spec, `config`)."""

    user: str = ""
    environment: tuple[str, ...] = ()
    """`NAME=value` each."""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_directory: str = ""
    labels: dict[str, str] = field(factory=dict[str, str])
    stop_signal: str | None = None
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    health: ImageHealthCheck | None = None


@frozen
class ImageSummary:
    """One reference in the store: a row of `image list`."""

    reference: str
    """Normalised: `docker.io/library/alpine:3.20`, or `localhost/demo:latest` for what was loaded
    by a bare name."""
    name: str
    """As shown: the reference without default registry, `library/` and tag."""
    tag: str
    digest: str
    """Of the manifest or index: `sha256:...`."""
    size: int
    """Bytes of all blobs that it refers to and that are here."""
    created: datetime | None
    platforms: tuple[Platform, ...]


@frozen
class LayerDescriptor:
    """One layer of an image."""

    digest: str
    """Of the compressed blob."""
    diff_id: str
    """Of the uncompressed tar."""
    media_type: str
    size: int


@frozen
class Image:
    """One image of one platform, whole."""

    summary: ImageSummary
    platform: Platform
    manifest_digest: str
    config_digest: str
    config: ImageConfig
    layers: tuple[LayerDescriptor, ...]
    """Lowest first."""
    history: tuple[str, ...] = ()


@frozen
class Snapshot:
    """An image unpacked: directories to use as the lower layers of an overlay. Never write to
    them."""

    image: Image
    layers: tuple[str, ...]
    """Absolute paths, **topmost first**, as overlayfs's `lowerdir` wants them."""


class Scheme(enum.Enum):
    """How to talk to a registry."""

    AUTO = "auto"
    """HTTPS; plain HTTP only for a loopback address that does not speak TLS."""
    HTTP = "http"
    HTTPS = "https"


@frozen
class DeletedImage:
    """What deleting a reference did."""

    reference: str
    freed: int
    """Bytes."""


@frozen
class ImageUsage:
    """What one image takes on disk."""

    references: tuple[str, ...]
    digest: str
    """Of the manifest or index that they name."""
    size_bytes: int
    """Of its blobs and its unpacked layers."""
    shared_bytes: int
    """Of these, what other images need too."""
    holders: tuple[str, ...] = ()
    """Containers that hold it."""


@frozen
class ImagesUsage:
    """What all images take on disk: blocks that are allocated, not lengths of files."""

    images: tuple[ImageUsage, ...]
    size_bytes: int
    """Of all blobs, unpacked layers, and records of who holds them, each counted once."""
    unneeded_bytes: int
    """Of these, what nothing needs once the ignored holders are gone: `prune` frees it."""
    unused_bytes: int
    """Of these, what `prune(everything=True)` frees then."""


@frozen
class PrunedImages:
    """What `prune` has removed."""

    references: tuple[str, ...]
    freed_bytes: int
    """On disk."""


class Images(Contract, name="images", version=1):
    """References, blobs and snapshots. A reference argument may be short (`demo`), tagged, by
    digest
    (`demo@sha256:...`), or a unique prefix of a digest of at least 7 hex digits."""

    @abstractmethod
    async def list(self) -> tuple[ImageSummary, ...]:
        """Return all references, sorted."""
        ...

    @abstractmethod
    async def get(self, reference: str, platform: Platform | None = None) -> Image:
        """Return one image, of this machine's platform unless one is named.

        Raises:
            NotFound: no such image; the hint names a close match if there is one.
            Unsupported: it is here for other platforms only; the message names them.
        """
        ...

    @abstractmethod
    async def pull(
        self, reference: str, platform: Platform | None = None, scheme: Scheme = Scheme.AUTO
    ) -> ImageSummary:
        """Fetch an image from its registry: every digest is checked while streaming.

        Cancellation leaves no half image visible; verified blobs stay for the next try.

        Raises:
            NotFound: the registry has no such image.
            Unavailable: the registry can't be reached.
            PermissionDenied: the registry wants credentials.
            DataLoss: a digest did not match.
        """
        ...

    @abstractmethod
    async def load(
        self, archive: Fd, name: str | None = None, source: str | None = None
    ) -> tuple[ImageSummary, ...]:
        """Load an OCI layout (directory or tar) or a docker-archive.

        Args:
            archive: An open directory, regular file, or pipe.
            name: The reference to give it if it carries none (or instead of its own).
            source: What the user called it, for messages.

        Raises:
            InvalidArgument: neither format, or corrupt; the message names `source`.
            DataLoss: a digest did not match.
        """
        ...

    @abstractmethod
    async def tag(self, source: str, target: str) -> ImageSummary:
        """Give `source` the further reference `target`, taking it from another image if need be."""
        ...

    @abstractmethod
    async def delete(self, reference: str, force: bool = False) -> DeletedImage:
        """Remove a reference; blobs and snapshots that nothing needs any more go with it.

        Raises:
            NotFound: no such reference.
            InvalidState: containers use it (named) and `force` is not set. With `force` the
            reference
                goes and the snapshot stays until its last holder releases it.
        """
        ...

    @abstractmethod
    async def prepare(
        self, reference: str, holder: str, platform: Platform | None = None
    ) -> Snapshot:
        """Unpack an image if it is not yet, and hold its snapshot for `holder` (a container id).

        Idempotent. The hold is on disk before the reply and survives every process.
        """
        ...

    @abstractmethod
    async def release(self, holder: str) -> None:
        """Drop all holds of `holder`; none is no error."""
        ...

    @abstractmethod
    async def sweep(self) -> int:
        """Remove blobs and snapshots that nothing needs, and return how many bytes that freed.

        That includes what a pull which was cut off had fetched, and which is otherwise kept for a
        day, for its next try. Nothing is removed while a broken document may name it.
        """
        ...

    @abstractmethod
    async def usage(self, ignoring: tuple[str, ...] = ()) -> ImagesUsage:
        """Return what images take on disk.

        Args:
            ignoring: Holders that count as gone.
        """
        ...

    @abstractmethod
    async def prune(self, everything: bool = False) -> PrunedImages:
        """Remove blobs and snapshots that nothing needs (`sweep`); `everything`: the references
        of images that no holder uses, first."""
        ...
