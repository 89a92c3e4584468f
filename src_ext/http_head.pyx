"""One strict pass over an HTTP/1 head. See http_head.pxd for the contract, http_text.h for lines.

Cost: 0.3 us for a request of ten headers, most of it the objects it makes; 0.1 us for an answer
of four.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcmp

from warmlane._core.http_text cimport (
    WL_AUTHORITY, WL_H_API_KEY, WL_H_AUTHORIZATION, WL_H_CONNECTION, WL_H_CONTENT_ENCODING,
    WL_H_CONTENT_LENGTH, WL_H_CONTENT_TYPE, WL_H_EXPECT, WL_H_HOST, WL_H_INTERNAL, WL_H_LAST_HOP,
    WL_H_OTHER, WL_H_PRIORITY, WL_H_SESSION, WL_H_TRAILER, WL_H_TRANSFER_ENCODING, WL_H_UPGRADE,
    WL_TOKEN, wl_alike, wl_class, wl_crlf, wl_header_id, wl_http_init, wl_is, wl_length, wl_line,
    wl_read_line, wl_tab_behind, wl_text_end,
)

from enum import IntEnum


class Framing(IntEnum):
    """How the end of a message's body is found."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3  # until the peer closes: answers of HTTP/1.0 servers only


class HeadError(ValueError):
    """A head that is refused. args: status to answer with, message."""


cdef object F_NONE = Framing.NONE
cdef object F_LENGTH = Framing.LENGTH
cdef object F_CHUNKED = Framing.CHUNKED
cdef object F_CLOSE = Framing.CLOSE

# The methods that llhttp knows for HTTP/1.1, so that none is new to the engine behind us.
cdef frozenset METHODS = frozenset(
    b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH "
    b"SEARCH UNLOCK BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY "
    b"SUBSCRIBE UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK SOURCE QUERY".split()
)
# Names that a Connection header may not remove: they frame, address or authenticate the message.
cdef frozenset UNNAMED = frozenset((
    b"host", b"content-length", b"transfer-encoding", b"authorization",
    b"close", b"keep-alive", b"",
))
cdef frozenset NOTHING = frozenset()
# What `headers` of a request offers, besides the internal ones.
READ_HEADERS = frozenset((
    b"authorization", b"content-encoding", b"content-type", b"x-api-key", b"x-session-id",
    b"x-vllm-priority",
))


@cython.final
@cython.no_gc  # bytes and numbers: it cannot be part of a ring
@cython.freelist(64)
cdef class RequestHead:
    """One request head as it arrived, with what the proxy needs to know about it."""

    def __init__(self):
        raise TypeError("a RequestHead is made by read_request")


@cython.final
@cython.no_gc  # bytes and numbers: it cannot be part of a ring
@cython.freelist(64)
cdef class ResponseHead:
    """One response head as it arrived, with what the proxy needs to know about it."""

    def __init__(self):
        raise TypeError("a ResponseHead is made by read_response")


cdef inline bytes cut(const uint8_t *start, const uint8_t *stop):
    return PyBytes_FromStringAndSize(<const char *> start, stop - start)


cdef int refuse(int status, str message) except -1:
    raise HeadError(status, message)


cdef frozenset names_in(frozenset named, bytes value, bint *close, bint *keep):
    # The tokens of one more Connection header, added to those of the ones before it.
    cdef list found = []
    for token in value.lower().split(b","):
        token = token.strip(b" \t")
        if token == b"close":
            close[0] = True
        elif token == b"keep-alive":
            keep[0] = True
        if token not in UNNAMED:
            found.append(token)
    return named.union(found) if found else named


# Requests

cdef bytes origin_form(bytes method, const uint8_t *p, const uint8_t *end):
    # The path and query of an absolute URL at p; its authority is not looked at, Host decides.
    if end - p == 1 and p[0] == c"*" and method == b"OPTIONS":
        return b"*"
    if end - p >= 7 and wl_alike(p, "http://", 7):
        p += 7
    elif end - p >= 8 and wl_alike(p, "https://", 8):
        p += 8
    else:
        refuse(400, "the request target must be a path or an http URL")
    while p < end and wl_class[p[0]] & WL_AUTHORITY:
        if p[0] == c"@" and p + 1 < end and p[1] == c"@":
            break
        p += 1
    if p == end:
        return b"/"
    if p[0] == c"/":
        return cut(p, end)
    if p[0] != c"?":
        refuse(400, "malformed request target")
    return b"/" + cut(p, end)


cdef const uint8_t *read_request_line(
    RequestHead head, const uint8_t *p, const uint8_t *end
) except NULL:
    # Returns what is behind the line.
    cdef const uint8_t *start = p
    cdef const uint8_t *stop
    cdef const uint8_t *after
    while p < end and (wl_class[p[0]] & WL_TOKEN):
        p += 1
    if p == start or p == end or p[0] != c" ":
        refuse(400, "malformed request line")
    if p - start == 4 and memcmp(start, "POST", 4) == 0:
        head.method = b"POST"
    elif p - start == 3 and memcmp(start, "GET", 3) == 0:
        head.method = b"GET"
    else:
        head.method = cut(start, p)
    p += 1
    start = p
    while p < end and c"!" <= p[0] <= c"~":
        p += 1
    stop = p
    # A blank, HTTP/1.1, CR LF; the shortest head has another CR LF behind it.
    if stop == start or end - stop < 11 or stop[0] != c" ":
        refuse(400, "malformed request line")
    after = wl_crlf(stop + 9, end)
    if after == NULL:
        refuse(400, "malformed request line")
    head.http10 = memcmp(stop + 1, "HTTP/1.0", 8) == 0
    if not head.http10 and memcmp(stop + 1, "HTTP/1.1", 8) != 0:
        if memcmp(stop + 1, "HTTP/2.0", 8) == 0 or memcmp(stop + 1, "HTTP/0.9", 8) == 0:
            refuse(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        refuse(400, "malformed protocol version")
    if head.method not in METHODS:
        refuse(400, "unknown method")
    if head.method == b"CONNECT":
        refuse(501, "CONNECT is not supported")
    head.new_line = head.http10 or start[0] != c"/"
    head.target = cut(start, stop) if start[0] == c"/" else origin_form(head.method, start, stop)
    start = <const uint8_t *> PyBytes_AS_STRING(head.target)
    stop = <const uint8_t *> memchr(start, c"?", PyBytes_GET_SIZE(head.target))
    if stop == NULL:
        stop = start + PyBytes_GET_SIZE(head.target)
    head.path = PyUnicode_DecodeASCII(<const char *> start, stop - start, NULL)
    return after


cdef int read_coding(RequestHead head, wl_line *line) except -1:
    if head.http10 or wl_tab_behind(line) or not wl_is(line.value, line.value_end, "chunked", 7):
        refuse(400, "the only transfer coding understood is chunked")
    head.chunked = True
    return 0


cdef int read_connection(RequestHead head, wl_line *line) except -1:
    cdef bint keep = False
    if wl_is(line.value, line.value_end, "keep-alive", 10):
        return 0
    if wl_is(line.value, line.value_end, "close", 5):
        head.close = True
        return 0
    head.named = names_in(head.named, cut(line.value, line.value_end), &head.close, &keep)
    return 0


cdef int keep_header(RequestHead head, int id, wl_line *line) except -1:
    cdef bytes name
    if id == WL_H_CONTENT_TYPE:
        name = b"content-type"
    elif id == WL_H_AUTHORIZATION:
        name = b"authorization"
    elif id == WL_H_CONTENT_ENCODING:
        name = b"content-encoding"
    elif id == WL_H_API_KEY:
        name = b"x-api-key"
    elif id == WL_H_SESSION:
        name = b"x-session-id"
    elif id == WL_H_PRIORITY:
        name = b"x-vllm-priority"
    else:
        name = cut(line.name, line.name_end).lower()
    head.headers[name] = cut(line.value, line.value_end)
    return 0


cdef int read_request_header(RequestHead head, int id, wl_line *line, int *bodies) except -1:
    # bodies: headers seen so far that say how long the body is.
    if id == WL_H_HOST:
        if head.hosted:
            refuse(400, "exactly one Host header is required")
        head.hosted = True
    elif id == WL_H_CONTENT_LENGTH:
        bodies[0] += 1
        head.length = wl_length(line.value, line.value_end)
        if head.length < 0 or wl_tab_behind(line):
            refuse(400, "invalid Content-Length")
    elif id == WL_H_TRANSFER_ENCODING:
        bodies[0] += 1
        read_coding(head, line)
    elif id == WL_H_CONNECTION:
        read_connection(head, line)
    elif id == WL_H_UPGRADE:
        refuse(501, "Upgrade is not supported")
    elif id == WL_H_EXPECT:
        head.expect = not head.http10 and wl_is(line.value, line.value_end, "100-continue", 12)
    elif id >= WL_H_INTERNAL:
        keep_header(head, id, line)
    return 0


cdef RequestHead request_of(bytes raw):
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(raw)
    cdef const uint8_t *end = p + PyBytes_GET_SIZE(raw)
    cdef RequestHead head = RequestHead.__new__(RequestHead)
    cdef wl_line line
    cdef int id
    cdef int bodies = 0
    head.raw = raw
    head.headers = {}
    head.named = NOTHING
    p = read_request_line(head, p, end)
    head.close = head.http10
    while wl_crlf(p, end) == NULL:
        if not wl_read_line(p, end, &line):
            refuse(400, "malformed header lines")
        id = wl_header_id(line.name, line.name_end)
        if id != WL_H_OTHER:
            read_request_header(head, id, &line, &bodies)
        p = line.next
    if p + 2 != end:
        refuse(400, "bytes behind the head")
    if bodies > 1:
        refuse(400, "ambiguous body length")
    if not head.hosted and not head.http10:
        refuse(400, "exactly one Host header is required")
    return head


def read_request(bytes raw not None):
    """The head in `raw`, which ends with the empty line. Raises HeadError: 400, 501 or 505."""
    return request_of(raw)


# Answers

cdef const uint8_t *read_status_line(
    ResponseHead head, const uint8_t *p, const uint8_t *end
) except NULL:
    cdef const uint8_t *after
    if end - p < 14:
        refuse(502, "malformed answer: no status line")
    head.http10 = memcmp(p, "HTTP/1.0", 8) == 0
    if not head.http10 and memcmp(p, "HTTP/1.1", 8) != 0:
        refuse(502, "malformed answer: not HTTP/1")
    if p[8] != c" " or not c"1" <= p[9] <= c"9":
        refuse(502, "malformed answer: no status code")
    if not (c"0" <= p[10] <= c"9" and c"0" <= p[11] <= c"9"):
        refuse(502, "malformed answer: no status code")
    head.status = (p[9] - 48) * 100 + (p[10] - 48) * 10 + (p[11] - 48)
    p += 12
    if p[0] == c" ":  # a reason may be missing, and the blank before it
        p = wl_text_end(p, end)
    after = wl_crlf(p, end)
    if after == NULL:
        refuse(502, "malformed answer: status line")
    if head.status == 101:
        refuse(502, "the replica switched protocols")
    return after


cdef int read_response_header(ResponseHead head, int id, wl_line *line, bint *keep) except -1:
    cdef Py_ssize_t size = line.value_end - line.value
    if id == WL_H_CONTENT_LENGTH or id == WL_H_TRANSFER_ENCODING:
        if head.framing is not F_CLOSE:
            refuse(502, "ambiguous answer length")
        if id == WL_H_CONTENT_LENGTH:
            head.framing = F_LENGTH
            head.length = wl_length(line.value, line.value_end)
            if head.length < 0 or wl_tab_behind(line):
                refuse(502, "invalid Content-Length")
        else:
            head.framing = F_CHUNKED
            head.chunk_lines = True
            if wl_tab_behind(line) or not wl_is(line.value, line.value_end, "chunked", 7):
                refuse(502, "unknown transfer coding")
    elif id == WL_H_CONTENT_TYPE:
        head.sse = size >= 17 and wl_alike(line.value, "text/event-stream", 17)
        head.json = size >= 16 and wl_alike(line.value, "application/json", 16)
    elif id == WL_H_CONTENT_ENCODING:
        head.encoded = not wl_is(line.value, line.value_end, "identity", 8)
    elif id == WL_H_TRAILER:
        head.chunk_lines = True
    elif id <= WL_H_LAST_HOP:
        head.hops = True
        if id != WL_H_CONNECTION:
            return 0
        if wl_is(line.value, line.value_end, "keep-alive", 10):
            keep[0] = True
        elif wl_is(line.value, line.value_end, "close", 5):
            head.close = True
        else:
            head.named = names_in(head.named, cut(line.value, line.value_end), &head.close, keep)
    return 0


cdef ResponseHead response_of(bytes raw, bint to_head):
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(raw)
    cdef const uint8_t *end = p + PyBytes_GET_SIZE(raw)
    cdef ResponseHead head = ResponseHead.__new__(ResponseHead)
    cdef wl_line line
    cdef int id
    cdef bint keep = False
    head.raw = raw
    head.named = NOTHING
    head.framing = F_CLOSE
    p = read_status_line(head, p, end)
    while wl_crlf(p, end) == NULL:
        if not wl_read_line(p, end, &line):
            refuse(502, "malformed answer head")
        id = wl_header_id(line.name, line.name_end)
        if id != WL_H_OTHER:
            read_response_header(head, id, &line, &keep)
        p = line.next
    if p + 2 != end:
        refuse(502, "bytes behind the answer head")
    if head.http10 and not keep:
        head.close = True
    if to_head or head.status < 200 or head.status == 204 or head.status == 304:
        head.framing = F_NONE
    elif head.framing is F_LENGTH and head.length == 0:
        head.framing = F_NONE
    elif head.framing is F_CLOSE:
        head.close = True
    return head


def read_response(bytes raw not None, bint to_head):
    """The head in `raw`, which ends with the empty line. Raises HeadError 502.

    to_head: it answers a HEAD request, no body follows whatever it says.
    """
    return response_of(raw, to_head)


wl_http_init()
