"""Counts that every request adds to. See upkeep.pxd for the contract.

Cost: 5 to 30 ns a call.
"""
cdef double MEAN_STEP = 0.02    # exponential mean over about the last 50 decisions


cdef class Placements:
    """What was sent to each replica of a pool, and until when its loads are believed."""

    cdef int make_fresh(self, double now) except -1:
        if now >= self._fresh_until:
            self._expire_loads(now)
        return 0

    cdef int place(self, Py_ssize_t slot, double uncached_tokens) except -1:
        if not 0 <= slot < len(self.placed_tokens):
            raise IndexError("no such slot")
        self.placed_tokens.data.as_doubles[slot] += uncached_tokens
        self.mean_uncached_tokens += MEAN_STEP * (uncached_tokens - self.mean_uncached_tokens)
        return 0

    def freshen(self, double now):
        """Make the load columns believable at `now`; one comparison when nothing went stale."""
        self.make_fresh(now)

    def placed(self, Py_ssize_t slot, double uncached_tokens):
        """Work was sent there: it fills the cache, and shows how large a typical request is."""
        self.place(slot, uncached_tokens)

    def _expire_loads(self, double now):
        raise NotImplementedError


cdef class Tally:
    """Requests of a pool, for what is a share of them."""

    def request(self):
        """Count one request (not its retries)."""
        self._requests += 1


cdef class Record:
    """What is known of one slot's answers."""

    def __cinit__(self):
        self.until = -1.0


cdef class Records:
    """The answers of a pool's replicas, good and bad, by slot."""

    def __cinit__(self, *args, **kwargs):
        self._records = {}

    cdef Record record_of(self, slot):
        found = self._records.get(slot)
        if found is None:
            found = self._records[slot] = Record.__new__(Record)
        return <Record>found

    cdef int note_ok(self, slot) except -1:
        cdef Record record = self.record_of(slot)
        record.ok += 1
        record.row = 0
        if record.trial:
            record.trial -= 1
        return 0

    def ok(self, slot):
        """A replica answered."""
        self.note_ok(slot)

    def _record(self, slot):
        return self.record_of(slot)
