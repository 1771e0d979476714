"""The verbs that ask or change something and return."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio

from container.contracts.apiserver import (
    ContainerStatus,
    HealthStatus,
    RestartCondition,
    RestartPolicy,
)
from container.contracts.images import Platform, Scheme
from container.contracts.logs import LogStream
from container.contracts.runtime import ExitStatus, StopOptions
from container.ipc import Fate, Incompatible, InternalError, PeerGone, Unavailable


@pytest.fixture
def three(session: Any) -> Any:
    """A running container `web`, a stopped one `old`, a lost one `lost`."""
    containers = session.fake_containers
    containers.add("web", ContainerStatus.RUNNING)
    containers.add("old", ContainerStatus.STOPPED, exit=ExitStatus(3))
    containers.add("lost", ContainerStatus.UNKNOWN)
    return containers


def test_list_shows_what_runs_or_may_run_in_aligned_columns(run: Any, three: Any) -> None:
    said = run("list")
    lines = said.out.splitlines()
    assert [line.split()[1] for line in lines] == ["NAME", "lost", "web"]
    assert lines[0].index("IMAGE") == lines[1].index("docker.io/") == lines[2].index("docker.io/")
    assert "\x1b" not in said.out


def test_list_all_shows_how_each_ended(run: Any, three: Any) -> None:
    assert "stopped (3)" in run("ps", "-a").out


def test_quiet_prints_ids_alone(run: Any, three: Any) -> None:
    assert run("ls", "-aq").out.split() == ["000000000003", "000000000002", "000000000001"]


def test_json_has_sorted_keys_and_iso_times(run: Any, three: Any) -> None:
    said = run("list", "-a", "--format", "json")
    found = json.loads(said.out)
    assert [container["name"] for container in found] == ["lost", "old", "web"]
    assert list(found[0]) == sorted(found[0])
    assert found[0]["created_at"] == "2026-01-02T03:04:05+00:00"
    assert found[0]["status"] == "unknown"
    assert found[1]["exit"]["code"] == 3


def test_rich_is_not_loaded_where_stdout_is_no_terminal() -> None:
    program = (
        "import sys\nfrom container.cli.output import print_table\n"
        "print_table(('A',), [('b',)])\nassert 'rich' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"A\nb\n"


def test_inspect_prints_a_list_and_what_was_not_found(run: Any, three: Any) -> None:
    said = run("inspect", "web", "nobody", "old")
    assert said.status == 1
    assert [container["name"] for container in json.loads(said.out)] == ["web", "old"]
    assert said.err == 'container: no container "nobody"\nhint: did you mean "web"?\n'
    assert "process.arguments" in run("inspect", "--format", "table", "web").out


def test_stop_sends_its_options_and_prints_the_names(run: Any, three: Any) -> None:
    assert run("stop", "-t", "2.5", "-s", "int", "web", "old").out == "web\nold\n"
    assert ("stop", "web", StopOptions("SIGINT", 2.5)) in three.calls


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_a_container_has_its_own_timeout_unless_another_one_is_given(
    run: Any, three: Any, verb: str
) -> None:
    three.add("slow", ContainerStatus.RUNNING, stop_timeout=None)
    assert run(verb, "web").out == "web\n"
    assert run(verb, "slow").out == "slow\n"
    assert run(verb, "--time", "0", "web").status == 0
    assert run(verb, "--time", "-1", "-s", "HUP", "web").status == 0
    assert [call for call in three.calls if call[0] == verb] == [
        (verb, "web", StopOptions(None, 10.0)),
        (verb, "slow", StopOptions(None, None)),
        (verb, "web", StopOptions(None, 0.0)),
        (verb, "web", StopOptions("SIGHUP", None)),
    ]
    said = run(verb, "-t", "soon", "web")
    assert (said.status, said.err.splitlines()[0]) == (
        2,
        'container: "soon" is no number of seconds: use a number, as in 10, or -1 to wait for ever',
    )


@pytest.mark.parametrize("verb", ["pause", "unpause"])
def test_pause_and_unpause_print_the_names_and_tell_what_is_not_there(
    run: Any, three: Any, verb: str
) -> None:
    said = run(verb, "web", "nobody")
    assert (said.status, said.out) == (1, "web\n")
    assert 'no container "nobody"' in said.err
    assert (verb, "web") in three.calls
    assert run(verb).status == 2


def test_list_shows_what_is_paused_restarting_or_checked(run: Any, session: Any) -> None:
    containers = session.fake_containers
    containers.add("iced", ContainerStatus.PAUSED)
    containers.add("again", ContainerStatus.RESTARTING, exit=ExitStatus(None))
    now = datetime.now(UTC)
    well = {"health_status": HealthStatus.UNHEALTHY, "started_at": now}
    containers.add("ill", ContainerStatus.RUNNING, **well)
    rows = run("list").out.splitlines()[1:]
    assert rows[0].endswith("running for 0 seconds (unhealthy)")
    assert rows[1].endswith("restarting (unknown)")
    assert rows[2].endswith("paused")


def test_inspect_tells_memory_restarts_and_health_and_an_unknown_code_as_none(
    run: Any, session: Any
) -> None:
    session.fake_containers.add(
        "web",
        ContainerStatus.STOPPED,
        exit=ExitStatus(137, 9, out_of_memory=True),
        restart=RestartPolicy(RestartCondition.ON_FAILURE, 3),
        restart_count=2,
    )
    session.fake_containers.add("lost", ContainerStatus.STOPPED, exit=ExitStatus(None))
    web, lost = json.loads(run("inspect", "web", "lost").out)
    assert web["exit"]["out_of_memory"] is True
    assert web["restart"] == {"condition": "on-failure", "limit": 3}
    assert web["restart_count"] == 2
    assert (lost["exit"]["code"], lost["exit"]["out_of_memory"]) == (None, False)
    assert "stopped (137, out of memory)" in run("ls", "-a").out


def test_one_failure_of_many_leaves_the_others_done(run: Any, three: Any) -> None:
    said = run("kill", "-s", "15", "nobody", "web", "none")
    assert (said.status, said.out) == (1, "web\n")
    assert said.err.count('container: no container "no') == 2
    assert ("kill", "web", "SIGTERM") in three.calls


def test_delete_refuses_what_runs_unless_forced(run: Any, three: Any) -> None:
    said = run("delete", "web")
    assert said.status == 1
    assert 'container: "web" runs' in said.err
    assert run("rm", "-f", "web").out == "web\n"
    assert run("rm", "-f", "web").status == 0, "what is gone already is no failure when forced"
    assert run("rm", "web").status == 1


def test_delete_all_takes_what_does_not_run_and_forced_the_rest(run: Any, three: Any) -> None:
    assert run("rm", "-a").out == "old\n"
    assert run("rm", "-af").out == "lost\nweb\n"
    assert run("rm").status == 2
    assert run("rm", "-a", "web").status == 2


def test_start_prints_names_and_uses_125(run: Any, three: Any) -> None:
    assert run("start", "old").out == "old\n"
    assert run("start", "nobody").status == 125
    assert run("start", "-a", "old", "web").status == 125
    assert run("start").status == 125


def test_start_attached_shows_output_and_has_the_status(run: Any, session: Any) -> None:
    assert run("create", "--name", "x", "demo", "sh", "-c", "echo hi; exit 4").status == 0
    assert run("start", "-a", "x") == (4, "hi\n", "")
    assert run("start", "x", "-a") == (4, "hi\n", ""), "this run's output alone"


def test_start_attached_refuses_what_runs(run: Any, three: Any) -> None:
    said = run("start", "-a", "web")
    assert said.status == 125
    assert "container logs -f web" in said.err


def test_wait_prints_statuses_and_never_invents_one(run: Any, three: Any) -> None:
    assert run("wait", "old", "web").out == "3\nunknown\n"


def test_stats_show_what_runs(run: Any, three: Any) -> None:
    lines = run("stats", "--no-stream").out.splitlines()
    assert [line.split()[0] for line in lines] == ["CONTAINER", "web"]
    assert "1.5MB" in lines[1].replace("1.50MB", "1.5MB")
    found = json.loads(run("stats", "--format", "json", "web").out)
    assert found[0]["container"] == "web"
    assert found[0]["memory_bytes"] == 1_500_000


def test_logs_show_both_streams_and_a_tail(run: Any, three: Any) -> None:
    log = three.sandboxes["old"].log
    log.add(LogStream.START)
    log.add(LogStream.STDOUT, b"one\ntwo\n")
    log.add(LogStream.STDERR, b"three\n")
    log.add(LogStream.END)
    assert run("logs", "old") == (0, "one\ntwo\n", "three\n")
    assert run("logs", "-n", "2", "old") == (0, "two\n", "three\n")
    assert run("logs", "-f", "-n", "all", "old") == (0, "one\ntwo\n", "three\n")
    assert run("logs", "-n", "many", "old").status == 2


def test_following_a_running_container_ends_with_its_run(run: Any, three: Any) -> None:
    log = three.sandboxes["web"].log
    log.add(LogStream.START)
    log.add(LogStream.STDOUT, b"one\n")

    def end() -> None:
        log.add(LogStream.STDOUT, b"two\n")
        log.add(LogStream.END)

    timer = threading.Timer(0.2, end)
    timer.start()
    assert run("logs", "-f", "web") == (0, "one\ntwo\n", "")
    timer.join()


def test_logs_of_a_container_that_keeps_none_say_why(run: Any, session: Any) -> None:
    session.fake_containers.add("quiet", ContainerStatus.RUNNING, keep_log=False)
    said = run("logs", "quiet")
    assert (said.status, said.err) == (
        1,
        'container: "quiet" keeps no log\nhint: run it without --rm\n',
    )


def test_exec_runs_with_our_descriptors_and_has_the_status(run: Any, three: Any) -> None:
    assert run("exec", "web", "sh", "-c", "echo out; echo err >&2; exit 6") == (6, "out\n", "err\n")
    assert run("exec", "web", "/no/such").status == 127
    assert run("exec", "web", "/etc/passwd").status == 126
    assert run("exec", "nobody", "ls").status == 125
    assert run("exec", "web").status == 125


def test_exec_adds_its_environment_to_the_containers(run: Any, three: Any) -> None:
    run("exec", "-e", "A=2", "-e", "B=3", "-w", "/w", "-u", "me", "web", "true")
    spec = three.calls[-1][3]
    assert spec.environment == ("PATH=/bin", "A=2", "B=3")
    assert (spec.working_directory, spec.user) == ("/w", "me")
    run("exec", "web", "true")
    spec = three.calls[-1][3]
    assert (spec.environment, spec.working_directory, spec.user) == ((), "", "")


def test_exec_detached_returns_at_once(run: Any, three: Any) -> None:
    assert run("exec", "-d", "-it", "web", "sleep", "60") == (0, "", "")
    process = next(iter(three.sandboxes["web"].processes.values()))
    assert process.popen.poll() is None
    assert not process.spec.terminal
    assert run("exec", "-d", "web", "/no/such").status == 127


def test_a_child_that_holds_our_output_does_not_hold_us(run: Any, three: Any) -> None:
    # Here through a descriptor of ours; through a pipe of ours in the terminal tests.
    assert run("exec", "web", "sh", "-c", "sleep 5 >/dev/null 2>&1 & echo hi") == (0, "hi\n", "")


def test_images_are_listed(run: Any) -> None:
    said = run("image", "list")
    assert said.out.split()[:5] == ["NAME", "TAG", "DIGEST", "PLATFORMS", "CREATED"]
    assert "linux/amd64" in said.out
    assert "12.3MB" in said.out
    assert run("images", "-q").out == "0123456789ab\n"
    assert json.loads(run("image", "ls", "--format", "json").out)[0]["name"] == "demo"


def test_images_are_pulled_tagged_deleted_and_inspected(run: Any, session: Any) -> None:
    name = "docker.io/library/demo:latest\n"
    assert run("pull", "--platform", "linux/x86_64", "--scheme", "http", "demo").out == name
    assert run("image", "tag", "demo", "other").out == name
    assert run("image", "delete", "-f", "demo").out == name
    assert json.loads(run("image", "inspect", "demo").out)[0]["config"]["command"] == ["sh"]
    assert run("image", "inspect", "nope").err.endswith('hint: did you mean "demo"?\n')
    assert session.fake_images.calls[:3] == [
        ("pull", "demo", Platform("linux", "amd64"), Scheme.HTTP),
        ("tag", "demo", "other"),
        ("delete", "demo", True),
    ]


def test_images_are_loaded_from_a_file_a_folder_and_stdin(
    run: Any, session: Any, tmp_path: Path
) -> None:
    file = tmp_path / "image.tar"
    file.write_bytes(b"x")
    run("image", "load", "-i", str(file), "demo")
    run("load", "-i", str(tmp_path), "--name", "demo")
    run("load")
    assert session.fake_images.calls == [
        ("load", file.stat().st_ino, "demo", str(file)),
        ("load", tmp_path.stat().st_ino, "demo", str(tmp_path)),
        ("load", os.fstat(0).st_ino, None, "stdin"),
    ]
    said = run("load", "-i", "/no/such")
    assert (said.status, said.err.splitlines()[0]) == (
        2,
        'container: "/no/such" can\'t be read: no such file or directory',
    )
    assert run("load", "-n", "a", "b").status == 2


def test_system_status_says_whether_it_runs(run: Any, session: Any) -> None:
    said = run("system", "status")
    assert said.status == 0
    assert "apiserver" in said.out
    assert json.loads(run("system", "status", "--format", "json").out)["running"] is True
    session.fake_launcher = None
    said = run("system", "status")
    assert (said.status, said.err.splitlines()[0]) == (1, "container: the system does not run")
    said = run("system", "status", "--format", "json")
    assert (said.status, json.loads(said.out)) == (1, {"running": False})


def test_system_stop_waits_for_the_launchers_end(run: Any, session: Any) -> None:
    with subprocess.Popen(["sleep", "60"]) as launcher:
        session.fake_launcher.process = launcher
        said = run("system", "stop")
        assert launcher.poll() is not None
    assert said.status == 0
    assert "1 container goes on running" in said.err
    assert session.fake_launcher.calls == [("shutdown", False)]
    session.fake_launcher = None
    assert run("system", "stop") == (0, "", "container: the system does not run\n")


def test_system_stop_can_stop_the_containers_too(run: Any, session: Any) -> None:
    with subprocess.Popen(["sleep", "60"]) as launcher:
        session.fake_launcher.process = launcher
        assert run("system", "stop", "--containers") == (0, "", "")
    assert session.fake_launcher.calls == [("shutdown", True)]


def test_system_start_says_what_runs(run: Any, session: Any) -> None:
    session.fake_launcher = None
    assert "/root-folder" in run("system", "start").out


def test_another_version_is_named(run: Any, session: Any) -> None:
    session.fake_launcher.version = "9.9"
    said = run("system", "version")
    assert "system  9.9" in said.out
    assert "the system that runs is of version 9.9" in said.err
    session.fake_launcher = None
    said = run("system", "version", "--format", "json")
    assert json.loads(said.out)["system"] is None


def test_a_system_that_does_not_understand_us_gets_a_hint(run: Any, session: Any) -> None:
    async def refuse() -> Any:
        raise Incompatible("this server speaks containers 3, you asked for 4")

    session.fake_containers.list = refuse
    said = run("list")
    assert said.status == 1
    assert said.err.splitlines()[0] == (
        "container: this server speaks containers 3, you asked for 4"
    )
    assert "container system stop" in said.err


def test_a_bug_of_a_service_leads_to_its_log(run: Any, session: Any) -> None:
    async def fail() -> Any:
        raise InternalError("something went wrong", details={"id": "abc123"})

    session.fake_containers.list = fail
    assert "abc123" in run("list").err


def test_a_bug_here_shows_its_traceback_only_when_asked(run: Any, session: Any) -> None:
    async def fail() -> Any:
        raise ZeroDivisionError("oops")

    session.fake_containers.list = fail
    said = run("list")
    assert said.status == 1
    assert "Traceback" not in said.err
    assert "internal error: ZeroDivisionError: oops" in said.err
    assert "Traceback" in run("--debug", "list").err


def test_a_deadline_is_told(run: Any, session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.cli.verbs.list.QUICK", 0.05)
    session.fake_containers.list = trio.sleep_forever
    said = run("list")
    assert (said.status, said.err.splitlines()[0]) == (
        1,
        "container: the system did not answer in time",
    )


def test_ctrl_c_ends_quietly_with_130(run: Any, session: Any) -> None:
    async def interrupted() -> Any:
        raise KeyboardInterrupt

    session.fake_containers.list = interrupted
    assert run("list") == (130, "", "")


def test_a_reader_that_is_gone_ends_a_list_quietly(fake_program: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, fake_program, "list"], stdout=writer, stderr=subprocess.PIPE
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"[status 141]\n")


def test_wait_goes_on_with_the_next_api_server(run: Any, three: Any) -> None:
    three.wait_error = PeerGone("the API server is gone", fate=Fate.UNKNOWN)
    assert run("wait", "old") == (0, "3\n", "")


def test_wait_ends_when_the_system_stops(run: Any, three: Any, session: Any) -> None:
    three.wait_error = Unavailable("container-apiserver is stopping")
    session.fake_launcher = None
    said = run("wait", "old")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("container: the system has stopped\nhint: ")
