"""What was put into the caches lately, for other routers: a bounded list of records.

    record   head word, then `count` block keys (a charge has none)
    head     slot | what << 16 | count << 32
    what     0 chain of text blocks, 1 chain of token blocks, 2 and 3 charge of `count` tokens

Records lie one after the other in one array of 64-bit words, oldest first; `take` hands them over
as bytes and begins anew. One that finds no room is dropped and counted: what it would have said is
a cache hit that others do not expect, nothing worse.
"""

from libc.stdint cimport uint64_t


cdef class Journal:
    cdef uint64_t *words
    cdef size_t used, room, limit       # words
    cdef readonly uint64_t dropped      # records, since the start

    # 1: noted; 0: dropped. Raises nothing: without memory it drops.
    cdef int note(
        self, size_t slot, int what, const uint64_t *keys, size_t count
    ) noexcept
