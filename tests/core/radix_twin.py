"""Plain-Python twin of `_core.radix`: copies in a dict, every count by walking the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

TIERS = 3


class RadixTree:
    """What each replica holds, as if every call took effect at once and memory had no end."""

    def __init__(self) -> None:
        self.copies: dict[int, dict[int, list[int]]] = {}  # replica -> key -> copies by tier
        self.parent: dict[int, int] = {}
        self.unknown = 0

    def _store(
        self, replica: int, keys: Sequence[int], parent: int, tier: int, *, once: bool
    ) -> int:
        mine = self.copies.setdefault(replica, {})
        fresh = 0
        for key in keys:
            assert self.parent.setdefault(key, parent) == parent, "the twin needs true parents"
            parent = key
            fresh += key not in mine
            counts = mine.setdefault(key, [0] * TIERS)
            if not (once and counts[tier]):
                counts[tier] += 1
        return fresh

    def insert(self, replica: int, keys: Sequence[int], *, parent: int = 0, tier: int = 0) -> int:
        return self._store(replica, keys, parent, tier, once=False)

    def insert_once(
        self, replica: int, keys: Sequence[int], *, parent: int = 0, tier: int = 0
    ) -> int:
        return self._store(replica, keys, parent, tier, once=True)

    def remove(self, replica: int, keys: Iterable[int], *, tier: int = 0) -> int:
        mine = self.copies.get(replica, {})
        known = 0
        for key in keys:
            counts = mine.get(key)
            if counts is None or counts[tier] == 0:
                self.unknown += 1
                continue
            known += 1
            counts[tier] -= 1
            if not any(counts):
                del mine[key]
        return known

    def clear(self, replica: int, tier: int = -1) -> None:
        mine = self.copies.get(replica, {})
        for key, counts in list(mine.items()):
            if tier >= 0:
                counts[tier] = 0
            if tier < 0 or not any(counts):
                del mine[key]

    def drop(self, replica: int) -> None:
        self.clear(replica)

    def match(self, keys: Sequence[int], replicas: int) -> list[list[int]]:
        """Counts [gpu, gpu or cpu, any][replica]: leading blocks with a copy in those tiers."""
        result = [[0] * replicas for _ in range(TIERS)]
        for replica in range(replicas):
            mine = self.copies.get(replica, {})
            for level in range(TIERS):
                for key in keys:
                    if not any(mine.get(key, (0, 0, 0))[: level + 1]):
                        break
                    result[level][replica] += 1
        return result

    def held(self) -> dict[int, dict[int, tuple[int, int, int]]]:
        """key -> {replica: copies by tier}, of all blocks that somebody holds."""
        result: dict[int, dict[int, tuple[int, int, int]]] = {}
        for replica, mine in self.copies.items():
            for key, (gpu, cpu, disk) in mine.items():
                result.setdefault(key, {})[replica] = (gpu, cpu, disk)
        return result
