"""Canonical prompt bytes. See canonical.pxd for the contract, docs/hashing.md for the grammar.

No recursion: the depth of a message is fixed here, and deeper values go through wl_emit_value.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memset, strlen

from warmlane._core.json_text cimport (
    WL_CONTENT, WL_FIELD, WL_ITEM, WL_MESSAGE, WL_NEXT, WL_PART, wl_emit_string, wl_emit_text,
    wl_emit_value, wl_member, wl_more, wl_opened, wl_put, wl_put_bytes, wl_skip_scalar,
    wl_skip_string, wl_skip_value, wl_space, wl_string_is, wl_token_id, wl_writer,
)


# Fields of a message that enter the prompt after role and content, in this order; the letter of
# the k-th is chr(97 + k). The engine's templates render no others.
cdef enum:
    MESSAGE_FIELDS = 4

cdef const char **MESSAGE_FIELD_NAMES = ["name", "tool_call_id", "tool_calls", "function_call"]


cdef bint same(const uint8_t *key, size_t size, const char *name, bint escaped) noexcept nogil:
    cdef size_t length = strlen(name)
    if escaped:
        return wl_string_is(key, key + size + 1, name, length)
    return size == length and memcmp(key, name, size) == 0


cdef int field_of(
    const uint8_t *key, size_t size, const char **names, int count, bint escaped
) noexcept nogil:
    cdef int i
    for i in range(count):
        if same(key, size, names[i], escaped):
            return i
    return -1


cdef bint is_text_type(const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef const uint8_t *after
    if p[0] != c'"':
        return False
    after = wl_skip_string(p + 1, end)
    if after == NULL:
        return False
    # An escaped spelling counts too; after is behind the closing quote.
    return (
        wl_string_is(p + 1, after, "text", 4) or wl_string_is(p + 1, after, "input_text", 10)
        or wl_string_is(p + 1, after, "output_text", 11)
    )


cdef const uint8_t *emit_part(
    wl_writer *w, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    # One part of a content list. A text part gives its text alone; its other fields do not count.
    cdef const uint8_t *start = p
    cdef const uint8_t *key
    cdef const uint8_t *text = NULL
    cdef const uint8_t *kind = NULL
    cdef size_t size
    cdef int escaped, more
    if p[0] == c'"':
        return wl_emit_text(w, p + 1, end)
    if p[0] == c'{':
        p = wl_opened(p + 1, end, c'}', &more)
        while more:
            p = wl_member(p, end, &key, &size, &escaped)
            if p == NULL:
                return NULL
            if same(key, size, "type", escaped):
                if kind != NULL:
                    return NULL
                kind = p
            elif same(key, size, "text", escaped):
                if text != NULL:
                    return NULL
                text = p
            p = wl_skip_value(p, end)
            if p == NULL:
                return NULL
            p = wl_more(p, end, c'}', &more)
            if p == NULL:
                return NULL
        if text != NULL and text[0] == c'"' and kind != NULL and is_text_type(kind, end):
            if wl_emit_text(w, text + 1, end) == NULL:
                return NULL
            return p
    wl_put(w, WL_ITEM)
    return wl_emit_value(w, start, end, True)


cdef const uint8_t *emit_content(
    wl_writer *w, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    # null: nothing. Text, or a list of parts; a list of one text part equals the bare text.
    cdef int more
    cdef bint first = True
    if p[0] == c'n':
        return wl_skip_scalar(p, end)
    wl_put(w, WL_CONTENT)
    if p[0] == c'"':
        return wl_emit_text(w, p + 1, end)
    if p[0] != c'[':
        wl_put(w, WL_ITEM)
        return wl_emit_value(w, p, end, True)
    p = wl_opened(p + 1, end, c']', &more)
    while more:
        p = wl_space(p, end)
        if p == end:
            return NULL
        if not first:
            wl_put(w, WL_PART)
        first = False
        p = emit_part(w, p, end)
        if p == NULL:
            return NULL
        p = wl_more(p, end, c']', &more)
        if p == NULL:
            return NULL
    return p


cdef const uint8_t *emit_message(
    wl_writer *w, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    cdef const uint8_t *start = p
    cdef const uint8_t *key
    cdef const uint8_t *content = NULL
    cdef const uint8_t *fields[MESSAGE_FIELDS]
    cdef size_t size
    cdef int escaped, more, k
    cdef bint role = False, content_done = False
    memset(fields, 0, sizeof(fields))
    cdef size_t at = w.pos
    if p[0] != c'{':
        return NULL
    p = wl_opened(p + 1, end, c'}', &more)
    while more:
        p = wl_member(p, end, &key, &size, &escaped)
        if p == NULL:
            return NULL
        k = -1
        if same(key, size, "role", escaped):
            if role or p[0] != c'"':
                return NULL
            role = True
            wl_put(w, WL_MESSAGE)
            p = wl_emit_string(w, p + 1, end)
        elif same(key, size, "content", escaped):
            if content != NULL:
                return NULL
            content = p
            if role:  # the usual order: written at once, not walked twice
                content_done = True
                p = emit_content(w, p, end)
            else:
                p = wl_skip_value(p, end)
        else:
            k = field_of(key, size, MESSAGE_FIELD_NAMES, MESSAGE_FIELDS, escaped)
            if k >= 0:
                if fields[k] != NULL:
                    return NULL
                fields[k] = p
            p = wl_skip_value(p, end)
        if p == NULL:
            return NULL
        p = wl_more(p, end, c'}', &more)
        if p == NULL:
            return NULL
    if not role:  # an item that is not a message: function_call_output, reasoning, ...
        w.pos = at
        wl_put(w, WL_ITEM)
        return wl_emit_value(w, start, end, True)
    if content != NULL and not content_done and emit_content(w, content, end) == NULL:
        return NULL
    for k in range(MESSAGE_FIELDS):
        if fields[k] != NULL and fields[k][0] != c'n':
            wl_put(w, WL_FIELD)
            wl_put(w, <uint8_t>(97 + k))
            if wl_emit_value(w, fields[k], end, False) == NULL:
                return NULL
    return p


cdef const uint8_t *emit_messages(
    wl_writer *w, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    cdef int more
    if p[0] != c'[':
        return NULL
    p = wl_opened(p + 1, end, c']', &more)
    while more:
        p = wl_space(p, end)
        if p == end:
            return NULL
        p = emit_message(w, p, end)
        if p == NULL:
            return NULL
        p = wl_more(p, end, c']', &more)
        if p == NULL:
            return NULL
    return p


cdef const uint8_t *emit_as_message(
    wl_writer *w, const char *role, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    # A bare content value (system, instructions, a text input) as the message that it becomes.
    if p[0] == c'n':
        return wl_skip_scalar(p, end)
    wl_put(w, WL_MESSAGE)
    wl_put_bytes(w, <const uint8_t *>role, strlen(role))
    return emit_content(w, p, end)


cdef const uint8_t *emit_ids(wl_writer *w, const uint8_t *p, const uint8_t *end) noexcept nogil:
    # A list of token ids; p: after '['. Each becomes 4 native-endian bytes. 0xFFFFFFFF separates
    # the prompts of one request, so it is not a token id.
    cdef uint32_t token
    cdef int more
    p = wl_opened(p, end, c']', &more)
    while more:
        p = wl_token_id(wl_space(p, end), end, &token)
        if p == NULL:
            return NULL
        wl_put_bytes(w, <uint8_t *>&token, 4)
        if end - p > 2 and p[0] == c',':
            p += 1
            continue
        p = wl_more(p, end, c']', &more)
        if p == NULL:
            return NULL
    return p


cdef const uint8_t *emit_prompt(
    wl_writer *w, const uint8_t *p, const uint8_t *end, int *kind
) noexcept nogil:
    cdef uint32_t separator = 0xFFFFFFFFU
    cdef uint8_t first
    cdef int more
    cdef bint next_one = False
    kind[0] = 0
    if p[0] == c'n':
        return wl_skip_scalar(p, end)
    if p[0] == c'"':
        kind[0] = 1
        return wl_emit_text(w, p + 1, end)
    if p[0] != c'[':
        return NULL
    cdef const uint8_t *list_start = p + 1
    p = wl_opened(list_start, end, c']', &more)
    if not more:
        return p
    p = wl_space(p, end)
    if p == end:
        return NULL
    first = p[0]
    if first != c'"' and first != c'[':
        kind[0] = 2
        return emit_ids(w, list_start, end)
    kind[0] = 1 if first == c'"' else 2
    while more:
        p = wl_space(p, end)
        if p == end or p[0] != first:
            return NULL
        if first == c'"':
            if next_one:
                wl_put(w, WL_NEXT)
                kind[0] = 3
            p = wl_emit_text(w, p + 1, end)
        else:
            if next_one:
                wl_put_bytes(w, <uint8_t *>&separator, 4)
            p = emit_ids(w, p + 1, end)
        next_one = True
        if p == NULL:
            return NULL
        p = wl_more(p, end, c']', &more)
        if p == NULL:
            return NULL
    return p
