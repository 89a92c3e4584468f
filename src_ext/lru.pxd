"""Least-recently-used set of block keys: the shadow of one replica's prefix cache.

A slab of 16-byte nodes (key, two links) in one recency ring, and an open-addressing index of 8-byte
entries {32 bits of hash, node}. Node 0 is the ring's sentinel: its `older` is the newest block, its
`newer` the oldest. 29 to 42 bytes a block, bounded by the capacity.
"""

from libc.stdint cimport uint32_t, uint64_t
from warmlane._core.lru_ring cimport Node, Table


cdef class Lru:
    cdef Node* nodes
    cdef Table table        # what is inserted now
    cdef Table old          # being left behind after a growth; entries are never removed from it
    cdef uint32_t cursor    # nodes below it were moved from `old`; 0: no move under way
    cdef uint32_t allocated  # nodes in the slab, sentinel included
    cdef uint32_t used      # nodes ever handed out, sentinel included
    cdef uint32_t free_head
    cdef Py_ssize_t size
    cdef Py_ssize_t limit
    cdef uint32_t* scratch  # node of each key of the chain in hand
    cdef Py_ssize_t scratch_size
    cdef uint64_t* gone     # keys that the last call evicted, oldest first
    cdef Py_ssize_t gone_size
    cdef Py_ssize_t gone_count

    cdef int reserve(self, Py_ssize_t count) except -1
    cdef int reserve_table(self, Py_ssize_t need) except -1
    cdef int reserve_nodes(self, Py_ssize_t need) except -1
    cdef int reserve_gone(self, Py_ssize_t count) except -1
    cdef uint32_t lookup(self, uint64_t key) noexcept nogil
    cdef void move_some(self, Py_ssize_t budget) noexcept nogil
    cdef uint32_t create(self, uint64_t key) noexcept nogil
    cdef void evict_oldest(self) noexcept nogil
    cdef void forget(self, uint32_t node) noexcept nogil
    cdef Py_ssize_t touch_chain(self, const uint64_t* keys, Py_ssize_t count) noexcept nogil
