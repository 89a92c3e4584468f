"""What the streams of an endpoint picker share. See proc_gate.pxd for the contract."""
cimport cython
from libc.string cimport memset

from warmlane._core.desk cimport Pick, free_pick


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)


@cython.final
cdef class Link:
    """One replica as a stream tells of it."""

    def __init__(self, bytes endpoint not None, bytes mutation not None, Expected expected):
        self.endpoint = endpoint
        self.address = endpoint.decode()
        self.mutation = mutation
        self.expected = expected


cdef class Gate(Leads):
    """What all streams of one endpoint picker share; see proc_gate.pxd."""

    def _failed(self, side, Py_ssize_t slot):
        """A client got 5xx for a request that went there."""
        raise NotImplementedError

    def __dealloc__(self):
        while self.spares:
            self.spares -= 1
            free_pick(self.spare[self.spares])
            wl_free(self.spare[self.spares])

    cdef Pick *take_pick(self) except NULL:
        cdef Pick *pick
        if self.spares:
            self.spares -= 1
            return self.spare[self.spares]
        pick = <Pick *>wl_malloc(sizeof(Pick))
        if pick == NULL:
            raise MemoryError
        memset(pick, 0, sizeof(Pick))
        return pick

    cdef void give_pick(self, Pick *pick) noexcept:
        if self.spares < SPARES:
            self.spare[self.spares] = pick
            self.spares += 1
        else:
            free_pick(pick)
            wl_free(pick)


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
