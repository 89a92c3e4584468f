"""Engine events straight into the prefix tree (events_*.h; README.md has the picture).

The C functions trust their callers: a replica given to them has an open source.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from warmlane._core.radix cimport RadixTree, RxTree


cdef extern from "events_apply.h" nogil:
    int EV_DONE, EV_MORE, EV_BROKEN, EV_CLEARED_ALL, EV_NO_MEMORY
    uint32_t EV_MAX_HASHES, EV_MAX_TOKENS

    ctypedef struct EvSpace:
        uint64_t entries, bytes
        uint32_t sources
    ctypedef struct EvMem:
        uint64_t used, cap, seed
        uint32_t sources
    ctypedef struct EvCounts:
        uint64_t events, stored, removed, clears, broken, odd, unknown_kinds, orphans
        uint64_t unknown_removals, other_groups, other_sizes, ambiguous, refused
        uint64_t unnamed_adapters, embedded
    ctypedef struct EvSource:
        EvSpace *space
        uint64_t model_key
        uint32_t block_size
        int64_t group, rank
        EvCounts count
        uint64_t at
    ctypedef struct EvScratch:
        uint64_t *hashes
        uint64_t *keys
        uint32_t *tokens
    ctypedef struct EvEvent:
        uint32_t hashes, tokens, block_size, tier
        int has_parent
        uint64_t parent
        const uint8_t *lora
        uint32_t lora_bytes
    ctypedef struct EvIntake:
        RxTree *tree
        EvMem mem
        EvScratch scratch
        EvSource **source
        uint32_t sources
        uint64_t merges

    int ev_own_space(EvIntake *x, EvSource *s)
    void ev_leave_space(EvIntake *x, EvSource *s)
    void ev_forget_all(EvIntake *x, uint32_t replica)
    int ev_apply(EvIntake *x, uint32_t replica, const uint8_t *data, size_t size, uint64_t budget)
    int ev_stored(EvIntake *x, EvSource *s, uint32_t replica, EvEvent *e)
    int ev_removed(EvIntake *x, EvSource *s, uint32_t replica, const EvEvent *e)
    void ev_event_begin(EvEvent *e)
    int ev_scratch_hashes(EvScratch *s, uint32_t count)
    int ev_scratch_tokens(EvScratch *s, uint32_t count)
    void ev_scratch_free(EvScratch *s)
    uint64_t ev_part_key(uint64_t parent, const uint8_t *text, size_t size)


cdef class Intake:
    cdef EvIntake *intake
    cdef readonly RadixTree tree
    cdef EvSource *of(self, Py_ssize_t replica) except NULL
    cdef int apply_bytes(self, Py_ssize_t replica, const uint8_t *data, size_t size,
                         uint64_t budget) except -1
    cdef int hashes_in(self, object hashes) except -1
