"""A head that `http_head` has accepted, as the bytes for the other side of the proxy.

The bytes pass as they came and in order, except for lines that end at this hop, and Host and the
framing where they must change. What is changed stands at `request_bytes` and `response_bytes`.
"""
from libc.stdint cimport uint8_t

from warmlane._core.http_head cimport RequestHead, ResponseHead


# `request_bytes` into a buffer: bytes written, 0 when `room` might not do.
cdef Py_ssize_t edit_request(
    RequestHead head, bytes host_line, bytes extra, long long length, uint8_t *out, size_t room
) except -1

# `response_bytes` for a client of HTTP/1.1 and without debug lines; `head.raw` itself if unchanged.
cdef bytes edit_response(ResponseHead head, bint close)
