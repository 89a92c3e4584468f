"""Predicted moments of one replica's tickets. See expected.pxd for the contract.

Cost: 0.1 us to keep a ticket, 0.3 us for its two events besides what the lane does.
"""
cimport cython
from cpython cimport array
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from warmlane._core.desk cimport Desk, Lead, Pick
from warmlane._core.ledger cimport Ledger


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef enum:
    FIRST_ROOM = 64

# As ledger.TICKET_BITS; above these is the lane's number.
cdef int64_t TICKET_MASK = (1 << 48) - 1


cdef int push(Ring *ring, const Due *due) except -1:
    if ring.count == ring.room:
        grow(ring)
    ring.due[(ring.first + ring.count) & (ring.room - 1)] = due[0]
    ring.count += 1
    if due.lead != NULL:
        Py_INCREF(<object>due.lead)
    return 0


cdef int grow(Ring *ring) except -1:
    cdef size_t room = 2 * ring.room if ring.room else FIRST_ROOM
    cdef size_t ahead = ring.room - ring.first
    cdef Due *grown = <Due *>wl_malloc(room * sizeof(Due))
    if grown == NULL:
        raise MemoryError("no memory for predicted moments")
    ahead = min(ahead, ring.count)
    if ring.count:
        memcpy(grown, ring.due + ring.first, ahead * sizeof(Due))
        memcpy(grown + ahead, ring.due, (ring.count - ahead) * sizeof(Due))
    wl_free(ring.due)
    ring.due, ring.room, ring.first = grown, room, 0
    return 0


cdef void drop_closed(Ring *ring, Ledger ledger) noexcept:
    # Forget tickets that ended otherwise, wherever they stand.
    cdef size_t at, kept = 0, mask = ring.room - 1
    cdef Due *due
    for at in range(ring.count):
        due = &ring.due[(ring.first + at) & mask]
        if ledger.slot_now(due.ticket & TICKET_MASK) < 0:
            Py_XDECREF(due.lead)
        else:
            ring.due[(ring.first + kept) & mask] = due[0]
            kept += 1
    ring.count = kept


cdef Due pop(Ring *ring) noexcept:
    # The reference to its lead is the caller's now.
    cdef Due due = ring.due[ring.first]
    ring.first = (ring.first + 1) & (ring.room - 1)
    ring.count -= 1
    return due


cdef void free_ring(Ring *ring) noexcept:
    cdef Due due
    while ring.count:
        due = pop(ring)
        Py_XDECREF(due.lead)
    wl_free(ring.due)
    ring.due = NULL
    ring.room = 0


cdef void pick_of(const Due *due, int slot, Pick *pick) noexcept:
    # What the events of a desk read of a pick without an answer.
    pick.ticket = due.ticket
    pick.slots[0] = slot
    pick.hits[0] = due.hit
    pick.prompt_tokens = due.prompt_tokens
    pick.raw_hit = due.raw_hit
    pick.chat = due.chat
    pick.keys = NULL
    pick.key_room = pick.key_count = 0


@cython.final
cdef class Expected:
    """One replica's tickets whose first token, and perhaps end, nobody will see."""

    def __init__(
        self, Desk lane not None, int slot, array.array learned not None, metrics, ok, *,
        double prefill_tokens_per_s, double output_tokens_per_s, Py_ssize_t most,
    ):
        if learned.ob_descr.typecode != c"d":
            raise TypeError("learned must be an array of 'd'")
        self.lane = lane
        self.slot = slot
        self.pace = 1.0
        self.learned = learned
        self.metrics = metrics
        self.ok = ok
        self.prefill_rate = prefill_tokens_per_s
        self.output_rate = output_tokens_per_s
        self.most = most

    def __dealloc__(self):
        free_ring(&self.firsts)
        free_ring(&self.ends)

    def __len__(self):
        """Tickets whose end is predicted."""
        return self.ends.count

    @property
    def room(self):
        """Tickets that fit both queues before they grow, for tests."""
        return self.firsts.room + self.ends.room

    @property
    def idle(self):
        """Is nothing waited for?"""
        return self.firsts.count == 0 and self.ends.count == 0

    def watch(self, int64_t ticket, double now, bint end):
        """A request of the Python half that was just sent: predict its first token; with `end` its
        end too."""
        cdef Due due
        due.ticket = ticket
        due.lead = NULL
        due.prompt_tokens = due.raw_hit = 0
        due.hit = due.chat = 0
        self.add(&due, now, end)

    cdef int foresee(self, Lead lead, const Pick *pick, double now, bint end) except -1:
        # `watch` for a request of a compiled course.
        cdef Due due
        due.ticket = pick.ticket
        due.lead = <PyObject *>lead
        due.prompt_tokens = pick.prompt_tokens
        due.raw_hit = pick.raw_hit
        due.hit = pick.hits[0]
        due.chat = pick.chat
        return self.add(&due, now, end)

    cdef int add(self, Due *due, double now, bint end) except -1:
        # `pace` is corrected by ends that are predicted. Where ends are seen nothing corrects it,
        # and the pace that the engine's own counters tell takes the place of the guess.
        cdef double learned = 0.0 if end else self.learned.data.as_doubles[self.slot]
        cdef double rate = learned if learned > 0 else self.prefill_rate / self.pace
        # The column holds this request's own uncached tokens too: it was booked at the decision.
        cdef double first = now + self.lane.ledger.prefill_sum[self.slot] / rate
        due.opened = now
        if end:
            # The end first: without memory for the moment of its first token it still ends.
            due.at = first + self.pace * self.lane.output_tokens / self.output_rate
            push(&self.ends, due)
        due.at = first
        if self.firsts.count == self.firsts.room:
            drop_closed(&self.firsts, self.lane.ledger)
            # Grow only where half of it lives: the room follows the open tickets.
            if 2 * self.firsts.count >= self.firsts.room:
                grow(&self.firsts)
        push(&self.firsts, due)
        if end and self.lane.ledger.open_tickets > self.most:
            self.metrics.limit_reached("predicted_tickets")
            self.close_oldest(now)
        return 0

    def tick(self, double now):
        """Tell of every moment that has come."""
        cdef Due due
        self.skip_closed()
        while self.firsts.count and self.firsts.due[self.firsts.first].at <= now:
            due = pop(&self.firsts)
            try:
                self.begin(&due, now)
            finally:
                Py_XDECREF(due.lead)
            self.skip_closed()
        while self.ends.count and self.ends.due[self.ends.first].at <= now:
            self.close_oldest(now)

    cdef int begin(self, Due *due, double now) except -1:
        cdef int slot = self.lane.ledger.slot_now(due.ticket & TICKET_MASK)
        cdef Pick pick
        if slot < 0:
            return 0
        if due.lead != NULL and slot == self.slot:
            pick_of(due, self.slot, &pick)
            return self.lane.first_token(<Lead>due.lead, &pick, now)
        # Also one that moved: the Python half has it now.
        (<object>self.lane).first_token(due.ticket, now)
        return 0

    def close_next(self, double now):
        """Close the ticket that is due next, whether it is time or not."""
        if self.ends.count:
            self.close_oldest(now)

    cdef int close_oldest(self, double now) except -1:
        cdef Due due = pop(&self.ends)
        try:
            return self.finish(&due, now)
        finally:
            Py_XDECREF(due.lead)
            self.skip_closed()

    cdef int skip_closed(self) noexcept:
        # First tokens whose tickets ended before, in front of the others.
        cdef Ledger ledger = self.lane.ledger
        cdef Due due
        while self.firsts.count and ledger.slot_now(
            self.firsts.due[self.firsts.first].ticket & TICKET_MASK
        ) < 0:
            due = pop(&self.firsts)
            Py_XDECREF(due.lead)
        return 0

    cdef int finish(self, Due *due, double now) except -1:
        cdef Pick pick
        if self.lane.ledger.slot_now(due.ticket & TICKET_MASK) < 0:
            return 0
        if due.lead != NULL:
            pick_of(due, self.slot, &pick)
            return self.lane.settle(<Lead>due.lead, &pick, NULL, now)
        (<object>self.lane).close(due.ticket, self.ok, now)
        return 0

    def opened_until(self, double moment):
        """How many tickets whose end is predicted were opened then or before."""
        cdef size_t low = 0, middle, high = self.ends.count
        while low < high:
            middle = (low + high) >> 1
            if self.ends.due[(self.ends.first + middle) & (self.ends.room - 1)].opened <= moment:
                low = middle + 1
            else:
                high = middle
        return low


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
