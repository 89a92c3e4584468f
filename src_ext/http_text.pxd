"""C declarations of http_text.h, for the modules that read and write heads. No code of its own."""
from libc.stdint cimport uint8_t, int64_t


cdef extern from "http_text.h" nogil:
    enum:
        WL_H_OTHER, WL_H_CONNECTION, WL_H_UPGRADE, WL_H_HOP, WL_H_LAST_HOP, WL_H_TRANSFER_ENCODING
        WL_H_TRAILER, WL_H_EXPECT, WL_H_HOST, WL_H_CONTENT_LENGTH, WL_H_INTERNAL, WL_H_CONTENT_TYPE
        WL_H_CONTENT_ENCODING, WL_H_AUTHORIZATION, WL_H_API_KEY, WL_H_SESSION
        WL_H_PRIORITY
        WL_TOKEN, WL_AUTHORITY
    ctypedef struct wl_line:
        const uint8_t *name
        const uint8_t *name_end
        const uint8_t *value
        const uint8_t *value_end
        const uint8_t *next
    const uint8_t wl_class[256]
    void wl_http_init()
    bint wl_is(const uint8_t *p, const uint8_t *end, const char *lower, size_t size)
    bint wl_alike(const uint8_t *p, const char *lower, size_t size)
    int wl_header_id(const uint8_t *p, const uint8_t *end)
    const uint8_t *wl_text_end(const uint8_t *p, const uint8_t *end)
    const uint8_t *wl_crlf(const uint8_t *p, const uint8_t *end)
    bint wl_read_line(const uint8_t *p, const uint8_t *end, wl_line *line)
    bint wl_tab_behind(const wl_line *line)
    void wl_walk_line(const uint8_t *p, const uint8_t *end, wl_line *line)
    int64_t wl_length(const uint8_t *p, const uint8_t *end)
