"""The step loop of modelled replicas: vLLM's scheduler, blocks and timing, advanced in jumps.

engine_blocks.h: the paged blocks and the prefix cache of one replica.
engine_sched.h:  its scheduler; a plan is one step, or many equal ones that only decode.
engine_step:     a fleet of them on one virtual clock, stopped at what a router would notice.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "engine_sched.h":
    ctypedef struct EbPool:
        uint32_t blocks
        uint32_t free
        uint64_t* gone
        uint64_t gone_count

    ctypedef struct EsSeq:
        int64_t id
        int32_t prompt
        int32_t output
        int32_t adapter
        int32_t computed
        int32_t produced
        int32_t cached
        int32_t keys_count
        double arrived
        double first_at
        uint64_t* keys
        uint32_t* blocks
        EsSeq* behind

    ctypedef struct EsConfig:
        double t0
        double weights
        double token
        double reduce
        double pair
        double kv
        double sequence
        double mixed
        double scale
        double adapter_step
        double adapter_load
        double tier_token
        int32_t block_size
        int32_t max_seqs
        int32_t max_tokens
        int32_t max_adapters
        uint32_t tier_blocks

    ctypedef struct EsEngine:
        EsConfig config
        EbPool pool
        EsSeq** running
        int32_t running_count
        EsSeq* head
        int32_t waiting_count
        int32_t deferred
        int stepping
        double ends
        int64_t* first
        int64_t* done
        double* cached_of
        int32_t first_count
        int32_t done_count
        uint64_t* stored
        int64_t stored_count
        int64_t lost
        int64_t queries
        int64_t hits
        int64_t tier_hits
        int64_t prompts
        int64_t generated
        int64_t preempted
        int64_t step_count
        double busy

    int es_open(EsEngine* engine, const EsConfig* config, uint32_t blocks, int record)
    void es_close(EsEngine* engine)
    void es_enqueue(EsEngine* engine, EsSeq* seq, int first)
    int es_begin(EsEngine* engine, double now)
    void es_interrupt(EsEngine* engine, double now)
    int es_finish(EsEngine* engine)
    int eb_clear(EbPool* pool)
    uint32_t eb_find(const EbPool* pool, uint64_t key)
    uint32_t eb_find_tier(const EbPool* pool, uint64_t key)


cdef class Fleet:
    cdef EsEngine* engines
    cdef Py_ssize_t count
    cdef bint record
    cdef readonly double now
    cdef readonly Py_ssize_t slot

    cdef EsEngine* at(self, Py_ssize_t slot) except NULL
