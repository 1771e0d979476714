"""Unit files: what they may say, and errors that name file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from container.contracts.launcher import Ready, Restart
from container.ipc import InvalidArgument
from container.launcher.units import load_units, parse_unit

WHOLE = """
[Unit]
Description = "All of it"
After = ["other"]
Requires = ["another"]
ConditionDirectoryNotEmpty = "folder"

[Service]
Type = "notify"
TimeoutStartSec = 4
WatchdogSec = 5
IdleTimeoutSec = 6
LimitNOFILE = 64
LimitCORE = 0
OOMScoreAdjust = -5
Nice = 3
LogSizeMax = 5000
ExecStart = "program --option 'two words'"
Entry = "package.module:main"
Restart = "always"
RestartSec = 1
StartLimitBurst = 7
TimeoutStopSec = 2.5
Environment = { NAME = "value" }
StartAtBoot = true

[Socket]
ListenStream = "folder/x.sock"
"""


def test_every_key_arrives_in_the_unit() -> None:
    unit = parse_unit(WHOLE, Path("x.toml"))
    assert unit.name == "x"
    assert unit.description == "All of it"
    assert unit.after == ("other",)
    assert unit.command == ("program", "--option", "two words")
    assert unit.entry == "package.module:main"
    assert unit.restart is Restart.ALWAYS
    assert (unit.restart_delay, unit.restart_limit, unit.stop_timeout) == (1.0, 7, 2.5)
    assert unit.environment == {"NAME": "value"}
    assert unit.start_at_boot
    assert unit.listen == "folder/x.sock"
    assert (unit.requires, unit.boot_folder, unit.ready) == (("another",), "folder", Ready.NOTIFY)
    assert (unit.start_timeout, unit.watchdog, unit.idle_timeout) == (4.0, 5.0, 6.0)
    assert (unit.open_files, unit.core_size, unit.oom_score_adjust, unit.nice) == (64, 0, -5, 3)
    assert unit.log_size == 5000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[Unit", "x.toml: "),
        ("[Install]", r"x.toml: there is no section \[Install\]"),
        ("Unit = 3", r"x.toml: Unit must be a section"),
        ("[Service]\nExecstart='a'", r"x.toml: \[Service\] has no key Execstart"),
        ("[Service]\nRestart='a'", "x.toml: ExecStart in|x.toml: Restart in .* must be one of no"),
        ("[Service]\nRestartSec='1s'", r"RestartSec in \[Service\] must be a number of seconds"),
        ("[Service]\nRestartSec=true", "must be a number of seconds"),
        ("[Service]\nStartLimitBurst=1.5", "must be a whole number"),
        ("[Service]\nExecStart=3", "must be a string or a list"),
        ("[Service]\nExecStart=['a', 3]", "must be a string"),
        ("[Service]\nEnvironment=['A=1']", "must be a table"),
        ("[Service]\nRestart='no'", "x.toml: ExecStart in .* is missing"),
        ("[Service]\nExecStart=''", "x.toml: service .* has no command"),
        ("[Service]\nExecStart='a'\nEntry='a.b'", "not package.module:function"),
        ("[Service]\nExecStart='a'\n[Socket]\nListenStream='/x'", "not a path below"),
        ("[Service]\nExecStart='a'\nRestartSec=-1", "between 0 and 3600"),
        ("[Service]\nExecStart='a'\nStartLimitBurst=0", "between 1 and 1000"),
        ("[Service]\nExecStart='a'\nType='simple'", r"Type in \[Service\] must be one of exec"),
        ("[Service]\nExecStart='a'\nWatchdogSec=5", "must say when it is ready too"),
        ("[Service]\nExecStart='a'\nIdleTimeoutSec=0", "idle time .* must be at least 1"),
        ("[Service]\nExecStart='a'\nNice=20", "niceness .* between -20 and 19"),
        ("[Service]\nExecStart='a'\nEnvironment={'A B'='1'}", "can't be an environment variable"),
    ],
)
def test_a_mistake_is_an_error_that_names_file_and_key(text: str, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=sentence):
        parse_unit(text, Path("x.toml"))


def test_units_come_after_those_that_they_name(tmp_path: Path) -> None:
    for name, after in (("a", ["c"]), ("b", []), ("c", ["b"])):
        (tmp_path / f"{name}.toml").write_text(
            f"[Unit]\nAfter = {after}\n[Service]\nExecStart = 'x'\n"
        )
    assert [unit.name for unit in load_units(tmp_path)] == ["b", "c", "a"]
    (tmp_path / "b.toml").write_text("[Unit]\nAfter = ['a']\n[Service]\nExecStart = 'x'\n")
    with pytest.raises(InvalidArgument, match="a → c → b → a"):
        load_units(tmp_path)
    (tmp_path / "b.toml").write_text("[Unit]\nRequires = ['a']\n[Service]\nExecStart = 'x'\n")
    with pytest.raises(InvalidArgument, match="a → c → b → a"):
        load_units(tmp_path)
    (tmp_path / "b.toml").write_text("[Unit]\nAfter = ['z']\n[Service]\nExecStart = 'x'\n")
    with pytest.raises(InvalidArgument, match='After names "z"'):
        load_units(tmp_path)


def test_the_shipped_units_are_the_images_helper_and_the_api_server_after_it() -> None:
    images, apiserver = load_units()
    assert (images.name, images.listen) == ("images", "images.sock")
    assert (apiserver.name, apiserver.after) == ("apiserver", ("images",))
