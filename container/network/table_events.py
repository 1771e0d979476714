"""Hear from the kernel that an nft table is gone.

Source: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, netlink(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import trio

_NETLINK_NETFILTER = 12
_GROUP_NFTABLES = 7
_SUBSYSTEM_NFTABLES = 10 << 8
_NEW_TABLE, _DELETE_TABLE, _NEW_GENERATION = 0, 2, 15
_TABLE_NAME = 1
_HEADER = struct.Struct("=IHHII")
_GENERIC_HEADER = 4
"""Length of `struct nfgenmsg`."""
_ATTRIBUTE = struct.Struct("=HH")
_ROOM = 65_536


class TableEvents:
    """What happens to one `inet` table, heard from the moment that it is entered.

    Raises:
        OSError: the kernel has no nftables.
    """

    def __init__(self, table: str) -> None:
        self._table = table
        self._hears: trio.socket.SocketType | None = None
        self._deleted = False

    def __enter__(self) -> Self:
        hears = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        try:
            hears.setblocking(False)
            # A socket without an address of its own hears nothing.
            hears.bind((0, 1 << (_GROUP_NFTABLES - 1)))
        except OSError:
            hears.close()
            raise
        self._hears = trio.socket.from_stdlib_socket(hears)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._hears is not None:
            self._hears.close()

    async def gone(self) -> None:
        """Wait until a transaction has left the table deleted; or more happened than we heard."""
        assert self._hears is not None
        while True:
            try:
                data = await self._hears.recv(_ROOM)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return
            # All of it, before it is answered: the last word counts.
            gone = False
            for kind, body in _messages(data):
                if kind in (_NEW_TABLE, _DELETE_TABLE) and _name(body) == self._table:
                    self._deleted = kind == _DELETE_TABLE
                elif kind == _NEW_GENERATION:
                    gone, self._deleted = self._deleted, False
            if gone:
                return


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        if kind & 0xFF00 == _SUBSYSTEM_NFTABLES:
            yield kind & 0xFF, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _name(body: bytes) -> str:
    at = _GENERIC_HEADER
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == _TABLE_NAME:
            return body[at + _ATTRIBUTE.size : at + length].rstrip(b"\0").decode(errors="replace")
        at += (length + 3) & ~3
    return ""
