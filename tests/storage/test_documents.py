"""Atomic documents: complete or absent, and an error that names the path."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cattrs
import pytest
from attrs import frozen

from container.ipc import DataLoss
from container.storage.documents import Documents, write_bytes


@frozen
class Note:
    text: str
    count: int = 0


@pytest.fixture
def documents() -> Documents:
    return Documents(schema=2, converter=cattrs.Converter())


def test_what_was_written_is_read(tmp_path: Path, documents: Documents) -> None:
    path = tmp_path / "note.json"
    documents.write(path, Note("héllo", 3))
    assert documents.read(path, Note) == Note("héllo", 3)
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["note.json"]


def test_nothing_there_is_not_a_broken_document(tmp_path: Path, documents: Documents) -> None:
    with pytest.raises(FileNotFoundError):
        documents.read(tmp_path / "none.json", Note)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'{"schema": 2}',
        b'{"schema": "2", "value": {}}',
        b'{"value": {}}',
        b"\xff",
    ],
)
def test_a_torn_document_is_data_loss_that_names_its_path_and_stays(
    tmp_path: Path, documents: Documents, raw: bytes
) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(raw)
    with pytest.raises(DataLoss, match=r"note\.json"):
        documents.read(path, Note)
    assert path.read_bytes() == raw


def test_a_newer_schema_is_refused_and_an_older_one_read(
    tmp_path: Path, documents: Documents
) -> None:
    path = tmp_path / "note.json"
    path.write_text(json.dumps({"schema": 3, "value": {"text": "x"}}))
    with pytest.raises(DataLoss, match=r"schema 3, known 2"):
        documents.read(path, Note)
    path.write_text(json.dumps({"schema": 1, "value": {"text": "x"}}))
    assert documents.read(path, Note) == Note("x")


def test_a_failed_write_leaves_the_old_content_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "note"
    write_bytes(path, b"old")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["note"]


def test_a_write_syncs_the_file_before_the_name_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(fd: int) -> None:
        seen.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        sync(fd)

    def noted_replace(source: str, target: Path) -> None:
        seen.append("name")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_bytes(tmp_path / "note", b"data")
    assert seen == ["file", "name", "folder"]
