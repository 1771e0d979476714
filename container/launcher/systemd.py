"""Our services as units of systemd: what `container system install` writes.

Where systemd runs, it does for the named services what the launcher does elsewhere: it holds their
sockets, starts them on the first connection, restarts them, watches them. The launcher is then one
service among them and has only those that come and go, the runtime helpers. What it keeps it pushes
into systemd's descriptor store, so that its own death loses nothing.

One option is not what one expects. `KillMode=mixed` has systemd kill what is left in the unit's
control group when its main process ends, and the runtime helpers are in the launcher's: a launcher
that died would take all containers with it. So the launcher has `KillMode=process`; the others,
which start nothing that is to outlive them, have `mixed`.

Source: systemd.unit(5), systemd.service(5), systemd.socket(5), systemd.exec(5), systemd.syntax(7).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from container.contracts.launcher import Ready, Restart, ServiceUnit
from container.ipc import InvalidState, PermissionDenied
from container.launcher.supervision import WINDOW
from container.launcher.units import load_units
from container.storage.paths import Paths

PREFIX = "container-"
TARGET = "container.target"
LAUNCHER = f"{PREFIX}launcher.service"
STORE_BOUND = 4096
"""Descriptors that systemd keeps for the launcher."""
SERVICE_STORE_BOUND = 16
MARK = "# Written by `container system install`; `container system uninstall` removes it."

Section = tuple[str, Sequence[tuple[str, str]]]


def unit_files(paths: Paths, *, user: bool) -> dict[str, str]:
    """Return the unit files of a system, by file name.

    Args:
        paths: Its folders; they are written into the units.
        user: For a user's own systemd rather than the machine's.
    """
    files = {TARGET: _target(user), LAUNCHER: _launcher_service(paths)}
    sockets = [("launcher", paths.launcher_socket), ("cli", paths.cli_socket)]
    for name, path in sockets:
        files[f"{PREFIX}{name}.socket"] = _socket(name, f"the launcher ({name})", path, LAUNCHER)
    for unit in load_units():
        service = f"{PREFIX}{unit.name}.service"
        files[service] = _service(unit, paths)
        if unit.listen is not None:
            path = paths.run / unit.listen
            files[f"{PREFIX}{unit.name}.socket"] = _socket(
                unit.name, unit.description, path, service
            )
    return files


def enabled(files: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names of the units that are to be enabled."""
    return tuple(name for name, text in files.items() if "\n[Install]\n" in text)


def write(files: Mapping[str, str], folder: Path) -> tuple[Path, ...]:
    """Write unit files into a folder; return those that have changed.

    Raises:
        InvalidState: a file of one of the names is there that was not written by us; nothing was
            changed.
        PermissionDenied: the folder can't be written.
    """
    for name in files:
        if not _ours(folder / name, missing=True):
            raise InvalidState(
                f"{folder / name} is there, and was not written by this program",
                hint="move it away, or name another folder by --directory",
            )
    changed: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            path = folder / name
            if path.exists() and path.read_text() == text:
                continue
            fresh = path.with_name(f".{name}.new")
            fresh.write_text(text)
            fresh.chmod(0o644)
            fresh.replace(path)
            changed.append(path)
    except OSError as error:
        raise PermissionDenied(f"can't write to {folder}: {error.strerror}") from error
    return tuple(changed)


def written(folder: Path) -> tuple[Path, ...]:
    """Return the unit files in a folder that were written by us."""
    found = [folder / TARGET, *sorted(folder.glob(f"{PREFIX}*"))]
    return tuple(path for path in found if _ours(path, missing=False))


def _ours(path: Path, *, missing: bool) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline().rstrip("\n") == MARK
    except FileNotFoundError:
        return missing
    except OSError:
        return False


# --- the units ---


def _target(user: bool) -> str:
    wanted_by = "default.target" if user else "multi-user.target"
    return _text(
        ("Unit", [("Description", "The container system")]),
        ("Install", [("WantedBy", wanted_by)]),
    )


def _socket(name: str, description: str, path: Path, service: str) -> str:
    return _text(
        ("Unit", [("Description", f"Socket of {_plain(description)}"), ("PartOf", TARGET)]),
        (
            "Socket",
            [
                ("ListenStream", _plain(str(path))),
                ("FileDescriptorName", name),
                ("Service", service),
                ("SocketMode", "0600"),
                ("DirectoryMode", "0700"),
                # Connections inherit it: what is said before they are accepted has a sender too.
                ("PassCredentials", "yes"),
                ("Backlog", "1024"),
                ("RemoveOnStop", "yes"),
            ],
        ),
        ("Install", [("WantedBy", TARGET)]),
    )


def _launcher_service(paths: Paths) -> str:
    sockets = f"{PREFIX}launcher.socket {PREFIX}cli.socket"
    return _text(
        (
            "Unit",
            [
                ("Description", "The container system: launcher"),
                ("PartOf", TARGET),
                ("Requires", sockets),
                ("After", sockets),
            ],
        ),
        (
            "Service",
            [
                ("Type", "notify"),
                ("NotifyAccess", "main"),
                ("ExecStart", _command(["container-launcher", "--log", "-", "--systemd"])),
                *_environment(paths.environment()),
                ("Sockets", sockets),
                # Control groups of containers below its own are its own to make.
                ("Delegate", "yes"),
                # Not mixed: runtime helpers, and so containers, outlive the launcher.
                ("KillMode", "process"),
                ("Restart", "on-failure"),
                ("RestartSec", "0.1"),
                ("TimeoutStopSec", "60"),
                ("WatchdogSec", "30"),
                ("FileDescriptorStoreMax", str(STORE_BOUND)),
                ("LimitNOFILE", "1024:524288"),
                ("LimitCORE", "0"),
                ("TasksMax", "infinity"),
            ],
        ),
    )


def _service(unit: ServiceUnit, paths: Paths) -> str:
    own = [f"{PREFIX}{unit.name}.socket"] if unit.listen is not None else []
    after = [*own, f"{PREFIX}launcher.socket"]
    for name in (*unit.requires, *unit.after):
        after += [f"{PREFIX}{name}.socket", f"{PREFIX}{name}.service"]
    requires = [*own, *(f"{PREFIX}{name}.service" for name in unit.requires)]
    environment = {**unit.environment, **paths.environment()}
    if unit.idle_timeout is not None:
        environment["CONTAINER_IDLE_SECONDS"] = _number(unit.idle_timeout)
    body = [
        ("Type", "notify" if unit.ready is Ready.NOTIFY else "exec"),
        ("NotifyAccess", "main"),
        ("ExecStart", _command([unit.command[0], "--log", "-", *unit.command[1:]])),
        *_environment(environment),
        ("KillMode", "mixed"),
        ("Restart", unit.restart.value),
        ("TimeoutStartSec", _number(unit.start_timeout)),
        ("TimeoutStopSec", _number(unit.stop_timeout)),
        ("FileDescriptorStoreMax", str(SERVICE_STORE_BOUND)),
    ]
    if unit.restart is not Restart.NO:
        body.append(("RestartSec", _number(unit.restart_delay)))
    for key, value in (
        ("WatchdogSec", unit.watchdog),
        ("LimitNOFILE", unit.open_files),
        ("LimitCORE", unit.core_size),
        ("OOMScoreAdjust", unit.oom_score_adjust),
        ("Nice", unit.nice),
    ):
        if value is not None:
            body.append((key, _number(value)))
    sections: list[Section] = [
        (
            "Unit",
            [
                ("Description", _plain(unit.description or unit.name)),
                ("PartOf", TARGET),
                *([("Requires", " ".join(requires))] if requires else []),
                ("After", " ".join(dict.fromkeys(after))),
                ("StartLimitIntervalSec", f"{WINDOW:g}"),
                ("StartLimitBurst", str(unit.restart_limit)),
            ],
        ),
        ("Service", body),
    ]
    if unit.start_at_boot:
        # Whatever its condition says here: one of systemd would hold for its socket too.
        sections.append(("Install", [("WantedBy", TARGET)]))
    return _text(*sections)


# --- text ---


def _text(*sections: Section) -> str:
    return "\n".join((MARK, *_lines(sections))) + "\n"


def _lines(sections: Sequence[Section]) -> Iterator[str]:
    for title, body in sections:
        yield ""
        yield f"[{title}]"
        for key, value in body:
            yield f"{key}={value}"


def _number(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".")


def _plain(text: str) -> str:
    """Return a value that nothing is replaced in (`%` begins a specifier)."""
    return text.replace("%", "%%").replace("\n", " ")


def _quoted(text: str) -> str:
    return '"' + _plain(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _environment(variables: Mapping[str, str]) -> list[tuple[str, str]]:
    return [("Environment", _quoted(f"{name}={value}")) for name, value in variables.items()]


def _command(words: Sequence[str]) -> str:
    """Return a command line whose program is found as the launcher would find it."""
    beside = Path(sys.executable).with_name(words[0])
    program = str(beside) if beside.exists() else shutil.which(words[0]) or str(beside)
    # A dollar sign would begin a variable in arguments, not in the program's own path.
    return " ".join([_quoted(program), *(_quoted(word).replace("$", "$$") for word in words[1:])])
