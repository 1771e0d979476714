"""Answers that were written before and are told again.

A library writes an answer in half a millisecond; who asks for a name mostly asks again.
"""

from __future__ import annotations

from collections.abc import Hashable

_MOST = 1024
_LONGEST = 512
"""Bytes of a query, beyond which nobody asks in earnest."""
_LONGEST_ANSWER = 1232


class Ready:
    """So many answers, for as long as the names stay as they are.

    An answer of several addresses is kept once for each that can be the first.
    """

    def __init__(self) -> None:
        self._generation = -1
        self._ways: dict[Hashable, int] = {}
        self._answers: dict[Hashable, bytes] = {}

    def find(self, generation: int, packet: bytes, asker: Hashable, turn: int) -> bytes | None:
        """Return the answer to a query; None: there is none that is ready.

        Args:
            generation: Of the names; with another one, all that was kept is forgotten.
            packet: The query; whatever its id is, the answer has it.
            asker: What the answer depends on beside the query.
            turn: Counts up, so that each address has its turn at being the first.
        """
        if generation != self._generation:
            self._forget()
            self._generation = generation
        key = (packet[2:], asker)
        found = self._answers.get((key, turn % self._ways.get(key, 1)))
        return None if found is None else packet[:2] + found

    def keep(self, packet: bytes, asker: Hashable, turn: int, ways: int, answer: bytes) -> None:
        """Keep the answer that was written in a turn, one of so many ways."""
        if len(packet) > _LONGEST or len(answer) > _LONGEST_ANSWER:
            return
        if len(self._answers) >= _MOST:
            self._forget()
        key = (packet[2:], asker)
        self._ways[key] = ways
        self._answers[key, turn % ways] = answer[2:]

    def _forget(self) -> None:
        self._ways.clear()
        self._answers.clear()
