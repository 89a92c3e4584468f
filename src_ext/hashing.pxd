"""Chained 64-bit block keys (XXH3-64) of token ids and of text.

A prompt is cut into blocks of one size; the key of a block is the XXH3-64 (seed 0) of its parent's
key (8 bytes, little endian) followed by the block's bytes, so that a key stands for the block and
for all before it. The parent of the first block is the root, which depends on model, adapter and
salt. Only full blocks have a key. A key is never 0.
"""
from libc.stdint cimport uint8_t, uint64_t


cdef extern from "xxh3.h" nogil:
    uint64_t wl_xxh3(const uint8_t *data, size_t size_bytes)
    uint64_t wl_block_key(uint64_t parent, const uint8_t *block, size_t size_bytes)
    uint64_t wl_digest(const uint8_t *data, size_t size_bytes)


cdef class KeyArray:
    # Immutable. `keys` belongs to this object when `owner` is None, else to `owner` (head()).
    cdef readonly Py_ssize_t size
    cdef uint64_t *keys
    cdef KeyArray owner
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]


# An uninitialised array of `size` keys, to be filled by the caller before it is shown to others.
cdef KeyArray new_keys(Py_ssize_t size)
