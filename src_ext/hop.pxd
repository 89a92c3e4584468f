"""The two sides of a request's way through the proxy: a client's connection, one to a replica.

`Front` and `Back` are the compiled halves of `downstream.Client` and `upstream.Upstream`. They read
for a `Course`, which takes a plain request from its head to the last byte of its answer. What a
course does not take is handed, as the bytes that arrived, to the Python half, which can do
everything: a request or a read of an answer is handled here whole or not at all.

A request is read into a buffer of its own, from a pool, and stays there until it is answered, so
that sending does not copy it.
"""
from libc.stdint cimport int64_t, uint8_t

from warmlane._core.http_head cimport RequestHead
from warmlane._core.leads cimport Leads
from warmlane._core.poll cimport Conn, Peer

cdef enum:
    ROOM = 98304            # bytes of a pooled request buffer: a head and 64 KB
    AHEAD = 256             # of these, before what is read: room for a head that grows
    SLABS = 4               # of pooled buffers: 84 of them; what is beyond comes and goes
    MOST_BODY = 1048576     # larger bodies go the other way


cdef class Shared(Leads):
    # What all connections of one proxy share: base of `state.State`. Seconds and bytes.
    cdef public double now              # coarse clock, one tick behind at most
    cdef public Py_ssize_t inflight
    cdef public Py_ssize_t buffered_bytes
    cdef public bint draining
    cdef public bint plain              # courses are allowed
    cdef public Py_ssize_t most_inflight, most_buffered, most_head, most_body, most_text, most_held
    cdef public double head_s, keepalive_s, first_byte_s, idle_s, total_s, hold_s
    cdef public object guard            # headers -> may it pass; None: all may
    cdef readonly int64_t plain_requests    # begun by a course
    cdef readonly int64_t handed_on         # of these, those that an exchange went on with
    cdef void *slab[4]
    cdef uint8_t *slab_at[4]            # where their buffers begin
    cdef int slabs
    cdef uint8_t *spare[84]             # buffers of the slabs that nobody uses
    cdef int spares

    cdef uint8_t *add_slab(self) except NULL
    cdef uint8_t *take_room(self) except NULL
    cdef void give_room(self, uint8_t *room) noexcept


cdef class Course:
    # One plain request under way. A front has one and uses it again and again.
    cdef public double deadline

    # 1: it is under way (or was handed on); 0: not plain, nothing happened.
    cdef int begin(
        self, Front front, RequestHead head, int kind, const uint8_t *body, size_t size
    ) except -1
    cdef int answer(self, Back back, const uint8_t *data, size_t size) except -1


cdef class Front(Peer):
    cdef Shared shared
    cdef Course course
    cdef public object exchange         # whatever answers the present request, None between two
    cdef public object transport
    cdef public object _body            # a body that the Python half reads
    cdef public bytes _tail             # bytes that it has not taken
    cdef public double deadline
    cdef public bint closing, stalled, debug
    cdef public bint _pumping, _waiting, _paused, _ended
    # The request that is being read, or that a course is busy with.
    cdef uint8_t *buffer
    cdef size_t buffer_room
    cdef size_t got                     # bytes in it
    cdef size_t start                   # of the body
    cdef size_t need                    # end of the body
    cdef Py_ssize_t counted             # body bytes in shared.buffered_bytes
    cdef RequestHead head               # None: not read yet
    cdef int kind
    cdef bint own                       # the last room was the buffer

    cdef bint open_request(self) except -1
    cdef int wait(self) except -1
    cdef int start_course(self) except -1
    cdef int hand_over(self) except -1
    cdef const uint8_t *join(self, const uint8_t *head, size_t size) noexcept
    cdef int done_plain(self, bint close) except -1
    cdef void uncount(self) noexcept
    cdef void release(self) noexcept


cdef class Kept:
    # Base of `links.Link`: the connections to one replica that nobody uses, and what a course needs
    # to know of it.
    cdef public list idle               # of Back, the one used last at the end
    cdef public bint closed
    cdef public double _keepalive_s
    cdef public Py_ssize_t _max_idle
    cdef public bytes host_line         # of a head that goes there
    cdef public bytes extra             # another line, b"": none

    cdef Back pop(self, double now)
    cdef int push(self, Back back, double now) except -1


cdef class Back(Peer):
    cdef public Course course           # that waits for an answer here, None: the Python half
    cdef public double idle_since
    cdef public bint usable, _keep, _silent, _used, _sent_all
