"""The line level of the answer reader, and its Python face. See sse.pxd for the contract.

Damaged input is skipped to the end of its line. Cost: 0.35 us for an event of 200 bytes, of
which 35 ns are the call; 0.1-1 ns a byte for what is skipped.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp, memset

from warmlane._core.answer_found cimport (
    JSON, MODE_OVER, MODE_VALUE, NEITHER, STREAM, UNKNOWN, Answer, fail_allocation_after,
)
from warmlane._core.answer_json cimport begin_document, end_data_line, feed_json


cdef extern from "alloc.h" nogil:
    void wl_free(void *block)


TEXT_BYTES = 1 << 18  # generated text kept at most, by default

cdef enum:
    KEPT_TEXT = 4096  # a larger text's memory is given back between two answers

cdef enum:  # line
    LINE_START, LINE_FIELD, LINE_DATA, LINE_DONE_MARK, LINE_IGNORED

cdef const char *DATA = "data:"
cdef const char *DONE = "[DONE]"


cdef void start_payload(Answer *a, uint8_t c) noexcept nogil:
    # The first byte of a data line's payload: of "[DONE]", or of (more of) a document.
    a.line = LINE_DATA
    if a.mode == MODE_OVER:  # an event without the empty line that should end it
        begin_document(a)
    if c == c'[' and a.depth == 0 and a.mode == MODE_VALUE:
        a.line = LINE_DONE_MARK
        a.matched = 0


cdef void end_line(Answer *a) noexcept nogil:
    if a.line == LINE_DATA:
        end_data_line(a)
    elif a.line == LINE_DONE_MARK and a.matched == 6:
        a.done = True
    elif a.line == LINE_START:  # an empty line ends the event, whatever became of its document
        begin_document(a)
    a.line = LINE_START


cdef void feed_lines(Answer *a, const uint8_t *p, const uint8_t *end) noexcept nogil:
    cdef uint8_t c
    while p < end:
        c = p[0]
        if a.line == LINE_DATA and c != c'\n' and c != c'\r':
            p = feed_json(a, p, end)
            continue
        p += 1
        if c == c'\n' or c == c'\r':
            if not (c == c'\n' and a.after_cr):
                end_line(a)
            a.after_cr = c == c'\r'
            continue
        a.after_cr = False
        if a.line == LINE_START:
            a.line = LINE_FIELD
            a.matched = 0
        if a.line == LINE_FIELD:
            if a.matched == 5:
                if c != c' ' and c != c'\t':
                    start_payload(a, c)
                    p -= 1
            elif c == DATA[a.matched]:
                a.matched += 1
            else:
                a.line = LINE_IGNORED
        elif a.line == LINE_DONE_MARK:
            if a.matched < 6 and c == DONE[a.matched]:
                a.matched += 1
            elif a.matched < 6 or (c != c' ' and c != c'\t'):
                a.line = LINE_IGNORED


cdef void feed_bytes(Answer *a, const uint8_t *p, const uint8_t *end) noexcept nogil:
    # White space and a byte order mark may come before the first byte that tells the shape.
    while a.shape == UNKNOWN and p < end:
        if p[0] <= 0x20 or p[0] >= 0x80:
            p += 1
        elif p[0] == c'{':
            a.shape = JSON
        elif p[0] == c'[' or p[0] == c'<':
            a.shape = NEITHER
        else:
            a.shape = STREAM
    if a.shape == STREAM:
        feed_lines(a, p, end)
    elif a.shape == JSON:
        feed_json(a, p, end)


cdef inline object count_or_none(int64_t value):
    return None if value < 0 else value


@cython.final
cdef class AnswerScan:
    """Reads one answer of an engine. text_bytes: generated text kept at most."""

    def __cinit__(self, Py_ssize_t text_bytes=TEXT_BYTES):
        if text_bytes < 0:
            raise ValueError(f"text_bytes is {text_bytes}, must not be negative")
        self.restart(text_bytes)

    def __dealloc__(self):
        wl_free(self.answer.text)

    cdef void restart(self, size_t text_bytes) noexcept:
        cdef uint8_t *text = self.answer.text
        cdef size_t room = self.answer.text_room
        if room > KEPT_TEXT:
            wl_free(text)
            text, room = NULL, 0
        memset(&self.answer, 0, sizeof(Answer))
        self.answer.text, self.answer.text_room = text, room
        self.answer.text_limit = text_bytes
        self.answer.prompt_count = self.answer.output_count = self.answer.cached = -1
        self.answer.cache_read = self.answer.cache_made = -1
        begin_document(&self.answer)

    cdef void take(self, const uint8_t *start, const uint8_t *end) noexcept:
        feed_bytes(&self.answer, start, end)

    def feed(self, chunk):
        """The next bytes of the body (any bytes-like object), however cut."""
        cdef Py_buffer view
        cdef const uint8_t *start
        if PyBytes_CheckExact(chunk):
            start = <const uint8_t *>PyBytes_AS_STRING(chunk)
            feed_bytes(&self.answer, start, start + PyBytes_GET_SIZE(chunk))
            return
        PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE)
        start = <const uint8_t *>view.buf
        feed_bytes(&self.answer, start, start + view.len)
        PyBuffer_Release(&view)

    @property
    def first_token(self):
        """Has generated output been seen (text, reasoning, a tool call, an embedding)?"""
        return self.answer.token

    @property
    def finish_reason(self):
        """The last finish reason, stop reason or final status; "" while there is none."""
        return PyBytes_FromStringAndSize(
            <char *>self.answer.finish, self.answer.finish_size
        ).decode("utf-8", "replace")

    @property
    def abort_without_token(self):
        """The engine gave up before it generated anything: the request may go elsewhere."""
        return (
            not self.answer.token and self.answer.finish_size == 5
            and memcmp(self.answer.finish, b"abort", 5) == 0
        )

    @property
    def error(self):
        """Does the answer carry an error object (also inside a stream with status 200)?"""
        return self.answer.error

    @property
    def done(self):
        """Is the answer complete: [DONE], the API's last event, or the end of the JSON object?"""
        return self.answer.done

    @property
    def decided(self):
        """Is it known what this answer is: a token, a finish reason, an error or its end?"""
        return (
            self.answer.token or self.answer.finish_size > 0 or self.answer.error
            or self.answer.done
        )

    @property
    def streaming(self):
        """Is the body an event stream? False also while that is unknown."""
        return self.answer.shape == STREAM

    @property
    def documents(self):
        """JSON documents that ended so far; in a stream about one per generated token."""
        return self.answer.documents

    @property
    def prompt_tokens(self):
        """Prompt tokens by the answer's usage, cached ones included, or None.

        The Messages API counts cached tokens apart from `input_tokens`; they are added here.
        """
        cdef int64_t count = self.answer.prompt_count
        if count >= 0:
            count += max(self.answer.cache_read, <int64_t>0)
            count += max(self.answer.cache_made, <int64_t>0)
        return count_or_none(count)

    @property
    def cached_tokens(self):
        """Prompt tokens that the engine took from its cache, or None when it does not tell."""
        return count_or_none(max(self.answer.cached, self.answer.cache_read))

    @property
    def output_tokens(self):
        """Generated tokens by the answer's usage, or None."""
        return count_or_none(self.answer.output_count)

    @property
    def text(self):
        """Generated text of the first choice as UTF-8, at most text_bytes; no reasoning."""
        return PyBytes_FromStringAndSize(<char *>self.answer.text, self.answer.text_size)


def _fail_allocation_after(long count):
    """Tests only: the text's allocation after `count` more fails once."""
    fail_allocation_after(count)
