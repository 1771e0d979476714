"""Open files for who may not: `python service.py FOLDER SOCKET`, as root or as any user."""

from __future__ import annotations

import os
import pwd
import stat
import sys

import trio
from contract import Opener

from container.ipc import Fd, InvalidArgument, NotFound, bind, open_service, users


class OpenerService(Opener):
    """The one process that may read the folder."""

    def __init__(self, folder: int) -> None:
        self._folder = folder

    async def names(self) -> list[str]:
        with os.scandir(self._folder) as entries:
            return sorted(e.name for e in entries if e.is_file(follow_symlinks=False))

    async def open(self, name: str) -> Fd:
        if "/" in name or name in ("", ".", ".."):
            raise InvalidArgument(f"{name!r} is not the name of a file in this folder")
        # Neither a link out of the folder nor a named pipe that would block is opened.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            opened = Fd(os.open(name, flags, dir_fd=self._folder))
        except FileNotFoundError:
            raise NotFound(f"no file {name!r}") from None
        except OSError as error:
            raise InvalidArgument(f"{name!r}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
            opened.close()
            raise InvalidArgument(f"{name!r} is no regular file")
        return opened  # a result is given away: it closes here once it was sent


async def main(folder: str, path: str) -> None:
    """Serve `nobody` if we are root, else ourselves; anybody may connect, and is judged then."""
    reader = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with bind(path, mode=0o666) as listener:
        async with open_service(OpenerService(opened), at=listener, policy=users({reader})):
            print(f"serving user {reader}", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    try:
        trio.run(main, *sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
