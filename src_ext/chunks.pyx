"""The chunked transfer coding. See chunks.pxd for the contract.

Cost: a few nanoseconds a chunk and one copy of the payload.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.string cimport memcmp

import re

# A size line longer than this is an attack: 15 hex digits plus a modest extension.
MAX_SIZE_LINE = 256
MAX_TRAILER_BYTES = 8192

cdef enum:
    MOST_LINE = 256
    MOST_DIGITS = 15

_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class BadChunk(Exception):
    """The bytes are not a chunked body. The connection cannot be used any more."""


cdef int hex_of(uint8_t c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 0x20
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef bint size_byte(Chunks *c, uint8_t byte) noexcept nogil:
    # The next byte of a size line; False: it cannot be one.
    cdef int digit
    c.line += 1
    if c.line > MOST_LINE:
        return False
    if c.state == AT_SIZE_LF:
        if byte != c'\n':
            return False
        c.state = AT_DATA if c.left else AT_TRAILER
        return True
    if c.state == AT_SIZE:
        digit = hex_of(byte)
        if digit >= 0:
            c.digits += 1
            c.left = c.left << 4 | digit
            return c.digits <= MOST_DIGITS
        if c.digits == 0:
            return False
    elif c.state == AT_EXTENSION and (byte == c'\t' or (byte >= 0x20 and byte != 0x7f)):
        return True
    if byte == c'\r' and c.state != AT_BLANKS:
        c.state = AT_SIZE_LF
        return True
    if byte == c';':
        c.state = AT_EXTENSION
        return True
    c.state = AT_BLANKS
    return byte == c' ' or byte == c'\t'


cdef const uint8_t *chunk_step(
    Chunks *c, const uint8_t *p, const uint8_t *end, const uint8_t **piece, size_t *size
) noexcept nogil:
    size[0] = 0
    while p < end:
        if c.state == AT_DATA:
            piece[0] = p
            size[0] = c.left if c.left < end - p else end - p
            c.left -= size[0]
            if c.left == 0:
                c.state = AT_DATA_CR
            return p + size[0]
        if c.state >= AT_TRAILER:
            return p
        if c.state == AT_DATA_CR:
            if p[0] != c'\r':
                return NULL
            c.state = AT_DATA_LF
        elif c.state == AT_DATA_LF:
            if p[0] != c'\n':
                return NULL
            c.state = AT_SIZE
            c.line = c.digits = 0
        elif not size_byte(c, p[0]):
            return NULL
        p += 1
    return p


cdef Walk walk_read(Chunks state, const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef Walk walk
    cdef const uint8_t *piece = NULL
    cdef const uint8_t *tail = NULL
    cdef size_t size = 0
    cdef size_t tail_size = 0
    cdef bint began = between(&state)
    walk.last = walk.whole = walk.event_end = False
    while p != NULL and p < end and state.state < AT_TRAILER:
        p = chunk_step(&state, p, end, &piece, &size)
        if p != NULL and size:
            tail, tail_size = piece, size
    if p == NULL:
        walk.state = state
        return walk
    if state.state == AT_TRAILER and end - p == 2 and memcmp(p, b"\r\n", 2) == 0:
        state.state = OVER
        walk.last = True
    walk.whole = began and (walk.last or between(&state))
    walk.event_end = (tail_size >= 2 and memcmp(tail + tail_size - 2, b"\n\n", 2) == 0) or (
        tail_size >= 4 and memcmp(tail + tail_size - 4, b"\r\n\r\n", 4) == 0
    )
    walk.state = state
    return walk


@cython.final
cdef class ChunkReader:
    """Feed it the bytes after a head; it gives the payload and says where the message ends."""

    def __cinit__(self):
        self.aligned = True
        self.trailer = self.section = b""

    def feed(self, bytes data not None):
        """Payload bytes in `data`. Raises BadChunk."""
        cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(data)
        cdef const uint8_t *end = start + PyBytes_GET_SIZE(data)
        cdef const uint8_t *p = start
        cdef const uint8_t *piece = NULL
        cdef size_t size = 0
        cdef bytes first = None
        cdef list parts = None
        cdef bint began_between = between(&self.state)
        while p < end and self.state.state < AT_TRAILER:
            p = chunk_step(&self.state, p, end, &piece, &size)
            if p == NULL:
                if self.state.state == AT_DATA_CR or self.state.state == AT_DATA_LF:
                    raise BadChunk("chunk data does not end where its size says")
                raise BadChunk("invalid chunk size line")
            if size == 0:
                continue
            if first is None:
                first = PyBytes_FromStringAndSize(<char *>piece, size)
            else:
                if parts is None:
                    parts = [first]
                parts.append(PyBytes_FromStringAndSize(<char *>piece, size))
        if self.state.state == AT_TRAILER and p < end:
            p += self._end(data[p - start:])
        self.used = p - start
        self.aligned = began_between and (self.done or between(&self.state))
        if parts is not None:
            return b"".join(parts)
        return b"" if first is None else first

    def _end(self, bytes data):
        # The trailer section, or more of it; how much of `data` belongs to the message.
        cdef bytes section = self.section + data
        cdef Py_ssize_t before = PyBytes_GET_SIZE(self.section)
        cdef Py_ssize_t end
        if section.startswith(b"\r\n"):
            self.state.state, self.done, self.section = OVER, True, b""
            return 2 - before
        end = section.find(b"\r\n\r\n")
        found = section if end < 0 else section[:end + 2]
        if len(found) > MAX_TRAILER_BYTES:
            raise BadChunk("trailer section too large")
        lines = found.split(b"\r\n")
        last = lines.pop()
        if any(_TRAILER.fullmatch(line) is None for line in lines) or b"\n" in last:
            raise BadChunk("invalid trailer")
        if end < 0:
            self.section = section
            return len(data)
        self.state.state, self.done, self.section = OVER, True, b""
        self.trailer = found
        return end + 4 - before
