"""C declarations of json_text.h and key_text.h, for the modules that walk JSON text."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "json_text.h" nogil:
    enum:
        WL_MESSAGE, WL_CONTENT, WL_PART, WL_ITEM, WL_TOOLS, WL_FIELD, WL_NEXT, WL_SLACK
    ctypedef struct wl_chain:
        uint64_t parent
        uint64_t *keys
        size_t count
        size_t room
        size_t block
    ctypedef struct wl_writer:
        uint8_t *out
        size_t pos
        size_t cap
        bint truncated
        wl_chain *chain
    const uint8_t *wl_space(const uint8_t *p, const uint8_t *end)
    void wl_put(wl_writer *w, uint8_t byte)
    void wl_put_bytes(wl_writer *w, const uint8_t *data, size_t n)
    const uint8_t *wl_skip_value(const uint8_t *p, const uint8_t *end)
    const uint8_t *wl_skip_string(const uint8_t *p, const uint8_t *end)
    const uint8_t *wl_skip_scalar(const uint8_t *p, const uint8_t *end)
    const uint8_t *wl_token_id(const uint8_t *p, const uint8_t *end, uint32_t *id)
    const uint8_t *wl_emit_string(wl_writer *w, const uint8_t *p, const uint8_t *end)
    const uint8_t *wl_emit_value(wl_writer *w, const uint8_t *p, const uint8_t *end, bint media)
    bint wl_string_is(const uint8_t *p, const uint8_t *after, const char *name, size_t size)
    const uint8_t *wl_member(
        const uint8_t *p, const uint8_t *end, const uint8_t **key, size_t *size, int *escaped
    )
    const uint8_t *wl_more(const uint8_t *p, const uint8_t *end, uint8_t close, int *more)
    const uint8_t *wl_opened(const uint8_t *p, const uint8_t *end, uint8_t close, int *more)


cdef extern from "key_text.h" nogil:
    const uint8_t *wl_emit_text(wl_writer *w, const uint8_t *p, const uint8_t *end)
    void wl_key_waiting(wl_writer *w)
