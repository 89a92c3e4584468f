"""Engine events straight into the prefix tree: decode, own keys, apply, in one pass and no objects.

Owns what the engines' block hashes mean; the blocks themselves are the tree's. Never trusts a
frame: what it cannot read is counted, and nothing but its own source is touched. One thread only.
Cost: about 150 ns a block at 8 blocks an event, docs/exact.md has the rules.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t

import os

from warmlane._core.radix cimport RadixTree, rx_drop


cdef extern from "alloc.h" nogil:
    void *wl_calloc(size_t count, size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)
    long wl_alloc_countdown


cdef extern from *:
    """
    #include <limits.h>
    #ifdef __GLIBC__
    #include <malloc.h>
    static int wl_keep_freed(void) { return mallopt(M_TRIM_THRESHOLD, INT_MAX); }
    #else
    static int wl_keep_freed(void) { return 0; }
    #endif
    """
    int wl_keep_freed() nogil


DONE = EV_DONE
MORE = EV_MORE
BROKEN = EV_BROKEN
CLEARED = EV_CLEARED_ALL


@cython.final
cdef class Intake:
    """Event sources of one pool, each filling one replica number of `tree`.

    max_map_bytes: cap for what hashes mean, over all sources, 0 for none; shared evenly. Blocks
        that find no room are left out and counted as `refused`.
    """

    def __cinit__(self, RadixTree tree not None, uint64_t max_map_bytes=0):
        self.tree = tree
        self.intake = <EvIntake *>wl_calloc(1, sizeof(EvIntake))
        if self.intake is NULL:
            raise MemoryError("no memory for an event intake")
        self.intake.tree = tree.tree
        self.intake.sources = tree.tree.max_replicas
        self.intake.mem.cap = max_map_bytes
        self.intake.mem.seed = int.from_bytes(os.urandom(8), "little")
        self.intake.source = <EvSource **>wl_calloc(self.intake.sources, sizeof(EvSource *))
        if self.intake.source is NULL:
            raise MemoryError("no memory for an event intake")

    def __dealloc__(self):
        cdef uint32_t i
        if self.intake is NULL:
            return
        if self.intake.source is not NULL:
            for i in range(self.intake.sources):
                if self.intake.source[i] is not NULL:
                    ev_leave_space(self.intake, self.intake.source[i])
                    wl_free(self.intake.source[i])
        wl_free(self.intake.source)
        ev_scratch_free(&self.intake.scratch)
        wl_free(self.intake)

    cdef EvSource *of(self, Py_ssize_t replica) except NULL:
        if not 0 <= replica < <Py_ssize_t>self.intake.sources:
            raise ValueError(f"replica must be 0..{self.intake.sources - 1}, got {replica}")
        if self.intake.source[replica] is NULL:
            raise ValueError(f"replica {replica} has no open source")
        return self.intake.source[replica]

    def open(self, Py_ssize_t replica, str model not None=""):
        """A source begins to fill the replica. model: what its roots begin with (hashing.root_key).

        Raises ValueError for one that is open, MemoryError.
        """
        cdef EvSource *source
        cdef bytes name = model.encode("utf-8", "surrogatepass")
        if not 0 <= replica < <Py_ssize_t>self.intake.sources:
            raise ValueError(f"replica must be 0..{self.intake.sources - 1}, got {replica}")
        if self.intake.source[replica] is not NULL:
            raise ValueError(f"replica {replica} has an open source")
        source = <EvSource *>wl_calloc(1, sizeof(EvSource))
        if source is NULL:
            raise MemoryError("no memory for an event source")
        if ev_own_space(self.intake, source):
            wl_free(source)
            raise MemoryError("no memory for an event source")
        source.model_key = ev_part_key(0, <const uint8_t *><char *>name, <size_t>len(name))
        source.group = source.rank = -1
        self.intake.source[replica] = source
        self.intake.mem.sources += 1

    def close(self, Py_ssize_t replica):
        """The source is gone, and the replica with it (`RadixTree.drop`). Closed twice is legal."""
        cdef EvSource *source
        if not 0 <= replica < <Py_ssize_t>self.intake.sources:
            raise ValueError(f"replica must be 0..{self.intake.sources - 1}, got {replica}")
        source = self.intake.source[replica]
        if source is NULL:
            return
        rx_drop(self.intake.tree, <uint32_t>replica)
        ev_leave_space(self.intake, source)
        self.intake.source[replica] = NULL
        self.intake.mem.sources -= 1
        wl_free(source)

    def reset(self, Py_ssize_t replica):
        """Another life of the engine: its blocks, block size and hash function are forgotten.

        Counters stay. Raises MemoryError; then the blocks are forgotten all the same.
        """
        cdef EvSource *source = self.of(replica)
        ev_forget_all(self.intake, <uint32_t>replica)
        source.at = 0
        source.block_size = 0
        source.group = source.rank = -1
        if ev_own_space(self.intake, source):
            raise MemoryError("no memory for an event source")

    def clear(self, Py_ssize_t replica):
        """The same engine lost its blocks: what its hashes mean still holds."""
        self.of(replica)
        ev_forget_all(self.intake, <uint32_t>replica)

    def apply(self, Py_ssize_t replica, payload not None, uint64_t budget=0):
        """Apply the msgpack of one batch; flags of what happened.

        MORE: `budget` blocks are done, call again with the same bytes (budget 0: all at once).
        BROKEN: it could not be read to its end; what came before stays, the source needs healing.
        CLEARED: it held AllBlocksCleared. Raises ValueError for a source that is not open.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            return self.apply_bytes(
                replica, <const uint8_t *>view.buf, <size_t>view.len, budget
            )
        finally:
            PyBuffer_Release(&view)

    cdef int apply_bytes(self, Py_ssize_t replica, const uint8_t *data, size_t size,
                         uint64_t budget) except -1:
        cdef int status
        self.of(replica)
        status = ev_apply(self.intake, <uint32_t>replica, data, size, budget)
        if status == EV_NO_MEMORY:
            raise MemoryError("no memory for engine events")
        return status

    cdef int hashes_in(self, object hashes) except -1:
        cdef Py_ssize_t i, n = len(hashes)
        if n > <Py_ssize_t>EV_MAX_HASHES:
            raise ValueError(f"an event of {n} blocks")
        if ev_scratch_hashes(&self.intake.scratch, <uint32_t>n):
            raise MemoryError("no memory for engine events")
        for i in range(n):
            self.intake.scratch.hashes[i] = hashes[i] & 0xFFFFFFFFFFFFFFFF
        return 0

    def stored(self, Py_ssize_t replica, list hashes not None, parent, list tokens not None,
               Py_ssize_t block_size, int tier=0, str adapter not None=""):
        """A stored event that was decoded elsewhere: what `apply` does with the bytes of one.

        parent: hash of the block before, or None. Salts and images come by `apply` alone.
        """
        cdef EvSource *source = self.of(replica)
        cdef EvEvent event
        cdef Py_ssize_t i, n = len(tokens)
        cdef bytes name = adapter.encode("utf-8", "surrogatepass")
        cdef int status
        if not 0 <= tier <= 2 or not 0 <= block_size <= 65536 or n > <Py_ssize_t>EV_MAX_TOKENS:
            raise ValueError(f"tier {tier}, block size {block_size}, {n} tokens: out of range")
        ev_event_begin(&event)
        self.hashes_in(hashes)
        if ev_scratch_tokens(&self.intake.scratch, <uint32_t>n):
            raise MemoryError("no memory for engine events")
        for i in range(n):
            self.intake.scratch.tokens[i] = <uint32_t>(tokens[i] & 0xFFFFFFFF)
        event.hashes = <uint32_t>len(hashes)
        event.tokens = <uint32_t>n
        event.block_size = <uint32_t>block_size
        event.tier = <uint32_t>tier
        if parent is not None:
            event.has_parent = 1
            event.parent = parent & 0xFFFFFFFFFFFFFFFF
        if adapter:
            event.lora = <const uint8_t *><char *>name
            event.lora_bytes = <uint32_t>len(name)
        source.count.events += 1
        status = ev_stored(self.intake, source, <uint32_t>replica, &event)
        if status == EV_NO_MEMORY:
            raise MemoryError("no memory for engine events")

    def removed(self, Py_ssize_t replica, list hashes not None, int tier=0):
        """A removed event that was decoded elsewhere."""
        cdef EvSource *source = self.of(replica)
        cdef EvEvent event
        if not 0 <= tier <= 2:
            raise ValueError(f"tier {tier}: out of range")
        ev_event_begin(&event)
        self.hashes_in(hashes)
        event.hashes = <uint32_t>len(hashes)
        event.tier = <uint32_t>tier
        source.count.events += 1
        if ev_removed(self.intake, source, <uint32_t>replica, &event) == EV_NO_MEMORY:
            raise MemoryError("no memory for engine events")

    def is_open(self, Py_ssize_t replica):
        """A source fills this replica."""
        return 0 <= replica < <Py_ssize_t>self.intake.sources and (
            self.intake.source[replica] is not NULL
        )

    def block_size(self, Py_ssize_t replica):
        """Tokens a block of this engine; 0 until it stored something."""
        return self.of(replica).block_size

    def shares(self, Py_ssize_t replica):
        """How many sources were proven to hash as this one does, itself included."""
        return self.of(replica).space.sources

    @property
    def map_bytes(self):
        """Bytes of what hashes mean, over all sources."""
        return self.intake.mem.used

    @property
    def map_entries(self):
        """Hashes known, each once for each distinct hash function."""
        cdef uint32_t i
        cdef EvSource *source
        total = 0.0
        for i in range(self.intake.sources):
            source = self.intake.source[i]
            if source is not NULL:
                total += source.space.entries / <double>source.space.sources
        return round(total)

    def stats(self, Py_ssize_t replica):
        """Counters of one source since it was opened, by name."""
        cdef EvCounts *count = &self.of(replica).count
        cdef EvSource *source = self.of(replica)
        return {
            "events": count.events,
            "stored": count.stored,
            "removed": count.removed,
            "clears": count.clears,
            "broken": count.broken,
            "odd": count.odd,
            "unknown_kinds": count.unknown_kinds,
            "orphans": count.orphans,
            "unknown_removals": count.unknown_removals,
            "other_groups": count.other_groups,
            "other_sizes": count.other_sizes,
            "ambiguous": count.ambiguous,
            "refused": count.refused,
            "unnamed_adapters": count.unnamed_adapters,
            "embedded": count.embedded,
            "block_size": source.block_size,
            "rank": source.rank,
        }


def keep_freed_memory():
    """Freed memory stays with the process, to be used again. True where that can be asked for.

    Without it glibc gives the buffers of a flood of events back in one go, when the last one is
    freed: 4 ms for 50 MB, in the middle of the event loop.
    """
    return wl_keep_freed() == 1


def _fail_alloc_after(long n):
    """Tests: let n more allocations of this module succeed, fail the next one; -1: never fail."""
    left = wl_alloc_countdown
    wl_alloc_fail_after(n)
    return left
