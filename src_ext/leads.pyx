"""Model names to leads, and picks for the Python half. See leads.pxd for the contract."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from warmlane._core.desk cimport Lead, Pick, hits_of, slots_of
from warmlane._core.hashing cimport new_keys
from warmlane._core.plain cimport Plain


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef enum:
    MOST_LEADS = 256        # model names come from clients
    MOST_NAME = 256


cdef class Leads:
    """Where model names lead, a scratch for scans and a source of chance; see leads.pxd."""

    def __cinit__(self, *args, **kwargs):
        self.paths = {}
        self.leads = {}

    def __dealloc__(self):
        wl_free(self.work)

    def sow(self, uint64_t seed):
        """Begin the random numbers anew."""
        self.seed = seed

    def forget_leads(self):
        """A pool has changed: names lead elsewhere."""
        self.leads.clear()

    def lead(self, name):
        """The Lead of a model name, None: it needs the Python half."""
        raise NotImplementedError

    cdef Lead lead_of(self, const Plain *plain):
        cdef bytes name
        if plain.model_size > MOST_NAME:
            return None
        name = PyBytes_FromStringAndSize(<const char *>plain.model, plain.model_size)
        found = self.leads.get(name, False)
        if found is False:
            found = self.lead(name)
            if len(self.leads) >= MOST_LEADS:
                self.leads.clear()
            self.leads[name] = found
        return found

    cdef uint8_t *work_for(self, size_t size) except NULL:
        # For one scan; grows to what the largest body needs.
        cdef uint8_t *grown
        if size > self.work_room:
            grown = <uint8_t *>wl_malloc(size)
            if grown == NULL:
                raise MemoryError
            wl_free(self.work)
            self.work, self.work_room = grown, size
        return self.work

    cdef uint64_t chance(self) noexcept:
        # SplitMix64 (Steele, Lea, Flood 2014).
        cdef uint64_t word
        self.seed += <uint64_t>0x9E3779B97F4A7C15
        word = self.seed
        word = (word ^ (word >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
        word = (word ^ (word >> 27)) * <uint64_t>0x94D049BB133111EB
        return word ^ (word >> 31)


cdef class Picked:
    """A decided request, for the Python half that goes on with it; see leads.pxd."""


cdef Picked picked_of(Lead lead, const Pick *pick, bint sent):
    cdef Picked made = Picked.__new__(Picked)
    made.lead = lead
    made.ticket = pick.ticket
    made.choices = slots_of(pick)
    made.hit_tokens = hits_of(pick)
    made.prompt_tokens = <long long>pick.prompt_tokens
    made.raw_hit = pick.raw_hit
    made.prompt_size = pick.prompt_size
    made.root = pick.root
    made.keys = new_keys(pick.key_count)
    if pick.key_count:
        memcpy(made.keys.keys, pick.keys, pick.key_count * 8)
    made.sent = sent
    return made


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
