"""What every request leaves behind in objects of the Python half: a few additions each.

These are bases of Python classes (`Pool`, `RetryBudget`, `Ejector`). They hold the fields that both
halves write and the one or two methods that every request calls; what happens now and then
(ejection, windows, stale loads) is in the Python class. The compiled courses call the cdef
methods; a call from here into Python costs 0.2 us.
"""
from cpython cimport array


cdef class Placements:
    # Base of `router.pool.Pool`.
    cdef public array.array placed_tokens       # 'd', by slot
    cdef public double mean_uncached_tokens     # of the last requests
    cdef public double _fresh_until             # some load column is stale from then on

    cdef int make_fresh(self, double now) except -1
    cdef int place(self, Py_ssize_t slot, double uncached_tokens) except -1


cdef class Tally:
    # Base of `router.attempts.RetryBudget`.
    cdef public long long _requests             # of this bucket


cdef class Record:
    # One slot of `router.health.Ejector`.
    cdef public long long ok, failed            # of this half of the sliding window
    cdef public long long ok_before, failed_before
    cdef public long row                        # faults in a row
    cdef public long times                      # ejections lately: the exponent of the back-off
    cdef public long trial                      # good answers still needed to be well again
    cdef public double until                    # end of the ejection; -1: not out


cdef class Records:
    # Base of `router.health.Ejector`.
    cdef public dict _records                   # slot -> Record

    cdef Record record_of(self, slot)
    cdef int note_ok(self, slot) except -1
