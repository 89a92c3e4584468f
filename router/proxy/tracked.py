"""A set of open connections that can be waited for until it is empty."""

from __future__ import annotations

import asyncio
from typing import TypeVar

T = TypeVar("T")


class Tracked(set[T]):
    """Use `enter` and `leave`; the other methods of a set only to read."""

    def __init__(self) -> None:
        super().__init__()
        self._empty = asyncio.Event()
        self._empty.set()

    def enter(self, item: T) -> None:
        self.add(item)
        self._empty.clear()

    def leave(self, item: T) -> None:
        self.discard(item)
        if not self:
            self._empty.set()

    async def emptied(self) -> None:
        """Returns when nothing is in it."""
        await self._empty.wait()
