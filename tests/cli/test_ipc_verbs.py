"""`container ipc`: what a stranger sees of a service of another process, and how it calls it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SERVICE = Path(__file__).with_name("ipc_service.py")
CONTAINER = [sys.executable, "-m", "container.cli.main"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ci"))
    with open(made / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(SERVICE), str(made / "s")], stdout=subprocess.PIPE, stderr=log
        )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"ready\n"
        yield made
        process.kill()
    shutil.rmtree(made)


@pytest.fixture
def path(folder: Path) -> str:
    return str(folder / "s")


def test_describe_shows_routes_types_and_what_they_are_for(run: Any, path: str) -> None:
    said = run("ipc", "describe", path)
    assert said.status == 0
    lines = said.out.splitlines()
    assert "  leases/lease(key: str, mode: Mode = shared) => Lease" in lines
    assert "      Hold a key while the block runs." in lines
    assert "  leases/divide(one: int, by: float = 1.0) -> float" in lines
    assert "  Mode: one of shared, exclusive" in lines
    assert "        What it is for." in lines
    assert lines[0].startswith("process      leases (pid ")
    assert "container.introspection" not in said.out
    assert max(map(len, lines)) <= 80
    assert "container.introspection/describe" in run("ipc", "describe", "--all", path).out


def test_describe_as_json_has_types_as_trees(run: Any, path: str) -> None:
    found = json.loads(run("ipc", "describe", path, "--format", "json").out)
    (contract,) = found["contracts"]
    routes = {route["path"]: route for route in contract["routes"]}
    assert routes["leases/size"]["parameters"][0]["type"]["kind"] == "descriptor"
    assert found["statistics"]["connections"] == 1


def test_call_reads_its_arguments_by_their_types(run: Any, path: str) -> None:
    said = run("ipc", "call", path, "leases/divide", "one=7", "by=2")
    assert (said.status, said.out) == (0, "3.5\n")
    assert run("ipc", "call", path, "divide", "--json", '{"one": 6}').out == "6.0\n"


def test_call_takes_every_type_that_can_be_written(run: Any, path: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"\x00\xff")
    number = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
    said = run(
        "ipc",
        "call",
        path,
        "all",
        'lease={"key": "k", "since": "2026-01-31T12:00:00Z", "mode": "exclusive"}',
        f"data=@{tmp_path}/data",
        "numbers=[1, 2]",
        'table={"a": true}',
        f"number={number}",
        'pair=[1, "x"]',
        "--format=json",
    )
    found = json.loads(said.out)
    assert "Mode.EXCLUSIVE" in found.pop("lease")
    assert found == {
        "data": "b'\\x00\\xff'",
        "numbers": "[1, 2]",
        "table": "{'a': True}",
        "number": number,
        "pair": "(1, 'x')",
    }


def test_call_passes_files_and_its_own_descriptors(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 77)
    call = [*CONTAINER, "ipc", "call", path, "size"]
    assert subprocess.check_output([*call, f"source=@{tmp_path}/file"]) == b"77\n"
    with open(tmp_path / "file") as file:
        assert subprocess.check_output([*call, "source=fd:0"], stdin=file) == b"77\n"


def test_call_reads_its_arguments_from_standard_input(path: str) -> None:
    done = subprocess.run(
        [*CONTAINER, "ipc", "call", path, "divide", "by=4", "-"],
        input=b'{"one": 2, "by": 9}',
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"0.5\n"


@pytest.mark.parametrize(
    ("arguments", "sentence", "hint"),
    [
        (["divid"], 'leases has no route "divid"', 'did you mean "leases/divide"?'),
        (["divide"], "leases/divide needs one (int)", "it is divide("),
        (["divide", "one=x"], 'one: "x" is no whole number', "it is of type int"),
        (["divide", "two=1"], 'leases/divide has no argument "two"', "it takes one, by"),
        (["divide", "one"], '"one" is no argument', "write name=value"),
        (["divide", "--json", "{"], "the arguments: it is no JSON", ""),
        (["divide", "--json", "[]"], "the arguments are no JSON object", "write"),
        (["divide", "--json", '{"one": true}'], "one: true is not a whole number", ""),
        (["size", "source=x"], 'source: "x" is no descriptor', "it is of type Fd"),
        (["size", "source=fd:999"], "source: this command has no descriptor 999", ""),
        (["size", "source=@/no/such"], "source: /no/such: no such file", ""),
        (["lease", "key=a", "mode=x"], 'mode: "x" is none of shared, exclusive', "Mode"),
    ],
)
def test_a_call_that_makes_no_sense_is_one_sentence_and_a_hint(
    run: Any, path: str, arguments: list[str], sentence: str, hint: str
) -> None:
    said = run("ipc", "call", path, *arguments)
    lines = said.err.splitlines()
    assert said.status == 2
    assert lines[0].startswith(f"container: {sentence}")
    assert hint in lines[-1]
    assert len(lines) <= 2


def test_a_bugs_id_finds_its_traceback_in_the_services_log(
    run: Any, folder: Path, path: str
) -> None:
    said = run("ipc", "call", path, "divide", "one=1", "by=0")
    assert said.status == 1
    sentence, hint = said.err.splitlines()
    assert "ZeroDivisionError" in sentence
    number = hint.split()[-1]
    log = (folder / "log").read_text()
    assert f"bug {number} in leases/divide" in log
    assert "return one / by" in log.partition(number)[2]


def test_a_socket_that_nobody_listens_on_is_said(run: Any) -> None:
    for verb in ("describe", "tasks", "monitor"):
        said = run("ipc", verb, "/no/such")
        assert said.status == 1
        assert said.err.splitlines()[0] == "container: nobody listens at /no/such"


def test_a_call_that_takes_too_long_is_given_up(run: Any, path: str) -> None:
    said = run("ipc", "call", path, "sleep", "--timeout", "0.05")
    assert said.status == 1
    assert said.err.splitlines()[0] == "container: leases/sleep did not answer within 0.05 s"


def test_a_scope_is_held_until_its_time_is_over(run: Any, path: str) -> None:
    said = run("ipc", "call", path, "lease", "key=timed", "--for", "0.05")
    assert said.status == 0
    assert said.out.splitlines()[0] == "key    timed"
    assert run("ipc", "call", path, "held").out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_scope_is_held_until_a_signal_and_cleaned_up_before_the_command_ends(
    run: Any, path: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [*CONTAINER, "ipc", "call", path, "lease", "key=k"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "key    k\n"
        said = run("ipc", "call", path, "lease", "key=k")
        assert (said.status, said.err) == (1, "container: k is held already\n")
        assert len(json.loads(run("ipc", "call", path, "held", "--format", "json").out)) == 1
        holder.send_signal(number)
        assert holder.wait(20) == 0
    assert run("ipc", "call", path, "held").out == ""


def test_items_of_a_stream_are_printed_one_a_line(run: Any, path: str) -> None:
    assert run("ipc", "call", path, "ticks", "most=3").out == "0\n1\n2\n"


def test_tasks_are_shown_as_a_tree(run: Any, path: str) -> None:
    said = run("ipc", "tasks", path)
    assert said.status == 0
    assert "└─ __main__.main  (cli/ipc_service.py:" in said.out
    stacks = run("ipc", "tasks", path, "--stacks").out
    assert len(stacks.splitlines()) > len(said.out.splitlines())
    assert json.loads(run("ipc", "tasks", path, "--format", "json").out)[0]["depth"] == 0


def test_monitor_shows_calls_without_their_values(run: Any, path: str) -> None:
    with subprocess.Popen(
        [*CONTAINER, "ipc", "monitor", path], stdout=subprocess.PIPE, text=True
    ) as monitor:
        assert monitor.stdout is not None
        assert monitor.stdout.readline().split() == ["TIME", "PID/UID", "STEP", "ROUTE"]
        run("ipc", "call", path, "divide", "one=4242")
        lines = [monitor.stdout.readline() for _ in range(4)]
        monitor.send_signal(signal.SIGINT)
        assert monitor.wait(20) == 130
    assert [line.split()[2] for line in lines] == ["connected", "call", "ended", "lost"]
    assert "leases/divide(one: int)" in lines[1]
    assert f"{os.getpid()}/{os.geteuid()}" in lines[1]
    assert "ok" in lines[2]
    assert "4242" not in "".join(lines)


def test_monitor_shows_values_as_json_to_who_asks(run: Any, path: str) -> None:
    with subprocess.Popen(
        [*CONTAINER, "ipc", "monitor", path, "--json", "--values", "--all"],
        stdout=subprocess.PIPE,
        text=True,
    ) as monitor:
        assert monitor.stdout is not None
        assert json.loads(monitor.stdout.readline())["kind"] == "opened"
        run("ipc", "call", path, "divide", "one=4242")
        found = [json.loads(monitor.stdout.readline()) for _ in range(6)]
        monitor.kill()
    calls = [step for step in found if step["kind"] == "call"]
    assert calls[-1]["arguments"] == ["one: int = 4242"]


def test_a_monitor_ends_with_its_service() -> None:
    folder = Path(tempfile.mkdtemp(prefix="ci"))
    try:
        with subprocess.Popen(
            [sys.executable, str(SERVICE), str(folder / "s")], stdout=subprocess.PIPE
        ) as service:
            assert service.stdout is not None
            service.stdout.readline()
            with subprocess.Popen(
                [*CONTAINER, "ipc", "monitor", str(folder / "s")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as monitor:
                assert monitor.stdout is not None
                assert monitor.stderr is not None
                monitor.stdout.readline()
                service.kill()
                assert monitor.wait(20) == 1
                (sentence, *_) = monitor.stderr.read().splitlines()
        assert sentence.startswith("container: ")
        assert "leases is gone" in sentence
    finally:
        shutil.rmtree(folder)
