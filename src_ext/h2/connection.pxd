"""`Session` as an asyncio protocol: reads, writes, pauses, keepalive, drain.

Used by the event loop and by `envoy/transport_native.py`; no other compiled module calls it.
"""
from warmlane._core.h2.session cimport Session


cdef class Connection(Session):
    cdef object loop, transport, write, on_made, on_lost
    cdef bint scheduled      # a turn is asked of the event loop
    cdef bint counted        # in shared.open_connections
    cdef bint read_paused    # there is enough to do
    cdef double read_s       # when bytes came last
    cdef double opened_s
    cdef double pinged_s     # when the unanswered PING left; 0: none

    cdef int guarded_turn(self) except -1
    cdef int take_in(self, bytes data) except -1
    cdef int starved(self) except -1
    cdef int check_times(self, double now_s) except -1
    cdef int say_goodbye(self, bint final) except -1
    cdef int leave(self, bint flushed) except -1
