"""`run` and `create`, attached and detached, over real processes of this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from container.contracts.apiserver import PullPolicy, WaitCondition
from container.contracts.images import Platform
from container.contracts.runtime import ExitStatus, Mount, MountKind, Resources
from container.ipc import NotFound, PeerGone, Unavailable


def later(action: Callable[[], None], until: Callable[[], bool]) -> threading.Thread:
    """Do something in a thread once a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + 20
        while not until():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("mode", [(), ("--rm",)])
def test_output_and_exit_status_of_the_process_are_ours(run: Any, mode: tuple[str, ...]) -> None:
    said = run("run", *mode, "demo", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert said == (7, "out\n", "err\n")


@pytest.mark.parametrize("mode", [(), ("--rm",)])
def test_a_process_killed_by_a_signal_ends_us_with_128_and_its_number(
    run: Any, mode: tuple[str, ...]
) -> None:
    assert run("run", *mode, "demo", "sh", "-c", "kill -KILL $$").status == 137


def test_options_end_at_the_image(run: Any, session: Any) -> None:
    assert run("run", "--rm", "demo", "echo", "-l", "--rm", "-it").out == "-l --rm -it\n"
    assert session.fake_containers.options[0].command == ("echo", "-l", "--rm", "-it")


def test_short_flags_may_be_joined(run: Any, session: Any) -> None:
    run("create", "-it", "demo")
    options = session.fake_containers.options[0]
    assert (options.keep_input, options.terminal) == (True, True)


def test_every_option_reaches_the_request(run: Any, session: Any, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=file\nB=file\n")
    said = run(
        "create", "--name", "n", "-e", "A=option", "--env-file", f"{tmp_path}/env", "-w", "/w",
        "-u", "1:2", "--entrypoint", "/e", "-v", f"{tmp_path}:/data:ro", "--tmpfs", "/t:size=1m",
        "--mount", f"type=bind,source={tmp_path},target=/m", "--read-only", "-m", "1.5g", "-c",
        "0.5",
        "--pids-limit", "-1", "--network", "host", "-l", "k=v", "--runtime", "crun", "--hostname",
        "h", "--pull", "never", "--platform", "linux/aarch64", "--stop-signal", "int", "--rm",
        "demo", "ls",
    )  # fmt: skip
    assert said.status == 0
    options = session.fake_containers.options[0]
    assert options.name == "n"
    assert options.environment == ("A=option", "B=file")
    assert (options.working_directory, options.user) == ("/w", "1:2")
    assert options.entrypoint == ("/e",)
    assert options.mounts == (
        Mount(MountKind.BIND, "/data", str(tmp_path), read_only=True),
        Mount(MountKind.BIND, "/m", str(tmp_path)),
        Mount(MountKind.TMPFS, "/t", options=("size=1m",)),
    )
    assert options.resources == Resources(memory=3 << 29, cpus=0.5, pids=None)
    assert (options.network, options.labels, options.runtime) == ("host", {"k": "v"}, "crun")
    assert (options.hostname, options.pull) == ("h", PullPolicy.NEVER)
    assert (options.platform, options.stop_signal) == (Platform("linux", "arm64"), "SIGINT")
    assert (options.read_only_root, options.auto_remove) == (True, True)
    assert options.keep_log


def test_an_empty_entrypoint_clears_the_images_own(run: Any, session: Any) -> None:
    run("create", "--entrypoint", "", "demo", "ls")
    assert session.fake_containers.options[0].entrypoint == ()


def test_descriptors_that_are_no_terminals_go_to_the_process_as_they_are(
    run: Any, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    saved = os.dup(0)
    try:
        os.dup2(reader, 0)
        os.write(writer, b"hello")
        os.close(writer)
        said = run("run", "--rm", "-i", "--name", "x", "demo", "cat")
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reader)
    assert said == (0, "hello", "")
    sent = session.fake_containers.sandboxes["x"].processes["init"].sent
    assert [sent.stdin.fileno(), sent.stdout.fileno(), sent.stderr.fileno()] == [0, 1, 2]


def test_without_i_the_process_has_no_input(run: Any, session: Any) -> None:
    assert run("run", "--rm", "--name", "x", "demo", "cat") == (0, "", "")
    assert session.fake_containers.sandboxes["x"].processes["init"].sent.stdin is None


def test_output_of_a_container_that_stays_goes_through_its_log(run: Any, session: Any) -> None:
    assert run("run", "--name", "x", "demo", "printf", "\\0\\377").status == 0
    sent = session.fake_containers.sandboxes["x"].processes["init"].sent
    assert (sent.stdout, sent.stderr) == (None, None)
    assert session.fake_containers.options[0].keep_log
    assert Path(session.fake_containers.sandboxes["x"].log.data).read_bytes() == b"\0\377"


def test_a_container_that_removes_itself_is_gone_when_run_returns(run: Any, session: Any) -> None:
    run("run", "--rm", "--name", "x", "demo", "true")
    assert ("wait", "000000000001", WaitCondition.REMOVED) in session.fake_containers.calls
    assert not session.fake_containers.found


def test_the_death_of_the_api_server_is_survived(run: Any, session: Any) -> None:
    session.fake_containers.wait_error = PeerGone("gone")
    assert run("run", "--rm", "demo", "sh", "-c", "exit 3").status == 3
    assert session.connections == 2
    assert not session.fake_containers.found


def test_the_death_of_the_helper_is_survived(
    run: Any, session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "FakeSandbox", dying_sandbox(fake.FakeSandbox))
    session.fake_containers.wait = lambda *_: immediately(ExitStatus(5))
    assert run("run", "--rm", "demo", "echo", "hi") == (5, "hi\n", "")


def test_an_exit_status_that_can_not_be_known_is_never_0(
    run: Any, session: Any, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "FakeSandbox", dying_sandbox(fake.FakeSandbox))
    session.fake_containers.wait = lambda *_: immediately(ExitStatus(None))
    said = run("run", "--rm", "--name", "x", "demo", "true")
    assert said.status == 125
    assert 'container: how "x" ended is not known' in said.err


def dying_sandbox(base: Any) -> Any:
    class Dying(base):
        def __init__(self, log: Any) -> None:
            super().__init__(log)
            self.wait_error = PeerGone("the helper died")

    return Dying


async def immediately(value: Any) -> Any:
    return value


@pytest.mark.parametrize(("command", "status"), [("/no/such/command", 127), ("/etc/passwd", 126)])
def test_a_command_that_can_not_run_has_its_status(run: Any, command: str, status: int) -> None:
    said = run("run", "demo", command)
    assert said.status == status
    assert said.err.startswith("container: ")
    assert command in said.err


def test_a_container_that_could_not_start_stays_created_or_goes_with_rm(
    run: Any, session: Any
) -> None:
    run("run", "--name", "stays", "demo", "/no/such/command")
    run("run", "--rm", "--name", "goes", "demo", "/no/such/command")
    assert set(session.fake_containers.found) == {"stays"}


def test_an_unknown_image_is_our_failure_with_a_hint(run: Any) -> None:
    said = run("run", "alpin")
    assert said == (125, "", 'container: no image "alpin"\nhint: did you mean "alpine"?\n')


def test_detached_prints_the_id(run: Any, session: Any) -> None:
    assert run("run", "-d", "--name", "x", "demo") == (0, "000000000001\n", "")
    assert ("start", "x") in session.fake_containers.calls
    assert session.fake_containers.options[0].keep_log


def test_detached_with_rm_keeps_a_log_while_it_lives(run: Any, session: Any) -> None:
    run("run", "-d", "--rm", "demo")
    assert session.fake_containers.options[0].keep_log


def test_detached_that_does_not_start_has_its_status_and_goes_with_rm(
    run: Any, session: Any
) -> None:
    session.fake_containers.start_error = NotFound("no", details={"exit_status": 127})
    assert run("run", "-d", "--rm", "demo").status == 127
    assert not session.fake_containers.found
    session.fake_containers.start_error = Unavailable("no space is left")
    assert run("run", "-d", "demo").status == 125


@pytest.mark.parametrize("mode", [(), ("-d",)])
@pytest.mark.parametrize(
    "error", [PeerGone("gone"), Unavailable("containers/delete: container-apiserver is stopping")]
)
def test_what_never_ran_is_removed_also_when_the_system_ends_meanwhile(
    run: Any, session: Any, error: Exception, mode: tuple[str, ...]
) -> None:
    session.fake_containers.start_error = Unavailable("the launcher is gone")
    session.fake_containers.delete_error = error
    said = run("run", "--rm", *mode, "demo")
    assert (said.status, said.err) == (125, "container: the launcher is gone\n")
    assert not session.fake_containers.found
    assert session.connections == 2


def test_the_id_is_written_to_a_new_file(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "cid"
    assert run("run", "-d", "--cidfile", str(file), "demo").status == 0
    assert file.read_text() == "000000000001"
    said = run("run", "-d", "--cidfile", str(file), "demo")
    assert said.status == 125
    assert f'the file "{file}" is there already' in said.err
    assert file.read_text() == "000000000001"


def test_the_file_of_an_id_goes_when_there_is_no_container(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "cid"
    assert run("create", "--cidfile", str(file), "alpin").status == 125
    assert not file.exists()
    assert run("run", "--rm", "--cidfile", str(file), "demo", "/no/such").status == 127
    assert not file.exists()
    assert run("create", "--cidfile", "/no/such/folder/cid", "demo").status == 125


def test_create_prints_the_id(run: Any, session: Any) -> None:
    assert run("create", "demo") == (0, "000000000001\n", "")


def test_signals_are_passed_on(run: Any, session: Any) -> None:
    script = 'trap "echo got; exit 9" USR1; echo ready; while :; do sleep 0.05; done'
    sandboxes = session.fake_containers.sandboxes

    def ready() -> bool:
        log = sandboxes["x"].log if "x" in sandboxes else None
        return log is not None and b"ready" in Path(log.data).read_bytes()

    thread = later(lambda: os.kill(os.getpid(), signal.SIGUSR1), ready)
    assert run("run", "--name", "x", "demo", "sh", "-c", script) == (9, "ready\ngot\n", "")
    thread.join()
    assert ("init", "SIGUSR1") in sandboxes["x"].kills


def test_three_interrupts_in_a_row_end_us_and_not_the_container(run: Any, session: Any) -> None:
    script = 'trap "echo no" INT; echo ready; while :; do sleep 0.05; done'
    sandboxes = session.fake_containers.sandboxes

    def said(word: bytes, times: int) -> bool:
        log = sandboxes["x"].log if "x" in sandboxes else None
        return log is not None and Path(log.data).read_bytes().count(word) >= times

    def interrupt() -> None:
        for count in range(1, 4):
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 20
            while count < 3 and not said(b"no", count) and time.monotonic() < deadline:
                time.sleep(0.01)

    thread = later(interrupt, lambda: said(b"ready", 1))
    ended = run("run", "--name", "x", "demo", "sh", "-c", script)
    thread.join()
    assert ended.status == 130
    assert sandboxes["x"].processes["init"].popen.poll() is None


def test_an_interrupt_before_the_start_leaves_nothing(run: Any, session: Any) -> None:
    import trio

    session.fake_containers.create_gate = gate = trio.Event()
    thread = later(lambda: os.kill(os.getpid(), signal.SIGINT), gate.is_set)
    said = run("run", "--rm", "demo", "true")
    thread.join()
    assert said.status == 130
    assert not session.fake_containers.found


def test_a_reader_that_is_gone_ends_us_quietly(run: Any, session: Any) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    os.close(writer)
    try:
        said = run("run", "demo", "sh", "-c", "echo hi; sleep 0.2")
    finally:
        os.dup2(saved, 1)
        os.close(saved)
    assert (said.status, said.err) == (141, "")
