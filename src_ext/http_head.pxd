"""HTTP/1 heads: one strict pass that reads and judges, one that writes the head for the other side.

Nothing is rebuilt: a head travels as the bytes that arrived, and only lines that must not cross a
hop (or must change, such as Host) are cut out or replaced. A head that two readers could understand
differently is refused, as RFC 9112 and RFC 9110 ask. The rules for lines are in http_text.h.

`read_request` and `read_response` want a whole head, up to and with the empty line. They raise
HeadError(status, message); for an answer the status is 502.
"""


cdef class RequestHead:
    cdef readonly bytes raw          # request line to the empty line, both included
    cdef readonly bytes method
    cdef readonly bytes target       # origin form
    cdef readonly str path           # without the query
    cdef readonly dict headers       # those of READ_HEADERS and internal ones; the last of each
    cdef readonly bint http10
    cdef readonly bint close         # the client wants the connection closed after the answer
    cdef readonly bint chunked
    cdef readonly bint expect        # Expect: 100-continue
    cdef readonly long long length   # Content-Length, 0 if absent
    cdef frozenset named             # header names that Connection says are for this hop only
    cdef bint hosted                 # there is a Host line
    cdef bint new_line               # the request line has to be written anew


cdef class ResponseHead:
    cdef readonly bytes raw
    cdef readonly int status
    cdef readonly object framing     # a Framing
    cdef readonly long long length
    cdef readonly bint close         # the replica will close this connection
    cdef readonly bint sse
    cdef readonly bint json
    cdef readonly bint encoded       # a content coding hides the text from us
    cdef frozenset named
    cdef bint http10
    cdef bint hops                   # some line has to be cut
    cdef bint chunk_lines            # Transfer-Encoding or Trailer, cut only when de-chunked


# What the two functions do, for other compiled modules; `raw` is not None.
cdef RequestHead request_of(bytes raw)
cdef ResponseHead response_of(bytes raw, bint to_head)
