"""What is written of a run: complete, of this boot, or not taken for anything."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve

from container.contracts.runtime import INIT, ExitStatus, ProcessSpec, SandboxSpec
from container.runtime.records import ProcessRecord, Records, RunRecord, Step

PROCESS = ProcessSpec(arguments=("sleep", "1"), environment=("A=\u00fc",))
SPEC = SandboxSpec(id="a", name="a", hostname="a", layers=("/layer",), process=PROCESS)


def record(number: int, name: str, step: Step = Step.STARTED) -> ProcessRecord:
    return ProcessRecord(
        number,
        name,
        step,
        PROCESS,
        pid=10,
        start_time=20,
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
        exit=ExitStatus(code=None) if step is Step.ENDED else None,
        outputs={1: 77},
    )


def test_what_was_written_is_read(tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    assert records.read() is None
    run = RunRecord.new(SPEC)
    records.begin(run)
    found = records.read()
    assert found is not None
    assert (found.run, found.processes, found.first) == (run, (), None)
    processes = (record(0, INIT), record(2, "two", Step.ENDED), record(10, "ten", Step.MAKING))
    for process in reversed(processes):
        records.write(process)
    found = records.read()
    assert found is not None
    assert found.processes == processes
    assert found.first == processes[0]
    records.remove(2)
    records.remove(2)
    records.write_run(evolve(run, ending=True))
    found = records.read()
    assert found is not None
    assert found.run.ending
    assert found.processes == (processes[0], processes[2])
    records.begin(RunRecord.new(SPEC))
    found = records.read()
    assert found is not None
    assert found.processes == ()
    records.clear()
    records.clear()
    assert records.read() is None


def test_a_run_of_another_boot_is_none(tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    records.begin(evolve(RunRecord.new(SPEC), boot="another"))
    assert records.read() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"spec": 3}', "\u00fc"])
@pytest.mark.parametrize("name", ["run.json", "process-0.json"])
def test_a_document_that_cannot_be_read_is_none(tmp_path: Path, name: str, text: str) -> None:
    records = Records(tmp_path / "records")
    records.begin(RunRecord.new(SPEC))
    records.write(record(0, INIT))
    (records.folder / name).write_text(text)
    assert records.read() is None


def test_no_two_runs_name_what_is_kept_of_them_alike() -> None:
    assert RunRecord.new(SPEC).label(0) != RunRecord.new(SPEC).label(0)
