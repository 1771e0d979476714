"""Blobs: complete or absent, and what their digest says."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from container.ipc import DataLoss, InvalidArgument, NotFound, Unavailable
from container.storage.blobs import Blobs, space_errors, split_digest


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    made = Blobs(tmp_path / "blobs", tmp_path / "ingest")
    made.make_folders()
    return made


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_blob_is_found_by_the_digest_of_its_bytes(blobs: Blobs) -> None:
    digest = blobs.add(b"hello")
    assert digest == digest_of(b"hello")
    assert blobs.has(digest)
    assert blobs.size(digest) == 5
    assert blobs.read(digest, 10) == b"hello"
    assert list(blobs.digests()) == [digest]


@pytest.mark.parametrize(
    ("digest", "size"), [(digest_of(b"other"), None), (None, 4), (digest_of(b"hello"), 6)]
)
def test_a_blob_that_is_not_what_was_announced_leaves_nothing(
    blobs: Blobs, tmp_path: Path, digest: str | None, size: int | None
) -> None:
    with blobs.write() as writer:
        writer.write(b"hello")
        with pytest.raises(DataLoss):
            writer.commit(digest, size)
    assert list(blobs.digests()) == []
    assert list((tmp_path / "ingest").iterdir()) == []


def test_a_writer_that_is_left_without_a_commit_leaves_nothing(
    blobs: Blobs, tmp_path: Path
) -> None:
    with blobs.write() as writer:
        writer.write(b"half")
    assert list(blobs.digests()) == []
    assert list((tmp_path / "ingest").iterdir()) == []


def test_a_blob_that_changed_on_disk_is_data_loss(blobs: Blobs) -> None:
    digest = blobs.add(b"hello")
    blobs.path(digest).write_bytes(b"jello")
    with pytest.raises(DataLoss, match="changed on disk"):
        blobs.read(digest, 10)


def test_a_blob_larger_than_the_limit_is_not_read(blobs: Blobs) -> None:
    with pytest.raises(DataLoss, match="more than 3 bytes"):
        blobs.read(blobs.add(b"hello"), 3)


def test_a_missing_blob_is_not_found(blobs: Blobs) -> None:
    with pytest.raises(NotFound):
        blobs.read(digest_of(b"hello"), 10)
    assert blobs.size(digest_of(b"hello")) == 0


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:../../etc/passwd", "md5:" + "0" * 32, "sha256:" + "A" * 64,
     "sha256:" + "0" * 63, "sha256:" + "0" * 64 + "\n"],
)  # fmt: skip
def test_what_is_no_digest_never_becomes_a_path(blobs: Blobs, text: str) -> None:
    with pytest.raises(InvalidArgument):
        blobs.path(text)
    with pytest.raises(InvalidArgument):
        split_digest(text)


def test_no_space_says_where_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=str(tmp_path)) as caught, space_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.hint
    with pytest.raises(PermissionError), space_errors(tmp_path):
        raise OSError(errno.EACCES, "Permission denied")


def test_a_blob_is_verified_when_asked_and_a_bad_one_set_aside(blobs: Blobs) -> None:
    digest = blobs.add(b"hello")
    assert blobs.verify(digest)
    assert blobs.has(digest, 5)
    assert not blobs.has(digest, 4)
    blobs.path(digest).write_bytes(b"jello")
    assert not blobs.verify(digest)
    aside = blobs.set_aside(digest)
    assert aside.read_bytes() == b"jello"
    assert not blobs.has(digest)
    with pytest.raises(NotFound):
        blobs.verify(digest)
    assert blobs.add(b"hello") == digest


def test_what_has_no_name_of_a_digest_is_no_blob(blobs: Blobs) -> None:
    digest = blobs.add(b"hello")
    (blobs.folder / "sha256" / "lost+found").mkdir()
    assert list(blobs.digests()) == [digest]
