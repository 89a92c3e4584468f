"""Yardstick loops for the benchmarks. Not used by the router."""

from libc.stdint cimport uint32_t


cdef uint32_t chase(const uint32_t *ring, uint32_t start, Py_ssize_t steps) noexcept nogil
