"""The JSON level of the answer reader. See answer_json.pxd for the contract.

No recursion. What the answer says is written to the findings of `Answer` as soon as it is read; but
text is taken back when its choice or its document turns out not to be the one that is followed.
"""
from libc.stdint cimport uint8_t, uint32_t

from warmlane._core.answer_found cimport (
    DEPTH, JSON, MODE_AFTER, MODE_COLON, MODE_FIRST, MODE_IN_NAME, MODE_LITERAL, MODE_NAME,
    MODE_NAME_OR_END, MODE_NUMBER, MODE_OVER, MODE_SKIP, MODE_STRING, MODE_VALUE, SMALL_BYTES,
    STREAM, TYPE_END, TYPE_FAILED, TYPE_OTHER, TYPE_TEXT_DELTA, Answer, add_string, cut_text,
    end_number, end_string,
)
from warmlane._core.answer_text cimport (
    WL_ARRAYS, WL_AT_CHOICE, WL_AT_PART, WL_IS_ELEMENT, WL_IS_ERROR, WL_IS_MARK, WL_IS_OTHER,
    WL_IS_ROOT, WL_IS_ROOT_DELTA, wl_element_of, wl_find_special, wl_find_structure, wl_place_of,
    wl_short_escape, wl_slot_of, wl_utf8,
)


cdef void begin_document(Answer *a) noexcept nogil:
    a.mode = MODE_VALUE
    a.slot = WL_IS_ROOT
    a.depth = 0
    a.doc_type = TYPE_OTHER
    a.root_delta = False
    a.doc_text = a.text_size
    a.doc_full = a.text_full


cdef void end_document(Answer *a) noexcept nogil:
    a.mode = MODE_OVER
    a.documents += 1
    # A delta of the responses API names its type after its text: now it is known.
    if a.root_delta and a.doc_type != TYPE_TEXT_DELTA:
        cut_text(a, a.doc_text, a.doc_full)
    a.error = a.error or a.doc_type == TYPE_FAILED
    a.done = a.done or a.doc_type == TYPE_END or a.doc_type == TYPE_FAILED or a.shape == JSON


cdef void open_container(Answer *a, bint array) noexcept nogil:
    cdef int place = wl_place_of(a.slot, array)
    if a.slot == WL_IS_ERROR:
        a.error = True
    if place < 0 or a.depth == DEPTH:
        if a.depth == 0:  # the root is no object
            a.mode = MODE_OVER
            return
        # An object under a mark (a function call, audio, a tool's input) is output of its own.
        a.token = a.token or a.slot == WL_IS_MARK
        a.mode = MODE_SKIP
        a.skip_depth = 1
        a.skip_string = a.escape_skip = False
        return
    a.places[a.depth] = place
    a.depth += 1
    a.mode = MODE_FIRST if array else MODE_NAME_OR_END
    a.slot = wl_element_of(place) if array else WL_IS_OTHER
    if place == WL_AT_CHOICE:
        a.choice_index = 0
        a.choice_text = a.text_size
        a.choice_full = a.text_full
    elif place == WL_AT_PART:
        a.part_is_text = True
        a.part_text = a.text_size
        a.part_full = a.text_full


cdef void close_container(Answer *a, bint array) noexcept nogil:
    cdef int place = a.places[a.depth - 1]
    if array != (place >= WL_ARRAYS):
        a.mode = MODE_OVER  # malformed
        return
    if place == WL_AT_CHOICE and a.choice_index != 0:
        cut_text(a, a.choice_text, a.choice_full)
    elif place == WL_AT_PART and not a.part_is_text:
        cut_text(a, a.part_text, a.part_full)
    a.depth -= 1
    a.mode = MODE_AFTER
    if a.depth == 0:
        end_document(a)


cdef void begin_value(Answer *a, uint8_t c) noexcept nogil:
    if a.slot == WL_IS_ELEMENT:
        a.token = True
    if c == c'{' or c == c'[':
        open_container(a, c == c'[')
    elif a.depth == 0:
        a.mode = MODE_OVER
    elif c == c'"':
        a.mode = MODE_STRING
        a.small_size = a.escape = 0
        a.high = 0
        if a.slot == WL_IS_ROOT_DELTA:
            a.root_delta = True
    elif c == c'-' or c'0' <= c <= c'9':
        a.mode = MODE_NUMBER
        a.number = c - c'0'
        a.digits = 1 if c != c'-' else -1
    elif c == c't' or c == c'f' or c == c'n':
        a.mode = MODE_LITERAL
        if a.slot == WL_IS_ERROR and c == c't':
            a.error = True
    else:
        a.mode = MODE_OVER


cdef void add_code(Answer *a, uint32_t code) noexcept nogil:
    # One unit of a \u escape. Lone surrogates become three bytes, as in a request's prompt.
    cdef uint8_t utf8[4]
    if a.high:
        if 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((a.high - 0xD800) << 10) + (code - 0xDC00)
        else:
            add_string(a, utf8, wl_utf8(a.high, utf8))
        a.high = 0
    if 0xD800 <= code < 0xDC00:
        a.high = code
    else:
        add_string(a, utf8, wl_utf8(code, utf8))


cdef void end_data_line(Answer *a) noexcept nogil:
    a.escape_skip = False
    if a.mode == MODE_STRING or a.mode == MODE_IN_NAME:
        a.mode = MODE_OVER


cdef void flush_high(Answer *a) noexcept nogil:
    cdef uint8_t utf8[4]
    if a.high:
        add_string(a, utf8, wl_utf8(a.high, utf8))
        a.high = 0


cdef void feed_escape(Answer *a, uint8_t c) noexcept nogil:
    cdef uint8_t plain
    cdef uint8_t letter = c | 0x20
    if a.escape == 1:
        if c == c'u':
            a.escape = 5
            a.code = 0
            return
        a.escape = 0
        flush_high(a)
        plain = wl_short_escape(c)
        if plain:
            add_string(a, &plain, 1)
        else:
            a.mode = MODE_OVER
        return
    if c'0' <= c <= c'9':
        a.code = a.code * 16 + (c - c'0')
    elif c'a' <= letter <= c'f':
        a.code = a.code * 16 + (letter - c'a' + 10)
    else:
        a.mode = MODE_OVER
        return
    a.escape -= 1
    if a.escape == 1:
        a.escape = 0
        add_code(a, a.code)


cdef const uint8_t *feed_string(
    Answer *a, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    # In a name or a string; stops behind its end, at a control byte, or at `end`.
    cdef const uint8_t *q
    while p < end and (a.mode == MODE_STRING or a.mode == MODE_IN_NAME):
        if a.escape:
            if p[0] < 0x20:
                a.mode = MODE_OVER
                return p
            feed_escape(a, p[0])
            p += 1
            continue
        q = wl_find_special(p, end)
        if q > p:
            flush_high(a)
            add_string(a, p, q - p)
            p = q
            if p == end:
                return p
        if p[0] == c'\\':
            a.escape = 1
            p += 1
        elif p[0] == c'"':
            flush_high(a)
            p += 1
            if a.mode == MODE_STRING:
                end_string(a)
                a.mode = MODE_AFTER
            else:
                a.slot = WL_IS_OTHER
                if a.small_size <= SMALL_BYTES:
                    a.slot = wl_slot_of(a.places[a.depth - 1], a.small, a.small_size)
                a.mode = MODE_COLON
            return p
        else:
            a.mode = MODE_OVER
            return p
    return p


cdef const uint8_t *feed_skip(Answer *a, const uint8_t *p, const uint8_t *end) noexcept nogil:
    # In a container that is not followed; stops behind its end, at a line's end, or at `end`.
    cdef uint8_t c
    while p < end:
        if a.escape_skip:
            a.escape_skip = False
            if p[0] >= 0x20:
                p += 1
            continue
        if a.skip_string:
            p = wl_find_special(p, end)
        elif a.shape == JSON:
            p = wl_find_structure(p, end)
        if p == end:
            return p
        c = p[0]
        if a.shape == STREAM and (c == c'\n' or c == c'\r'):
            return p
        p += 1
        if a.skip_string:
            a.escape_skip = c == c'\\'
            a.skip_string = c != c'"'
        elif c == c'"':
            a.skip_string = True
        elif c | 0x20 == c'{':
            a.skip_depth += 1
        elif c | 0x20 == c'}':
            a.skip_depth -= 1
            if a.skip_depth == 0:
                a.mode = MODE_AFTER
                return p
    return p


cdef void feed_structure(Answer *a, uint8_t c) noexcept nogil:
    # A byte between names and values that is no white space.
    if a.mode == MODE_NAME or a.mode == MODE_NAME_OR_END:
        if c == c'"':
            a.mode = MODE_IN_NAME
            a.small_size = a.escape = 0
            a.high = 0
        elif c == c'}' and a.mode == MODE_NAME_OR_END:
            close_container(a, False)
        else:
            a.mode = MODE_OVER
    elif a.mode == MODE_COLON:
        a.mode = MODE_VALUE if c == c':' else MODE_OVER
    elif a.mode == MODE_FIRST and c == c']':
        close_container(a, True)
    elif a.mode == MODE_VALUE or a.mode == MODE_FIRST:
        begin_value(a, c)
    elif c == c',':
        a.mode = MODE_NAME
        if a.places[a.depth - 1] >= WL_ARRAYS:
            a.mode = MODE_VALUE
            a.slot = wl_element_of(a.places[a.depth - 1])
    elif c == c'}' or c == c']':
        close_container(a, c == c']')
    else:
        a.mode = MODE_OVER


cdef const uint8_t *feed_json(Answer *a, const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef uint8_t c
    while p < end:
        if a.mode == MODE_STRING or a.mode == MODE_IN_NAME:
            p = feed_string(a, p, end)
            continue
        if a.mode == MODE_SKIP:
            p = feed_skip(a, p, end)
            if a.mode == MODE_SKIP and p < end:
                return p
            continue
        c = p[0]
        if a.shape == STREAM and (c == c'\n' or c == c'\r'):
            return p
        if a.mode == MODE_NUMBER:
            if c'0' <= c <= c'9':
                if a.digits >= 0:
                    a.number = a.number * 10 + (c - c'0')
                    a.digits = a.digits + 1 if a.digits < 18 else -1
            elif c == c'.' or c == c'-' or c == c'+' or c | 0x20 == c'e':
                a.digits = -1
            else:
                end_number(a)
                a.mode = MODE_AFTER
                continue
        elif a.mode == MODE_LITERAL:
            if not c'a' <= c <= c'z':
                a.mode = MODE_AFTER
                continue
        elif a.mode == MODE_OVER:
            if a.shape != STREAM:
                return end
        elif c != c' ' and c != c'\t' and c != c'\n' and c != c'\r':
            feed_structure(a, c)
        p += 1
    return p
