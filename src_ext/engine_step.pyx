"""A fleet of modelled replicas on one virtual clock (picture in engine_step.pxd, face in .pyi).

`advance` runs all replicas in the order of time and stops at the first plan that brought a first
token or an end: that is what a router hears. Steps that bring nothing, and runs of equal decode
steps, stay in C. The twin is router/sim/engine.py, step by step.
"""

from array import array

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from "alloc.h":
    void* wl_calloc(size_t count, size_t size_bytes) nogil
    void* wl_malloc(size_t size_bytes) nogil
    void wl_free(void* block) nogil
    void wl_alloc_fail_after(long n)

cdef enum:
    MAX_BLOCKS = 1 << 28
    MAX_SEQS = 1 << 16
    MAX_ADAPTERS = 1 << 10

NEVER = float("inf")


@cython.final
cdef class Fleet:
    def __cinit__(self, replicas, *, record=False):
        cdef EsConfig config
        cdef Py_ssize_t slot
        if not 1 <= len(replicas) <= 4096:
            raise ValueError(f"a fleet has 1 to 4096 replicas, not {len(replicas)}")
        self.record = record
        self.engines = <EsEngine*>wl_calloc(len(replicas), sizeof(EsEngine))
        if self.engines == NULL:
            raise MemoryError
        self.count = len(replicas)
        for slot in range(self.count):
            blocks = read_config(replicas[slot], &config)
            if not es_open(&self.engines[slot], &config, blocks, record):
                raise MemoryError

    def __dealloc__(self):
        cdef Py_ssize_t slot
        if self.engines != NULL:
            for slot in range(self.count):
                es_close(&self.engines[slot])
            wl_free(self.engines)

    cdef EsEngine* at(self, Py_ssize_t slot) except NULL:
        if not 0 <= slot < self.count:
            raise IndexError(f"no replica {slot}")
        return &self.engines[slot]

    def __len__(self):
        return self.count

    def add(self, Py_ssize_t slot, int64_t number, int32_t prompt, int32_t output, keys,
            double now, *, int32_t adapter=0):
        cdef EsEngine* engine = self.at(slot)
        cdef int64_t room = <int64_t>(engine.pool.blocks - 1) * engine.config.block_size
        cdef EsSeq* seq
        if prompt < 1 or output < 0:
            raise ValueError(f"a prompt of {prompt} and an output of {output} tokens")
        if <int64_t>prompt + output > room:
            raise ValueError(f"{prompt} + {output} tokens exceed the cache of {room}")
        if not 0 <= adapter < MAX_ADAPTERS:
            raise ValueError(f"adapters are 1 to {MAX_ADAPTERS - 1}, not {adapter}")
        if now < self.now:
            raise ValueError(f"an arrival at {now}, before {self.now}")
        seq = make_sequence(keys, prompt, output, engine.config.block_size)
        seq.id, seq.adapter = number, adapter
        seq.arrived, seq.first_at, seq.cached = now, -1.0, -1
        es_interrupt(engine, now)
        es_enqueue(engine, seq, 0)
        if not engine.stepping:
            es_begin(engine, now)

    def advance(self, double limit):
        cdef Py_ssize_t slot, best
        cdef EsEngine* engine
        while True:
            best = -1
            for slot in range(self.count):
                engine = &self.engines[slot]
                if engine.stepping and (best < 0 or engine.ends < self.engines[best].ends):
                    best = slot
            if best < 0 or self.engines[best].ends > limit:
                if limit != NEVER and limit > self.now:
                    self.now = limit
                return False
            engine = &self.engines[best]
            self.now = engine.ends
            self.slot = best
            noticed = es_finish(engine)
            es_begin(engine, self.now)
            if noticed or (self.record and (engine.stored_count or engine.pool.gone_count)):
                return True

    @property
    def first_tokens(self):
        cdef EsEngine* engine = self.at(self.slot)
        return [engine.first[i] for i in range(engine.first_count)]

    @property
    def finished(self):
        cdef EsEngine* engine = self.at(self.slot)
        return [(engine.done[i], <int>engine.cached_of[i]) for i in range(engine.done_count)]

    def held(self, keys, out, *, double tier_worth=0.0):
        cdef Py_buffer view, counts
        cdef Py_ssize_t slot, i, deep, size, most = 0
        cdef const uint64_t* key
        PyObject_GetBuffer(keys, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        try:
            PyObject_GetBuffer(out, &counts, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
            try:
                if view.itemsize != 8 or counts.itemsize != 4 or counts.len < 4 * self.count:
                    raise TypeError("keys must be uint64, out int32 and as long as the fleet")
                key, size = <const uint64_t*>view.buf, view.len // 8
                for slot in range(self.count):
                    i = 0
                    while i < size and eb_find(&self.engines[slot].pool, key[i]):
                        i += 1
                    deep = i
                    while deep < size and eb_find_tier(&self.engines[slot].pool, key[deep]):
                        deep += 1
                    i += <Py_ssize_t>(tier_worth * (deep - i))
                    (<int32_t*>counts.buf)[slot] = <int32_t>i
                    most = max(most, i)
            finally:
                PyBuffer_Release(&counts)
        finally:
            PyBuffer_Release(&view)
        return most

    def take_removed(self, Py_ssize_t slot):
        cdef EsEngine* engine = self.at(slot)
        keys = copied(engine.pool.gone, <Py_ssize_t>engine.pool.gone_count)
        engine.pool.gone_count = 0
        return keys

    def take_stored(self, Py_ssize_t slot):
        cdef EsEngine* engine = self.at(slot)
        if engine.lost:
            raise OverflowError(f"{engine.lost} stored keys were not taken in time")
        keys = copied(engine.stored, <Py_ssize_t>engine.stored_count)
        engine.stored_count = 0
        return keys

    def set_speed(self, Py_ssize_t slot, double factor):
        cdef EsEngine* engine = self.at(slot)
        cdef EsConfig* config = &engine.config
        if not 0.0 < factor < 1e6:
            raise ValueError(f"a speed factor above 0, not {factor}")
        es_interrupt(engine, self.now)
        config.t0 /= factor
        config.weights /= factor
        config.token /= factor
        config.reduce /= factor
        config.pair /= factor
        config.kv /= factor
        config.sequence /= factor
        config.adapter_load /= factor
        config.tier_token /= factor

    def fail(self, Py_ssize_t slot):
        cdef EsEngine* engine = self.at(slot)
        cdef EsConfig config = engine.config
        cdef uint32_t blocks = engine.pool.blocks
        cdef EsSeq* seq = engine.head
        cdef Py_ssize_t i
        ids = [engine.running[i].id for i in range(engine.running_count)]
        while seq != NULL:
            ids.append(seq.id)
            seq = seq.behind
        es_close(engine)
        if not es_open(engine, &config, blocks, self.record):
            raise MemoryError
        return ids

    def clear_cache(self, Py_ssize_t slot):
        return bool(eb_clear(&self.at(slot).pool))

    def next_at(self, Py_ssize_t slot):
        cdef EsEngine* engine = self.at(slot)
        return engine.ends if engine.stepping else NEVER

    def load(self, Py_ssize_t slot):
        cdef EsEngine* engine = self.at(slot)
        usable = engine.pool.blocks - 1
        return (engine.waiting_count, engine.running_count, 1.0 - engine.pool.free / usable)

    def counters(self, Py_ssize_t slot):
        cdef EsEngine* engine = self.at(slot)
        return {
            "prefix_queries": engine.queries,
            "prefix_hits": engine.hits,
            "tier_hits": engine.tier_hits,
            "prompt_tokens": engine.prompts,
            "generated_tokens": engine.generated,
            "preemptions": engine.preempted,
            "steps": engine.step_count,
            "busy_s": engine.busy,
        }


cdef uint32_t read_config(dict given, EsConfig* config) except 0:
    """Fills `config`; the number of blocks. ValueError names what is out of range."""
    blocks, size = given["blocks"], given["block_size"]
    seqs, tokens = given["max_num_seqs"], given["max_num_batched_tokens"]
    adapters = given["max_loras"]
    for name, value, least, most in (
        ("blocks", blocks, 2, MAX_BLOCKS), ("block_size", size, 1, MAX_SEQS),
        ("max_num_seqs", seqs, 1, MAX_SEQS), ("max_num_batched_tokens", tokens, 1, MAX_BLOCKS),
        ("max_loras", adapters, 0, MAX_ADAPTERS),
    ):
        if not least <= value <= most:
            raise ValueError(f"{name} must be {least}..{most}, not {value}")
    config.block_size, config.max_seqs, config.max_tokens = size, seqs, tokens
    config.max_adapters = adapters
    config.t0, config.weights = given["t0_s"], given["weights_s"]
    config.token, config.reduce = given["token_s"], given["reduce_s"]
    config.pair, config.kv = given["pair_s"], given["kv_s"]
    config.sequence, config.mixed = given["sequence_s"], given["mixed"]
    config.scale = given["scale"]
    config.adapter_step, config.adapter_load = given["adapter_step"], given["adapter_load_s"]
    tier, config.tier_token = given.get("tier_blocks", 0), given.get("tier_token_s", 0.0)
    if not 0 <= tier <= MAX_BLOCKS or not 0.0 <= config.tier_token < 1.0:
        raise ValueError("tier_blocks or tier_token_s is out of range")
    config.tier_blocks = tier
    if not config.t0 + config.weights > 0.0:
        raise ValueError("a step must take time")
    return blocks


cdef EsSeq* make_sequence(object keys, int32_t prompt, int32_t output, int32_t size) except NULL:
    cdef Py_buffer view
    cdef EsSeq* seq
    cdef Py_ssize_t count, room = (<int64_t>prompt + output) // size + 2
    cdef char code
    PyObject_GetBuffer(keys, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    try:
        code = view.format[0] if view.format != NULL else c"B"
        if view.itemsize != 8 or view.ndim > 1 or code not in (c"Q", c"L"):
            raise TypeError("keys must be a one-dimensional buffer of uint64")
        count = view.len // 8
        if count > room - 2:
            count = room - 2  # keys are of full blocks only
        seq = <EsSeq*>wl_calloc(1, sizeof(EsSeq))
        if seq != NULL:
            seq.keys = <uint64_t*>wl_malloc(<size_t>count * 8)
            seq.blocks = <uint32_t*>wl_malloc(<size_t>room * 4)
        if seq == NULL or seq.keys == NULL or seq.blocks == NULL:
            if seq != NULL:
                wl_free(seq.keys)
                wl_free(seq.blocks)
                wl_free(seq)
            raise MemoryError
        memcpy(seq.keys, view.buf, <size_t>count * 8)
    finally:
        PyBuffer_Release(&view)
    seq.keys_count = <int32_t>count
    seq.prompt, seq.output = prompt, output
    return seq


cdef object copied(const uint64_t* keys, Py_ssize_t count):
    return array("Q", (<const char*>keys)[: count * 8]) if count else array("Q")


def block_keys(runs, Py_ssize_t ratio, Py_ssize_t limit):
    cdef uint64_t first, number, key
    cdef Py_ssize_t count, done = 0, left
    cdef uint64_t[::1] out
    if not 1 <= ratio <= 1 << 16 or not 0 <= limit <= MAX_BLOCKS:
        raise ValueError("ratio or limit out of range")
    made = array("Q", bytes(8 * limit))
    if limit == 0:
        return made
    out = made
    for first, count in runs:
        left = min(count * ratio, limit - done)
        number = first * <uint64_t>ratio
        for _ in range(left):
            key = (number + 1) * 0x9E3779B97F4A7C15ULL
            key = (key ^ (key >> 30)) * 0xBF58476D1CE4E5B9ULL
            key = (key ^ (key >> 27)) * 0x94D049BB133111EBULL
            out[done] = key ^ (key >> 31)
            done += 1
            number += 1
    return made if done == limit else made[:done]


def _fail_after(long n):
    """Tests only: the n-th allocation from now on fails."""
    wl_alloc_fail_after(n)
