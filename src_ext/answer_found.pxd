"""The state of an answer reader, and what it makes of the strings and numbers that it meets.

The modes are those of answer_json.pxd, the lines of sse.pxd, the slots of answer_text.h.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t


cdef enum:  # shape
    UNKNOWN, STREAM, JSON, NEITHER

cdef enum:  # mode
    MODE_VALUE, MODE_FIRST, MODE_NAME, MODE_NAME_OR_END, MODE_IN_NAME, MODE_COLON, MODE_STRING
    MODE_NUMBER, MODE_LITERAL, MODE_AFTER, MODE_SKIP, MODE_OVER

cdef enum:  # doc_type
    TYPE_OTHER, TYPE_TEXT_DELTA, TYPE_END, TYPE_FAILED

cdef enum:
    SMALL_BYTES = 32
    DEPTH = 8  # the deepest place has depth 5


cdef struct Answer:
    # line level
    int shape          # of the body: UNKNOWN, STREAM, JSON, NEITHER
    int line           # see LINE_* in sse.pyx
    int matched        # bytes of "data:" or "[DONE]" matched so far
    bint after_cr
    # JSON level
    int mode           # see MODE_*
    int slot           # what the value at hand is for
    int depth          # containers open among the followed ones
    int places[8]
    int64_t skip_depth
    bint skip_string
    bint escape_skip
    # string at hand
    int escape         # 0 none, 1 after a backslash, 2..5 hex digits to come + 1
    uint32_t code      # of a \u escape so far
    uint32_t high      # a high surrogate that waits for its partner, or 0
    uint8_t small[32]
    int small_size     # SMALL_BYTES + 1: longer
    # number at hand
    int64_t number
    int digits         # -1: not a plain integer
    # the object at hand
    int64_t choice_index
    size_t choice_text  # length of text where the choice began, and so on
    size_t part_text
    size_t doc_text
    bint choice_full, part_full, doc_full
    bint part_is_text
    int doc_type       # see TYPE_*
    bint root_delta
    # findings
    bint token, error, done
    int64_t documents, prompt_count, output_count, cached, cache_read, cache_made
    uint8_t finish[32]
    int finish_size
    uint8_t *text
    size_t text_size, text_room, text_limit
    bint text_full


# Tokens of the answer: by its usage, else a document of the stream for each; it can be no stream.
cdef inline double tokens_of(const Answer *a) noexcept nogil:
    return <double>(a.output_count if a.output_count >= 0 else a.documents)

# Give back text from `size` on, to where a choice, a part or a document began.
cdef void cut_text(Answer *a, size_t size, bint full) noexcept nogil

# More bytes of the string or the name at hand; the string's end; the number's end.
cdef void add_string(Answer *a, const uint8_t *data, size_t size) noexcept nogil
cdef void end_string(Answer *a) noexcept nogil
cdef void end_number(Answer *a) noexcept nogil

# Tests only: the allocation after `count` more of this module fails once.
cdef void fail_allocation_after(long count) noexcept nogil
