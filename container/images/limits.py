"""Every bound of the images helper, named in one place.

An image comes from strangers: a few kilobytes may claim to be terabytes. What is over a bound is
refused with an error that names it, before memory or disk is taken.
"""

from __future__ import annotations

from attrs import frozen

MIB = 1 << 20
GIB = 1 << 30


@frozen
class Limits:
    """Bounds of one store. The defaults fit every image that people build; raise them for more."""

    document: int = 4 * MIB
    """Bytes of a manifest, index or configuration, as registries bound them."""
    blob: int = 64 * GIB
    """Bytes of one compressed layer."""
    archive: int = 128 * GIB
    """Bytes of an archive, after its own decompression."""
    unpacked: int = 128 * GIB
    """Bytes of one layer's files."""
    entries: int = 2_000_000
    """Members of one tar."""
    header: int = MIB
    """Bytes of one member's extended headers (long names, attributes), which go into memory."""
    path: int = 4095
    """Bytes of a path, as the kernel bounds it."""
    depth: int = 256
    """Folders of a path."""
    symlinks: int = 40
    """Symbolic links followed for one path, as the kernel bounds them."""
    layers: int = 400
    """Layers of one image; the kernel takes 500 in one overlay."""
    images: int = 1000
    """Manifests of one index or archive."""
    nesting: int = 3
    """Indexes inside indexes."""
    downloads: int = 4
    """Blobs fetched at once."""
    connect_timeout: float = 10.0
    """Seconds until a registry must have accepted a connection."""
    stall_timeout: float = 60.0
    """Seconds that a registry may send nothing."""
    cleanup_timeout: float = 30.0
    """Seconds that clean-up after a cancellation may take; the next start sweeps what is left."""
