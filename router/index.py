"""Who probably holds which blocks: what this router itself sent where. Floor 3: no clock, no I/O.

Owns one radix tree for all replicas of a pool and, per replica, a recency set of exactly the size
of that engine's cache. A prompt that is sent to a replica makes its chain the most recent there;
what the recency set evicts leaves the tree, as the engine would evict it: oldest first, of a
request the tail first. A recency set of the wrong size costs 2.7 to 3.6 times the TTFT
(docs/decisions), so that the capacity should come from the engine's own metrics.

Never over-counts its own record: the tree holds a block for a replica only while the replica's
recency set does. Costs at 64 blocks: `match` 1 to 2 us, `record` of a chain that is there 1 us.
"""

from __future__ import annotations

from array import array
from typing import Final, TypeAlias

from warmlane._core.hashing import KeyArray
from warmlane._core.lru import Lru
from warmlane._core.radix import RadixTree

# Bytes that a recency set may take for a block: 29 to 42 by design (lru.pxd), and room for the
# work space of one long chain.
LRU_BLOCK_BYTES: Final = 64
# The tree does not work under a cap of less than 4 MiB, and it gets half.
MIN_BYTES: Final = 8 * 1024 * 1024
# CPU time to evict one slice of a recency set and to remove it from the tree: 1,024 blocks at
# about 100 + 120 ns.
_TRIM_SLICE_US: Final = 250

Keys: TypeAlias = "KeyArray | array[int]"


class ApproximateIndex:
    """The approximate view of one pool, by slot, for chains of one unit (text or tokens).

    max_bytes: cap for all of it, 0 for none, else at least 8 MiB (a smaller one is raised): half
        for the tree, half shared evenly by the recency sets; a set that would need more is kept
        smaller, its slot is in `capped`.
    block_bytes: what a block of this index stands for (bytes of text, or 4 x tokens); only
        reported.
    default_blocks: capacity of a replica that tells none; such slots are in `guessed`.
    """

    def __init__(
        self,
        max_bytes: int = 0,
        block_bytes: int = 128,
        *,
        default_blocks: int = 4096,
        max_replicas: int = 4096,
    ) -> None:
        self.block_bytes = block_bytes
        self.default_blocks = default_blocks
        self.guessed: set[int] = set()
        self.capped: set[int] = set()
        half = max(max_bytes, MIN_BYTES) // 2 if max_bytes else 0
        self._tree = RadixTree(half, max_replicas)
        self._lrus: list[Lru | None] = [None] * max_replicas
        self._wanted: dict[int, int] = {}  # blocks by live slot, before the cap
        self._lru_blocks = half // LRU_BLOCK_BYTES  # 0: no cap
        self._too_large: set[int] = set()  # recency sets above their capacity after a shrink

    # ---- membership ----

    def add(self, slot: int, capacity_blocks: int | None = None) -> None:
        """A replica joins. The slot must be free; None: the default capacity, a guess.

        Raises IndexError for a slot that does not exist, ValueError for one that is not free.
        """
        if not 0 <= slot < len(self._lrus):
            raise IndexError(f"slot {slot} of {len(self._lrus)}")
        if not self.free(slot):
            raise ValueError(f"slot {slot} is not free")
        self._wanted[slot] = 0
        self._lrus[slot] = Lru(1)
        self.set_capacity(slot, capacity_blocks)
        if self._lru_blocks:
            self._share()

    def drop(self, slot: int) -> None:
        """A replica left: it matches nothing from here on; its slot is free after the sweep."""
        if self._wanted.pop(slot, None) is None:
            return
        self._lrus[slot] = None
        self._tree.drop(slot)
        for group in (self.guessed, self.capped, self._too_large):
            group.discard(slot)
        if self._lru_blocks:
            self._share()

    def clear(self, slot: int) -> None:
        """The replica lost its cache (restart, reset): forget what was sent there."""
        lru = self._lrus[slot]
        if lru is not None:
            lru.clear()
            self._tree.clear(slot)
            self._too_large.discard(slot)

    def free(self, slot: int) -> bool:
        """True when the slot may be given to another replica."""
        return self._lrus[slot] is None and self._tree.is_free(slot)

    def set_capacity(self, slot: int, blocks: int | None) -> None:
        """The engine's real capacity in blocks of this index; None: unknown, the default.

        A shrink takes effect in slices, with `maintain` and with each record.
        """
        if slot not in self._wanted:
            return
        if blocks is None:
            self.guessed.add(slot)
        else:
            self.guessed.discard(slot)
        self._wanted[slot] = max(1, self.default_blocks if blocks is None else blocks)
        self._resize(slot)

    def capacity(self, slot: int) -> int:
        """Blocks that the recency set of a live slot may hold."""
        lru = self._lrus[slot]
        return 0 if lru is None else lru.capacity

    def _share(self) -> None:
        for slot in self._wanted:
            self._resize(slot)

    def _resize(self, slot: int) -> None:
        blocks = self._wanted[slot]
        if self._lru_blocks:
            share = max(1, self._lru_blocks // len(self._wanted))
            if blocks > share:
                self.capped.add(slot)
                blocks = share
            else:
                self.capped.discard(slot)
        lru = self._lrus[slot]
        assert lru is not None, "a live slot has a recency set"
        lru.set_capacity(blocks)
        if len(lru) > blocks:
            self._too_large.add(slot)
        else:
            self._too_large.discard(slot)

    # ---- per decision ----

    def match(self, keys: Keys, out: array[int]) -> int:
        """Leading blocks of the chain that each slot holds, into `out` ('i'); the greatest."""
        return self._tree.match_one_tier(keys, out)

    def record(self, slot: int, keys: Keys) -> int:
        """This chain was sent to the replica (again, or longer): how many blocks are new there.

        Nothing happens for a slot that was dropped meanwhile. Of a chain longer than the capacity
        the first blocks are kept.
        """
        lru = self._lrus[slot]
        if lru is None:
            return 0
        known = lru.touch(keys)
        if known == len(keys) and not self._tree.under_counting:
            return 0
        return self._store(slot, lru, keys, known)

    def _store(self, slot: int, lru: Lru, keys: Keys, known: int) -> int:
        tree, held = self._tree, min(len(keys), lru.capacity)
        evicted = lru.evicted()
        if evicted:
            tree.remove(slot, evicted)
        if tree.under_counting:
            known = 0  # the tree may have dropped blocks of its own accord: offer them again
        if known >= held:
            return 0
        new = memoryview(keys)[known:held]
        try:
            return tree.insert_once(slot, new, parent=keys[known - 1] if known else 0)
        except MemoryError:
            # Both forget the blocks: the next record offers them again.
            lru.discard(new)
            tree.remove(slot, new)
            raise

    # ---- between decisions ----

    def maintain(self, budget_us: int) -> bool:
        """Finishes shrinks and sweeps of dropped replicas; True while work remains."""
        for slot in list(self._too_large):
            if budget_us <= 0:
                return True
            lru = self._lrus[slot]
            assert lru is not None, "a live slot has a recency set"
            more = lru.trim()
            evicted = lru.evicted()
            if evicted:
                self._tree.remove(slot, evicted)
            if not more:
                self._too_large.discard(slot)
            budget_us -= _TRIM_SLICE_US
        work_left = self._tree.maintain(max(budget_us, 1))
        return work_left or bool(self._too_large)

    @property
    def blocks(self) -> int:
        """Distinct blocks in the tree."""
        return self._tree.blocks

    @property
    def bytes_used(self) -> int:
        """Bytes of the tree and of all recency sets."""
        return self._tree.bytes_used + sum(lru.bytes_used for lru in self._lrus if lru is not None)

    def stats(self) -> dict[str, int]:
        """Counts for metrics and explain. O(slots)."""
        return {
            "blocks": self._tree.blocks,
            "held": sum(len(lru) for lru in self._lrus if lru is not None),
            "replicas": len(self._wanted),
            "guessed": len(self.guessed),
            "capped": len(self.capped),
            "block_bytes": self.block_bytes,
            "bytes_used": self.bytes_used,
            "under_counting": int(self._tree.under_counting),
        }
