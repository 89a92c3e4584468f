"""The prefix tree: which replicas hold which blocks, in which tier (README.md, docs/radix.md).

The structure is C (radix_*.h, one idea each; radix_tree.h has the rules). This is the part that
other compiled modules call: plain functions over a tree, key arrays as pointer and length, no
Python object, no checks. Arguments are checked by the `def` face of RadixTree, or by the caller:
replica < tree.max_replicas, tier 0..2, no key 0.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "alloc.h" nogil:
    void wl_alloc_fail_after(long n)
    long wl_alloc_countdown

cdef extern from "radix_check.h" nogil:
    int RX_FAIL, RX_DROPPED
    uint32_t RX_FREE, RX_ROOT, RX_ORPHAN, RX_UNITS_PER_US, RX_MAX_REPLICAS
    uint64_t RX_MIN_BYTES
    uint16_t RX_NOBODY
    int RX_HIDE, RX_SHOW, RX_LIVE

    ctypedef struct RxMem:
        uint64_t used, cap
        int refused
    ctypedef struct RxHot:
        uint64_t key
        uint32_t set, parent
    ctypedef struct RxNodes:
        uint32_t used, live
    ctypedef struct RxHeads:
        uint32_t items
    ctypedef struct RxSets:
        uint32_t live
    ctypedef struct RxRefs:
        RxHeads heads
    ctypedef struct RxSet:
        uint16_t count
    ctypedef struct RxCounts:
        uint32_t[3] count
    ctypedef struct RxLane:
        uint32_t blocks
        uint16_t replica
        uint8_t state
    ctypedef struct RxWalks:
        uint32_t active, count
    ctypedef struct RxTree:
        RxMem mem
        RxNodes nodes
        RxSets sets
        RxRefs refs
        RxWalks[3] walks
        RxLane **lane
        uint16_t *inside
        uint16_t *sweeps
        uint8_t *dropped
        uint32_t max_replicas, dead_count, brief_count, lanes_used
        uint64_t holes, capped, unknown_removals, conflicts

    RxTree *rx_open(uint64_t cap, uint32_t max_replicas, uint64_t seed)
    void rx_close(RxTree *t)
    # Copies stored: newly present blocks, or RX_FAIL, RX_DROPPED.
    int64_t rx_insert(RxTree *t, uint32_t replica, const uint64_t *keys, size_t n,
                      uint64_t parent, uint32_t tier, int once)
    # Copies removed: how many were known, or RX_FAIL.
    int64_t rx_remove(RxTree *t, uint32_t replica, const uint64_t *keys, size_t n, uint32_t tier)
    # levels 1 or 3: out[0..levels-1] have `room` entries.
    uint32_t rx_match(const RxTree *t, const uint64_t *keys, size_t n, int32_t **out, size_t room,
                      uint32_t levels)
    void rx_clear(RxTree *t, uint32_t replica, uint32_t tier)
    void rx_drop(RxTree *t, uint32_t replica)
    int rx_maintain(RxTree *t, uint32_t units)
    int rx_busy(const RxTree *t)
    int rx_under_counting(const RxTree *t)
    const char *rx_check(RxTree *t)
    RxHot *rx_hot(const RxNodes *n, uint32_t id)
    uint32_t rx_set_of(const RxNodes *n, uint32_t id)
    RxSet *rx_set(const RxSets *s, uint32_t id)
    const uint16_t *rx_members(const RxSet *s)
    RxCounts rx_counts(RxTree *t, uint32_t node, uint32_t lane, uint32_t state)


cdef class RadixTree:
    cdef RxTree *tree

    cdef int check_replica(self, Py_ssize_t replica) except -1
    cdef object _insert(self, Py_ssize_t replica, object keys, uint64_t parent, int tier,
                        int once)
    cdef object _match(self, object keys, int32_t **out, Py_ssize_t room, uint32_t levels)
