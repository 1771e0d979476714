"""`container system install` and `uninstall`: hand the named services to systemd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import click

from container.cli.failure import Refused, say
from container.cli.groups import Verb
from container.cli.session import Session

SYSTEM = Path("/etc/systemd/system")
BOOTED = Path("/run/systemd/system")
"""Is there while systemd runs. Source: sd_booted(3)."""
SYSTEMCTL_BOUND = 120.0
"""Seconds for one call of systemctl."""

HELP = """Write systemd's unit files for this system, and enable them.

systemd then holds the sockets, starts services on the first connection and at boot, and watches
them; the launcher goes on to manage what comes and goes. The folders of state and sockets are those
of this command (CONTAINER_ROOT, CONTAINER_RUN).

With --directory the files are written there, and systemd is not told.
"""
UNDO = """Stop and disable what `install` enabled, and remove its unit files.

Files that it did not write are left alone. State and images stay; containers go on running.
"""


def _user_option() -> object:
    return click.option(
        "--user/--system",
        "user",
        default=None,
        help="For your own systemd, or the machine's. [default: --system for root]",
    )


def _directory_option() -> object:
    return click.option(
        "--directory",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where the unit files are; systemd is not told.",
    )


@click.command("install", cls=Verb, help=HELP)
@_user_option()  # type: ignore[operator]
@click.option("--now", is_flag=True, help="Start it too.")
@_directory_option()  # type: ignore[operator]
@click.option("--dry-run", is_flag=True, help="Print the files, and change nothing.")
@click.pass_obj
def command(
    session: Session, user: bool | None, now: bool, directory: Path | None, dry_run: bool
) -> None:
    """Install units."""
    from container.launcher.rundir import somebody_listens
    from container.launcher.systemd import TARGET, enabled, unit_files, write

    user = os.geteuid() != 0 if user is None else user
    files = unit_files(session.paths, user=user)
    folder = _folder(user, directory)
    if dry_run:
        for name, text in files.items():
            print(f"# {folder / name}\n{text}")
        return
    if directory is None:
        _check_systemd(user)
        if now and somebody_listens(session.paths.launcher_socket):
            raise Refused(
                "the system runs already, and its sockets are not systemd's",
                hint='"container system stop" first; containers go on running meanwhile',
            )
    changed = write(files, folder)
    print(f"{len(changed)} of {len(files)} unit files written to {folder}")
    if directory is not None:
        return
    _systemctl(user, "daemon-reload")
    _systemctl(user, "enable", *enabled(files))
    if now:
        _systemctl(user, "start", TARGET)
        print(f"{TARGET} is started")
    else:
        print(f'started at the next boot, or by "systemctl {_scope(user)}start {TARGET}"')


@click.command("uninstall", cls=Verb, help=UNDO)
@_user_option()  # type: ignore[operator]
@_directory_option()  # type: ignore[operator]
@click.pass_obj
def undo(session: Session, user: bool | None, directory: Path | None) -> None:
    """Remove units."""
    from container.launcher.systemd import written

    user = os.geteuid() != 0 if user is None else user
    folder = _folder(user, directory)
    files = written(folder)
    if not files:
        say(f"there are no unit files of this program in {folder}")
        return
    if directory is None:
        _check_systemd(user)
        _systemctl(user, "disable", "--now", *(path.name for path in files))
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise Refused(f"{path} can't be removed: {error.strerror}") from error
    if directory is None:
        _systemctl(user, "daemon-reload")
    print(f"{len(files)} unit files removed from {folder}")


def _folder(user: bool, directory: Path | None) -> Path:
    if directory is not None:
        return directory.absolute()
    if user:
        home = Path(os.environ.get("HOME") or "/")
        return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "systemd/user"
    return SYSTEM


def _check_systemd(user: bool) -> None:
    """Refuse where systemd does not run, or is not ours to change."""
    if not BOOTED.is_dir():
        raise Refused(
            "systemd does not run here",
            hint='without it "container system start" does; --directory only writes the files',
        )
    if not user and os.geteuid() != 0:
        raise Refused("the machine's systemd is root's to change", hint="--user takes your own")


def _scope(user: bool) -> str:
    return "--user " if user else ""


def _systemctl(user: bool, *arguments: str) -> None:
    words: Sequence[str] = ["systemctl", *(["--user"] if user else []), *arguments]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=SYSTEMCTL_BOUND, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused(f"systemctl can't be run: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Refused(f"systemctl {' '.join(arguments[:2])} failed: {said[-1]}")
