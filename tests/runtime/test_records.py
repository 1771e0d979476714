"""What is written of a run: complete, of this boot, or not taken for anything."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from attrs import evolve

from container.contracts.network import Attachment, AttachmentRequest, PublishedPort
from container.contracts.runtime import (
    INIT,
    ExitStatus,
    Mount,
    MountKind,
    ProcessSpec,
    SandboxNetwork,
    SandboxSpec,
    TerminalSize,
)
from container.runtime.records import (
    Found,
    NetworksRecord,
    ProcessRecord,
    Records,
    RunRecord,
    Step,
)

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


def test_a_helper_generates_no_code_for_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is forked from a process that has done so; it would cost each of them milliseconds.
    for module in ("cattrs.converters", "cattrs.gen"):
        for name in ("make_dict_unstructure_fn", "make_dict_structure_fn"):
            monkeypatch.setattr(f"{module}.{name}", None)
    request = AttachmentRequest("a", "eth0", "a", ports=(PublishedPort(80),))
    network = SandboxNetwork("a" * 12, "web", "/socket", request)
    attachment = Attachment(
        *("a" * 12, "web", "a", "eth0", ("10.1.0.2/24",), (), "", 1500),
        ports=(PublishedPort(80, 8080),),
    )
    mounts = (Mount(MountKind.BIND, "/data", "/data"),)
    spec = evolve(
        SPEC,
        mounts=mounts,
        networks=(network,),
        process=evolve(PROCESS, terminal_size=TerminalSize(80, 24)),
    )
    records = Records(tmp_path / "records")
    run, process = RunRecord.new(spec), record(0, INIT, Step.ENDED)
    networks = NetworksRecord((network,), (attachment,))
    records.begin(run)
    records.write(process)
    records.write_networks(networks)
    assert records.read() == Found(run, (process,), networks)
