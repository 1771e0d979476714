"""Every wrong option is refused in the user's own words, before any service is asked."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from container.cli.amounts import (
    parse_cpus,
    parse_lines,
    parse_memory,
    parse_pids,
    show_bytes,
)
from container.cli.environment import merge_environment, parse_environment, parse_labels
from container.cli.failure import UsageRefused
from container.cli.mounts import (
    parse_mount,
    parse_mounts,
    parse_tmpfs,
    parse_volume,
    parse_volumes_from,
)
from container.cli.names import (
    parse_folder,
    parse_hostname,
    parse_name,
    parse_platform,
    parse_signal,
    parse_user,
)
from container.contracts.images import Platform
from container.contracts.runtime import Mount, MountKind


def refusal(parse: Callable[..., object], *arguments: Any) -> str:
    """Return the sentence with which something is refused."""
    with pytest.raises(UsageRefused) as caught:
        parse(*arguments)
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1", 1), ("1b", 1), ("2k", 2048), ("512m", 512 << 20), ("1.5g", 3 << 29), ("1T", 1 << 40),
        ("64MB", 64 << 20), ("64MiB", 64 << 20), ("10 kb", 10240),
    ],
)  # fmt: skip
def test_memory_is_a_number_with_a_unit(text: str, amount: int) -> None:
    assert parse_memory(text) == amount


@pytest.mark.parametrize(
    "text", ["12parsecs", "", "m", "-1m", "0", "1e3", "0x10", "nan", "1,5g", "9999999999t", "٣m"]
)
def test_another_amount_of_memory_is_refused(text: str) -> None:
    assert refusal(parse_memory, text) == (
        f'"{text}" is no amount of memory: use a number with b, k, m or g, as in 512m'
    )


@given(st.text())
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    for parse in (parse_memory, parse_cpus, parse_pids, parse_lines):
        try:
            parse(text)
        except UsageRefused:
            pass


def test_cpus_are_a_number_above_0() -> None:
    assert parse_cpus("1.5") == 1.5
    for text in ("0", "-1", "nan", "inf", "two", "", "1_0"):
        assert refusal(parse_cpus, text).startswith(f'"{text}" is no number of CPUs')


def test_a_limit_of_processes_is_a_whole_number_or_none() -> None:
    assert [parse_pids(text) for text in ("7", "0", "-1")] == [7, None, None]
    for text in ("-2", "1.5", "x", "", "99999999999"):
        assert refusal(parse_pids, text).startswith(f'"{text}" is no number of processes')


def test_sizes_are_shown_with_three_digits_that_count() -> None:
    shown = [show_bytes(size) for size in (0, 999, 1000, 12_345_678, 999_999, 5 * 10**12)]
    assert shown == ["0B", "999B", "1kB", "12.3MB", "1000kB", "5TB"]


def test_the_last_value_of_a_variable_wins_and_files_come_first(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text('# comment\n\n  A=1\nB= two words \nHOST\nMISSING\nC="quoted"\r\n')
    found = parse_environment(["B=3", "HOST2", "GONE"], [str(file)], {"HOST": "h", "HOST2": "i"})
    assert found == ("A=1", "B=3", "HOST=h", 'C="quoted"', "HOST2=i")


def test_a_bad_line_of_a_file_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("A=1\n\nBAD NAME=2\n")
    assert refusal(parse_environment, [], [str(file)]) == (
        f'{file}, line 3: "BAD NAME=2" is no environment variable: use NAME=value or NAME'
    )


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    missing = str(tmp_path / "no")
    assert refusal(parse_environment, [], [missing]) == (
        f'the environment file "{missing}" can\'t be read: no such file or directory'
    )
    assert "is a directory" in refusal(parse_environment, [], [str(tmp_path)])
    binary = tmp_path / "binary"
    binary.write_bytes(b"A=\xff")
    assert refusal(parse_environment, [], [str(binary)]).endswith("is not UTF-8 text")


def test_variables_and_labels_need_a_name() -> None:
    for text in ("=x", "", "A B=1"):
        assert refusal(parse_environment, [text], []).startswith(f'"{text}" is no environment')
    assert parse_labels(["a=1=2", "b", "a=3"]) == {"a": "3", "b": ""}
    assert refusal(parse_labels, ["=x"]) == '"=x" is no label: use KEY=value or KEY'


def test_merging_keeps_the_order_and_the_later_value() -> None:
    assert merge_environment(["A=1", "B=2"], ["A=3", "C=4"]) == ("A=3", "B=2", "C=4")


def test_a_relative_source_is_made_absolute_and_not_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    monkeypatch.chdir(tmp_path)
    assert parse_volume("./link:/data/../data/") == Mount(
        MountKind.BIND, "/data", f"{tmp_path}/link"
    )
    assert parse_volume(".:/data:rw").read_only is False
    assert parse_volume(".:/data:ro").read_only is True


def test_a_source_that_is_not_there_is_refused() -> None:
    assert refusal(parse_volume, "/no/such:/data") == (
        '"/no/such" in "/no/such:/data" does not exist'
    )
    assert "does not exist" in refusal(parse_mount, "type=bind,source=/no/such,target=/data")


VOLUME_RULE = (
    "use NAME:DESTINATION or PATH:DESTINATION, with :ro behind it if need be, or DESTINATION"
)
NAME_RULE = 'use at most 128 letters, digits, ".", "_" and "-", beginning with a letter or digit'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tmp", f'"tmp" is no volume: {VOLUME_RULE}'),
        (":/x", f'":/x" is no volume: {VOLUME_RULE}'),
        ("/tmp:/x:ro:ro", f'"/tmp:/x:ro:ro" is no volume: {VOLUME_RULE}'),
        ("", f'"" is no volume: {VOLUME_RULE}'),
        ("/", '"/" would cover the whole root of the container'),
        ("/tmp:x", '"x" in "/tmp:x" is no absolute path in the container: begin it with /'),
        ("/tmp:/", '"/tmp:/" would cover the whole root of the container'),
        ("/tmp:/..", '"/tmp:/.." would cover the whole root of the container'),
        ("/tmp:/x:rx", '"rx" in "/tmp:/x:rx" is no option of a volume: use ro, rw or nocopy'),
        ("data:/x:", f'"data:/x:" is no volume: {VOLUME_RULE}'),
        ("data:/x:ro,rw", '"data:/x:ro,rw" can\'t be both ro and rw'),
        ("/tmp:/x:nocopy", '"nocopy" in "/tmp:/x:nocopy" is for named volumes, not for a path'),
        ("-d:/x", f'"-d" in "-d:/x" can\'t name a volume: {NAME_RULE}'),
        (f"{'x' * 129}:/x", f'"{"x" * 129}" in "{"x" * 129}:/x" can\'t name a volume: {NAME_RULE}'),
        ("data:x", '"x" in "data:x" is no absolute path in the container: begin it with /'),
    ],
)
def test_a_volume_that_makes_no_sense_is_refused(text: str, sentence: str) -> None:
    assert refusal(parse_volume, text) == sentence


def test_what_has_no_slash_is_the_name_of_a_volume() -> None:
    assert parse_volume("data:/x") == Mount(MountKind.VOLUME, "/x", "data")
    assert parse_volume("data:/x/:ro,nocopy") == Mount(
        MountKind.VOLUME, "/x", "data", read_only=True, populate=False
    )
    assert parse_mount("type=volume,source=data,target=/x,readonly") == Mount(
        MountKind.VOLUME, "/x", "data", read_only=True
    )
    assert parse_mount("src=data,dst=/x,volume-nocopy=true") == Mount(
        MountKind.VOLUME, "/x", "data", populate=False
    )


def test_a_destination_alone_is_an_anonymous_volume() -> None:
    assert parse_volume("/x/../y") == Mount(MountKind.VOLUME, "/y")
    assert parse_mount("type=volume,target=/x") == Mount(MountKind.VOLUME, "/x")


def test_volumes_come_from_containers() -> None:
    assert parse_volumes_from(["web", "db:ro", "x:rw"]) == ("web", "db:ro", "x:rw")
    for text in ("", ":ro", "web:", "web:rx", "web:ro:ro"):
        assert refusal(parse_volumes_from, [text]) == (
            f'"{text}" names no container\'s volumes: use CONTAINER or CONTAINER:ro'
        )


def test_mounts_are_fields(tmp_path: Path) -> None:
    assert parse_mount(f"type=bind,src={tmp_path},dst=/x,ro") == Mount(
        MountKind.BIND, "/x", str(tmp_path), read_only=True
    )
    assert parse_mount(f"source={tmp_path},target=/x,readonly=false").read_only is False
    assert parse_mount("type=tmpfs,destination=/x,tmpfs-size=64m,tmpfs-mode=1777") == Mount(
        MountKind.TMPFS, "/x", options=("size=64m", "mode=1777")
    )
    assert parse_tmpfs("/x:size=1m,noexec,ro") == Mount(
        MountKind.TMPFS, "/x", read_only=True, options=("size=1m", "noexec")
    )
    assert parse_tmpfs("/x") == Mount(MountKind.TMPFS, "/x")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("type=plan9,source=x,target=/x", '"plan9" in'),
        (
            "type=volume,source=/x,target=/x",
            '"/x" in "type=volume,source=/x,target=/x" can\'t name',
        ),
        ("type=volume,source=x", "has no target"),
        ("type=volume,source=x,target=/x,size=1m", "size in"),
        ("type=volume,target=/x,volume-nocopy=maybe", 'not "maybe"'),
        ("type=bind,source=/tmp,target=/x,volume-nocopy", "is for type=volume alone"),
        ("type=tmpfs,target=/x,nocopy", "is for type=volume alone"),
        ("type=bind,target=/x", "has no source"),
        ("type=bind,source=/tmp", "has no target"),
        ("type=tmpfs,source=/tmp,target=/x", "has a source, but a tmpfs has none"),
        ("type=bind,source=/tmp,target=/x,size=1m", "size in"),
        ("type=bind,source=/tmp,target=/x,speed=1", '"speed=1" in'),
        ("type=bind,source=/tmp,target=/x,ro=maybe", 'not "maybe"'),
        ("type=tmpfs,target=x", '"x" in'),
    ],
)
def test_a_mount_that_makes_no_sense_is_refused(text: str, part: str) -> None:
    assert part in refusal(parse_mount, text)


def test_two_mounts_of_one_place_are_refused() -> None:
    assert refusal(parse_mounts, ["/tmp:/x"], [], ["/x/"]) == (
        'two mounts go to "/x": leave one of them out'
    )


@given(st.text())
def test_no_text_becomes_a_mount_outside_or_over_the_root(text: str) -> None:
    for parse in (parse_volume, parse_mount, parse_tmpfs):
        try:
            mount = parse(text)
        except UsageRefused:
            continue
        assert mount.destination.startswith("/")
        assert mount.destination != "/"
        assert ".." not in mount.destination.split("/")


def test_names_show_their_rule() -> None:
    assert parse_name("a.b_c-1") == "a.b_c-1"
    for text in ("", "-a", "a b", "a/b", "é", "a" * 64, "a\n"):
        assert "at most 63 letters" in refusal(parse_name, text)
    assert parse_hostname("web-1.example") == "web-1.example"
    for text in ("", "-a", "a_b", "a.", "a" * 65):
        assert "is no host name" in refusal(parse_hostname, text)


def test_users_and_folders_are_checked() -> None:
    assert parse_user("1000:me") == "1000:me"
    for text in ("", ":", "a:", ":b", "a:b:c", "a b"):
        assert refusal(parse_user, text).startswith(f'"{text}" is no user')
    assert parse_folder("/w") == "/w"
    assert refusal(parse_folder, "w").startswith('"w" is no absolute path')


def test_platforms_are_in_ocis_words() -> None:
    assert parse_platform("linux/aarch64") == Platform("linux", "arm64")
    assert parse_platform("Linux/arm/v7") == Platform("linux", "arm", "v7")
    for text in ("linux", "linux/", "/", "a/b/c/d", "linux/x y", ""):
        assert refusal(parse_platform, text).startswith(f'"{text}" is no platform')


def test_signals_have_names_and_numbers() -> None:
    assert [parse_signal(text) for text in ("term", "SIGKILL", "2", "35")] == [
        "SIGTERM", "SIGKILL", "SIGINT", "35",
    ]  # fmt: skip
    for text in ("", "0", "65", "-1", "FOO", "SIG"):
        assert refusal(parse_signal, text).startswith(f'"{text}" is no signal')


@pytest.mark.parametrize(
    "option",
    [
        ("-m", "12parsecs"), ("-c", "many"), ("--pids-limit", "x"), ("--env-file", "/no/such"),
        ("-e", "=1"), ("-l", "=1"), ("-v", "/no/such:/x"), ("--mount", "x"), ("--tmpfs", "x"),
        ("--volumes-from", ":ro"), ("-v", "data"), ("-v", "data:/x:rx"),
        ("--name", "a b"), ("-u", ":"), ("-w", "x"), ("--network", "a b"), ("--hostname", "_"),
        ("--platform", "x"), ("--stop-signal", "x"), ("--pull", "now"), ("--no-such-option",),
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["run", "create"])
def test_bad_usage_is_125_with_one_sentence_and_one_hint(
    run: Any, session: Any, verb: str, option: tuple[str, ...]
) -> None:
    said = run(verb, *option, "demo")
    assert (said.status, said.out) == (125, "")
    sentence, hint = said.err.splitlines()
    assert sentence.startswith("container: ")
    assert hint.startswith("hint: ")
    assert not session.fake_containers.options
    assert session.connections == 0


def test_a_socket_can_be_mounted(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert parse_volume(f"{tmp_path}/s:/run/s").source == f"{tmp_path}/s"
