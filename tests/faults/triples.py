"""Faults at every step: run an operation, and break one process at one of its steps.

`python -m tests.faults.triples [--seed N] [--only PATTERN] [--count N] [--jobs N]`, or
`scripts/faults`. Each operation is run once to see its steps, then once for each triple of step,
process and fault. Afterwards the system is healed as a person would do it, by the next commands,
and judged: the operation had its result or a clear error, `ls` is right, and `system check` finds
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import trio
from attrs import define, field, frozen

from container.audit import Kind, audit
from container.audit.machine import group_folders, look
from container.storage.paths import Paths
from container.testing.busybox import Entry, write_layout
from container.testing.fault_steps import VARIABLE, write_site
from container.testing.faults import Fault, Gate, Plan, Step
from container.testing.network import NetworkNamespace
from tests.images.registries import FakeRegistry
from tests.system.conftest import COMMAND, Machine

BOUND = 100.0
"""Seconds that any command may take, whatever was done to it: its own deadlines are 60 s."""
DISK = "64m"
SETTLE = 12.0
NAME_SECONDS = 10.0
"""That a name may be taken by what is being undone, after its caller was told."""
SLEEP = ("sleep", "1000")
NAMED = ("--network", "none", "--name", "t")


@frozen
class Operation:
    """What is broken: a command line, what must be there for it, and what it must say."""

    name: str
    prepare: tuple[tuple[str, ...], ...]
    command: tuple[str, ...]
    status: int = 0
    exists: bool | None = True
    """Whether container `t` is there when it was done; None: it has nothing to do with it."""


OPERATIONS = (
    Operation("create", (), ("create", "--name", "t", "demo", *SLEEP)),
    Operation("run", (), ("run", "--rm", "--name", "t", "demo", "sh", "-c", "exit 7"), 7, False),
    Operation("start", (("create", "--name", "t", "demo", *SLEEP),), ("start", "t")),
    Operation("detach", (), ("run", "-d", "--name", "t", "demo", *SLEEP)),
    Operation(
        "exec",
        (("run", "-d", "--name", "t", "demo", *SLEEP),),
        ("exec", "t", "sh", "-c", "exit 5"),
        5,
    ),
    Operation("stop", (("run", "-d", "--name", "t", "demo", *SLEEP),), ("stop", "-t", "1", "t")),
    Operation("delete", (("create", "--name", "t", "demo", *SLEEP),), ("rm", "t"), 0, False),
    Operation("kill", (("run", "-d", "--name", "t", "demo", *SLEEP),), ("rm", "-f", "t"), 0, False),
    Operation(
        "run with volumes",
        (),
        ("run", *NAMED, "--rm", "-v", "tv:/etc", "-v", "/cache", "demo", "sh", "-c", "exit 7"),
        7,
        False,
    ),
    Operation(
        "run with a size",
        (("volume", "create", "--opt", "size=8m", "tv"),),
        ("run", *NAMED, "--rm", "-v", "tv:/etc", "demo", "sh", "-c", "exit 7"),
        7,
        False,
    ),
    Operation(
        "delete with volumes",
        (("create", *NAMED, "-v", "tv:/data", "-v", "/cache", "demo", *SLEEP),),
        ("rm", "-v", "t"),
        0,
        False,
    ),
    Operation("volume create", (), ("volume", "create", "--opt", "size=8m", "tv"), 0, None),
    Operation("volume delete", (("volume", "create", "tv"),), ("volume", "rm", "tv"), 0, None),
    Operation("load", (("image", "delete", "other"),), ("image", "load", "-i", "OTHER"), 0, None),
    Operation(
        "unpack",
        (("image", "delete", "other"), ("image", "load", "-i", "OTHER")),
        ("create", "--name", "t", "other", *SLEEP),
    ),
    Operation(
        "pull",
        (("image", "delete", "other"), ("image", "delete", "PULLED")),
        ("image", "pull", "PULLED"),
        0,
        None,
    ),
    Operation("tag", (("image", "delete", "tagged"),), ("image", "tag", "demo", "tagged"), 0, None),
    Operation("forget", (("image", "load", "-i", "OTHER"),), ("image", "delete", "other"), 0, None),
)


@frozen
class Triple:
    """One fault in one operation."""

    operation: Operation
    step: Step
    fault: Fault

    def __str__(self) -> str:
        return f"{self.operation.name}: {self.fault.value} at {self.step}"


@frozen
class Verdict:
    """What came of it."""

    triple: Triple
    reached: bool
    problems: tuple[str, ...]
    seconds: float


@define
class Bench:
    """A private system on a small disk, whose processes tell their steps."""

    machine: Machine
    gate: Gate
    registry: str
    """`host:port` of a registry that has the image `other`."""
    ids: set[str] = field(factory=set[str])

    @property
    def paths(self) -> Paths:
        """Its folders."""
        return Paths(self.machine.root, self.machine.run_folder)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command line within the bound."""
        places = {
            "OTHER": str(self.machine.folder / "other"),
            "PULLED": f"{self.registry}/other:latest",
        }
        words = [places.get(word, word) for word in arguments]
        return self.machine.run(*words, status=None, timeout=BOUND)

    def prepare(self, operation: Operation) -> None:
        """Make what the operation needs."""
        for line in operation.prepare:
            done = self.command(*line)
            end = time.monotonic() + NAME_SECONDS
            while b"is taken by container" in done.stderr and time.monotonic() < end:
                time.sleep(0.5)  # the last operation's clean-up ends in a moment, unannounced
                self.command("rm", "-f", "t")
                done = self.command(*line)
            if done.returncode and line[:2] != ("image", "delete"):
                raise RuntimeError(f"{line} failed: {done.stderr.decode()}")
        self._remember()

    def _remember(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.ids.update(n for n in os.listdir(self.paths.containers) if len(n) == 12)

    def clean(self) -> list[str]:
        """Heal, as a person would; return what is wrong even so."""
        problems: list[str] = []
        self._remember()
        removed = self._within(("rm", "-f", "-v", "t"), problems)
        if removed is not None and removed.returncode and b"no container" not in removed.stderr:
            problems.append(f"rm -f says {_last(removed.stderr)}")
        # A volume of the container's that is left is found by this: it says that it is used.
        self._within(("volume", "rm", "-f", "tv"), problems)
        volumes = self._within(("volume", "ls", "-q"), problems)
        if volumes is not None and (volumes.returncode or volumes.stdout):
            problems.append(
                f"volume ls says {volumes.stdout.decode()[:200]} {_last(volumes.stderr)}"
            )
        # Nobody else would start the images helper, which sweeps what it was killed in.
        self._within(("image", "list"), problems)
        listed = self._within(("ls", "-a", "--format", "json"), problems)
        if listed is not None and (listed.returncode or json.loads(listed.stdout)):
            problems.append(f"ls says {listed.stdout.decode()[:200]} {_last(listed.stderr)}")
        report = trio.run(partial(audit, self.paths, also=self.ids, settle=SETTLE))
        if any(finding.kind in (Kind.ADDRESS, Kind.INTERFACE) for finding in report.findings):
            # The same of a network's helper, which the next container in it starts.
            self._within(("run", "--rm", "demo", "true"), problems)
            report = trio.run(partial(audit, self.paths, also=self.ids, settle=SETTLE))
        if any(finding.kind is Kind.LEFTOVER for finding in report.findings):
            # Only the next start sweeps what was half made when no space or descriptor was left.
            for line in (("system", "stop"), ("ls",), ("image", "list")):
                self._within(line, problems)
            report = trio.run(partial(audit, self.paths, also=self.ids, settle=SETTLE))
        problems += [f"check: {f.kind.value} {f.subject}: {f.what}" for f in report.findings]
        return problems

    def _within(
        self, line: tuple[str, ...], problems: list[str]
    ) -> subprocess.CompletedProcess[bytes] | None:
        try:
            return self.command(*line)
        except subprocess.TimeoutExpired:
            problems.append(f"{' '.join(line)} took above {BOUND:.0f} s")
            return None

    def steps(self, operation: Operation) -> list[Step]:
        """Run an operation once and return its steps."""
        self.prepare(operation)
        self.gate.arm(None)
        done = self.command(*operation.command)
        steps = self.gate.disarm()
        if done.returncode != operation.status:
            raise RuntimeError(f"{operation.name} failed: {done.returncode} {done.stderr.decode()}")
        self.clean()
        return steps

    def run(self, triple: Triple) -> Verdict:
        """Run one triple, heal, and judge."""
        began = time.monotonic()
        operation = triple.operation
        problems: list[str] = []
        try:
            self.prepare(operation)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return Verdict(triple, False, (f"not prepared: {error}",), time.monotonic() - began)
        self.gate.arm(Plan(triple.step, triple.fault, self.machine.root))
        done = self._within(operation.command, problems)
        self.gate.disarm()
        if done is not None:
            problems += _judge(operation, done)
            problems += self._judge_list(operation, done)
        problems += self.clean()
        return Verdict(triple, self.gate.injected, tuple(problems), time.monotonic() - began)

    def _judge_list(
        self, operation: Operation, done: subprocess.CompletedProcess[bytes]
    ) -> list[str]:
        """Compare what the operation said with what `ls` says now."""
        if operation.exists is None or done.returncode != operation.status:
            return []
        problems: list[str] = []
        end = time.monotonic() + NAME_SECONDS
        while True:
            listed = self._within(("ls", "-a", "--format", "json"), problems)
            if listed is None or listed.returncode:
                return [*problems, "ls fails afterwards"]
            there = any(row.get("name") == "t" for row in json.loads(listed.stdout))
            if there == operation.exists:
                break
            if time.monotonic() > end:
                problems.append(f"it was done, and container t is {'' if there else 'not '}there")
                break
            # `run --rm` has its exit status, and the next API server ends the removal.
            time.sleep(0.2)
        return problems


def _judge(operation: Operation, done: subprocess.CompletedProcess[bytes]) -> list[str]:
    said = done.stderr.decode(errors="replace")
    if "Traceback" in said or "a bug" in said:
        return [f"it shows a bug: {said[-300:]}"]
    if done.returncode == operation.status:
        return []
    if not said.strip():
        return [f"it ends with {done.returncode} and says nothing"]
    if operation.status and done.returncode == 0:
        return ["it ends with 0, and the command did not"]
    return []


def _last(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    said = [line for line in lines if "starting the system" not in line]
    return said[0][:200] if said else ""


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Start a private system on a small disk."""
    folder = Path(tempfile.mkdtemp(prefix="cf-", dir="/run"))
    root = folder / "root"
    root.mkdir(mode=0o700)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "tmpfs", root], check=True
    )
    write_site(folder / "site")
    write_layout(folder / "demo", name="demo")
    write_layout(folder / "other", name="other", layers=[[Entry("extra", b"x" * 100_000)]])
    search = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "CONTAINER_ROOT": str(root),
        "CONTAINER_RUN": str(folder / "run"),
        "CONTAINER_DEFAULT_REGISTRY": "127.0.0.1:1",
        "NO_COLOR": "1",
        "PYTHONPATH": search,
        VARIABLE: str(folder / "gate"),
    }
    machine = Machine(folder, environment)
    made: Bench | None = None
    try:
        with FakeRegistry(folder / "other").serve() as host, Gate(folder / "gate") as gate:
            made = Bench(machine, gate, host)
            done = made.command("image", "load", "-i", str(folder / "demo"))
            assert done.returncode == 0, done.stderr
            made.command("run", "--rm", "demo", "true")
            yield made
    finally:
        machine.run("system", "stop", "--containers", status=None)
        for container_id in made.ids if made is not None else ():
            for group in group_folders(container_id):
                for pid in (group / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        for process in look(Paths(root, folder / "run")).processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        subprocess.run(["umount", "-l", root], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def faults_at(step: Step) -> Iterator[Fault]:
    """Yield the faults that mean something at a step."""
    verb = step.step.partition(" ")[0]
    yield Fault.KILL
    if verb in ("call", "ended", "opened"):
        yield Fault.FREEZE  # between two calls, it stands still for all others
    if verb not in ("ended", "remove", "rmdir", "closing"):
        yield Fault.FULL  # from here on something is still to be written
        yield Fault.DESCRIPTORS


def triples(
    made: Bench, operations: Sequence[Operation], only: str, chance: random.Random
) -> list[Triple]:
    """Enumerate all triples, in an order that the seed decides."""
    found: list[Triple] = []
    for operation in operations:
        for step in dict.fromkeys(made.steps(operation)):
            found += [Triple(operation, step, fault) for fault in faults_at(step)]
    found = [triple for triple in found if only in str(triple)]
    chance.shuffle(found)
    return found


def run_all(
    count: int | None = None,
    *,
    seed: int = 0,
    only: str = "",
    seconds: float = float("inf"),
    operations: Sequence[Operation] = OPERATIONS,
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> list[Verdict]:
    """Run triples, at most `count`, and begin none after so many seconds; return the verdicts."""
    with NetworkNamespace() as outside, outside.entered():  # bridges and rules end with it
        return _run_all(count, seed, only, seconds, operations, jobs, say)


def _run_all(
    count: int | None,
    seed: int,
    only: str,
    seconds: float,
    operations: Sequence[Operation],
    jobs: int,
    say: Callable[[str], None],
) -> list[Verdict]:
    verdicts: list[Verdict] = []
    named = [o for o in operations if only.startswith(f"{o.name}:")]
    with bench() as made:
        every = triples(made, named or operations, only, random.Random(seed))
    say(f"seed {seed}: {len(every)} triples")
    end = time.monotonic() + seconds
    waiting = iter(every[:count])
    stopping = threading.Event()

    def work() -> None:
        with contextlib.ExitStack() as stack:
            made = stack.enter_context(bench())
            while not (stopping.is_set() or time.monotonic() > end):
                if (triple := next(waiting, None)) is None:
                    return
                verdict = made.run(triple)
                verdicts.append(verdict)
                if len(verdicts) % 50 == 0:
                    failed = sum(bool(verdict.problems) for verdict in verdicts)
                    say(f"{len(verdicts)} run, {failed} failed")
                if verdict.problems:
                    kept = keep_logs(made, f"{seed}-{len(verdicts)}")
                    lines = [f"FAILED {triple} ({verdict.seconds:.1f} s; logs in {kept})"]
                    say("\n       ".join([*lines, *verdict.problems]))
                    # What is left of a failure must not be found again and again.
                    stack.close()
                    made = stack.enter_context(bench())

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done in [pool.submit(work) for _ in range(jobs)]:
                done.result()
        finally:
            stopping.set()
    return verdicts


def keep_logs(made: Bench, name: str) -> Path:
    """Keep the logs of a failure; return where."""
    kept = Path("build/faults") / name
    shutil.copytree(made.paths.logs, kept, dirs_exist_ok=True)
    return kept


def histogram(verdicts: Sequence[Verdict]) -> str:
    """Return a table: by fault and process, how many were run, and how many failed."""
    run: Counter[tuple[str, str]] = Counter()
    failed: Counter[tuple[str, str]] = Counter()
    for verdict in verdicts:
        key = verdict.triple.fault.value, verdict.triple.step.process
        run[key] += 1
        failed[key] += bool(verdict.problems)
    rows = [
        f"{fault:<12} {process:<10} {count:>5} run {failed[fault, process]:>4} failed"
        for (fault, process), count in sorted(run.items())
    ]
    missed = sum(not verdict.reached for verdict in verdicts)
    return "\n".join([*rows, f"{len(verdicts)} in all; in {missed} the step was not reached"])


def main(arguments: Sequence[str]) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        prog="scripts/faults", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", default="", help="run triples whose name has this in it")
    parser.add_argument("--count", type=int, help="run at most so many")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--jobs", type=int, default=1, help="so many systems at once")
    parser.add_argument("--list", action="store_true", help="name them and run none")
    options = parser.parse_args(arguments)
    if not COMMAND.exists() or os.geteuid() != 0:
        print("needs root and an installed container command")
        return 2
    if options.list:
        with bench() as made:
            for triple in triples(made, OPERATIONS, options.only, random.Random(options.seed)):
                print(triple)
        return 0
    verdicts = run_all(
        options.count,
        seed=options.seed,
        only=options.only,
        seconds=options.seconds,
        jobs=options.jobs,
        say=partial(print, flush=True),
    )
    print(histogram(verdicts))
    return 1 if any(verdict.problems for verdict in verdicts) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
