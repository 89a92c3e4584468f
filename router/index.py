"""Who probably holds which blocks: what this router itself sent where. Floor 3: no clock, no I/O.

Owns one run tree for all replicas of a pool (`_core.runs`), in which each replica has a recency
list of exactly the size of that engine's cache. A prompt that is sent to a replica makes its chain
the most recent there; what goes above the capacity is evicted as the engine would evict it: oldest
first, of a request the tail first. A recency list of the wrong size costs 2.7 to 3.6 times the TTFT
(docs/decisions), so that the capacity should come from the engine's own metrics.

Never over-counts its own record: a match and the recency lists read the same entries. Costs are by
run, not by block (docs/decisions/0008): `match` or `record` of 512 blocks below 1 us.
"""

from __future__ import annotations

from array import array
from typing import Final, TypeAlias

from warmlane._core.hashing import KeyArray
from warmlane._core.runs import MAX_CAPACITY, RunTree

# Bytes that the share of a capped replica counts for a block: the key takes 8, its run 70 and 16
# more for each further holder. 512 replicas full of prompts of 32 to 64 blocks, a quarter shared,
# take 9 to 11 bytes a block held, of 8 blocks 18. What is shorter meets the cap itself, which then
# evicts.
BLOCK_BYTES: Final = 16
MIN_BYTES: Final = 8 * 1024 * 1024

Keys: TypeAlias = "KeyArray | array[int] | memoryview[int]"


class ApproximateIndex:
    """The approximate view of one pool, by slot, for chains of one unit (text or tokens).

    max_bytes: hard cap for all of it, 0 for none, else at least 8 MiB (a smaller one is raised).
        It is shared evenly; a replica whose capacity needs more is kept smaller, its slot is in
        `capped`. Where blocks take more bytes than the share assumes, old ones go early.
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
        cap = max(max_bytes, MIN_BYTES) if max_bytes else 0
        self._slots = max_replicas
        self.tree = RunTree(max_replicas, cap)
        self._wanted: dict[int, int] = {}  # blocks by live slot, before the cap
        self._shared_blocks = cap // BLOCK_BYTES  # 0: no cap

    # ---- membership ----

    def add(self, slot: int, capacity_blocks: int | None = None) -> None:
        """A replica joins. The slot must be free; None: the default capacity, a guess.

        Raises IndexError for a slot that does not exist, ValueError for one that is not free.
        """
        if not 0 <= slot < self._slots:
            raise IndexError(f"slot {slot} of {self._slots}")
        if not self.free(slot):
            raise ValueError(f"slot {slot} is not free")
        self._wanted[slot] = 0
        self.set_capacity(slot, capacity_blocks)
        if self._shared_blocks:
            self._share()

    def drop(self, slot: int) -> None:
        """A replica left: it matches nothing from here on; its slot is free after the sweep."""
        if self._wanted.pop(slot, None) is None:
            return
        self.tree.drop(slot)
        self.guessed.discard(slot)
        self.capped.discard(slot)
        if self._shared_blocks:
            self._share()

    def clear(self, slot: int) -> None:
        """The replica lost its cache (restart, reset): forget what was sent there."""
        self.tree.clear(slot)

    def free(self, slot: int) -> bool:
        """True when the slot may be given to another replica."""
        return self.tree.is_free(slot)

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
        """Blocks that may be recorded for a live slot; 0 for another."""
        return self.tree.capacity(slot)

    def _share(self) -> None:
        for slot in self._wanted:
            self._resize(slot)

    def _resize(self, slot: int) -> None:
        blocks = min(self._wanted[slot], MAX_CAPACITY)
        if self._shared_blocks:
            share = max(1, self._shared_blocks // len(self._wanted))
            if blocks > share:
                self.capped.add(slot)
                blocks = share
            else:
                self.capped.discard(slot)
        self.tree.set_capacity(slot, blocks)

    # ---- per decision ----

    def match(self, keys: Keys, out: array[int]) -> int:
        """Leading blocks of the chain that each slot holds, into `out` ('i'); the greatest."""
        return self.tree.match(keys, out)

    def record(self, slot: int, keys: Keys) -> int:
        """This chain was sent to the replica (again, or longer): how many blocks are new there.

        Nothing happens for a slot that was dropped meanwhile. Of a chain longer than the capacity
        the first blocks are kept.
        """
        if slot not in self._wanted:
            return 0
        tree = self.tree
        known = tree.touch(slot, keys)
        return min(len(keys), tree.capacity(slot)) - known

    # ---- between decisions ----

    def maintain(self, budget_us: int) -> bool:
        """Finishes shrinks and sweeps of dropped replicas; True while work remains."""
        return self.tree.maintain(max(budget_us, 1))

    @property
    def blocks(self) -> int:
        """Distinct blocks in the tree."""
        return self.tree.blocks

    @property
    def bytes_used(self) -> int:
        """Bytes of the tree, the recency lists in it included."""
        return self.tree.bytes_used

    def stats(self) -> dict[str, int]:
        """Counts for metrics and explain. O(slots)."""
        tree = self.tree
        return {
            "blocks": tree.blocks,
            "runs": tree.runs,
            "held": sum(tree.held(slot) for slot in self._wanted),
            "replicas": len(self._wanted),
            "guessed": len(self.guessed),
            "capped": len(self.capped),
            "block_bytes": self.block_bytes,
            "bytes_used": tree.bytes_used,
            "under_counting": int(tree.capped > 0),
        }
