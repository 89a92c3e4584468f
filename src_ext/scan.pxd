"""One pass over a JSON request body: the top-level values that routing needs, and the prompt.

`scan_body` answers None when the body is not plain: a top-level key with a backslash or twice, or
text that it cannot walk. The caller then decodes it in full. What it accepts may still be invalid
JSON deep inside; on valid JSON its answers are exact. The prompt comes as canonical bytes, defined
in docs/hashing.md and written by json_text.h.
"""

from libc.stdint cimport uint8_t


cdef class Scan:
    cdef readonly str model            # "" when absent or not a string
    cdef readonly bint stream
    cdef readonly object max_tokens    # int or None
    cdef readonly str salt
    cdef readonly str session
    cdef readonly long priority
    cdef readonly bytes prompt         # canonical bytes, or None
    cdef readonly bytes tokens         # uint32 token ids, or None
    cdef readonly str transfer         # name of a forbidden top-level key that is present, or ""
    cdef readonly long samples         # `n`, at least 1
    cdef readonly bint reads_cache     # no `prompt_logprobs`, for which engines compute all anew
    cdef readonly bint truncated       # the prompt was longer than the cap


# What a plain text prompt needs, as pointers into the body and into the caller's memory.
cdef struct Plain:
    const uint8_t *model    # as written, without escapes; NULL when absent or not a string
    size_t model_size
    const uint8_t *prompt   # canonical bytes
    size_t prompt_size
    long long max_tokens    # -1: not set
    bint stream


# As `scan_body`, without a Python object. 0: it does not have it all, ask `scan_body`: not plain,
# no text prompt, one above PROMPT_CAP, a salt, transfer parameters, `n`, `prompt_logprobs`, a model
# name with escapes.
# work: at least 3 * size + 256 bytes.
cdef int scan_plain(
    const uint8_t *body, size_t size, int kind, uint8_t *work, Plain *plain
) except -1
