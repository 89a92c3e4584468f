"""Bytes of one HTTP/2 connection to streams and back, over libnghttp2's memory API.

libnghttp2's callbacks only sort what came into streams. Nothing here calls a handler, so nothing
re-enters libnghttp2. Answers are copied once, into the bytes object that is written.
"""
from libc.stdint cimport int32_t, uint8_t, uint32_t

from warmlane._core.h2.nghttp2 cimport (
    nghttp2_data_source, nghttp2_frame, nghttp2_frame_hd, nghttp2_session,
)
from warmlane._core.h2.streams cimport Shared, Stream


cdef extern from "h2/bucket.h" nogil:
    ctypedef struct wl_bucket:
        double tokens
    double wl_now_s()
    void wl_bucket_init(wl_bucket *bucket, double burst, double per_second)
    void wl_bucket_give(wl_bucket *bucket, double count)
    int wl_bucket_take(wl_bucket *bucket)


cdef enum:
    WL_STALLED_BYTES = 256 * 1024  # answers in a stream from which on its window stays shut


cdef class Frames:
    cdef nghttp2_session *session
    cdef readonly Shared shared
    cdef dict streams        # id -> Stream: those that libnghttp2 has open
    cdef bytes path          # :path of the latest head
    cdef list relieved       # streams whose window may open again
    cdef object failure      # an exception raised in a callback
    cdef bint lost           # no byte goes out any more
    cdef bint write_paused   # the transport holds enough
    cdef bint spoilt         # libnghttp2 failed inside: nothing of it is called any more
    cdef bint flooded        # the peer made us work too much
    cdef bint greeted        # its first frame has come
    cdef bint asks_after_goaway  # a PING follows GOAWAY, so that its answer proves it was seen
    cdef bint full           # `out` must be written before libnghttp2 goes on
    cdef wl_bucket control   # frames that cost work and bring nothing
    cdef double now_s        # of the last read or tick
    cdef Py_ssize_t expected_bytes  # about what the next write will hold
    cdef bytes out
    cdef Py_ssize_t out_size, out_room

    # For the classes above: bytes leave; a frame came whole; a piece of DATA; a stream is gone.
    cdef int written(self, bytes data) except -1
    cdef int frame_came(self, const nghttp2_frame *frame) except -1
    cdef int take_data(self, int32_t id, const uint8_t *data, size_t size) except -1
    cdef int stream_closed(self, int32_t id, uint32_t error_code) except -1

    cdef void frame_begins(self, const nghttp2_frame_hd *head) noexcept
    cdef int greet(self) except -1
    cdef int check(self, int code) except -1
    cdef int judged(self, int code) noexcept
    cdef int consume(self, int32_t id, size_t size) except -1
    cdef bint feed(self, bytes data) except -1
    cdef int pump(self) except -1
    cdef int room_for(self, Py_ssize_t size) except -1
    cdef int resize(self, Py_ssize_t room) except -1
    cdef int flush(self) except -1


cdef ssize_t wl_read_answers(
    nghttp2_session *session, int32_t id, uint8_t *buffer, size_t room, uint32_t *flags,
    nghttp2_data_source *source, void *user_data) noexcept
