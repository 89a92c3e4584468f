"""Runs of block keys with a recency list per replica: the store of the approximate view.

Owns which leading blocks each replica probably holds, and in which order it will lose them. It
never keeps more of a replica than its capacity, nor more bytes than its cap. One thread only.
Cost: a touch or a match compares memory, 8 bytes a block, and pays 50 to 200 ns for each run on the
path, whatever the run's length. Rules: runs_tree.h, README.md.
"""

cimport cython
from cpython.array cimport array, clone
from cpython.buffer cimport Py_buffer, PyBuffer_Release
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

import array as arrays
import os

from warmlane._core.key_buffer cimport open_keys

MAX_CAPACITY = 1 << 28
MAX_REPLICAS = 1 << 16
MIN_BYTES = 4 << 20

cdef array EMPTY = arrays.array("Q")


@cython.final
cdef class RunTree:
    """Leading blocks that up to `max_replicas` replicas hold, in `max_bytes` bytes (0: no cap).

    Keys are C-contiguous buffers of uint64, chained: a key stands for its block and all before it.
    """

    def __cinit__(self, uint32_t max_replicas=4096, uint64_t max_bytes=0):
        cdef uint64_t[2] seed
        if not 1 <= max_replicas <= MAX_REPLICAS:
            raise ValueError(f"max_replicas must be 1..{MAX_REPLICAS}, got {max_replicas}")
        if 0 < max_bytes < MIN_BYTES:
            raise ValueError(f"max_bytes must be 0 or at least {MIN_BYTES}, got {max_bytes}")
        seed[0] = int.from_bytes(os.urandom(8), "little")
        seed[1] = int.from_bytes(os.urandom(8), "little")
        self.tree = rt_open(max_bytes, max_replicas, seed)
        if self.tree is NULL:
            raise MemoryError("no memory for a run tree")

    def __dealloc__(self):
        if self.tree is not NULL:
            rt_close(self.tree)

    cdef int check_replica(self, Py_ssize_t replica) except -1:
        if not 0 <= replica < <Py_ssize_t>self.tree.max_replicas:
            raise ValueError(f"replica must be 0..{self.tree.max_replicas - 1}, got {replica}")
        return 0

    cdef RtLane *lane_of(self, Py_ssize_t replica) except NULL:
        self.check_replica(replica)
        if not rt_lives(self.tree, <uint32_t>replica):
            raise RuntimeError(f"replica {replica} has no capacity: it was not added, or dropped")
        return &self.tree.lane[self.tree.inside[replica]]

    # ---- membership ----

    def set_capacity(self, Py_ssize_t replica, capacity):
        self.check_replica(replica)
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be 1..{MAX_CAPACITY} blocks, got {capacity}")
        if rt_lives(self.tree, <uint32_t>replica):
            rt_set_limit(self.tree, self.tree.inside[replica], capacity)
        elif self.tree.sweeps[replica]:
            raise RuntimeError(f"replica {replica} was dropped and is not swept yet")
        else:
            rt_open_lane(self.tree, <uint32_t>replica, capacity)

    def clear(self, Py_ssize_t replica):
        self.check_replica(replica)
        rt_clear(self.tree, <uint32_t>replica)

    def drop(self, Py_ssize_t replica):
        self.check_replica(replica)
        if rt_lives(self.tree, <uint32_t>replica):
            rt_give_up(self.tree, self.tree.inside[replica])

    def is_free(self, Py_ssize_t replica):
        self.check_replica(replica)
        return not rt_lives(self.tree, <uint32_t>replica) and self.tree.sweeps[replica] == 0

    # ---- per decision ----

    def touch(self, Py_ssize_t replica, keys):
        cdef Py_buffer view
        cdef RtLane *lane = self.lane_of(replica)
        cdef int64_t known = 0
        cdef Py_ssize_t count
        open_keys(keys, &view)
        count = min(view.len // 8, <Py_ssize_t>lane.limit)
        if count:
            known = rt_touch(
                self.tree, <uint32_t>replica, <const uint64_t *>view.buf, <uint32_t>count
            )
        PyBuffer_Release(&view)
        if known == RT_FAIL:
            raise MemoryError("no memory for the run tree")
        return count if known == RT_REFUSED else known

    cdef int touch_keys(self, Py_ssize_t replica, const uint64_t *keys, size_t count) except -1:
        cdef uint32_t limit
        if not rt_lives(self.tree, <uint32_t>replica):
            return 0
        limit = self.tree.lane[self.tree.inside[replica]].limit
        if count > limit:
            count = limit
        if count and rt_touch(self.tree, <uint32_t>replica, keys, <uint32_t>count) == RT_FAIL:
            raise MemoryError("no memory for the run tree")
        return 0

    cdef uint32_t match_keys(
        self, const uint64_t *keys, size_t count, int32_t *out, uint32_t room
    ) noexcept:
        return rt_match(self.tree, keys, <uint32_t>count, out, room)

    def match(self, keys, array out not None):
        cdef Py_buffer view
        cdef Py_ssize_t room = len(out)
        cdef uint32_t best
        if out.ob_descr.typecode != c"i":
            raise TypeError("counts go into an array('i')")
        open_keys(keys, &view)
        best = rt_match(
            self.tree, <const uint64_t *>view.buf,
            <uint32_t>min(view.len // 8, <Py_ssize_t>0x7fffffff),
            <int32_t *>out.data.as_ints, <uint32_t>min(room, <Py_ssize_t>0x7fffffff),
        )
        PyBuffer_Release(&view)
        return best

    # ---- between decisions ----

    def maintain(self, uint32_t budget_us):
        cdef uint32_t steps = max(min(budget_us, <uint32_t>1 << 20), 1) * RT_STEPS_PER_US
        return rt_maintain(self.tree, steps) == 1

    def held(self, Py_ssize_t replica):
        self.check_replica(replica)
        if not rt_lives(self.tree, <uint32_t>replica):
            return 0
        return self.tree.lane[self.tree.inside[replica]].size

    def capacity(self, Py_ssize_t replica):
        self.check_replica(replica)
        if not rt_lives(self.tree, <uint32_t>replica):
            return 0
        return self.tree.lane[self.tree.inside[replica]].limit

    @property
    def blocks(self):
        return self.tree.nodes.blocks

    @property
    def runs(self):
        return self.tree.nodes.live

    @property
    def bytes_used(self):
        return self.tree.nodes.mem.used

    @property
    def capped(self):
        return self.tree.capped

    # ---- for tests ----

    def dump(self, Py_ssize_t replica):
        cdef RtLane *lane = self.lane_of(replica)
        cdef array keys = clone(EMPTY, lane.size, False)
        cdef uint32_t number = self.tree.inside[replica]
        cdef uint32_t id = lane.oldest, at = 0, i
        cdef RtNode *node
        cdef RtHolder *holder
        while id:
            node = rt_node(&self.tree.nodes, id)
            holder = rt_holder(node, number)
            assert at + holder.held <= lane.size, "a list is longer than its count"
            for i in range(holder.held):
                keys.data.as_ulonglongs[at + i] = node.keys[holder.held - 1 - i]
            at += holder.held
            id = holder.newer
        assert at == lane.size, "a list is shorter than its count"
        return keys

    def check_invariants(self):
        cdef const char *wrong = rt_check(self.tree)
        if wrong is not NULL:
            raise AssertionError((<bytes>wrong).decode())


def _fail_alloc_after(long n):
    left = wl_alloc_countdown
    wl_alloc_fail_after(n)
    return left
