from array import array

from typing_extensions import Buffer

MAX_CAPACITY: int

class Lru:
    """Least-recently-used set of block keys: what one replica's prefix cache probably holds.

    capacity: blocks, 1..2**28. Memory follows the blocks held: 29 to 42 bytes each, never returned
    before the object dies. Not thread safe. Costs (1M blocks): about 30 ns a block touched, 90 ns
    a block inserted while another is evicted.
    """

    def __init__(self, capacity: int) -> None: ...
    def touch(self, keys: Buffer) -> int:
        """Makes one chain the most recent: its root newest, its tail first to be evicted.

        keys: contiguous uint64 buffer, root first. Of a chain longer than the capacity only the
        first `capacity` blocks are taken. Returns how many leading keys were present before; when
        that is min(len(keys), capacity), the set did not change. What had to go is in `evicted()`;
        it never contains a key of this chain. After a shrink each new block evicts two.
        Raises TypeError for a wrong buffer and MemoryError with the set unchanged.
        """
    def evicted(self) -> array[int]:
        """Keys that the last touch or trim evicted, oldest first: of any chain the tail first.

        The next touch, trim, discard or clear replaces them.
        """
    def discard(self, keys: Buffer) -> int:
        """Removes keys, unknown ones are ignored; returns how many were there."""
    def set_capacity(self, capacity: int) -> None:
        """New bound; evicts nothing itself: `trim` and later insertions do, in slices."""
    def trim(self, max_blocks: int = 1024) -> int:
        """Evicts the oldest blocks above the capacity, at most min(max_blocks, 1024) of them.

        Returns how many are still too many; call until 0.
        """
    def clear(self) -> None:
        """Empties the set, for a replica that lost its cache."""
    def __len__(self) -> int: ...
    def __contains__(self, key: int) -> bool: ...
    @property
    def capacity(self) -> int: ...
    @property
    def bytes_used(self) -> int:
        """Bytes allocated, counted exactly, without the Python object itself."""
    def dump(self) -> array[int]:
        """All keys, oldest first. O(n), for tests."""
    def check_invariants(self) -> None:
        """Raises AssertionError when the structure is broken. O(n), for tests."""

def _fail_alloc_after(n: int) -> None:
    """Test switch: n more allocations of this module succeed, the next one fails; -1: never."""
