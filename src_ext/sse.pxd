"""Reads an answer while it passes by: first token, usage, finish reason, error, generated text.

Fed with the bytes of a response body in any cuts; an event stream or one JSON object, told apart by
the first byte. Nothing is buffered but 32 bytes of a name and the generated text (bounded). This is
the line level; answer_json.pxd has the level below.

    START -> FIELD ("data:" matched so far) -> DATA | DONE_MARK | IGNORED -> end of line -> START
"""
from libc.stdint cimport uint8_t

from warmlane._core.answer_found cimport Answer


cdef class AnswerScan:
    cdef Answer answer

    # A new answer; and its next bytes.
    cdef void restart(self, size_t text_bytes) noexcept
    cdef void take(self, const uint8_t *start, const uint8_t *end) noexcept
