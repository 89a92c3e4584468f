"""C declarations of proto_text.h, for the modules that read and write protobuf. No own code."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "proto_text.h" nogil:
    enum:
        WL_PB_VARINT, WL_PB_FIXED64, WL_PB_BYTES, WL_PB_FIXED32, WL_PB_HEAD
    ctypedef struct wl_pb_field:
        const uint8_t *data
        size_t size
        uint64_t value
        uint32_t number
        int wire
    const uint8_t *wl_pb_next(const uint8_t *p, const uint8_t *end, wl_pb_field *field)
    bint wl_pb_is(const uint8_t *data, size_t size, const char *text, size_t length)
    uint8_t *wl_pb_put(uint8_t *at, const void *data, size_t size)
    uint8_t *wl_pb_put_size(uint8_t *at, uint8_t number, size_t size)
    uint8_t *wl_pb_put_head(uint8_t *at, const uint8_t *behind, uint8_t number)
    uint8_t *wl_pb_put_bytes(uint8_t *at, uint8_t number, const void *data, size_t size)
    uint8_t *wl_pb_put_number(uint8_t *at, uint8_t number, uint64_t value)
