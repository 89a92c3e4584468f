"""Arithmetic over per-replica columns: one value per slot, in place, nothing allocated.

A column is an `array.array` (read through its struct) or any other flat buffer (read through the
buffer protocol, for memory shared between processes). The length of a call is that of its mask or,
without one, of its output; other columns may be longer, as the ledger's are.
"""


cdef struct Column:
    char* data
    Py_ssize_t size
    char code               # 'd', 'i', 'B' or 'Q'


cdef struct Scope:
    Py_buffer views[10]     # held until the call ends
    int held
