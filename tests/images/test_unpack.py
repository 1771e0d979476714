"""Unpacking against hostile tars, overlayfs's rules, and umoci."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from attrs import evolve

from container.images.limits import Limits
from container.images.unpack import unpack_layer
from container.ipc import ContainerError, DataLoss, InvalidArgument, Overloaded, Unsupported
from container.testing.busybox import Entry, compress, layer_tar, write_layout

DIR, SYM, LNK, CHR, BLK, FIFO = (
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="owners, devices and overlay mounts need root")
LIMITS = Limits()


def nothing() -> None:
    pass


def unpack(
    folder: Path,
    entries: Sequence[Entry] | bytes,
    lowers: Sequence[Path] = (),
    *,
    limits: Limits = LIMITS,
    check: Callable[[], None] = nothing,
    privileged: bool | None = None,
) -> Path:
    """Unpack a tar into a new folder and return it."""
    tar = entries if isinstance(entries, bytes) else layer_tar(entries)
    folder.mkdir(parents=True)
    unpack_layer(
        io.BytesIO(tar),
        folder,
        lowers,
        diff_id="sha256:" + hashlib.sha256(tar).hexdigest(),
        limits=limits,
        check=check,
        privileged=privileged,
    )
    return folder


def tree(folder: Path) -> list[str]:
    """List all below a folder, links not followed."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the layer that no layer may reach."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("untouched")
    os.utime(folder / "secret", (1, 1))
    os.utime(folder, (1, 1))
    return folder


def assert_untouched(outside: Path) -> None:
    assert tree(outside) == ["secret"]
    assert (outside / "secret").read_text() == "untouched"
    assert (outside / "secret").stat().st_mtime == 1
    assert (outside / "secret").stat().st_nlink == 1
    assert outside.stat().st_mtime == 1


REFUSED: dict[str, list[Entry]] = {
    "dots in the name": [Entry("../outside/new", b"x")],
    "dots inside the name": [Entry("a/../../outside/new", b"x")],
    "dots after an absolute name": [Entry("/../outside/new", b"x")],
    "a folder named by dots": [Entry("..", kind=DIR, mode=0o777)],
    "a hard link with dots": [Entry("a", kind=LNK, target="../outside/secret")],
    "a hard link to an absolute name": [Entry("a", kind=LNK, target="/outside/secret")],
    "a hard link through a link": [
        Entry("l", kind=SYM, target="../outside"),
        Entry("a", kind=LNK, target="l/secret"),
    ],
    "a hard link to a folder": [Entry("d", kind=DIR), Entry("a", kind=LNK, target="d")],
    "a hard link to nothing": [Entry("a", kind=LNK, target="nothing")],
    "a whiteout of the folder above": [Entry(".wh...", b"")],
    "a whiteout of the folder itself": [Entry("d/.wh..", b"")],
    "a whiteout of no name": [Entry("d/.wh.", b"")],
    "a whiteout behind dots": [Entry("../outside/.wh.secret", b"")],
    "a circle of links": [
        Entry("a", kind=SYM, target="b"),
        Entry("b", kind=SYM, target="a"),
        Entry("a/x", b"x"),
    ],
    "a file used as a folder": [Entry("a", b"x"), Entry("a/b", b"x")],
    "a device used as a folder": [Entry("p", kind=FIFO), Entry("p/x", b"x")],
    "the root as a file": [Entry("./", b"x", kind=SYM, target="/")],
    "an owner out of range": [Entry("a", b"x", uid=1 << 33)],
    "a name with 300 letters": [Entry("n" * 300, b"x")],
}


@pytest.mark.parametrize("entries", REFUSED.values(), ids=REFUSED)
def test_what_leads_outside_or_is_impossible_is_refused(
    tmp_path: Path, outside: Path, entries: list[Entry]
) -> None:
    lower = unpack(tmp_path / "lower", [Entry("d", kind=DIR), Entry("d/f", b"f")])
    with pytest.raises(InvalidArgument, match="the layer is refused"):
        unpack(tmp_path / "fs", entries, [lower])
    assert_untouched(outside)


LED_INSIDE: dict[str, tuple[list[Entry], str]] = {
    "an absolute name": ([Entry("/outside/new", b"x")], "outside/new"),
    "a link above, then through it": (
        [Entry("l", kind=SYM, target="../outside"), Entry("l/new", b"x")],
        "outside/new",
    ),
    "an absolute link, then through it": (
        [Entry("l", kind=SYM, target="OUTSIDE"), Entry("l/new", b"x")],
        "OUTSIDE/new",
    ),
    "a link to a file outside, then over it": (
        [Entry("l", kind=SYM, target="../outside/secret"), Entry("l", b"x")],
        "l",
    ),
    "a link replaced by a folder": (
        [Entry("l", kind=SYM, target="../outside"), Entry("l", kind=DIR), Entry("l/new", b"x")],
        "l/new",
    ),
    "a folder replaced by a link": (
        [
            Entry("d", kind=DIR),
            Entry("d/old", b"o"),
            Entry("d", kind=SYM, target="../outside"),
            Entry("d/new", b"x"),
        ],
        "outside/new",
    ),
    "a link through a link": (
        [
            Entry("a", kind=SYM, target="/.."),
            Entry("b", kind=SYM, target="a/outside"),
            Entry("b/new", b"x"),
        ],
        "outside/new",
    ),
}


@pytest.mark.parametrize(("entries", "where"), LED_INSIDE.values(), ids=LED_INSIDE)
def test_a_link_is_followed_inside_the_root_only(
    tmp_path: Path, outside: Path, entries: list[Entry], where: str
) -> None:
    entries = [evolve(e, target=e.target.replace("OUTSIDE", str(outside))) for e in entries]
    fs = unpack(tmp_path / "fs", entries)
    found = fs / where.replace("OUTSIDE", str(outside).lstrip("/"))
    assert found.read_bytes() == b"x"
    assert not found.is_symlink()
    assert_untouched(outside)


def test_modes_and_times_of_a_link_never_reach_what_it_points_to(
    tmp_path: Path, outside: Path
) -> None:
    fs = unpack(tmp_path / "fs", [Entry("l", kind=SYM, target=str(outside / "secret"), uid=7)])
    assert os.readlink(fs / "l") == str(outside / "secret")
    assert_untouched(outside)


def test_the_last_of_equal_names_wins(tmp_path: Path) -> None:
    fs = unpack(
        tmp_path / "fs",
        [
            Entry("a", b"one", 0o600),
            Entry("a", b"two", 0o644),
            Entry("b", b"file"),
            Entry("b", kind=DIR, mode=0o700),
            Entry("b/c", b"c"),
            Entry("d", kind=DIR),
            Entry("d/e/f", b"f"),
            Entry("d", b"now a file"),
            Entry("g", kind=DIR, mode=0o700),
            Entry("g/h", b"kept"),
            Entry("g", kind=DIR, mode=0o751),
        ],
    )
    assert (fs / "a").read_text() == "two"
    assert (fs / "b/c").read_text() == "c"
    assert (fs / "d").read_text() == "now a file"
    assert (fs / "g/h").read_text() == "kept"
    assert stat.S_IMODE((fs / "g").stat().st_mode) == 0o751


def test_replacing_one_name_of_a_hard_link_leaves_the_other(tmp_path: Path) -> None:
    fs = unpack(
        tmp_path / "fs",
        [Entry("a", b"shared"), Entry("b", kind=LNK, target="a"), Entry("a", b"new")],
    )
    assert (fs / "b").read_text() == "shared"
    assert (fs / "a").read_text() == "new"


def test_modes_and_times_are_those_of_the_tar(tmp_path: Path) -> None:
    entries = [
        Entry("./", kind=DIR, mode=0o711, modified=5),
        Entry("d", kind=DIR, mode=0o1770, modified=10),
        Entry("d/f", b"f", 0o4755, modified=20),
        Entry("d/empty", b"", 0o400, modified=0),
        Entry("d/l", kind=SYM, target="f", modified=30),
        Entry("p", kind=FIFO, mode=0o620, modified=40),
    ]
    fs = unpack(tmp_path / "fs", entries)
    for entry in entries:
        found = os.lstat(fs / entry.path)
        assert found.st_mtime == entry.modified
        if entry.kind != SYM:
            assert stat.S_IMODE(found.st_mode) == entry.mode


@needs_root
def test_owners_devices_and_attributes_are_those_of_the_tar(tmp_path: Path) -> None:
    fs = unpack(
        tmp_path / "fs",
        [
            Entry("f", b"f", uid=1000, gid=2000, xattrs={"user.a": b"\xff\x00b"}),
            Entry("l", kind=SYM, target="f", uid=3),
            Entry("null", kind=CHR, device=(1, 3), mode=0o666),
            Entry("disk", kind=BLK, device=(8, 1), mode=0o660, gid=6),
        ],
    )
    assert (os.lstat(fs / "f").st_uid, os.lstat(fs / "f").st_gid) == (1000, 2000)
    assert os.lstat(fs / "l").st_uid == 3
    assert os.lstat(fs / "null").st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK(os.lstat(fs / "disk").st_mode)
    assert os.getxattr(fs / "f", "user.a") == b"\xff\x00b"


@needs_root
def test_a_tar_cannot_set_the_attributes_of_overlayfs(tmp_path: Path) -> None:
    hostile = {
        "trusted.overlay.redirect": b"/etc",
        "trusted.overlay.opaque": b"y",
        "user.overlay.metacopy": b"",
    }
    fs = unpack(tmp_path / "fs", [Entry("d", kind=DIR, xattrs=hostile), Entry("f", xattrs=hostile)])
    assert os.listxattr(fs / "d") == []
    assert os.listxattr(fs / "f") == []


def test_without_privilege_owners_and_devices_are_left_out(tmp_path: Path) -> None:
    fs = unpack(
        tmp_path / "fs",
        [
            Entry("d", kind=DIR, mode=0o500, uid=1),
            Entry("d/f", b"f", uid=1000),
            Entry("null", kind=CHR, device=(1, 3)),
        ],
        privileged=False,
    )
    assert os.lstat(fs / "d/f").st_uid == os.geteuid()
    assert tree(fs) == ["d", "d/f"]
    assert stat.S_IMODE(os.lstat(fs / "d").st_mode) == 0o500


def test_a_sparse_file_has_its_holes(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.write(b"head")
        file.seek(8 << 20)
        file.write(b"tail")
        file.truncate(16 << 20)
    for form in ("", "0.0", "0.1", "1.0"):
        tar = tmp_path / "sparse.tar"
        kind = ["--format=posix", f"--sparse-version={form}"] if form else ["--format=gnu"]
        subprocess.run(["tar", "cS", *kind, "-f", tar, "-C", tmp_path, "sparse"], check=True)
        fs = unpack(tmp_path / f"fs{form}", tar.read_bytes())
        assert (fs / "sparse").read_bytes() == source.read_bytes()
        assert (fs / "sparse").stat().st_blocks * 512 < 1 << 20


# Bounds.


@pytest.mark.parametrize(
    ("limits", "entries"),
    [
        (evolve(LIMITS, entries=3), [Entry(f"f{n}") for n in range(4)]),
        (evolve(LIMITS, unpacked=1 << 20), [Entry("f", bytes(2 << 20))]),
        (evolve(LIMITS, header=4096), [Entry("n/" * 3000 + "f")]),
        (evolve(LIMITS, depth=10), [Entry("n/" * 11 + "f")]),
        (evolve(LIMITS, path=100), [Entry("n/" * 51 + "f")]),
        (
            evolve(LIMITS, depth=10),
            [Entry("l", kind=SYM, target="n/" * 9), Entry("l/a/b/f", b"x")],
        ),
    ],
    ids=["members", "bytes", "header", "depth", "path", "depth behind a link"],
)
def test_what_is_over_a_bound_is_refused(
    tmp_path: Path, limits: Limits, entries: list[Entry]
) -> None:
    with pytest.raises(Overloaded):
        unpack(tmp_path / "fs", entries, limits=limits)


def test_a_header_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 7 << 30
    with pytest.raises(Overloaded, match="header"):
        unpack(tmp_path / "fs", member.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 16))


def test_a_chain_of_headers_ends(tmp_path: Path) -> None:
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 0
    with pytest.raises((DataLoss, Overloaded)):
        unpack(tmp_path / "fs", member.tobuf(tarfile.USTAR_FORMAT) * 5000 + bytes(1024))


def test_a_bomb_stops_at_the_bound(tmp_path: Path) -> None:
    tar = layer_tar([Entry("f", bytes(64 << 20))])
    (tmp_path / "fs").mkdir()
    with pytest.raises(Overloaded):
        unpack_layer(
            io.BytesIO(gzip.compress(tar)),
            tmp_path / "fs",
            [],
            diff_id="sha256:" + "0" * 64,
            limits=evolve(LIMITS, unpacked=1 << 20),
            check=nothing,
        )
    assert (tmp_path / "fs/f").stat().st_size <= 1 << 20


def test_a_stop_is_heard_inside_a_file(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    heard = 0

    def check() -> None:
        nonlocal heard
        heard += 1
        if heard > 5:
            raise StopError

    with pytest.raises(StopError):
        unpack(tmp_path / "fs", [Entry("f", bytes(8 << 20))], check=check)


# Broken ones.


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_layer_is_read_in_each_compression_and_broken_ones_are_told(
    tmp_path: Path, compression: str
) -> None:
    tar = layer_tar([Entry("f", os.urandom(100_000))])
    blob = compress(tar, compression)  # type: ignore[arg-type]
    diff_id = "sha256:" + hashlib.sha256(tar).hexdigest()

    def run(name: str, data: bytes) -> None:
        (tmp_path / name).mkdir()
        unpack_layer(
            io.BytesIO(data), tmp_path / name, [], diff_id=diff_id, limits=LIMITS, check=nothing
        )

    run("whole", blob)
    assert tree(tmp_path / "whole") == ["f"]
    with pytest.raises(DataLoss):
        run("cut", blob[: len(blob) // 2])
    broken = bytearray(blob)
    broken[len(blob) // 2] ^= 0xFF
    with pytest.raises(DataLoss):
        run("broken", bytes(broken))


def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    tar = bytearray(layer_tar([Entry("a", b"a"), Entry("b", b"b")]))
    tar[1024 + 150] ^= 0x55  # The checksum of the second header.
    with pytest.raises(DataLoss, match="header is damaged"):
        unpack(tmp_path / "fs", bytes(tar))


@pytest.mark.parametrize("magic", [b"BZh91AY", b"\xfd7zXZ\x00\x00"])
def test_another_compression_is_unsupported_by_name(tmp_path: Path, magic: bytes) -> None:
    with pytest.raises(Unsupported, match="compression is not supported"):
        unpack(tmp_path / "fs", magic + bytes(1000))


def test_random_damage_never_leads_outside_and_never_crashes(tmp_path: Path, outside: Path) -> None:
    import random

    rng = random.Random(7)
    tar = layer_tar(
        [
            Entry("d", kind=DIR),
            Entry("d/" + "n" * 120, b"long", xattrs={"user.x": b"1"}),
            Entry("l", kind=SYM, target="../outside"),
            Entry("l/new", b"x"),
            Entry("h", kind=LNK, target="d/" + "n" * 120),
            Entry(".wh.gone", b""),
        ]
    )
    for turn in range(300):
        data = bytearray(tar)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        fs = tmp_path / "fs"
        try:
            unpack(fs, bytes(data))
        except ContainerError:
            pass
        shutil.rmtree(fs)
        assert_untouched(outside)
        assert turn >= 0


# Layers on layers.


def test_a_whiteout_hides_what_is_below_and_only_that(tmp_path: Path) -> None:
    lower = unpack(tmp_path / "lower", [Entry("a", b"a"), Entry("d", kind=DIR), Entry("d/f", b"f")])
    fs = unpack(
        tmp_path / "fs",
        [
            Entry(".wh.a", b""),
            Entry(".wh.nothing", b""),
            Entry("d/.wh.f", b""),
            Entry("d/new", b"n"),
        ],
        [lower],
    )
    assert tree(fs) == ["a", "d", "d/f", "d/new"]
    for name in ("a", "d/f"):
        found = os.lstat(fs / name)
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0


@pytest.mark.parametrize("order", [1, -1], ids=["whiteout first", "whiteout last"])
def test_a_folder_made_anew_hides_the_old_one_in_either_order(tmp_path: Path, order: int) -> None:
    lower = unpack(tmp_path / "lower", [Entry("d", kind=DIR), Entry("d/old", b"o")])
    entries = [Entry(".wh.d", b""), Entry("d", kind=DIR, mode=0o700)][::order]
    fs = unpack(tmp_path / "fs", [*entries, Entry("d/new", b"n")], [lower], privileged=False)
    assert os.getxattr(fs / "d", "user.overlay.opaque") == b"y"
    assert tree(fs) == ["d", "d/new"]


@pytest.mark.parametrize("privileged", [pytest.param(True, marks=needs_root), False])
def test_an_opaque_folder_gets_the_attribute_of_overlayfs(tmp_path: Path, privileged: bool) -> None:
    lower = unpack(tmp_path / "lower", [Entry("d", kind=DIR, mode=0o750), Entry("d/old", b"o")])
    fs = unpack(tmp_path / "fs", [Entry("d/.wh..wh..opq", b"")], [lower], privileged=privileged)
    name = "trusted.overlay.opaque" if privileged else "user.overlay.opaque"
    assert os.getxattr(fs / "d", name) == b"y"
    assert tree(fs) == ["d"]
    assert stat.S_IMODE((fs / "d").stat().st_mode) == 0o750


def test_a_folder_that_a_layer_leaves_out_is_the_one_below(tmp_path: Path) -> None:
    lower = unpack(tmp_path / "lower", [Entry("tmp", kind=DIR, mode=0o1777, modified=9)])
    fs = unpack(tmp_path / "fs", [Entry("tmp/f", b"f")], [lower])
    assert stat.S_IMODE((fs / "tmp").stat().st_mode) == 0o1777
    assert (fs / "tmp").stat().st_mtime == 9


def test_a_path_goes_through_the_links_of_the_layers_below(tmp_path: Path) -> None:
    lower = unpack(
        tmp_path / "lower",
        [Entry("usr/lib", kind=DIR, mode=0o711), Entry("lib", kind=SYM, target="usr/lib")],
    )
    fs = unpack(tmp_path / "fs", [Entry("lib/f", b"f")], [lower])
    assert tree(fs) == ["usr", "usr/lib", "usr/lib/f"]
    assert stat.S_IMODE((fs / "usr/lib").stat().st_mode) == 0o711
    third = unpack(tmp_path / "third", [Entry("lib", kind=DIR), Entry("lib/g", b"g")], [fs, lower])
    assert tree(third) == ["lib", "lib/g"]


def test_a_hard_link_to_a_file_below_becomes_a_copy(tmp_path: Path) -> None:
    lower = unpack(tmp_path / "lower", [Entry("f", b"below", 0o640, modified=9)])
    fs = unpack(tmp_path / "fs", [Entry("g", kind=LNK, target="f")], [lower])
    assert (fs / "g").read_text() == "below"
    assert stat.S_IMODE((fs / "g").stat().st_mode) == 0o640
    assert (lower / "f").stat().st_nlink == 1


# Against another unpacker.

LAYERS = [
    [
        Entry("./", kind=DIR, mode=0o755),
        Entry("etc", kind=DIR),
        Entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n", uid=0, gid=0),
        Entry("etc/gone", b"gone"),
        Entry("home", kind=DIR),
        Entry("home/user", kind=DIR, mode=0o700, uid=1000, gid=1000),
        Entry("home/user/file", b"mine", 0o600, uid=1000, gid=1000),
        Entry("usr", kind=DIR),
        Entry("usr/bin", kind=DIR),
        Entry("usr/bin/su", b"\x7fELF", 0o4755),
        Entry("usr/bin/alias", kind=LNK, target="usr/bin/su"),
        Entry("bin", kind=SYM, target="usr/bin"),
        Entry("tmp", kind=DIR, mode=0o1777),
        Entry("old", kind=DIR),
        Entry("old/a", b"a"),
        Entry("old/b", b"b"),
        Entry("cache", kind=DIR),
        Entry("cache/x", b"x"),
        Entry("dev", kind=DIR),
        Entry("dev/null", kind=CHR, device=(1, 3), mode=0o666),
        Entry("run", kind=DIR),
        Entry("run/fifo", kind=FIFO, mode=0o600),
    ],
    [
        Entry("etc", kind=DIR, modified=1_700_000_000),
        Entry("etc/.wh.gone", b""),
        Entry("etc/passwd", b"root:x:0:0::/root:/bin/sh\n", 0o640),
        Entry(".wh.old", b""),
        Entry("cache", kind=DIR, mode=0o711),
        Entry("cache/.wh..wh..opq", b""),
        Entry("cache/y", b"y"),
        Entry("usr/bin/tool", b"#!", 0o755, modified=1_600_000_000),
        Entry("tmp/left", b"l", 0o666),
    ],
    [
        Entry("old", b"a file now"),
        Entry("usr", kind=DIR, mode=0o750),
        Entry("usr/bin", kind=DIR, modified=1_650_000_000),
        Entry("usr/bin/link", kind=SYM, target="../../etc/passwd"),
        Entry("ümläut-" + "n" * 120, b"name"),
    ],
]


def describe(root: Path) -> dict[str, tuple[object, ...]]:
    """Say all that matters of each entry of a tree."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        at = os.lstat(path)
        kind = stat.S_IFMT(at.st_mode)
        body: object = None
        if kind == stat.S_IFREG:
            body = path.read_bytes()
        elif kind == stat.S_IFLNK:
            body = os.readlink(path)
        elif kind == stat.S_IFCHR:
            body = at.st_rdev
        name = str(path.relative_to(root))
        # A folder's time depends on the order in which a tool fills it, unless it was listed.
        listed = kind != stat.S_IFDIR or name in ("etc", "usr/bin")
        when = int(at.st_mtime) if listed else None
        links = at.st_nlink if kind == stat.S_IFREG else None
        found[name] = (oct(at.st_mode), at.st_uid, at.st_gid, body, when, links)
    return found


@needs_root
@pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")
def test_layers_merged_by_overlayfs_are_what_umoci_unpacks(tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", name="demo", base=False, layers=LAYERS)
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path}/layout:demo", tmp_path / "umoci"],
        check=True,
        capture_output=True,
    )
    stack: list[Path] = []
    for number, entries in enumerate(LAYERS):
        stack.insert(0, unpack(tmp_path / f"layer{number}", entries, stack))
    merged = tmp_path / "merged"
    merged.mkdir()
    lower = ":".join(map(str, stack))
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}", merged], check=True
    )
    try:
        ours = describe(merged)
    finally:
        subprocess.run(["umount", merged], check=True)
    theirs = describe(tmp_path / "umoci/rootfs")
    assert ours == theirs
