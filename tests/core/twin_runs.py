"""Plain-Python twin of `_core.runs`: one block-exact recency set per replica, nothing shared.

What a replica holds is a set of keys that is closed under prefixes, so that its leading blocks
follow from the set alone. The order within a set is TwinLru's.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.core.twin_lru import TwinLru


class TwinRuns:
    def __init__(self) -> None:
        self.sets: dict[int, TwinLru] = {}

    def set_capacity(self, replica: int, capacity: int) -> None:
        if replica in self.sets:
            self.sets[replica].capacity = capacity
        else:
            self.sets[replica] = TwinLru(capacity)

    def touch(self, replica: int, keys: Sequence[int]) -> int:
        return self.sets[replica].touch(keys)

    def match(self, keys: Sequence[int], room: int) -> list[int]:
        counts = [0] * room
        for replica, held in self.sets.items():
            known = (at for at, key in enumerate(keys) if key not in held.keys)
            counts[replica] = next(known, len(keys))
        return counts

    def clear(self, replica: int) -> None:
        if replica in self.sets:
            self.sets[replica].clear()

    def drop(self, replica: int) -> None:
        self.sets.pop(replica, None)

    def settle(self) -> None:
        """What `maintain` comes to when it is called until nothing remains."""
        for held in self.sets.values():
            while held.trim():
                pass

    def blocks(self) -> set[int]:
        return {key for held in self.sets.values() for key in held.keys}
