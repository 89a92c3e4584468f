"""Predicted first tokens and ends of one replica's tickets, drained in one go per heartbeat.

`router/predicted.py` owns the rules (pace, scrapes); here are the two queues of one replica, each a
ring in the order of decisions, and the formula of both moments. A ticket of a compiled course is
kept with the little that its events need, so that nothing else of the request stays; one of the
Python half is told to its lane. Within one replica predicted moments grow with the order of
decisions, up to small changes of its pace: no heap. Memory follows the open tickets, however far
away predicted moments are.
"""
from cpython cimport array
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t

from warmlane._core.desk cimport Desk, Lead, Pick


cdef struct Due:
    double at               # seconds, the owner's clock
    double opened
    int64_t ticket          # with the lane's number where `lead` is NULL
    double prompt_tokens
    double raw_hit
    int64_t hit
    bint chat
    PyObject *lead          # held; NULL: a ticket of the Python half


cdef struct Ring:
    Due *due
    size_t room             # a power of two, 0 before the first
    size_t first
    size_t count


cdef class Expected:
    cdef readonly Desk lane
    cdef readonly int32_t slot
    cdef public double pace             # factor on predicted times; below 1: quicker than guessed
    cdef double prefill_rate, output_rate   # tokens a second, first guesses
    cdef Py_ssize_t most                # open tickets of the lane
    cdef array.array learned            # 'd', tokens a second by slot, 0: not known
    cdef object metrics, ok
    cdef Ring firsts, ends

    cdef int foresee(self, Lead lead, const Pick *pick, double now, bint end) except -1
    cdef int add(self, Due *due, double now, bint end) except -1
    cdef int begin(self, Due *due, double now) except -1
    cdef int finish(self, Due *due, double now) except -1
    cdef int close_oldest(self, double now) except -1
    cdef int skip_closed(self) noexcept
