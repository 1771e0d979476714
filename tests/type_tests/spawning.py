"""What a type checker sees of spawned services. Checked, never run.

Each `pyright: ignore` is an expected error: the checker fails if the mistake is *not* found, since
an unnecessary ignore is an error itself here.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import assert_type

import trio

from container.ipc import (
    Actor,
    ChildProcess,
    Contract,
    Pool,
    Zygote,
    open_zygote,
    pool_of,
    process_of,
    spawn,
    spawn_pool,
)


class Words(Contract, name="words"):
    @abstractmethod
    async def count(self, text: str) -> int: ...


class WordsService(Actor, Words):
    def __init__(self, separator: str, most: int = 10) -> None:
        self._separator = separator
        self._most = most

    async def count(self, text: str) -> int:
        return min(self._most, len(text.split(self._separator)))


def make_words(separator: str) -> WordsService:
    return WordsService(separator)


async def right() -> None:
    async with open_zygote(["words"]) as zygote:
        assert_type(zygote, Zygote)
        async with spawn(Words, WordsService, "-", zygote=zygote) as words:
            assert_type(words, Words)
            assert_type(await words.count("a-b"), int)
            assert_type(process_of(words), ChildProcess)
        async with spawn(Words, WordsService, "-", 3, name="words") as words:
            assert_type(words, Words)
        async with spawn(Words, partial(WordsService, "-", most=3)) as words:
            assert_type(words, Words)
        async with spawn(Words, make_words, "-") as words:
            assert_type(words, Words)
    async with spawn_pool(Words, WordsService, "-", workers=trio.CapacityLimiter(2)) as words:
        assert_type(words, Words)
        assert_type(pool_of(words), Pool[Words])
        async with pool_of(words).worker() as worker:
            assert_type(worker, Words)


async def wrong() -> None:
    async with spawn(Words, WordsService, 3):  # pyright: ignore[reportArgumentType]
        pass
    async with spawn(Words, WordsService):  # pyright: ignore[reportArgumentType]
        pass
    async with spawn(Words, partial(WordsService, most="3")):  # pyright: ignore[reportArgumentType]
        pass
    async with spawn(Words, Actor):  # pyright: ignore[reportArgumentType]
        pass
    async with spawn_pool(Words, WordsService, "-"):  # pyright: ignore[reportCallIssue]
        pass
