"""Count the lines of files that we may not open: `python client.py SOCKET`."""

from __future__ import annotations

import os
import pwd
import sys

import trio
from contract import Opener

from container.ipc import ContainerError, prepare


def drop_privileges() -> None:
    """Become `nobody` for good, if we are root."""
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setresgid(nobody.pw_gid, nobody.pw_gid, nobody.pw_gid)
        os.setresuid(nobody.pw_uid, nobody.pw_uid, nobody.pw_uid)


async def main(path: str) -> None:
    """Read with no right but the descriptors that we are handed."""
    async with Opener.connect(path) as opener:
        for name in await opener.names():
            with trio.fail_after(5):
                file = await opener.open(name)
            with os.fdopen(file.take(), encoding="utf-8") as lines:
                print(f"user {os.geteuid()} counts {sum(1 for _ in lines)} lines in {name}")
        try:
            await opener.open("../secret")
        except ContainerError as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    prepare(Opener)  # what a first use would load may be out of reach afterwards
    drop_privileges()
    trio.run(main, sys.argv[1])
