"""One gRPC stream: bytes of DATA frames to whole messages, replies to bytes of DATA frames.

`Shared` holds the limits and counters of one server, all of its connections. A `Stream` belongs to
one HTTP/2 stream and is never used again for another: an event that comes late finds it over. The
connection drives it; nothing here knows libnghttp2.

Every byte that a stream keeps is charged to it and to `Shared`: a message as it is put together,
what its handler holds (until it first answers, or by the handler's own `held_bytes`), and answers
that are not sent yet.
"""
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint8_t


# gRPC status codes that the transport itself gives (grpc.io, "Status codes").
cdef enum:
    WL_OK = 0
    WL_RESOURCE_EXHAUSTED = 8
    WL_UNIMPLEMENTED = 12
    WL_INTERNAL = 13
    WL_UNAVAILABLE = 14

# What `Stream.feed` found, 0 when nothing is wrong.
cdef enum:
    WL_FED = 0
    WL_COMPRESSED
    WL_BAD_FLAG
    WL_TOO_LONG
    WL_STREAM_FULL
    WL_SERVER_FULL


cdef class Shared:
    cdef readonly Py_ssize_t message_bytes, stream_bytes, held_limit_bytes, header_bytes
    cdef readonly Py_ssize_t streams_per_connection, streams, connections
    cdef readonly Py_ssize_t stream_window_bytes, connection_window_bytes
    cdef readonly double keepalive_s, keepalive_timeout_s, stall_s
    cdef readonly double resets_burst, resets_per_s, control_burst, control_per_s
    cdef public Py_ssize_t held_bytes, peak_held_bytes, open_streams, open_connections
    cdef public long long total_streams, total_connections, messages_in, messages_out
    cdef public long long bytes_in, bytes_out, resets, refused_streams, refused_connections
    cdef public long long floods, stalls, errors, unknown_methods, pings

    cdef dict faces          # type of a handler -> which optional parts of the face it has

    cdef bint charge(self, Py_ssize_t size) noexcept


cdef class Stream:
    # Read and written by the connection.
    cdef readonly int32_t id
    cdef object factory          # of the handler, once the head is judged
    cdef object handler          # None before it is asked for and after the end
    cdef object owner            # the connection, until the end
    cdef bytes path              # :path
    cdef list messages           # whole messages that the handler has not seen
    cdef Py_ssize_t header_bytes
    cdef bint posted, typed, encoded, bad_headers
    cdef bint counts, pauses     # the handler has `held_bytes`, has `paused`
    cdef bint shut               # the handler wants no more for now
    cdef bint ended              # the client has ended its side
    cdef bint told               # and the handler knows
    cdef bint queued             # in the connection's list of streams to look at
    cdef bint started            # our head is submitted
    cdef bint answered           # a message of the handler went out
    cdef bint idle               # libnghttp2 waits for more of our data
    cdef bint over               # no more of either side counts
    cdef bint finished           # status and text stand; trailers follow the queue
    cdef bint relieved           # in the connection's list of streams to take from again
    cdef int status
    cdef bytes text              # percent-encoded grpc-message
    cdef Py_ssize_t withheld     # received bytes whose window we keep back
    cdef Py_ssize_t out_bytes    # of our answers, prefixes included, not yet in a frame
    cdef double moved_s          # when `out_bytes` last changed

    cdef Shared shared
    cdef Py_ssize_t held         # all that is charged
    cdef Py_ssize_t given        # of it: with the handler
    cdef uint8_t prefix[5]
    cdef int prefix_size
    cdef PyObject *part          # the message being put together, or NULL
    cdef Py_ssize_t need, have, room
    cdef list out                # answers; `out_at` is the first, `out_offset` bytes of it are sent
    cdef Py_ssize_t out_at, out_offset

    cdef int begin(self, Shared shared, object owner, int32_t number) except -1
    cdef int feed(self, const uint8_t *data, Py_ssize_t size) except -1
    cdef int keep(self, Py_ssize_t size) noexcept
    cdef void let_go(self, Py_ssize_t size) noexcept
    cdef int grow(self, Py_ssize_t least) except -1
    cdef int complete(self) except -1
    cdef void handed_over(self, bytes message) noexcept
    cdef void recount(self, Py_ssize_t held_bytes) noexcept
    cdef int open(self) except -1
    cdef list next_messages(self, Py_ssize_t most)
    cdef int put(self, list messages) except -1
    cdef void copy_out(self, uint8_t *to, Py_ssize_t size) noexcept
    cdef void drop(self) noexcept
    cdef bint torn(self) noexcept


cdef bytes percent_encoded(str text)
