"""One pass over a JSON request body: the top-level values that routing needs, and the prompt.

`scan_body` answers None when the body is not plain: a top-level key with a backslash or twice, or
text that it cannot walk. The caller then decodes it in full. What it accepts may still be invalid
JSON deep inside; on valid JSON its answers are exact. The prompt comes as canonical bytes, defined
in docs/hashing.md and written by json_text.h.
"""


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
    cdef readonly bint truncated       # the prompt was longer than the cap
