"""A plain request from its head to the last byte of its answer, without a Python object of its own.

    begin:   scan -> lead -> choose (keys, match, mix, reservation) -> kept connection -> send
    answer:  a whole JSON answer in one read, or an event stream whose reads end between chunks and
             between events: held until the first token, then passed on as the bytes that arrived

Anything else leaves this path for `router.proxy.exchange.Exchange`, made from what is known here
(`Shared.adopt`): no kept connection, an answer that is none, a broken or oddly cut stream, a
time-out, a client that left. What has been held is read again there, from its first byte; a stream
that the client has a part of goes on with the same chunk reader and the same answer reader.
"""
from libc.stdint cimport uint8_t

from warmlane._core.chunks cimport ChunkReader
from warmlane._core.desk cimport Lead, Pick
from warmlane._core.hop cimport Back, Course, Front, Kept, Shared
from warmlane._core.http_head cimport RequestHead, ResponseHead
from warmlane._core.sse cimport AnswerScan


cdef class Straight(Course):
    cdef Shared shared
    cdef readonly Front front
    cdef readonly Back back             # None: not sent
    cdef readonly Lead lead
    cdef readonly Kept link
    cdef readonly RequestHead head
    cdef readonly int kind
    cdef const uint8_t *body            # in the front's buffer
    cdef size_t size
    cdef Pick pick
    cdef readonly double decision_s
    cdef readonly double total          # the latest end
    # the answer
    cdef readonly ResponseHead response     # None: nothing of it has been read here
    cdef readonly ChunkReader chunks
    cdef readonly AnswerScan scan
    cdef readonly bytes held            # all of the answer so far; the client has none of it
    cdef readonly bint begun            # the client has a part of the answer
    cdef readonly bint close            # the client's connection ends with it
    cdef readonly long reads

    cdef int send(self, double now) except -1
    cdef object hand_on(self)
    cdef int hand_on_with(self, const uint8_t *data, size_t size) except -1
    cdef int take_answer(self, const uint8_t *data, size_t size) except -1
    cdef int take_whole(self, const uint8_t *data, size_t size, size_t start) except -1
    cdef int take_events(self, const uint8_t *data, size_t size, size_t start) except -1
    cdef int relay(self, const uint8_t *data, size_t size, size_t start, bint last) except -1
    cdef int let_go(self, double now) except -1
    cdef int finish(self, double now) except -1
    cdef void clear(self)
