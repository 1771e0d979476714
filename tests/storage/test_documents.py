"""Atomic documents: complete or absent, and an error that names the path."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cattrs
import pytest
from attrs import frozen

from container.ipc import DataLoss
from container.storage.documents import Documents, is_aside, set_aside
from container.storage.durable import make_folder, write_bytes


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


def migrated() -> Documents:
    def second(value: dict[str, object]) -> dict[str, object]:
        return {"text": value["words"]}

    def third(value: dict[str, object]) -> dict[str, object]:
        return {**value, "count": len(str(value["text"]))}

    return Documents(4, cattrs.Converter(), {2: second, 3: third})


def write_raw(path: Path, schema: object, value: object) -> bytes:
    raw = json.dumps({"schema": schema, "value": value}).encode()
    path.write_bytes(raw)
    path.chmod(0o600)
    return raw


def test_an_older_document_goes_through_every_migration_and_is_not_written_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "note.json"
    raw = write_raw(path, 2, {"words": "abc"})
    assert migrated().read(path, Note) == Note("abc", 3)
    assert path.read_bytes() == raw
    write_raw(path, 3, {"text": "abcd"})
    assert migrated().read(path, Note) == Note("abcd", 4)
    migrated().write(path, Note("x", 1))
    assert json.loads(path.read_bytes())["schema"] == 4


@pytest.mark.parametrize(
    ("schema", "value", "reason"),
    [
        (5, {}, "newer"),
        (1, {"words": "abc"}, "older"),
        (0, {}, "wrong"),
        (True, {}, "wrong"),
        (2, {"other": 1}, "wrong"),
        (4, {"count": 1}, "wrong"),
        (4, [], "wrong"),
    ],
)
def test_a_document_that_is_of_no_known_form_says_why(
    tmp_path: Path, schema: object, value: object, reason: str
) -> None:
    path = tmp_path / "note.json"
    raw = write_raw(path, schema, value)
    with pytest.raises(DataLoss) as caught:
        migrated().read(path, Note)
    assert caught.value.details == {"path": str(path), "reason": reason}
    assert caught.value.hint
    assert path.read_bytes() == raw


def test_a_chain_of_migrations_with_a_hole_is_refused() -> None:
    with pytest.raises(ValueError, match="migrations lead from"):
        Documents(4, cattrs.Converter(), {1: dict, 3: dict})
    with pytest.raises(ValueError, match="not to 4"):
        Documents(4, cattrs.Converter(), {2: dict})


@pytest.mark.parametrize("kind", ["writable", "link", "folder", "fifo", "foreign"])
def test_what_another_user_may_have_written_is_never_parsed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "note.json"
    write_raw(path, 4, {"text": "abc"})
    match kind:
        case "writable":
            path.chmod(0o620)
        case "link":
            path.rename(tmp_path / "other.json")
            path.symlink_to("other.json")
        case "folder":
            path.unlink()
            path.mkdir()
        case "fifo":
            path.unlink()
            os.mkfifo(path)
        case _:
            if os.geteuid() != 0:
                pytest.skip("needs root")
            os.chown(path, 1234, 1234)
    with pytest.raises(DataLoss) as caught:
        migrated().read(path, Note)
    assert caught.value.details["reason"] == "not-ours"


def test_a_broken_document_is_set_aside_before_its_place_is_written_anew(tmp_path: Path) -> None:
    path, documents = tmp_path / "note.json", migrated()
    for number, raw in enumerate((b"", b"{"), start=1):
        path.write_bytes(raw)
        with pytest.raises(DataLoss):
            documents.read(path, Note)
        documents.write(path, Note("new"))
        assert documents.read(path, Note) == Note("new")
        assert (tmp_path / f"note.json.broken-{number}").read_bytes() == raw
    documents.write(path, Note("newer"))
    assert len(os.listdir(tmp_path)) == 3


def test_whatever_is_there_can_be_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    assert set_aside(folder) is None
    for number in (1, 2):
        folder.mkdir()
        (folder / "file").touch()
        aside = set_aside(folder)
        assert aside == tmp_path / f"thing.broken-{number}"
        assert is_aside(aside.name)
        assert not is_aside(folder.name)
        assert os.listdir(aside) == ["file"]
        assert not folder.exists()


def test_folders_are_made_with_durable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    make_folder(tmp_path / "a" / "b")
    assert synced == [str(tmp_path), str(tmp_path / "a")]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file"):
        make_folder(tmp_path / "file" / "c")
