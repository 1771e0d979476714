"""The process of one network's helper: `container-network start [--root FOLDER] ID`."""

from __future__ import annotations

from pathlib import Path

import msgspec
import trio
from attrs import frozen

from container.contracts.network import NetworkConfiguration
from container.ipc import IdleTimer, InvalidArgument, NotFound
from container.process import Context, run_process

CONFIGURATION = "configuration.json"


@frozen
class Options:
    """What the command line says."""

    network_id: str
    folder: Path | None = None
    """The helper's folder; None takes the one of this system."""


def parse(arguments: list[str]) -> Options:
    """Read the command line.

    Raises:
        InvalidArgument: it is wrong.
    """
    hint = "container-network start [--root FOLDER] ID"
    rest = arguments[1:] if arguments[:1] == ["start"] else list(arguments)
    folder: Path | None = None
    network_id = ""
    while rest:
        word = rest.pop(0)
        if word == "--root":
            if not rest:
                raise InvalidArgument(f"{word} needs a value", hint=hint)
            folder = Path(rest.pop(0)).absolute()
        elif network_id or word.startswith("-"):
            raise InvalidArgument(f"{word!r} is one word too many", hint=hint)
        else:
            network_id = word
    if not network_id:
        raise InvalidArgument("no network id is given", hint=hint)
    return Options(network_id, folder)


def read_configuration(folder: Path) -> NetworkConfiguration:
    """Read what a network was created with.

    Raises:
        NotFound: there is no network.
        InvalidArgument: it can't be read; the message names the path.
    """
    path = folder / CONFIGURATION
    try:
        return msgspec.json.decode(path.read_bytes(), type=NetworkConfiguration)
    except FileNotFoundError:
        raise NotFound(f"there is no network here: {path} is missing") from None
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidArgument(f"{path} can't be read: {error}") from error


async def serve(context: Context) -> None:
    """Serve one network until stopped, or until it has had no attachment for a while."""
    from container.ipc import open_service
    from container.network.service import NetworkService

    options = parse(context.arguments)
    folder = options.folder or context.paths.networks / options.network_id
    network = read_configuration(folder)
    if network.id != options.network_id:
        raise InvalidArgument(f"{folder} is of network {network.id}, not {options.network_id}")
    at = context.listener or context.paths.network_socket(network.id)
    idle = None if context.idle is None else IdleTimer(context.idle)
    service = NetworkService(folder, network, sockets=context.paths.run / "network", idle=idle)
    async with open_service(service, at=at, idle=idle):
        await context.ready()
        await trio.sleep_forever()


def main() -> int:
    """Run the process."""
    return run_process("container-network", serve)
