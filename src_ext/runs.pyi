from array import array
from typing import final

from typing_extensions import Buffer

MAX_CAPACITY: int
MAX_REPLICAS: int
MIN_BYTES: int

@final
class RunTree:
    """Leading blocks that up to `max_replicas` replicas hold, in `max_bytes` bytes (0: no cap).

    Keys are contiguous uint64 buffers, root first, chained: a key stands for its block and all
    before it. Per replica exactly the order of `_core.lru.Lru`; blocks are stored once, as runs.
    Not thread safe. Raises ValueError for a number out of range, TypeError for a wrong buffer.
    """

    def __init__(self, max_replicas: int = 4096, max_bytes: int = 0) -> None: ...
    def set_capacity(self, replica: int, capacity: int) -> None:
        """How many blocks the replica may hold, 1..2**28; for an unknown one, its life begins.

        A shrink evicts nothing itself: `maintain` and new blocks do, in slices. Raises
        RuntimeError for a dropped replica that is not swept yet.
        """
    def touch(self, replica: int, keys: Buffer) -> int:
        """Makes one chain the replica's most recent, its root newest.

        Of a chain longer than the capacity only the first `capacity` blocks are taken. Returns how
        many leading keys were held before. What goes above the capacity is the oldest, of one
        chain the tail first, never a block of this chain; after a shrink each new block evicts two.
        Under `max_bytes` further blocks may go. When even that does not help, or the keys alone
        take more than half of it, the chain is not stored, and as many blocks as would have been
        taken are returned, as if they had been there. `capped` counts both. Raises MemoryError
        with nothing changed, RuntimeError for a replica without a capacity.
        """
    def match(self, keys: Buffer, out: array[int]) -> int:
        """Leading blocks that each replica holds, into `out` ('i', by replica); the greatest."""
    def clear(self, replica: int) -> None:
        """Forget what the replica holds, at once; its capacity stays."""
    def drop(self, replica: int) -> None:
        """Forget the replica, at once for every match; its number is free after the sweep."""
    def is_free(self, replica: int) -> bool:
        """Nothing of the replica is left: its number may be given to another."""
    def maintain(self, budget_us: int) -> bool:
        """Sweeps and shrinks for about so long; True when work remains.

        Counted in steps (runs taken apart, at most 1 us each), not by a clock: it can be repeated.
        """
    def held(self, replica: int) -> int:
        """Blocks that the replica holds; 0 for one without a capacity."""
    def capacity(self, replica: int) -> int:
        """Its capacity in blocks, or 0."""
    @property
    def blocks(self) -> int:
        """Distinct blocks stored, those of dropped replicas included until they are swept."""
    @property
    def runs(self) -> int:
        """Runs that the blocks are stored in: at most two more with each touch."""
    @property
    def bytes_used(self) -> int:
        """All memory in bytes, as requested from the allocator."""
    @property
    def capped(self) -> int:
        """Touches so far for which the memory cap evicted blocks, or that it refused."""
    def dump(self, replica: int) -> array[int]:
        """The replica's blocks, oldest first. O(n), for tests."""
    def check_invariants(self) -> None:
        """Recount everything; AssertionError with the first fault. For tests."""

def _fail_alloc_after(n: int) -> int:
    """Test switch: n more allocations of this module succeed, the next one fails; -1: never.

    Returns what was left of the last order: -1 when its failure has happened.
    """
