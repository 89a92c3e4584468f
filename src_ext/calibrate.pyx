"""Yardstick loops for the benchmarks: how fast is this machine right now?

Owns one loop: loads that depend on each other over a ring of random order, which is what a walk
through a large index costs. It never touches router data. Cost: one memory access a step.
"""

from libc.stdint cimport uint32_t, uint64_t

from cpython.array cimport array, clone


cdef uint32_t chase(const uint32_t *ring, uint32_t start, Py_ssize_t steps) noexcept nogil:
    cdef uint32_t at = start
    cdef Py_ssize_t _step
    for _step in range(steps):
        at = ring[at]
    return at


def random_ring(Py_ssize_t length, uint64_t seed=1) -> array:
    """A permutation of 0..length-1 that is one cycle (Sattolo's shuffle), as array('I').

    Raises ValueError unless 1 <= length < 2**31.
    """
    if not 1 <= length < 2**31:
        raise ValueError(f"length must be 1..2**31-1, got {length}")
    cdef array ring = clone(array("I"), length, False)
    cdef uint32_t *at = ring.data.as_uints
    cdef uint64_t state = seed * 2 + 1
    cdef uint32_t swap
    cdef Py_ssize_t i, j
    for i in range(length):
        at[i] = <uint32_t>i
    i = length - 1
    while i > 0:
        state = state * <uint64_t>6364136223846793005 + <uint64_t>1442695040888963407
        j = <Py_ssize_t>((state >> 33) % <uint64_t>i)
        swap = at[i]
        at[i] = at[j]
        at[j] = swap
        i -= 1
    return ring


def follow(array ring not None, Py_ssize_t steps, uint32_t start=0) -> int:
    """Follow the ring for `steps` dependent loads and return where it ends.

    Raises ValueError for a ring that is not array('I') with entries below its length.
    """
    cdef Py_ssize_t length = len(ring), i
    if ring.typecode != "I" or length == 0 or <Py_ssize_t>start >= length:
        raise ValueError("ring must be a non-empty array('I') that holds start")
    for i in range(length):
        if <Py_ssize_t>ring.data.as_uints[i] >= length:
            raise ValueError(f"ring[{i}] leaves the ring")
    return chase(ring.data.as_uints, start, steps)
