"""The prefix tree: which replicas hold which blocks, in which tier.

Owns the presence of blocks per (replica, tier) and nothing about time, load or tokens. It never
over-counts: a match promises no block that the calls so far have not put there. One thread only.
Cost: a match 1-5 us whatever the prompt's length, an insert or a remove 20-100 ns a block.
Rules and pictures: README.md and radix_tree.h.
"""

cimport cython
from cpython.array cimport array
from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

import os

from warmlane._core.key_buffer cimport open_keys

GPU = 0
CPU = 1
DISK = 2


cdef int no_zero(const Py_buffer *view) except -1:
    """0 stands for "no parent" and is no key."""
    cdef const uint64_t *keys = <const uint64_t *>view.buf
    cdef Py_ssize_t i
    cdef uint64_t zero = 0
    for i in range(view.len // 8):
        zero |= (keys[i] - 1) & ~keys[i]  # the top bit of this is set for 0 alone
    if zero >> 63:
        raise ValueError("a block key is 0")
    return 0


cdef int bad_tier(int tier) except -1:
    if not 0 <= tier <= 2:
        raise ValueError(f"tier must be 0 (gpu), 1 (cpu) or 2 (disk), got {tier}")
    return 0


cdef int32_t *counts_of(array column, Py_ssize_t length) except? NULL:
    if column.ob_descr.typecode != c"i":
        raise TypeError("counts go into an array('i')")
    if len(column) != length:
        raise ValueError("the three arrays of counts must have one length")
    return <int32_t *>column.data.as_ints


@cython.final
cdef class RadixTree:
    """Blocks of up to `max_replicas` replicas, in at most `max_bytes` bytes (0: no cap).

    Keys are C-contiguous buffers of uint64, chained: a key stands for its block and all before it.
    """

    def __cinit__(self, uint64_t max_bytes=0, uint32_t max_replicas=4096):
        if not 1 <= max_replicas <= RX_MAX_REPLICAS:
            raise ValueError(f"max_replicas must be 1..{RX_MAX_REPLICAS}, got {max_replicas}")
        if 0 < max_bytes < RX_MIN_BYTES:
            raise ValueError(f"max_bytes must be 0 or at least {RX_MIN_BYTES}, got {max_bytes}")
        # The seed only places keys in buckets, so that no client can choose them; results do not
        # depend on it.
        cdef uint64_t seed = int.from_bytes(os.urandom(8), "little")
        self.tree = rx_open(max_bytes, max_replicas, seed)
        if self.tree is NULL:
            raise MemoryError("no memory for a prefix tree")

    def __dealloc__(self):
        if self.tree is not NULL:
            rx_close(self.tree)

    cdef int check_replica(self, Py_ssize_t replica) except -1:
        if not 0 <= replica < <Py_ssize_t>self.tree.max_replicas:
            raise ValueError(f"replica must be 0..{self.tree.max_replicas - 1}, got {replica}")
        return 0

    cdef object _insert(self, Py_ssize_t replica, object keys, uint64_t parent, int tier,
                        int once):
        cdef Py_buffer view
        cdef int64_t fresh
        self.check_replica(replica)
        bad_tier(tier)
        open_keys(keys, &view)
        try:
            no_zero(&view)
            fresh = rx_insert(
                self.tree, <uint32_t>replica, <const uint64_t *>view.buf, view.len // 8, parent,
                tier, once
            )
        finally:
            PyBuffer_Release(&view)
        if fresh >= 0:
            return fresh
        if fresh == RX_DROPPED:
            raise RuntimeError(f"replica {replica} was dropped and is not swept yet")
        raise MemoryError("no memory for the prefix tree")

    def insert(self, Py_ssize_t replica, keys, *, uint64_t parent=0, int tier=0):
        """Store a chain of blocks: one more copy of each in the tier. Returns blocks newly present.

        keys[0] follows the block `parent` (0: it is a first block). A parent that the tree does
        not know yet is remembered: the chain shows when the parent comes. Raises ValueError for a
        bad number or a key of 0, RuntimeError for a replica whose drop is not swept yet.
        """
        return self._insert(replica, keys, parent, tier, 0)

    def insert_once(self, Py_ssize_t replica, keys, *, uint64_t parent=0, int tier=0):
        """Like insert, but a block that is already present in the tier gets no further copy."""
        return self._insert(replica, keys, parent, tier, 1)

    def remove(self, Py_ssize_t replica, keys, *, int tier=0):
        """Take one copy of each block from the tier, in any order. Returns how many were known.

        Unknown ones are legal and counted in stats()["unknown_removals"]. When the last copy goes
        the blocks after it are hidden at once, and show again when it returns.
        """
        cdef Py_buffer view
        cdef int64_t known
        self.check_replica(replica)
        bad_tier(tier)
        open_keys(keys, &view)
        known = rx_remove(
            self.tree, <uint32_t>replica, <const uint64_t *>view.buf, view.len // 8, tier
        )
        PyBuffer_Release(&view)
        if known < 0:
            raise MemoryError("no memory for the prefix tree")
        return known

    def match(self, keys, array gpu not None, array cpu not None, array any_tier not None):
        """Leading blocks of the prompt that each replica holds; returns the greatest in any tier.

        The three array('i') of one length, indexed by replica, are overwritten: blocks in gpu; in
        gpu or cpu; in any tier. They never fall from the first to the third.
        """
        cdef Py_ssize_t room = len(gpu)
        cdef int32_t *out[3]
        out[0] = counts_of(gpu, room)
        out[1] = counts_of(cpu, room)
        out[2] = counts_of(any_tier, room)
        return self._match(keys, out, room, 3)

    def match_one_tier(self, keys, array out not None):
        """Leading blocks in gpu alone, into one array('i'); returns the greatest."""
        cdef int32_t *outs[3]
        cdef Py_ssize_t room = len(out)
        outs[0] = counts_of(out, room)
        outs[1] = outs[2] = NULL
        return self._match(keys, outs, room, 1)

    cdef object _match(self, object keys, int32_t **out, Py_ssize_t room, uint32_t levels):
        cdef Py_buffer view
        cdef uint32_t best
        open_keys(keys, &view)
        best = rx_match(
            self.tree, <const uint64_t *>view.buf, view.len // 8, out, room, levels
        )
        PyBuffer_Release(&view)
        return best

    def drop(self, Py_ssize_t replica):
        """Forget the replica, at once for every match; maintain() then frees its blocks.

        Until is_free(replica) an insert for it raises RuntimeError.
        """
        self.check_replica(replica)
        rx_drop(self.tree, <uint32_t>replica)

    def clear(self, Py_ssize_t replica, int tier=-1):
        """Forget the replica's blocks (in one tier, or all), at once; it may store again at once.

        Blocks that stay in other tiers are out of sight until maintain() has come to them.
        """
        self.check_replica(replica)
        if tier != -1:
            bad_tier(tier)
        rx_clear(self.tree, <uint32_t>replica, 3 if tier == -1 else tier)

    def is_free(self, Py_ssize_t replica):
        """Nothing of the replica is left: its number may be given to another."""
        self.check_replica(replica)
        return self.tree.inside[replica] == RX_NOBODY and self.tree.sweeps[replica] == 0

    def maintain(self, uint32_t budget_us):
        """Do up to about `budget_us` microseconds of pending work; True when work remains.

        The budget is counted in steps (8 to the microsecond), not by a clock, so that a run can be
        repeated exactly. Raises MemoryError when a step found no memory; it is tried again later.
        """
        cdef uint32_t most = 0xffffffff // RX_UNITS_PER_US
        cdef int left = rx_maintain(self.tree, min(budget_us, most) * RX_UNITS_PER_US)
        if left == RX_FAIL:
            raise MemoryError("no memory for the prefix tree")
        return left == 1

    @property
    def blocks(self):
        """Distinct blocks in the tree, parents that were only heard of included."""
        return self.tree.nodes.live

    @property
    def bytes_used(self):
        """All memory of the tree in bytes, as requested from the allocator."""
        return self.tree.mem.used

    @property
    def holes(self):
        """Removals so far that hid blocks below them."""
        return self.tree.holes

    @property
    def capped(self):
        """Blocks so far that the memory cap has evicted or refused."""
        return self.tree.capped

    @property
    def under_counting(self):
        """A match may be too low: the cap took blocks of a replica, or blocks wait to show."""
        return bool(rx_under_counting(self.tree))

    def replica_blocks(self, Py_ssize_t replica):
        """Blocks that the replica holds, hidden ones included."""
        self.check_replica(replica)
        cdef uint16_t lane = self.tree.inside[replica]
        return 0 if lane == RX_NOBODY else self.tree.lane[lane].blocks

    def stats(self):
        """Counters for metrics and tests, by name."""
        return {
            "blocks": self.tree.nodes.live,
            "bytes": self.tree.mem.used,
            "sets": self.tree.sets.live,
            "uncommon_counts": self.tree.refs.heads.items,
            "holes": self.tree.holes,
            "capped": self.tree.capped,
            "capped_replicas": self.tree.brief_count,
            "unknown_removals": self.tree.unknown_removals,
            "conflicts": self.tree.conflicts,
            "sweeping": self.tree.dead_count,
            "hides_pending": self.tree.walks[RX_HIDE].count + self.tree.walks[RX_HIDE].active,
            "shows_pending": self.tree.walks[RX_SHOW].count + self.tree.walks[RX_SHOW].active,
        }

    def check_invariants(self):
        """Walk and recount everything; AssertionError with the first fault. For tests."""
        cdef const char *wrong = rx_check(self.tree)
        if wrong is not NULL:
            raise AssertionError((<bytes>wrong).decode())

    def dump(self):
        """The whole tree: {key: (parent key, {replica: (gpu, cpu, disk copies)})}.

        The parent is 0 for a first block and None while it is unknown. Dead replicas are left out.
        For tests and small trees.
        """
        cdef uint32_t node, i, lane, parent
        cdef RxHot *hot
        cdef RxSet *held
        cdef const uint16_t *members
        cdef RxCounts counts
        result = {}
        for node in range(1, self.tree.nodes.used):
            hot = rx_hot(&self.tree.nodes, node)
            if hot.parent == RX_FREE:
                continue
            held = rx_set(&self.tree.sets, rx_set_of(&self.tree.nodes, node))
            members = rx_members(held)
            holders = {}
            for i in range(held.count):
                lane = members[i] >> 3
                if self.tree.lane[lane].state == RX_LIVE:
                    counts = rx_counts(self.tree, node, lane, members[i] & 7)
                    holders[self.tree.lane[lane].replica] = (
                        counts.count[0], counts.count[1], counts.count[2]
                    )
            parent = hot.parent
            above = None
            if parent == RX_ROOT:
                above = 0
            elif parent != RX_ORPHAN:
                above = rx_hot(&self.tree.nodes, parent).key
            result[hot.key] = (above, holders)
        return result


def _fail_alloc_after(long n):
    """Tests: let n more allocations of this module succeed, fail the next one; -1: never fail.

    Returns what was left of the last order: -1 when its failure has happened.
    """
    left = wl_alloc_countdown
    wl_alloc_fail_after(n)
    return left
