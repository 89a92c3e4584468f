/* Protocol buffers on the wire: reading fields, and writing backwards into a buffer.
 *
 * Reading: wl_pb_next steps over one field and says where its bytes lie; nothing is copied. Groups,
 * field number 0, varints beyond 64 bits and lengths beyond the end are refused.
 * Writing: from the end of a buffer towards its start, so that the length of a nested message is
 * known when its tag is written and no size has to be computed beforehand. */
#ifndef WARMLANE_PROTO_TEXT_H
#define WARMLANE_PROTO_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { WL_PB_VARINT = 0, WL_PB_FIXED64 = 1, WL_PB_BYTES = 2, WL_PB_FIXED32 = 5 };

typedef struct {
    const uint8_t *data; /* of WL_PB_BYTES */
    size_t size;
    uint64_t value; /* of WL_PB_VARINT */
    uint32_t number;
    int wire;
} wl_pb_field;

static inline const uint8_t *wl_pb_varint(const uint8_t *p, const uint8_t *end, uint64_t *value) {
    uint64_t found = 0;
    for (int shift = 0; p < end && shift < 64; shift += 7) {
        uint8_t c = *p++;
        if (shift == 63 && c > 1) return NULL;
        found |= (uint64_t)(c & 0x7f) << shift;
        if (!(c & 0x80)) {
            *value = found;
            return p;
        }
    }
    return NULL;
}

/* Behind the field at p, which is before end; NULL when it is malformed. */
static inline const uint8_t *wl_pb_next(const uint8_t *p, const uint8_t *end, wl_pb_field *field) {
    uint64_t tag;
    field->data = p;
    field->size = 0;
    field->value = 0;
    if ((p = wl_pb_varint(p, end, &tag)) == NULL || tag >> 32 || tag < 8) return NULL;
    field->number = (uint32_t)(tag >> 3);
    field->wire = (int)(tag & 7);
    switch (field->wire) {
        case WL_PB_VARINT: return wl_pb_varint(p, end, &field->value);
        case WL_PB_FIXED64: return end - p < 8 ? NULL : p + 8;
        case WL_PB_FIXED32: return end - p < 4 ? NULL : p + 4;
        case WL_PB_BYTES: {
            uint64_t size;
            p = wl_pb_varint(p, end, &size);
            if (p == NULL || size > (uint64_t)(end - p)) return NULL;
            field->data = p;
            field->size = (size_t)size;
            return p + size;
        }
        default: return NULL;
    }
}

static inline int wl_pb_is(const uint8_t *data, size_t size, const char *text, size_t length) {
    return size == length && memcmp(data, text, length) == 0;
}

/* Bytes that a tag and a length may take at most: field numbers here are below 16. */
enum { WL_PB_HEAD = 11 };

static inline uint8_t *wl_pb_put(uint8_t *at, const void *data, size_t size) {
    return memcpy(at - size, data, size);
}

static inline uint8_t *wl_pb_put_varint(uint8_t *at, uint64_t value) {
    uint8_t digits[10];
    int n = 0;
    do {
        digits[n++] = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
        value >>= 7;
    } while (value);
    at -= n;
    memcpy(at, digits, (size_t)n);
    return at;
}

/* Tag and length of a message or byte string of `size` bytes. */
static inline uint8_t *wl_pb_put_size(uint8_t *at, uint8_t number, size_t size) {
    at = wl_pb_put_varint(at, size);
    *--at = (uint8_t)(number << 3 | WL_PB_BYTES);
    return at;
}

/* The same for content that starts at `at` and ends at `behind`. */
static inline uint8_t *wl_pb_put_head(uint8_t *at, const uint8_t *behind, uint8_t number) {
    return wl_pb_put_size(at, number, (size_t)(behind - at));
}

static inline uint8_t *wl_pb_put_bytes(uint8_t *at, uint8_t number, const void *data, size_t size) {
    const uint8_t *behind = at;
    return wl_pb_put_head(wl_pb_put(at, data, size), behind, number);
}

static inline uint8_t *wl_pb_put_number(uint8_t *at, uint8_t number, uint64_t value) {
    at = wl_pb_put_varint(at, value);
    *--at = (uint8_t)(number << 3 | WL_PB_VARINT);
    return at;
}

#endif
