"""Runs of block keys with a recency list per replica: the store of the approximate view.

The structure is C (runs_*.h, one idea each; runs_tree.h has the rules). The functions take key
arrays as pointer and length and check nothing: replica < max_replicas, a live one where that is
said, counts within the limit.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "alloc.h" nogil:
    void wl_alloc_fail_after(long n)
    long wl_alloc_countdown

cdef extern from "runs_check.h" nogil:
    int RT_FAIL, RT_REFUSED
    uint32_t RT_NOBODY, RT_STEPS_PER_US

    ctypedef struct RxMem:
        uint64_t used, cap
    ctypedef struct RtHolder:
        uint32_t lane, held, older, newer
    ctypedef struct RtNode:
        uint64_t *keys
        uint32_t parent, len, holders
    ctypedef struct RtNodes:
        RxMem mem
        uint32_t used, live
        uint64_t blocks
    ctypedef struct RtLane:
        uint32_t oldest, size, limit
    ctypedef struct RtTree:
        RtNodes nodes
        RtLane *lane
        uint32_t *inside
        uint32_t *sweeps
        uint32_t max_replicas, queue_count
        uint64_t capped

    RtTree *rt_open(uint64_t cap, uint32_t max_replicas, const uint64_t *seed)
    void rt_close(RtTree *t)
    int rt_lives(const RtTree *t, uint32_t replica)
    void rt_open_lane(RtTree *t, uint32_t replica, uint32_t limit)
    void rt_set_limit(RtTree *t, uint32_t lane, uint32_t limit)
    void rt_clear(RtTree *t, uint32_t replica)
    void rt_give_up(RtTree *t, uint32_t lane)
    int rt_maintain(RtTree *t, uint32_t steps)
    # Leading keys that a live replica held, or RT_FAIL, RT_REFUSED; 0 < count <= its limit.
    int64_t rt_touch(RtTree *t, uint32_t replica, const uint64_t *keys, uint32_t count)
    uint32_t rt_match(RtTree *t, const uint64_t *keys, uint32_t count, int32_t *out, uint32_t room)
    const char *rt_check(RtTree *t)
    RtNode *rt_node(const RtNodes *s, uint32_t id)
    RtHolder *rt_holder(RtNode *n, uint32_t lane)


cdef class RunTree:
    cdef RtTree *tree

    cdef RtLane *lane_of(self, Py_ssize_t replica) except NULL
    cdef int check_replica(self, Py_ssize_t replica) except -1

    # `touch` of a replica that may be gone (then nothing happens), and `match`.
    cdef int touch_keys(self, Py_ssize_t replica, const uint64_t *keys, size_t count) except -1
    cdef uint32_t match_keys(
        self, const uint64_t *keys, size_t count, int32_t *out, uint32_t room
    ) noexcept
