"""Canonical prompt bytes of each kind of request, from JSON text (docs/hashing.md has the grammar).

Every function writes to a wl_writer and returns the position after the value it consumed, or NULL:
malformed, or irregular (a message with a repeated field, a prompt of mixed types).
After NULL the prompt has no canonical bytes; what was written is to be thrown away. A writer with a
chain gets keys of the texts in place of their bytes (key_text.h).
"""
from libc.stdint cimport uint8_t

from warmlane._core.json_text cimport wl_writer


# Where the key (the bytes between its quotes) stands in a list of names, or -1.
cdef int field_of(
    const uint8_t *key, size_t size, const char **names, int count, bint escaped
) noexcept nogil

# `messages` of chat and Anthropic, `input` items of responses.
cdef const uint8_t *emit_messages(
    wl_writer *w, const uint8_t *p, const uint8_t *end
) noexcept nogil

# One message of a given role from a bare content value (`system`, `instructions`, a text `input`).
cdef const uint8_t *emit_as_message(
    wl_writer *w, const char *role, const uint8_t *p, const uint8_t *end
) noexcept nogil

# A completions `prompt` or an embeddings `input`: text or a list with one (*kind = 1), with more of
# them (*kind = 3), token ids or a list of lists of token ids (*kind = 2); *kind = 0 for null and an
# empty list. Several prompts are written one after the other, WL_NEXT or the id 0xFFFFFFFF between
# them.
cdef const uint8_t *emit_prompt(
    wl_writer *w, const uint8_t *p, const uint8_t *end, int *kind
) noexcept nogil
