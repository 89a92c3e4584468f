"""The JSON level of the answer reader: a push automaton over one document in any cuts.

    VALUE -> STRING | NUMBER | LITERAL | SKIP | an opened container (FIRST, NAME_OR_END)
    container: NAME -> IN_NAME -> COLON -> VALUE -> AFTER -> ... until its end

The root's end leads to OVER, and so does malformed text: the rest is unread. The members that count
are followed by the tables of answer_text.h; others are skipped in SKIP or as a string that means
nothing.
"""
from libc.stdint cimport uint8_t

from warmlane._core.answer_found cimport Answer


# Forget the document at hand and expect a new one.
cdef void begin_document(Answer *a) noexcept nogil

# The line of an event stream ends: a string does not go on behind it.
cdef void end_data_line(Answer *a) noexcept nogil

# Consume bytes of the document; stops at `end`, and in an event stream at the end of a line.
cdef const uint8_t *feed_json(Answer *a, const uint8_t *p, const uint8_t *end) noexcept nogil
