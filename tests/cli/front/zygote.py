"""A zygote without a launcher, that runs `front_commands`. Arguments: door's path, key suffix."""

from __future__ import annotations

import os
import socket
import sys

from container.launcher import commandline, frontdoor, zygote

os.environ["ZYGOTE"] = "yes"
commandline.ENTRY = "front_commands:main"
if sys.argv[2:]:
    key = frontdoor.key
    frontdoor.key = lambda: key() + os.fsencode(sys.argv[2])
door = socket.socket(socket.AF_UNIX)
door.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
door.bind(sys.argv[1])
door.listen(64)
print("ready", flush=True)
zygote.Zygote(socket.socket(fileno=0), door, preload=False).run()
