"""See journal.pxd for the picture and journal.pyi for the face. 30 ns a record and a copy."""

cimport cython
from cpython.buffer cimport PyBuffer_Release
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from warmlane._core.key_buffer cimport open_keys


cdef extern from "alloc.h" nogil:
    void *wl_realloc(void *old, size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef enum:
    MOST_SLOT = 0xffff
    CHARGE = 2
    LEAST_ROOM = 256        # words
    KEPT_ROOM = 1 << 16     # a larger array is given back by `take`

cdef uint64_t MOST_COUNT = 0xffffffff


@cython.final
cdef class Journal:
    def __init__(self, size_t max_bytes):
        if max_bytes < 8:
            raise ValueError(f"max_bytes is {max_bytes}, must be at least 8")
        self.limit = max_bytes // 8

    def __dealloc__(self):
        wl_free(self.words)

    cdef int note(self, size_t slot, int what, const uint64_t *keys, size_t count) noexcept:
        cdef size_t size = 1 if what >= CHARGE else count + 1
        cdef size_t wanted = self.used + size, room
        cdef uint64_t *grown
        if slot > MOST_SLOT or count > MOST_COUNT or count == 0 or wanted > self.limit:
            self.dropped += 1
            return 0
        if wanted > self.room:
            room = max(wanted + (wanted >> 1), <size_t>LEAST_ROOM)
            grown = <uint64_t *>wl_realloc(self.words, room * 8)
            if grown == NULL:
                self.dropped += 1
                return 0
            self.words, self.room = grown, room
        self.words[self.used] = slot | <uint64_t>what << 16 | <uint64_t>count << 32
        if size > 1:
            memcpy(&self.words[self.used + 1], keys, count * 8)
        self.used = wanted
        return 1

    def chain(self, size_t slot, bint tokens, keys):
        cdef Py_buffer view
        cdef bint noted
        open_keys(keys, &view)
        noted = self.note(slot, tokens, <const uint64_t *>view.buf, view.len // 8) == 1
        PyBuffer_Release(&view)
        return noted

    def charge(self, size_t slot, bint tokens, size_t count):
        return self.note(slot, CHARGE + tokens, NULL, count) == 1

    def take(self):
        taken = PyBytes_FromStringAndSize(<const char *>self.words, self.used * 8)
        self.used = 0
        if self.room > KEPT_ROOM:
            wl_free(self.words)
            self.words, self.room = NULL, 0
        return taken

    def __len__(self):
        return self.used * 8


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
