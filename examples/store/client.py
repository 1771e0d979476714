"""Use the store: `python client.py SOCKET get|put|hold|watch KEY [VALUE]`."""

from __future__ import annotations

import sys

import trio
from contract import Store

from container.ipc import ContainerError


async def main(path: str, verb: str, key: str, value: str = "") -> None:
    """Do one thing."""
    async with Store.connect(path) as store:
        match verb:
            case "get":
                with trio.fail_after(5):  # the deadline travels with the call
                    print((await store.get(key)).decode())
            case "put":
                with trio.fail_after(5):
                    await store.put(key, value.encode())
            case "hold":
                async with store.lease(key, value.encode()):
                    print(f"holding {key}", flush=True)
                    await trio.sleep_forever()
            case "watch":
                async with store.watch(key) as changes:
                    async for change in changes:
                        now = "is gone" if change.value is None else f"= {change.value.decode()}"
                        print(change.key, now, flush=True)
            case _:
                sys.exit(__doc__)


if __name__ == "__main__":
    try:
        trio.run(main, *sys.argv[1:])
    except ContainerError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        pass
