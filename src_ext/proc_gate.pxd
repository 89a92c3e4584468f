"""What all streams of one endpoint picker share, and how they tell of a replica.

`Gate` is the base of `envoy.picker.Picker`: limits and rules that streams ask, what they hold
together, and spare picks with the memory of their keys.
"""
from libc.stdint cimport int64_t

from warmlane._core.desk cimport Pick
from warmlane._core.expected cimport Expected
from warmlane._core.leads cimport Leads

cdef enum:
    SPARES = 256            # picks that are kept with the memory of their keys


cdef class Link:
    # One replica as a stream tells of it, for as long as its Lead.
    cdef readonly bytes endpoint        # "ip:port"
    cdef readonly str address           # the same
    cdef readonly bytes mutation        # further fields of a HeaderMutation
    cdef readonly Expected expected


cdef class Gate(Leads):
    # What all streams of one picker share: base of `envoy.picker.Picker`. Sizes in bytes.
    cdef public bint plain              # courses are allowed
    cdef public int level, body_mode
    cdef public object unknown_kind     # of a stream that has not told its path
    cdef public tuple wanted            # names of headers that are kept besides, or None
    cdef public Py_ssize_t body_bytes, buffered_most
    cdef public Py_ssize_t buffered     # of bodies held by all streams
    cdef public Py_ssize_t open         # streams
    cdef public dict ends               # (how,) -> streams that ended so
    cdef readonly int64_t plain_requests    # decided by a course
    cdef readonly int64_t handed_on     # of these, those that the Python half went on with
    cdef Pick *spare[256]
    cdef int spares

    cdef Pick *take_pick(self) except NULL
    cdef void give_pick(self, Pick *pick) noexcept
