"""The head for the other side of the proxy. See http_edit.pxd for the contract.

Runs of lines that pass are copied as they are; a line that must not cross is stepped over.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcpy

from warmlane._core.http_head cimport RequestHead, ResponseHead
from warmlane._core.http_text cimport (
    WL_H_CONTENT_LENGTH, WL_H_EXPECT, WL_H_HOST, WL_H_INTERNAL, WL_H_LAST_HOP, WL_H_TRAILER,
    WL_H_TRANSFER_ENCODING, wl_header_id, wl_line, wl_walk_line,
)


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef enum:
    ON_STACK = 4096  # a head up to this size is put together without an allocation


cdef inline bytes cut(const uint8_t *start, const uint8_t *stop):
    return PyBytes_FromStringAndSize(<const char *> start, stop - start)


cdef struct Copy:
    const uint8_t *kept   # start of the bytes that pass and are not written yet
    uint8_t *to


cdef inline void put(Copy *copy, const void *data, size_t size) noexcept:
    memcpy(copy.to, data, size)
    copy.to += size


cdef inline void put_bytes(Copy *copy, bytes data) noexcept:
    put(copy, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef inline void flush(Copy *copy, const uint8_t *until, const uint8_t *behind) noexcept:
    # Write what passes up to `until`; go on at `behind`.
    put(copy, copy.kept, until - copy.kept)
    copy.kept = behind


cdef inline void put_length(Copy *copy, long long length) noexcept:
    copy.to += snprintf(<char *> copy.to, 48, "Content-Length: %lld\r\n", length)


cdef inline bint is_named(frozenset named, wl_line *line) except -1:
    return cut(line.name, line.name_end).lower() in named


cdef int write_request(
    Copy *copy, RequestHead head, bytes host_line, bytes extra, long long length, bint trailer
) except -1:
    cdef const uint8_t *p = copy.kept
    cdef const uint8_t *end = p + PyBytes_GET_SIZE(head.raw)
    cdef wl_line line
    cdef int id
    cdef bint other
    p = <const uint8_t *> memchr(p, c"\r", end - p) + 2
    if head.new_line:
        put_bytes(copy, head.method)
        put(copy, " ", 1)
        put_bytes(copy, head.target)
        put(copy, " HTTP/1.1\r\n", 11)
        copy.kept = p
    if not head.hosted:
        flush(copy, p, p)
        put_bytes(copy, host_line)
        put(copy, "\r\n", 2)
    while p + 2 < end:
        wl_walk_line(p, end, &line)
        id = wl_header_id(line.name, line.name_end)
        if id == WL_H_HOST:
            flush(copy, p, line.next)
            put_bytes(copy, host_line)
            put(copy, "\r\n", 2)
        elif id == WL_H_CONTENT_LENGTH or id == WL_H_TRANSFER_ENCODING:
            if id == WL_H_CONTENT_LENGTH:
                other = 0 <= length != head.length
            else:
                other = length >= 0 and not trailer
            if other:
                flush(copy, p, line.next)
                put_length(copy, length)
        elif 0 < id <= WL_H_LAST_HOP or id == WL_H_EXPECT or id == WL_H_INTERNAL:
            flush(copy, p, line.next)
        elif head.named and is_named(head.named, &line):
            flush(copy, p, line.next)
        p = line.next
    flush(copy, p, p)
    if PyBytes_GET_SIZE(extra):
        put_bytes(copy, extra)
        put(copy, "\r\n", 2)
    put(copy, "\r\n", 2)
    return 0


cdef Py_ssize_t edit_request(
    RequestHead head, bytes host_line, bytes extra, long long length, uint8_t *out, size_t room
) except -1:
    cdef Copy copy
    cdef size_t most = (
        PyBytes_GET_SIZE(head.raw) + PyBytes_GET_SIZE(host_line) + PyBytes_GET_SIZE(extra) + 80
    )
    if most > room:
        return 0
    copy.kept = <const uint8_t *> PyBytes_AS_STRING(head.raw)
    copy.to = out
    write_request(&copy, head, host_line, extra, length, False)
    return copy.to - out


cdef bytes edit_response(ResponseHead head, bint close):
    if not (head.hops or close or head.http10):
        return head.raw
    return response_bytes(head, close=close, dechunk=False, extra=b"")


def request_bytes(
    RequestHead head not None, bytes host_line not None, bytes extra not None, long long length,
    bytes trailer not None=b"",
):
    """The head for a replica: hop and internal lines cut, Host of the replica, our length.

    host_line, extra: whole lines without the last CR LF; extra may be empty. length: of the body
    that will follow; -1 keeps the framing of the client (streamed through). trailer: a chunked body
    keeps its framing. Raises MemoryError.
    """
    # At most one line grows by a length, and none is written twice.
    cdef size_t most = (
        PyBytes_GET_SIZE(head.raw) + PyBytes_GET_SIZE(host_line) + PyBytes_GET_SIZE(extra) + 80
    )
    cdef uint8_t small[ON_STACK]
    cdef uint8_t *out = &small[0]
    cdef Copy copy
    if most > ON_STACK:
        out = <uint8_t *> wl_malloc(most)
    if out == NULL:
        raise MemoryError
    copy.kept = <const uint8_t *> PyBytes_AS_STRING(head.raw)
    copy.to = out
    try:
        write_request(&copy, head, host_line, extra, length, PyBytes_GET_SIZE(trailer) > 0)
        return cut(out, copy.to)
    finally:
        if most > ON_STACK:
            wl_free(out)


cdef int write_response(
    Copy *copy, ResponseHead head, bint close, bint dechunk, bytes extra
) except -1:
    cdef const uint8_t *p = copy.kept
    cdef const uint8_t *end = p + PyBytes_GET_SIZE(head.raw)
    cdef wl_line line
    cdef int id
    put(copy, "HTTP/1.1", 8)
    copy.kept += 8
    p = <const uint8_t *> memchr(p, c"\r", end - p) + 2
    while p + 2 < end:
        wl_walk_line(p, end, &line)
        id = wl_header_id(line.name, line.name_end)
        if 0 < id <= WL_H_LAST_HOP:
            flush(copy, p, line.next)
        elif id == WL_H_TRANSFER_ENCODING or id == WL_H_TRAILER:
            if dechunk or (id == WL_H_TRAILER and is_named(head.named, &line)):
                flush(copy, p, line.next)
        elif head.named and is_named(head.named, &line):
            flush(copy, p, line.next)
        p = line.next
    flush(copy, p, p)
    if close:
        put(copy, "Connection: close\r\n", 19)
    if PyBytes_GET_SIZE(extra):
        put_bytes(copy, extra)
        put(copy, "\r\n", 2)
    put(copy, "\r\n", 2)
    return 0


def response_bytes(ResponseHead head not None, *, bint close, bint dechunk, bytes extra not None):
    """The head for the client: hop lines cut, our own Connection and debug lines added.

    dechunk: the client speaks HTTP/1.0 and gets the payload up to the end of the connection.
    extra: whole lines without the last CR LF; may be empty. Raises MemoryError.
    """
    cdef size_t most = PyBytes_GET_SIZE(head.raw) + PyBytes_GET_SIZE(extra) + 32
    cdef uint8_t small[ON_STACK]
    cdef uint8_t *out = &small[0]
    cdef Copy copy
    if not (head.hops or close or head.http10 or PyBytes_GET_SIZE(extra)
            or (dechunk and head.chunk_lines)):
        return head.raw
    if most > ON_STACK:
        out = <uint8_t *> wl_malloc(most)
    if out == NULL:
        raise MemoryError
    copy.kept = <const uint8_t *> PyBytes_AS_STRING(head.raw)
    copy.to = out
    try:
        write_response(&copy, head, close, dechunk, extra)
        return cut(out, copy.to)
    finally:
        if most > ON_STACK:
            wl_free(out)


def fail_allocation_after(long count):
    """For tests: of the allocations for large heads, the one after `count` more fails."""
    wl_alloc_fail_after(count)
