"""Taking a run up, with an OCI runtime that is played: what is written decides what is done."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define, field

from container.contracts.logs import LogStream, decode_records
from container.contracts.runtime import (
    ProcessSpec,
    ProcessState,
    SandboxPhase,
    SandboxSpec,
    Stdio,
    StopOptions,
)
from container.ipc import InvalidState, NotFound
from container.runtime.machinery import Machinery
from container.runtime.records import Records, RunRecord
from container.runtime.service import SandboxService
from container.testing.oci import RecordedCgroup, RecordedRuntime, recorded_machinery

Use = Callable[[SandboxService], Awaitable[object]]


@define(eq=False)
class Place:
    """One container's folder, on which helpers follow each other."""

    folder: Path
    runtime: RecordedRuntime
    cgroup: RecordedCgroup = field(factory=RecordedCgroup)

    @property
    def machinery(self) -> Machinery:
        return recorded_machinery(self.folder, self.runtime, cgroup=self.cgroup)

    @asynccontextmanager
    async def helper(self) -> AsyncGenerator[SandboxService]:
        """Run one helper; it is killed at the end of the block: nothing of it cleans up."""
        service = SandboxService(self.folder, "played", self.machinery)
        async with service:
            try:
                yield service
            finally:
                # To the service there is nothing to take down, as to a process that is gone.
                service._phase = SandboxPhase.EMPTY  # pyright: ignore[reportPrivateUsage]
        # And the kernel closes what such a process had open.
        for process in service._processes.values():  # pyright: ignore[reportPrivateUsage]
            process.plumbing.close()
        if service._log is not None:  # pyright: ignore[reportPrivateUsage]
            service._log.close()  # pyright: ignore[reportPrivateUsage]

    @property
    def records(self) -> Records:
        return Records(self.folder / "bundle" / "records")

    def spec(self, *arguments: str) -> SandboxSpec:
        process = ProcessSpec(arguments=arguments)
        return SandboxSpec(
            id="played", name="played", hostname="played", layers=(), process=process
        )

    def marks(self) -> list[LogStream]:
        index = (self.folder / "log" / "index").read_bytes()
        return [record.stream for record in decode_records(index)]


@pytest.fixture
async def place(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> AsyncGenerator[Place]:
    async with RecordedRuntime() as runtime:
        yield Place(tmp_path, runtime)


async def test_a_run_whose_container_was_not_made_is_undone(place: Place) -> None:
    place.records.begin(RunRecord.new(place.spec("sleep", "100")))
    (place.folder / "bundle" / "run").mkdir()
    async with place.helper() as service:
        assert (await service.state()).phase is SandboxPhase.EMPTY
        assert not (place.folder / "bundle" / "run").exists()
        assert place.records.read() is None
        await service.bootstrap(place.spec("true"), Stdio())


async def test_a_created_container_is_taken_up_and_started(place: Place) -> None:
    async with place.helper() as service:
        await service.bootstrap(place.spec("sh", "-c", "exit 3"), Stdio())
    async with place.helper() as service:
        assert (await service.state()).phase is SandboxPhase.CREATED
        await service.start("init")
        assert (await service.wait("init")).code == 3
        await service.shutdown()
    assert place.marks() == [LogStream.START, LogStream.END]


async def test_a_container_whose_start_was_not_noted_is_found_running(place: Place) -> None:
    async with place.helper() as service:
        await service.bootstrap(place.spec("sleep", "0.4"), Stdio())
        await place.runtime.start("played")
    async with place.helper() as service:
        state = await service.state()
        assert state.phase is SandboxPhase.RUNNING
        assert state.processes[0].started_at is not None
        assert (await service.start("init")).started_at == state.processes[0].started_at
        assert (await service.wait("init")).code == 0


async def test_a_paused_container_is_found_paused(place: Place) -> None:
    async with place.helper() as service:
        await service.bootstrap(place.spec("sleep", "100"), Stdio())
        await service.start("init")
        await service.pause()
    place.cgroup.freeze()
    async with place.helper() as service:
        assert (await service.state()).phase is SandboxPhase.PAUSED
        assert (await service.stop(StopOptions(timeout=0.1))).code == 137


async def test_an_end_that_nobody_has_asked_for_is_told_by_each_helper(place: Place) -> None:
    async with place.helper() as service:
        await service.bootstrap(place.spec("sh", "-c", "exit 4"), Stdio())
        await service.start("init")
        first = await service.wait("init")
    for _ in range(2):
        async with place.helper() as service:
            assert await service.wait("init") == first
            state = await service.state()
            assert state.phase is SandboxPhase.STOPPED
            assert state.processes[0].state is ProcessState.EXITED
            with pytest.raises(InvalidState):
                await service.pause()
    async with place.helper() as service:
        await service.shutdown()
        assert place.records.read() is None
    assert place.marks().count(LogStream.END) == 1


async def test_a_tear_down_that_had_begun_is_brought_to_its_end(place: Place) -> None:
    async with place.helper() as service:
        await service.bootstrap(place.spec("sleep", "100"), Stdio())
        await service.start("init")
    found = place.records.read()
    assert found is not None
    place.records.note_ending(found.run)
    async with place.helper() as service:
        assert (await service.wait("init")).code == 137


async def test_what_was_being_made_is_nobodys_and_its_name_is_free(place: Place) -> None:
    spec = ProcessSpec(arguments=("sleep", "0.2"))
    async with place.helper() as service:
        await service.bootstrap(place.spec("sleep", "100"), Stdio())
        await service.start("init")
        for name in ("ran", "began"):
            await service.create_process(name, spec, Stdio())
            await service.start(name)
    file = place.records.folder / "process-2.json"
    file.write_text(file.read_text().replace('"started"', '"making"'))
    async with place.helper() as service:
        assert [p.id for p in (await service.state()).processes] == ["init", "ran"]
        with pytest.raises(NotFound):
            await service.wait("began")
        await service.create_process("began", spec, Stdio())
        await service.start("began")
        assert (await service.wait("began")).code == 0
        assert (await service.wait("ran")).code == 0


async def test_only_the_last_ends_of_further_processes_are_written_down(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.runtime.run.ENDED_MAX", 2)
    async with place.helper() as service:
        await service.bootstrap(place.spec("sleep", "100"), Stdio())
        await service.start("init")
        for number in range(5):
            await service.create_process(f"p{number}", ProcessSpec(arguments=("true",)), Stdio())
            await service.start(f"p{number}")
            await service.wait(f"p{number}")
            await trio.testing.wait_all_tasks_blocked()
    async with place.helper() as service:
        assert [p.id for p in (await service.state()).processes] == ["init", "p3", "p4"]


async def test_documents_of_another_boot_leave_a_log_that_has_ended(place: Place) -> None:
    async with place.helper() as service:
        await service.bootstrap(place.spec("sleep", "100"), Stdio())
    file = place.records.folder / "run.json"
    file.write_text(file.read_text().replace('"boot": "', '"boot": "x'))
    async with place.helper() as service:
        assert (await service.state()).phase is SandboxPhase.EMPTY
        assert (await service.stop(StopOptions())).code is None
    assert place.marks() == [LogStream.START, LogStream.END]
    assert os.listdir(place.folder / "bundle")
