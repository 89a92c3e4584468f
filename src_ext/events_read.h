/* A cursor over msgpack (github.com/msgpack/msgpack/blob/master/spec.md): heads, skips, and token
 * ids in bulk. Trusts nothing: every length is checked against what is left, nothing recurses, and
 * each step consumes at least a byte. Strings and binaries are given as they lie in the frame.
 */
#ifndef WARMLANE_EVENTS_READ_H
#define WARMLANE_EVENTS_READ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const uint8_t *at, *end;
} EvIn;

enum { EV_NIL, EV_BOOL, EV_UINT, EV_NEGATIVE, EV_FLOAT, EV_STR, EV_BIN, EV_EXT, EV_ARRAY, EV_MAP };

typedef struct {
    int kind;
    uint64_t value;      /* integer (two's complement), length in bytes, or number of members */
    const uint8_t *data; /* bytes of a string, binary or extension */
} EvItem;

static inline uint64_t ev_big_endian(const uint8_t *p, uint32_t size) {
    uint64_t value = 0;
    uint32_t i;
    for (i = 0; i < size; i++) value = value << 8 | p[i];
    return value;
}

/* The length or value of `size` bytes that follows a head byte. */
static inline int ev_number(EvIn *in, uint32_t size, uint64_t *value) {
    if ((size_t)(in->end - in->at) < size) return -1;
    *value = ev_big_endian(in->at, size);
    in->at += size;
    return 0;
}

static inline int ev_bytes(EvIn *in, EvItem *item, int kind, uint64_t length) {
    if ((uint64_t)(in->end - in->at) < length) return -1;
    item->kind = kind;
    item->value = length;
    item->data = in->at;
    in->at += length;
    return 0;
}

/* Members are not looked at; that there is a byte for each (two in a map) is checked. */
static inline int ev_members(EvIn *in, EvItem *item, int kind, uint64_t count) {
    if ((uint64_t)(in->end - in->at) < count << (kind == EV_MAP)) return -1;
    item->kind = kind;
    item->value = count;
    return 0;
}

static inline int ev_signed(EvIn *in, EvItem *item, uint32_t size) {
    uint64_t value;
    if (ev_number(in, size, &value)) return -1;
    item->kind = value >> (8 * size - 1) ? EV_NEGATIVE : EV_UINT;
    item->value = item->kind == EV_NEGATIVE && size < 8 ? value | ~0ull << 8 * size : value;
    return 0;
}

/* A string or binary whose length is the next `size` bytes; `more` bytes besides. */
static inline int ev_sized(EvIn *in, EvItem *item, int kind, uint32_t size, uint32_t more) {
    uint64_t length;
    if (ev_number(in, size, &length)) return -1;
    return ev_bytes(in, item, kind, length + more);
}

/* An array or map whose count is the next `size` bytes. */
static inline int ev_counted(EvIn *in, EvItem *item, int kind, uint32_t size) {
    uint64_t count;
    if (ev_number(in, size, &count)) return -1;
    return ev_members(in, item, kind, count);
}

/* A head byte from 0xc0 to 0xdf. */
static inline int ev_next_marked(EvIn *in, EvItem *item, uint8_t head) {
    switch (head) {
    case 0xc0: item->kind = EV_NIL; return 0;
    case 0xc2: case 0xc3: item->kind = EV_BOOL; item->value = head & 1; return 0;
    case 0xc4: case 0xc5: case 0xc6: return ev_sized(in, item, EV_BIN, 1u << (head - 0xc4), 0);
    case 0xc7: case 0xc8: case 0xc9: return ev_sized(in, item, EV_EXT, 1u << (head - 0xc7), 1);
    case 0xca: case 0xcb:
        item->kind = EV_FLOAT;
        return ev_number(in, head == 0xca ? 4 : 8, &item->value);
    case 0xcc: case 0xcd: case 0xce: case 0xcf:
        item->kind = EV_UINT;
        return ev_number(in, 1u << (head - 0xcc), &item->value);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: return ev_signed(in, item, 1u << (head - 0xd0));
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8:
        return ev_bytes(in, item, EV_EXT, (1u << (head - 0xd4)) + 1u);
    case 0xd9: case 0xda: case 0xdb: return ev_sized(in, item, EV_STR, 1u << (head - 0xd9), 0);
    case 0xdc: case 0xdd: return ev_counted(in, item, EV_ARRAY, head == 0xdc ? 2 : 4);
    case 0xde: case 0xdf: return ev_counted(in, item, EV_MAP, head == 0xde ? 2 : 4);
    default: return -1; /* 0xc1 is never used */
    }
}

/* The next item; -1 at the end and where the bytes are no msgpack. */
static inline int ev_next(EvIn *in, EvItem *item) {
    uint8_t head;
    if (in->at >= in->end) return -1;
    head = *in->at++;
    item->value = 0;
    item->data = NULL;
    if (head < 0x80) {
        item->kind = EV_UINT;
        item->value = head;
        return 0;
    }
    if (head >= 0xe0) {
        item->kind = EV_NEGATIVE;
        item->value = ~0ull << 8 | head;
        return 0;
    }
    if (head < 0x90) return ev_members(in, item, EV_MAP, head & 15u);
    if (head < 0xa0) return ev_members(in, item, EV_ARRAY, head & 15u);
    if (head < 0xc0) return ev_bytes(in, item, EV_STR, head & 31u);
    return ev_next_marked(in, item, head);
}

/* Step over what is left of an item whose head was read. */
static inline int ev_skip_rest(EvIn *in, const EvItem *item) {
    EvItem inner;
    uint64_t left = item->kind == EV_ARRAY ? item->value : 0;
    if (item->kind == EV_MAP) left = 2 * item->value;
    for (; left; left--) {
        if (ev_next(in, &inner)) return -1;
        if (inner.kind == EV_ARRAY) left += inner.value;
        if (inner.kind == EV_MAP) left += 2 * inner.value;
    }
    return 0;
}

static inline int ev_skip(EvIn *in) {
    EvItem item;
    return ev_next(in, &item) || ev_skip_rest(in, &item) ? -1 : 0;
}

static inline int ev_is(const EvItem *item, const char *text, size_t length) {
    return item->kind == EV_STR && item->value == length && !memcmp(item->data, text, length);
}

/* `count` token ids into `out`. 1: one of them is no integer, and the cursor is undefined; -1: no
 * msgpack. Ids beyond 32 bits are cut: no tokenizer has them, placeholders of images may. */
static inline int ev_token_ids(EvIn *in, uint32_t *out, size_t count) {
    const uint8_t *p = in->at; /* below `safe` any integer can be read unchecked */
    const uint8_t *safe = in->end - in->at > 9 ? in->end - 9 : in->at;
    size_t i = 0;
    EvItem item;
    while (i < count) {
        /* Ids of 256 to 65,535 come in runs; the others are told apart one by one. */
        while (i < count && p < safe && *p == 0xcd) {
            out[i++] = (uint32_t)p[1] << 8 | p[2];
            p += 3;
        }
        if (i == count) break;
        if (p < safe && *p < 0x80) {
            out[i++] = *p++;
        } else if (p < safe && *p == 0xcc) {
            out[i++] = p[1];
            p += 2;
        } else if (p < safe && *p == 0xce) {
            out[i++] = (uint32_t)p[1] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 8 | p[4];
            p += 5;
        } else {
            in->at = p;
            if (ev_next(in, &item)) return -1;
            if (item.kind != EV_UINT && item.kind != EV_NEGATIVE) return 1;
            out[i++] = (uint32_t)item.value;
            p = in->at;
        }
    }
    in->at = p;
    return 0;
}

/* A block hash, in any form that engines send, as one number: the integer itself, or the last 8
 * bytes of a digest, big endian, which is what vLLM sends as the integer form of it. 1: no hash. */
static inline int ev_hash(const EvItem *item, uint64_t *hash) {
    if (item->kind == EV_UINT || item->kind == EV_NEGATIVE) {
        *hash = item->value;
        return 0;
    }
    if ((item->kind != EV_BIN && item->kind != EV_STR) || item->value < 8) return 1;
    *hash = ev_big_endian(item->data + item->value - 8, 8);
    return 0;
}

#endif
