"""What an answer says: text, small strings and numbers. See answer_found.pxd for the contract."""
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memcpy

from warmlane._core.answer_text cimport (
    WL_IS_CACHED, WL_IS_CACHE_MADE, WL_IS_CACHE_READ, WL_IS_ERROR, WL_IS_FINISH, WL_IS_INDEX,
    WL_IS_MARK, WL_IS_OTHER, WL_IS_OUTPUT_COUNT, WL_IS_PART_TYPE, WL_IS_PROMPT_COUNT,
    WL_IS_ROOT_DELTA, WL_IS_STATUS, WL_IS_TEXT, WL_IS_TYPE,
)


cdef extern from "alloc.h" nogil:
    void *wl_realloc(void *old, size_t size_bytes)
    void wl_alloc_fail_after(long n)


cdef void add_text(Answer *a, const uint8_t *data, size_t size) noexcept nogil:
    cdef size_t room
    cdef uint8_t *grown
    if a.text_full:
        return
    if size > a.text_limit - a.text_size:
        size = a.text_limit - a.text_size
        a.text_full = True
    if size > a.text_room - a.text_size:
        room = max(a.text_room * 2, <size_t>1024)
        while room < a.text_size + size:
            room *= 2
        grown = <uint8_t *>wl_realloc(a.text, room)
        if grown == NULL:  # the text ends here, the answer goes on
            a.text_full = True
            return
        a.text = grown
        a.text_room = room
    if size:
        memcpy(a.text + a.text_size, data, size)
        a.text_size += size


cdef void cut_text(Answer *a, size_t size, bint full) noexcept nogil:
    a.text_size = min(size, a.text_size)
    a.text_full = full


cdef void add_string(Answer *a, const uint8_t *data, size_t size) noexcept nogil:
    # More bytes of the string at hand.
    cdef size_t room
    if size == 0:
        return
    if a.mode == MODE_STRING:
        if a.slot == WL_IS_TEXT or a.slot == WL_IS_ROOT_DELTA:
            a.token = True
            add_text(a, data, size)
            return
        if a.slot == WL_IS_MARK:
            a.token = True
            return
        if a.slot == WL_IS_ERROR:
            a.error = True
            return
        if a.slot == WL_IS_OTHER:
            return
    room = SMALL_BYTES - a.small_size if a.small_size <= SMALL_BYTES else 0
    if size > room:
        a.small_size = SMALL_BYTES + 1
    else:
        memcpy(a.small + a.small_size, data, size)
        a.small_size += <int>size


cdef bint small_is(Answer *a, const char *name, int size) noexcept nogil:
    return a.small_size == size and memcmp(a.small, name, size) == 0


cdef void keep_finish(Answer *a) noexcept nogil:
    if 0 < a.small_size <= SMALL_BYTES:
        memcpy(a.finish, a.small, a.small_size)
        a.finish_size = a.small_size


cdef void end_string(Answer *a) noexcept nogil:
    cdef bint failed
    if a.slot == WL_IS_FINISH:
        keep_finish(a)
    elif a.slot == WL_IS_STATUS:
        failed = small_is(a, "failed", 6)
        a.error = a.error or failed
        if (
            failed or small_is(a, "completed", 9) or small_is(a, "incomplete", 10)
            or small_is(a, "cancelled", 9)
        ):
            keep_finish(a)
    elif a.slot == WL_IS_TYPE:
        if small_is(a, "response.output_text.delta", 26):
            a.doc_type = TYPE_TEXT_DELTA
        elif small_is(a, "response.failed", 15) or small_is(a, "error", 5):
            a.doc_type = TYPE_FAILED
        elif (
            small_is(a, "message_stop", 12) or small_is(a, "response.completed", 18)
            or small_is(a, "response.incomplete", 19)
        ):
            a.doc_type = TYPE_END
    elif a.slot == WL_IS_PART_TYPE:
        a.part_is_text = small_is(a, "text", 4) or small_is(a, "output_text", 11)


cdef void end_number(Answer *a) noexcept nogil:
    cdef int64_t value = a.number
    if a.digits <= 0:
        return
    if a.slot == WL_IS_INDEX:
        a.choice_index = value
    elif a.slot == WL_IS_PROMPT_COUNT:
        a.prompt_count = value
    elif a.slot == WL_IS_OUTPUT_COUNT:
        a.output_count = value
    elif a.slot == WL_IS_CACHED:
        a.cached = value
    elif a.slot == WL_IS_CACHE_READ:
        a.cache_read = value
    elif a.slot == WL_IS_CACHE_MADE:
        a.cache_made = value


cdef void fail_allocation_after(long count) noexcept nogil:
    wl_alloc_fail_after(count)
