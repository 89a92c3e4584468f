"""Plain TCP connections without a transport of the event loop: one epoll descriptor of our own.

The loop watches that descriptor alone. Each socket is registered with it once, edge-triggered, for
both directions; a wake-up handles a batch of at most EVENTS sockets, one read each, and then gives
the loop its turn. A connection is driven as asyncio drives a protocol (the same calls in the same
order, connection_lost exactly once and never from inside another call), but compiled peers take
their bytes as a pointer into the reader's buffer.

    data -> Peer.room() says where to -> recv -> Peer.filled(count)
    write -> send at once; what the kernel does not take waits in `out`, bounded by the peer's pause
"""
from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    SCRATCH = 262144        # bytes of the buffer that is read into when a peer has no own


cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data


cdef class Poller:
    cdef int epfd
    cdef object loop
    cdef set conns              # all that are registered: epoll holds bare pointers
    cdef list again             # to be read again without an event
    cdef list ended             # (connection, exception): connection_lost is still to be called
    cdef bint turn_due
    cdef uint8_t *scratch
    cdef epoll_event *events

    cdef void plan_turn(self)
    cdef int serve(self, Conn conn, uint32_t events) except -1


cdef class Peer:
    # What a connection drives. A Python class that has asyncio's Protocol methods is one as it is.
    cdef Conn conn              # None: it has none, or a transport of the event loop
    cdef uint8_t *room(self, size_t *size) except NULL
    cdef int filled(self, size_t size) except -1


cdef class Conn:
    cdef Poller poller
    cdef object sock            # owns the descriptor
    cdef Peer peer
    cdef int fd
    cdef bint reading           # the peer wants bytes
    cdef bint missed            # an event came while it did not
    cdef bint hung_up           # the other side has ended or failed: read on until that is seen
    cdef bint ending            # close when `out` is empty
    cdef bint half              # end our side when `out` is empty
    cdef bint over              # connection_lost is called or planned
    cdef bint stalled           # the peer was told to pause writing
    cdef list out               # bytes that the kernel has not taken
    cdef size_t out_at          # taken of the first one
    cdef readonly size_t out_size
    cdef size_t high
    cdef size_t low

    cdef int look(self) except -1
    cdef int flush(self) except -1
    cdef int drained(self) except -1
    cdef int end(self, object error) except -1
    cdef int fail(self, int number) except -1
    cdef int keep(self, const uint8_t *data, size_t size) except -1
    # Write a then b (each may be empty) in one call of the kernel.
    cdef int send(self, const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) except -1
