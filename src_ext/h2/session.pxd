"""The gRPC server's side of one HTTP/2 connection: heads, handlers, answers, limits, drain.

A turn is one read: bytes are sorted into streams, then the handlers are called, then everything
that became ready leaves in one write. A stream that was reset in the same read is never given to
its handler. `Connection` adds the event loop.
"""
from libc.stdint cimport int32_t, uint8_t, uint32_t

from warmlane._core.h2.frames cimport Frames, wl_bucket
from warmlane._core.h2.nghttp2 cimport nghttp2_frame
from warmlane._core.h2.streams cimport Stream


cdef class Session(Frames):
    cdef dict methods        # path -> factory
    cdef object on_error     # hears an exception of a handler
    cdef list ready          # streams to look at
    cdef list gone           # streams whose handler must hear that they are over
    cdef bint busy           # in turn(): what becomes ready is seen before it ends
    cdef bint noticed        # GOAWAY is announced
    cdef bint leaving        # GOAWAY is final
    cdef wl_bucket resets    # streams that ended before we answered
    cdef Py_ssize_t withheld  # received bytes whose connection window stays shut

    cdef int turn_asked(self) except -1  # for the class above: call turn() soon

    cdef int turn(self) except -1
    cdef int serve(self, Stream stream) except -1
    cdef int bury(self) except -1
    cdef int answer(self, Stream stream) except -1
    cdef int finish(self, Stream stream, int status, str text) except -1
    cdef int refuse(self, Stream stream, int status, str text) except -1
    cdef int reply(self, Stream stream, bytes http_status) except -1
    cdef int judge(self, Stream stream) except -1
    cdef int look(self, Stream stream) except -1
    cdef int broken(self, Stream stream, int fault) except -1
    cdef int give_window(self) except -1
    cdef int announce_goaway(self) except -1
    cdef int final_goaway(self) except -1
    cdef int end_all(self) except -1
