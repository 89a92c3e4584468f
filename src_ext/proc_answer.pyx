"""Answers of external processing. See proc_answer.pxd for the contract.

They are written backwards (proto_text.h), each in one go. Cost: 0.1 us an answer, plus the copies
of bodies.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from warmlane._core.proto_text cimport (
    wl_pb_put, wl_pb_put_bytes, wl_pb_put_head, wl_pb_put_number, wl_pb_put_size,
)


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

# Answers carry at most this much body: a message then fits the 64 KiB window of an HTTP/2 stream.
PIECE_BYTES = 62_000

cdef enum:  # kinds of what is answered, see proc_wire
    REQUEST_HEADERS = 2
    REQUEST_BODY = 4
    RESPONSE_BODY = 5
    RESPONSE_TRAILERS = 7

cdef enum:
    PIECE = 62_000
    ON_STACK = 2048
    OVERWRITE = 2       # HeaderAppendAction OVERWRITE_IF_EXISTS_OR_ADD

cdef const char *DESTINATION = "x-gateway-destination-endpoint"
cdef const char *LB_SPACE = "envoy.lb"


cdef inline bytes cut(const uint8_t *data, size_t size):
    return PyBytes_FromStringAndSize(<const char *> data, <Py_ssize_t> size)


cdef inline uint8_t *put_option(
    uint8_t *at, const void *name, size_t name_size, const void *value, size_t size
) noexcept nogil:
    # HeaderMutation.set_headers: HeaderValueOption{header{key, raw_value}, append_action}.
    cdef const uint8_t *behind = at
    cdef const uint8_t *header
    at = wl_pb_put_number(at, 3, OVERWRITE)
    header = at
    at = wl_pb_put_bytes(at, 3, value, size)
    at = wl_pb_put_bytes(at, 1, name, name_size)
    at = wl_pb_put_head(at, header, 1)
    return wl_pb_put_head(at, behind, 1)


cdef inline uint8_t *put_member(
    uint8_t *at, const uint8_t *behind, const char *key, size_t size, uint8_t kind
) noexcept nogil:
    # Struct.fields: a map entry whose Value holds, as `kind`, the bytes from `at` to `behind`.
    at = wl_pb_put_head(at, behind, kind)
    at = wl_pb_put_head(at, behind, 2)
    at = wl_pb_put_bytes(at, 1, key, size)
    return wl_pb_put_head(at, behind, 1)


cdef uint8_t *put_answer(
    uint8_t *at, int field, bytes endpoint, long long length, bytes mutation, bytes body, bytes tail
) noexcept:
    cdef const uint8_t *behind
    cdef const uint8_t *inner
    cdef const char *name = PyBytes_AS_STRING(endpoint)
    cdef size_t size = <size_t> PyBytes_GET_SIZE(endpoint)
    cdef char digits[24]
    cdef int count
    at = wl_pb_put(at, PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail))
    if size:
        behind = at
        at = wl_pb_put(at, name, size)
        at = put_member(at, behind, DESTINATION, 30, 3)
        at = put_member(at, behind, LB_SPACE, 8, 5)
        at = wl_pb_put_head(at, behind, 8)
    behind = at
    if size:
        at = wl_pb_put_number(at, 5, 1)  # clear_route_cache
    if body is not None:
        inner = at
        at = wl_pb_put_bytes(at, 1, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        at = wl_pb_put_head(at, inner, 3)
    inner = at
    at = wl_pb_put(at, PyBytes_AS_STRING(mutation), PyBytes_GET_SIZE(mutation))
    if length >= 0:
        count = snprintf(digits, sizeof(digits), "%lld", length)
        at = put_option(at, "content-length", 14, digits, count)
    if size:
        at = put_option(at, DESTINATION, 30, name, size)
    if inner != at:
        at = wl_pb_put_head(at, inner, 2)
    if behind != at:
        at = wl_pb_put_head(at, behind, 1)
    return wl_pb_put_head(at, behind, <uint8_t> field)


def answer(
    int kind, bytes endpoint not None, long long length=-1, bytes mutation not None=b"",
    bytes body=None, bytes tail not None=b"",
):
    """The ProcessingResponse to headers or a buffered body, with the choice where there is one.

    kind: of the message that is answered. endpoint: header and `envoy.lb` metadata, equal; b"": no
    choice, no metadata. length: the new content-length, -1 leaves it. mutation: further fields of a
    HeaderMutation (`set_header`, `remove_header`). body: replaces a buffered one. tail: further
    fields of the ProcessingResponse. Raises MemoryError, ValueError.
    """
    if not REQUEST_HEADERS <= kind <= RESPONSE_TRAILERS:
        raise ValueError(f"no such kind: {kind}")
    return make_answer(kind, endpoint, length, mutation, body, tail)


cdef bytes make_answer(
    int kind, bytes endpoint, long long length, bytes mutation, bytes body, bytes tail
):
    cdef size_t most = (
        3 * PyBytes_GET_SIZE(endpoint) + PyBytes_GET_SIZE(mutation) + PyBytes_GET_SIZE(tail) + 400
        + (0 if body is None else PyBytes_GET_SIZE(body))
    )
    cdef uint8_t small[ON_STACK]
    cdef uint8_t *out = &small[0]
    cdef uint8_t *at
    if most > ON_STACK:
        out = <uint8_t *> wl_malloc(most)
        if out == NULL:
            raise MemoryError()
    try:
        at = put_answer(out + most, kind - 1, endpoint, length, mutation, body, tail)
        return cut(at, out + most - at)
    finally:
        if out != &small[0]:
            wl_free(out)


cdef bytes piece(int field, const uint8_t *data, size_t size, bint last):
    # ProcessingResponse{BodyResponse{CommonResponse{BodyMutation{StreamedBodyResponse}}}}.
    cdef uint8_t heads[64]
    cdef uint8_t *at = &heads[0] + 64
    cdef const uint8_t *behind = at
    cdef uint8_t *into
    cdef int level
    if size:
        at = wl_pb_put_size(at, 1, size)
    if last:  # a field may stand in any order: in front the body stays in one run at the end
        at = wl_pb_put_number(at, 2, 1)
    at = wl_pb_put_size(at, 3, (behind - at) + size)
    for level in (3, 1):
        at = wl_pb_put_size(at, <uint8_t> level, (behind - at) + size)
    at = wl_pb_put_size(at, <uint8_t> field, (behind - at) + size)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, (behind - at) + size)
    into = <uint8_t *> PyBytes_AS_STRING(out)
    memcpy(into, at, behind - at)
    memcpy(into + (behind - at), data, size)
    return out


def pieces(int kind, bytes body not None, bint last):
    """A body in full duplex: messages of at most PIECE_BYTES each. last: the stream ends with it.

    An empty body is one message when it is the last, else none. kind: REQUEST_BODY or
    RESPONSE_BODY; ValueError for another.
    """
    if kind != REQUEST_BODY and kind != RESPONSE_BODY:
        raise ValueError(f"no body kind: {kind}")
    cdef list out = []
    add_pieces(out, kind, body, last)
    return out


cdef int add_pieces(list out, int kind, bytes body, bint last) except -1:
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(body)
    cdef size_t left = <size_t> PyBytes_GET_SIZE(body)
    while left > PIECE:
        out.append(piece(kind - 1, p, PIECE, False))
        p += PIECE
        left -= PIECE
    if left or last:
        out.append(piece(kind - 1, p, left, last))
    return 0


def immediate(int status, bytes mutation not None, bytes body not None, bytes details not None):
    """ImmediateResponse: an answer to the client in place of the engine's. Raises MemoryError.

    mutation: of the headers, as in `answer`. details: one word for the gateway's access log.
    """
    cdef size_t most = (
        PyBytes_GET_SIZE(mutation) + PyBytes_GET_SIZE(body) + PyBytes_GET_SIZE(details) + 100
    )
    cdef uint8_t small[ON_STACK]
    cdef uint8_t *out = &small[0]
    cdef uint8_t *at
    cdef uint8_t *behind
    if most > ON_STACK:
        out = <uint8_t *> wl_malloc(most)
        if out == NULL:
            raise MemoryError()
    try:
        behind = at = out + most
        at = wl_pb_put_bytes(at, 5, PyBytes_AS_STRING(details), PyBytes_GET_SIZE(details))
        at = wl_pb_put_bytes(at, 3, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        at = wl_pb_put_bytes(at, 2, PyBytes_AS_STRING(mutation), PyBytes_GET_SIZE(mutation))
        behind = at
        at = wl_pb_put_number(at, 1, <uint64_t> status)
        at = wl_pb_put_head(at, behind, 1)
        at = wl_pb_put_head(at, out + most, 7)
        return cut(at, out + most - at)
    finally:
        if out != &small[0]:
            wl_free(out)


def set_header(bytes name not None, bytes value not None):
    """A field of a HeaderMutation: set this header, whatever it was."""
    cdef bytes inner = (
        _field(1, _field(1, name) + _field(3, value)) + b"\x18" + bytes((OVERWRITE,))
    )
    return _field(1, inner)


def remove_header(bytes name not None):
    """A field of a HeaderMutation: the header goes."""
    return _field(2, name)


cdef bytes _field(int number, bytes content):
    cdef uint8_t head[16]
    cdef uint8_t *at = wl_pb_put_size(&head[0] + 16, <uint8_t> number, PyBytes_GET_SIZE(content))
    return cut(at, &head[0] + 16 - at) + content


def fail_allocation_after(long count):
    """Test switch: `count` more allocations of this module succeed, the next fails; -1: never."""
    wl_alloc_fail_after(count)
