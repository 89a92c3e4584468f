"""Least-recently-used set of block keys (see lru.pxd for the picture, lru.pyi for the face).

Order. vLLM frees the blocks of a request tail first, so that leaves are evicted before roots
(v1 KV cache manager: freed blocks go to the end of the free queue in reverse order). `touch` does
the same: it links a chain from its tail to its root, the root ends as the newest block. Hence a
parent is always newer than its children and what is left stays closed under prefixes.

Growth. A full index is replaced by one at least twice as large; nodes move over by number, a few
with each touched key, and a look-up asks the new index first. The old index is never edited: an
entry counts only while its node is live and carries the key that is asked for.
"""

from cpython cimport array
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from warmlane._core.lru_ring cimport (
    FREE,
    HELD,
    Node,
    Table,
    add_entry,
    find,
    hash_of,
    link_newest,
    remove_entry,
    unlink,
)

import array


cdef extern from "alloc.h":
    void* wl_calloc(size_t count, size_t size_bytes) nogil
    void* wl_realloc(void* old, size_t size_bytes) nogil
    void wl_free(void* block) nogil
    void wl_alloc_fail_after(long n)

cdef extern from *:
    """
    #define wl_prefetch(address) __builtin_prefetch((address), 1)
    """
    void wl_prefetch(const void* address) noexcept nogil

cdef enum:
    REPEATED = 0xFFFFFFFD   # in scratch: the key occurred earlier in the same chain
    FIRST_BITS = 6
    TRIM_SLICE = 1024       # blocks that one trim evicts at most
    AHEAD = 12              # keys between the prefetch of an index entry and its use

MAX_CAPACITY = 1 << 28
cdef array.array EMPTY = array.array("Q")


cdef int take_keys(object keys, Py_buffer* view) except -1:
    """Fills `view` with a contiguous buffer of 64-bit unsigned integers; the caller releases it."""
    cdef char code
    PyObject_GetBuffer(keys, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    code = view.format[0] if view.format != NULL else c"B"
    if code in (c"@", c"=", c"<"):
        code = view.format[1]
    if view.itemsize != 8 or view.ndim > 1 or code not in (c"Q", c"L"):
        PyBuffer_Release(view)
        raise TypeError("keys must be a one-dimensional buffer of uint64")
    return 0


cdef class Lru:
    def __cinit__(self, capacity):
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be 1..{MAX_CAPACITY} blocks, not {capacity}")
        self.limit = capacity
        self.used = 1
        self.reserve(0)

    def __dealloc__(self):
        wl_free(self.nodes)
        wl_free(self.table.entries)
        wl_free(self.old.entries)
        wl_free(self.scratch)
        wl_free(self.gone)

    # ---- reserve: everything that can fail, before anything changes ----------------------------

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Room for touching a chain of `count` blocks; raises MemoryError, the set unchanged."""
        cdef Py_ssize_t need = self.size + count
        cdef void* block
        if need > self.limit:
            need = max(self.limit, self.size)
        self.reserve_nodes(need)
        self.reserve_table(need)
        if count > self.scratch_size:
            block = wl_realloc(self.scratch, count * sizeof(uint32_t))
            if block == NULL:
                raise MemoryError
            self.scratch = <uint32_t*>block
            self.scratch_size = count
        self.reserve_gone(2 * count)
        return 0

    cdef int reserve_gone(self, Py_ssize_t count) except -1:
        cdef void* block
        if count > self.gone_size:
            block = wl_realloc(self.gone, count * sizeof(uint64_t))
            if block == NULL:
                raise MemoryError
            self.gone = <uint64_t*>block
            self.gone_size = count
        return 0

    cdef int reserve_nodes(self, Py_ssize_t need) except -1:
        cdef Py_ssize_t target
        cdef void* block
        if need + 1 <= self.allocated:
            return 0
        target = max(need, 64, min(2 * <Py_ssize_t>self.allocated, self.limit)) + 1
        block = wl_realloc(self.nodes, target * sizeof(Node))
        if block == NULL:
            raise MemoryError
        self.nodes = <Node*>block
        if self.allocated == 0:
            self.nodes[0] = Node(0, 0, 0)
        self.allocated = <uint32_t>target
        return 0

    cdef int reserve_table(self, Py_ssize_t need) except -1:
        """Load stays at or below 5/8: about 1.8 probes a hit, 4 a miss at the worst."""
        cdef uint32_t bits = self.table.bits
        cdef uint64_t* entries
        if bits != 0 and need * 8 <= (<Py_ssize_t>1 << bits) * 5:
            return 0
        # At least twice the old one, so that the move ends before the next growth.
        bits = bits + 1 if bits != 0 else FIRST_BITS
        while need * 8 > (<Py_ssize_t>1 << bits) * 5:
            bits += 1
        entries = <uint64_t*>wl_calloc(<size_t>1 << bits, sizeof(uint64_t))
        if entries == NULL:
            raise MemoryError
        self.move_some(self.used)
        self.old = self.table
        self.table = Table(entries, bits)
        if self.old.entries != NULL:
            self.cursor = 1
            if self.used <= 4096:
                self.move_some(4096)
        return 0

    # ---- core: trusts its callers -----------------------------------------------------

    cdef inline uint32_t lookup(self, uint64_t key) noexcept nogil:
        cdef uint32_t mixed = hash_of(key)
        cdef uint32_t node = find(&self.table, self.nodes, key, mixed)
        if node == 0 and self.cursor != 0:
            node = find(&self.old, self.nodes, key, mixed)
        return node

    cdef void move_some(self, Py_ssize_t budget) noexcept nogil:
        """Moves up to `budget` nodes from the old index to the new one."""
        cdef Node* node
        cdef uint32_t mixed
        if self.cursor == 0:
            return
        while budget > 0 and self.cursor < self.used:
            node = &self.nodes[self.cursor]
            if node.older != FREE:
                mixed = hash_of(node.key)
                if find(&self.table, self.nodes, node.key, mixed) == 0:
                    add_entry(&self.table, mixed, self.cursor)
            self.cursor += 1
            budget -= 1
        if self.cursor >= self.used:
            wl_free(self.old.entries)
            self.old.entries = NULL
            self.cursor = 0

    cdef void forget(self, uint32_t node) noexcept nogil:
        """Removes an unlinked node. The old index may keep an entry: the node is marked FREE."""
        remove_entry(&self.table, hash_of(self.nodes[node].key), node)
        self.nodes[node].older = FREE
        self.nodes[node].newer = self.free_head
        self.free_head = node
        self.size -= 1

    cdef void evict_oldest(self) noexcept nogil:
        cdef uint32_t node = self.nodes[0].newer
        self.gone[self.gone_count] = self.nodes[node].key
        self.gone_count += 1
        unlink(self.nodes, node)
        self.forget(node)
        # The next victim's index entry is a cache miss; start it now.
        node = self.nodes[0].newer
        wl_prefetch(
            &self.table.entries[hash_of(self.nodes[node].key) >> (32 - self.table.bits)]
        )

    cdef uint32_t create(self, uint64_t key) noexcept nogil:
        cdef uint32_t node
        if self.size >= self.limit:
            self.evict_oldest()
            if self.size >= self.limit:  # after a shrink: one more, until the bound is reached
                self.evict_oldest()
        node = self.free_head
        if node != 0:
            self.free_head = self.nodes[node].newer
        else:
            node = self.used
            self.used += 1
        self.nodes[node].key = key
        self.nodes[node].older = HELD
        add_entry(&self.table, hash_of(key), node)
        self.size += 1
        return node

    cdef Py_ssize_t touch_chain(self, const uint64_t* keys, Py_ssize_t count) noexcept nogil:
        """Returns the leading keys that were present. Needs reserve(count), count <= limit.

        First all present blocks leave the ring, then all blocks enter it from tail to root: so
        nothing of this chain is evicted to make room for it.
        """
        cdef Node* nodes = self.nodes
        cdef Table table
        cdef Py_ssize_t known = -1
        cdef Py_ssize_t at
        cdef uint32_t node
        self.gone_count = 0
        self.move_some(64 + 4 * count)
        table = self.table
        for at in range(count):
            if at + AHEAD < count:
                wl_prefetch(&table.entries[hash_of(keys[at + AHEAD]) >> (32 - table.bits)])
                # The entry of a nearer key has arrived: fetch the node that it most likely names.
                node = <uint32_t>table.entries[
                    hash_of(keys[at + AHEAD // 2]) >> (32 - table.bits)
                ]
                wl_prefetch(&nodes[node])
            node = self.lookup(keys[at])
            if node == 0:
                if known < 0:
                    known = at
            elif nodes[node].older == HELD:
                node = REPEATED
            else:
                unlink(nodes, node)
                nodes[node].older = HELD
            self.scratch[at] = node
        for at in range(count - 1, -1, -1):
            node = self.scratch[at]
            if node == REPEATED:
                continue
            if node == 0:
                node = self.lookup(keys[at])  # only a chain that repeats a key has it by now
                if node != 0:
                    unlink(nodes, node)
                else:
                    node = self.create(keys[at])
            link_newest(nodes, node)
        return count if known < 0 else known

    # ---- face: checks -------------------------------------------------------------------

    def touch(self, keys):
        cdef Py_buffer view
        cdef Py_ssize_t count
        take_keys(keys, &view)
        try:
            count = min(view.len // 8, self.limit)
            self.reserve(count)
            return self.touch_chain(<const uint64_t*>view.buf, count)
        finally:
            PyBuffer_Release(&view)

    def evicted(self):
        cdef array.array keys = array.clone(EMPTY, self.gone_count, False)
        if self.gone_count > 0:
            memcpy(keys.data.as_voidptr, self.gone, self.gone_count * sizeof(uint64_t))
        return keys

    def discard(self, keys):
        cdef Py_buffer view
        cdef Py_ssize_t at, found = 0
        cdef uint32_t node
        take_keys(keys, &view)
        self.gone_count = 0
        for at in range(view.len // 8):
            node = self.lookup((<const uint64_t*>view.buf)[at])
            if node != 0:
                unlink(self.nodes, node)
                self.forget(node)
                found += 1
        PyBuffer_Release(&view)
        return found

    def set_capacity(self, capacity):
        if not 1 <= capacity <= MAX_CAPACITY:
            raise ValueError(f"capacity must be 1..{MAX_CAPACITY} blocks, not {capacity}")
        self.limit = capacity

    def trim(self, max_blocks=TRIM_SLICE):
        cdef Py_ssize_t budget = min(max_blocks, TRIM_SLICE, self.size - self.limit)
        self.reserve_gone(budget)
        self.gone_count = 0
        while budget > 0:
            self.evict_oldest()
            budget -= 1
        return max(0, self.size - self.limit)

    def clear(self):
        wl_free(self.old.entries)
        self.old.entries = NULL
        self.cursor = 0
        self.gone_count = 0
        self.nodes[0] = Node(0, 0, 0)
        # Every node leaves; the index is emptied entry by entry and keeps its memory.
        cdef Py_ssize_t at
        for at in range(<Py_ssize_t>1 << self.table.bits):
            self.table.entries[at] = 0
        self.used = 1
        self.free_head = 0
        self.size = 0

    def __len__(self):
        return self.size

    def __contains__(self, key):
        return self.lookup(key) != 0

    @property
    def capacity(self):
        return self.limit

    @property
    def bytes_used(self):
        cdef Py_ssize_t total = self.allocated * sizeof(Node)
        total += sizeof(uint64_t) << self.table.bits
        if self.old.entries != NULL:
            total += sizeof(uint64_t) << self.old.bits
        return total + self.scratch_size * sizeof(uint32_t) + self.gone_size * sizeof(uint64_t)

    # ---- for tests -----------------------------------------------------

    def dump(self):
        cdef array.array keys = array.clone(EMPTY, self.size, False)
        cdef uint32_t node = self.nodes[0].newer
        cdef Py_ssize_t at = 0
        while node != 0:
            assert at < self.size, "the ring is longer than the count"
            keys.data.as_ulonglongs[at] = self.nodes[node].key
            at += 1
            node = self.nodes[node].newer
        assert at == self.size, "the ring is shorter than the count"
        return keys

    def check_invariants(self):
        cdef Py_ssize_t at, free = 0, entries = 0
        cdef uint32_t node = self.nodes[0].newer
        keys = self.dump()
        while node != 0:
            assert self.nodes[self.nodes[node].newer].older == node, "a link points one way"
            assert self.lookup(self.nodes[node].key) == node, "a ring key leads elsewhere"
            node = self.nodes[node].newer
        assert len(set(keys)) == self.size, "a key is there twice"
        node = self.free_head
        while node != 0:
            assert self.nodes[node].older == FREE and free < self.used, "bad free list"
            free += 1
            node = self.nodes[node].newer
        assert free + self.size + 1 == self.used <= self.allocated, "a node is lost"
        for at in range(<Py_ssize_t>1 << self.table.bits):
            entries += self.table.entries[at] != 0
        assert entries <= self.size and (self.cursor != 0 or entries == self.size), "lost entry"
        assert entries * 8 <= (<Py_ssize_t>1 << self.table.bits) * 5, "index too full"
        assert self.cursor != 0 or self.old.entries == NULL, "old index kept"


def _fail_alloc_after(n):
    wl_alloc_fail_after(n)
