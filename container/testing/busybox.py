"""A small real image made on this machine: a static busybox as an OCI layout directory.

Pure Python, no root, no network, no container tool: the demonstration, the system tests and the
benchmarks all start from it. Equal arguments give equal digests.

Source: OCI image-spec v1.1, image layout, manifest, configuration.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from container.contracts.images import Platform
from container.images.platforms import this_platform

Compression = Literal["gzip", "zstd", "none"]

_LAYER_TYPES: dict[Compression, str] = {
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
    "none": "application/vnd.oci.image.layer.v1.tar",
}
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_CREATED = "2024-01-01T00:00:00Z"
_MODIFIED = 1704067200
_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
user:x:1000:1000:user:/home/user:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
"""
_GROUP = "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n"


@frozen
class Entry:
    """One member of a layer's tar."""

    path: str
    content: bytes = b""
    mode: int | None = None
    """None is 0755 for a folder, 0644 for all else."""
    kind: bytes = tarfile.REGTYPE
    """A type of the `tarfile` module: `REGTYPE`, `DIRTYPE`, `SYMTYPE`, `LNKTYPE`, `CHRTYPE`, ..."""
    target: str = ""
    """Of a symbolic or hard link."""
    uid: int = 0
    gid: int = 0
    modified: int = _MODIFIED
    device: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = {}


def find_busybox() -> Path:
    """Return the machine's static busybox.

    Raises:
        FileNotFoundError: there is none; the message says what to install.
    """
    places = (os.environ.get("CONTAINER_BUSYBOX"), "/bin/busybox", shutil.which("busybox"))
    for place in places:
        if place and Path(place).is_file() and not _has_interpreter(Path(place)):
            return Path(place)
    raise FileNotFoundError(
        "no static busybox is installed: apt install busybox-static, or set CONTAINER_BUSYBOX"
    )


def busybox_layer(busybox: Path | None = None) -> tuple[Entry, ...]:
    """Return the members of a root file system that has busybox and a link for each applet."""
    program = busybox or find_busybox()
    listing = subprocess.run([program, "--list"], check=True, capture_output=True, text=True)
    applets = sorted(set(listing.stdout.split()) - {"busybox"})
    folders = ["bin", "dev", "etc", "home", "proc", "run", "sys", "usr", "var"]
    return (
        *(_folder(path) for path in folders),
        _folder("root", 0o700),
        _folder("home/user", uid=1000),
        _folder("tmp", 0o1777),
        _folder("var/tmp", 0o1777),
        Entry("sbin", kind=tarfile.SYMTYPE, target="bin", mode=0o777),
        Entry("usr/bin", kind=tarfile.SYMTYPE, target="../bin", mode=0o777),
        Entry("usr/sbin", kind=tarfile.SYMTYPE, target="../bin", mode=0o777),
        Entry("etc/passwd", _PASSWD.encode()),
        Entry("etc/group", _GROUP.encode()),
        Entry("bin/busybox", program.read_bytes(), 0o755),
        *(
            Entry(f"bin/{applet}", kind=tarfile.SYMTYPE, target="busybox", mode=0o777)
            for applet in applets
        ),
    )


def layer_tar(entries: Iterable[Entry]) -> bytes:
    """Return the uncompressed tar of a layer, its members as they are: hostile ones too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            member = tarfile.TarInfo(entry.path)
            member.type = entry.kind
            plain = 0o755 if entry.kind == tarfile.DIRTYPE else 0o644
            member.mode = plain if entry.mode is None else entry.mode
            member.uid, member.gid = entry.uid, entry.gid
            member.mtime = entry.modified
            member.linkname = entry.target
            member.devmajor, member.devminor = entry.device
            member.size = len(entry.content) if entry.kind == tarfile.REGTYPE else 0
            member.pax_headers = {
                f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
                for name, value in entry.xattrs.items()
            }
            tar.addfile(member, io.BytesIO(entry.content))
    return buffer.getvalue()


def compress(data: bytes, compression: Compression) -> bytes:
    """Compress a layer as its media type says; the same bytes each time."""
    if compression == "gzip":
        return gzip.compress(data, compresslevel=6, mtime=0)
    if compression == "zstd":
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        return zstd.compress(data)
    return data


def write_layout(
    directory: Path,
    *,
    name: str = "demo",
    busybox: Path | None = None,
    layers: Sequence[Sequence[Entry]] = (),
    base: bool = True,
    platform: Platform | None = None,
    config: Mapping[str, object] | None = None,
    compression: Compression = "gzip",
) -> str:
    """Write an image as an OCI layout directory, which is made if need be.

    Args:
        directory: Where; a further call with another name adds an image to the layout.
        name: Value of `org.opencontainers.image.ref.name`.
        busybox: The program; None finds the machine's.
        layers: Further layers, above busybox's.
        base: Whether there is a busybox layer at all.
        platform: What the image claims to be for; None is this machine's.
        config: Fields of the image's execution parameters (`Env`, `Entrypoint`, `User`, ...), over
            the defaults `Cmd` `/bin/sh` and `Env` `PATH`.
        compression: Of the layers.

    Returns:
        The digest of the manifest.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    tars = [layer_tar(entries) for entries in layers]
    if base:
        tars.insert(0, layer_tar(busybox_layer(busybox)))
    stored = [_store(blobs, compress(tar, compression), _LAYER_TYPES[compression]) for tar in tars]
    wanted = platform or this_platform()
    settings: dict[str, object] = {
        "Cmd": ["/bin/sh"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        **(config or {}),
    }
    image: dict[str, object] = {
        "created": _CREATED,
        "architecture": wanted.architecture,
        "os": wanted.os,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
        "history": [{"created": _CREATED, "created_by": f"layer {n}"} for n in range(len(tars))],
    }
    described: dict[str, object] = {"os": wanted.os, "architecture": wanted.architecture}
    if wanted.variant:
        image["variant"] = described["variant"] = wanted.variant
    manifest = _store(
        blobs,
        _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST_TYPE,
                "config": _store(blobs, _json(image), _CONFIG_TYPE),
                "layers": stored,
            }
        ),
        _MANIFEST_TYPE,
    )
    _add_to_index(
        directory,
        name,
        {
            **manifest,
            "platform": described,
            "annotations": {"org.opencontainers.image.ref.name": name},
        },
    )
    return str(manifest["digest"])


def _add_to_index(directory: Path, name: str, descriptor: dict[str, object]) -> None:
    (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    index = directory / "index.json"
    present: list[dict[str, Any]] = []
    if index.exists():
        present = json.loads(index.read_bytes())["manifests"]
    key = "org.opencontainers.image.ref.name"
    others = [item for item in present if item.get("annotations", {}).get(key) != name]
    index.write_bytes(_json({"schemaVersion": 2, "manifests": [*others, descriptor]}))


def _folder(path: str, mode: int = 0o755, *, uid: int = 0) -> Entry:
    return Entry(path, kind=tarfile.DIRTYPE, mode=mode, uid=uid, gid=uid)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _store(blobs: Path, data: bytes, media_type: str) -> dict[str, object]:
    digest = _digest(data)
    (blobs / digest.removeprefix("sha256:")).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _has_interpreter(program: Path) -> bool:
    """Say whether an ELF program asks for a dynamic loader, which a bare image does not have."""
    with program.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF":
            return True
        order = "<" if head[5] == 1 else ">"
        wide = head[4] == 2
        offset = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)[0]
        size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
        file.seek(offset)
        table = file.read(size * count)
    return any(
        struct.unpack_from(order + "I", table, index * size)[0] == 3 for index in range(count)
    )
