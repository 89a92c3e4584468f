"""C declarations of answer_text.h, for the answer reader. No code of its own."""
from libc.stdint cimport uint8_t, uint32_t


cdef extern from "answer_text.h" nogil:
    enum:
        WL_ARRAYS
        WL_AT_CHOICE, WL_AT_PART, WL_AT_TOKENS
        WL_IS_OTHER, WL_IS_ROOT, WL_IS_ERROR, WL_IS_TEXT, WL_IS_MARK, WL_IS_FINISH, WL_IS_STATUS
        WL_IS_TYPE, WL_IS_PART_TYPE, WL_IS_INDEX, WL_IS_PROMPT_COUNT, WL_IS_OUTPUT_COUNT
        WL_IS_CACHED, WL_IS_CACHE_READ, WL_IS_CACHE_MADE, WL_IS_ELEMENT, WL_IS_ROOT_DELTA
    int wl_slot_of(int place, const uint8_t *key, size_t size)
    int wl_place_of(int slot, bint array)
    int wl_element_of(int place)
    const uint8_t *wl_find_special(const uint8_t *p, const uint8_t *end)
    const uint8_t *wl_find_structure(const uint8_t *p, const uint8_t *end)
    size_t wl_utf8(uint32_t code, uint8_t *to)
    uint8_t wl_short_escape(uint8_t letter)
