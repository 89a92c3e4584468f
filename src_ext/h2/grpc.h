/* Rules of gRPC over HTTP/2 (PROTOCOL-HTTP2.md of grpc/grpc) that need no object. */
#ifndef WARMLANE_H2_GRPC_H
#define WARMLANE_H2_GRPC_H

#include <nghttp2/nghttp2.h>
#include <string.h>

/* Opaque data (8 bytes) of the PING behind the first GOAWAY of a drain. */
#define WL_DRAIN_PING "wl drain"

static inline int wl_same(const uint8_t *data, size_t size, const char *word) {
    return size == strlen(word) && memcmp(data, word, size) == 0;
}

/* application/grpc, alone or as +proto, with or without parameters. */
static inline int wl_is_grpc(const uint8_t *value, size_t size) {
    size_t at = 16;
    if (size < at || memcmp(value, "application/grpc", at)) return 0;
    if (size >= 22 && memcmp(value + at, "+proto", 6) == 0) at = 22;
    return size == at || value[at] == ';';
}

static inline nghttp2_nv wl_field(const char *name, const char *value, size_t size) {
    nghttp2_nv made = {(uint8_t *)name, (uint8_t *)value, strlen(name), size,
                       NGHTTP2_NV_FLAG_NO_COPY_NAME};
    return made;
}

/* Decimal digits of a status code below 100; returns how many. */
static inline size_t wl_digits(int status, char *digits) {
    if (status >= 10) {
        digits[0] = (char)('0' + status / 10);
        digits[1] = (char)('0' + status % 10);
        return 2;
    }
    digits[0] = (char)('0' + status);
    return 1;
}

/* grpc-status and grpc-message (already percent-encoded; none when empty) as one to two fields. */
static inline size_t wl_trailers(nghttp2_nv *fields, char *digits, int status, const char *text,
                                 size_t size) {
    fields[0] = wl_field("grpc-status", digits, wl_digits(status, digits));
    if (!size) return 1;
    fields[1] = wl_field("grpc-message", text, size);
    return 2;
}

#endif
