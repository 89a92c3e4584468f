"""Plain-Python twin of `_core.lru`: an ordered dict, oldest key first."""

from __future__ import annotations

from collections.abc import Sequence

TRIM_SLICE = 1024


class TwinLru:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys: dict[int, None] = {}
        self.gone: list[int] = []

    def touch(self, keys: Sequence[int]) -> int:
        chain = list(keys)[: self.capacity]
        known = next((at for at, key in enumerate(chain) if key not in self.keys), len(chain))
        distinct = list(dict.fromkeys(chain))
        present = {key for key in distinct if key in self.keys}
        for key in present:
            del self.keys[key]
        self.gone = []
        size = len(self.keys) + len(present)
        for key in reversed(chain):
            if key in present:
                continue
            if key in self.keys:  # a chain that repeats a new key
                continue
            if size >= self.capacity:
                self._evict()
                size -= 1
                if size >= self.capacity:
                    self._evict()
                    size -= 1
            self.keys[key] = None
            size += 1
        # The ring's order: as the compiled core links, each present key once, at its first place,
        # a new key again at each place.
        for at in range(len(chain) - 1, -1, -1):
            key = chain[at]
            if key in present and chain.index(key) != at:
                continue
            self.keys.pop(key, None)
            self.keys[key] = None
        return known

    def _evict(self) -> None:
        key = next(iter(self.keys))
        del self.keys[key]
        self.gone.append(key)

    def trim(self, max_blocks: int = TRIM_SLICE) -> int:
        self.gone = []
        for _ in range(min(max_blocks, TRIM_SLICE)):
            if len(self.keys) <= self.capacity:
                break
            self._evict()
        return max(0, len(self.keys) - self.capacity)

    def discard(self, keys: Sequence[int]) -> int:
        self.gone = []
        found = 0
        for key in keys:
            if key in self.keys:
                del self.keys[key]
                found += 1
        return found

    def clear(self) -> None:
        self.keys.clear()
        self.gone = []
