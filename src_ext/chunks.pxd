"""Strict decoder of the chunked transfer coding (RFC 9112, section 7.1), without I/O.

    SIZE -> BLANKS -> EXTENSION -> SIZE_LF -> DATA -> DATA_CR -> DATA_LF -> SIZE
                                           -> TRAILER -> OVER

`chunk_step` walks one read piece by piece and allocates nothing; the state is a plain struct, so
that a walk can be tried on a copy. The trailer section is read by the class alone.
"""
from libc.stdint cimport int64_t, uint8_t

cdef enum:  # state
    AT_SIZE, AT_BLANKS, AT_EXTENSION, AT_SIZE_LF, AT_DATA, AT_DATA_CR, AT_DATA_LF, AT_TRAILER, OVER


cdef struct Chunks:
    int state
    int line            # bytes of the size line so far
    int digits
    int64_t left        # payload bytes of the open chunk that are still to come


# Go on from p to behind the next piece of payload (size 0: there is none before `end`, or before
# the trailer section). NULL: malformed.
cdef const uint8_t *chunk_step(
    Chunks *c, const uint8_t *p, const uint8_t *end, const uint8_t **piece, size_t *size
) noexcept nogil


# The next byte is the first of a size line.
cdef inline bint between(const Chunks *c) noexcept nogil:
    return c.state == AT_SIZE and c.line == 0


# A read of an event stream's body, seen before any of it is taken.
cdef struct Walk:
    Chunks state        # behind it
    bint whole          # began and ended between two chunks, or ended the message
    bint last           # the message ends with this read, without trailers
    bint event_end      # the payload ends behind an event


cdef Walk walk_read(Chunks state, const uint8_t *p, const uint8_t *end) noexcept nogil


cdef class ChunkReader:
    cdef Chunks state
    cdef readonly bint done         # the last chunk and the trailer section have been read
    cdef readonly bint aligned      # the latest read began and ended between two chunks
    cdef readonly Py_ssize_t used   # bytes of the latest read that belong to the message
    cdef readonly bytes trailer     # raw trailer lines, each with its CR LF, b"" if none
    cdef bytes section              # an incomplete trailer section
