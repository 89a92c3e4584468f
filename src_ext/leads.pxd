"""What the compiled courses of both faces share: which way a model name leads, and decided picks.

`Leads` is the base of what all connections of the proxy (`hop.Shared`) and all streams of an
endpoint picker (`proc_course.Gate`) have in common. `Picked` is a decided request as the Python
half sees it when it goes on with one.
"""
from libc.stdint cimport uint8_t, uint64_t

from warmlane._core.desk cimport Lead, Pick
from warmlane._core.hashing cimport KeyArray
from warmlane._core.plain cimport Plain


cdef class Leads:
    cdef public dict paths              # path -> kind, as in scan.pyx
    cdef public object shadow           # what compares decisions, None: nothing does
    cdef dict leads                     # model name as written -> Lead
    cdef uint8_t *work                  # scratch for scans
    cdef size_t work_room
    cdef uint64_t seed

    cdef Lead lead_of(self, const Plain *plain)
    cdef uint8_t *work_for(self, size_t size) except NULL
    cdef uint64_t chance(self) noexcept


cdef class Picked:
    cdef readonly Lead lead
    cdef readonly long long ticket
    cdef readonly tuple choices         # slots, best first
    cdef readonly tuple hit_tokens      # predicted, per choice
    cdef readonly long long prompt_tokens   # estimated length of the prompt
    cdef readonly double raw_hit        # of the first choice, before trust
    cdef readonly size_t prompt_size    # bytes
    cdef readonly uint64_t root         # parent of its first block
    cdef readonly KeyArray keys         # of its full blocks
    cdef readonly bint sent             # to the first choice


cdef Picked picked_of(Lead lead, const Pick *pick, bint sent)
