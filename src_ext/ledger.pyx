"""In-flight work per replica (see ledger.pxd for the picture, ledger.pyi for the face)."""

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS,
    PyBUF_FORMAT,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from libc.math cimport isfinite, rint
from libc.stdint cimport int32_t, int64_t, uint32_t

from array import array


cdef extern from "alloc.h":
    void* wl_calloc(size_t count, size_t size_bytes) nogil
    void wl_free(void* block) nogil
    void wl_alloc_fail_after(long n)

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline void wl_add_int(int32_t *to, int32_t amount) {
        __atomic_fetch_add(to, amount, __ATOMIC_RELAXED);
    }
    /* There is no atomic add for doubles: compare and exchange its bits until nobody was faster. */
    static inline void wl_add_double(double *to, double amount) {
        uint64_t seen = __atomic_load_n((uint64_t *)to, __ATOMIC_RELAXED), wanted;
        double value;
        do {
            memcpy(&value, &seen, sizeof value);
            value += amount;
            memcpy(&wanted, &value, sizeof wanted);
        } while (!__atomic_compare_exchange_n((uint64_t *)to, &seen, wanted, 1,
                                              __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    }
    """
    void wl_add_int(int32_t* to, int32_t amount) noexcept nogil
    void wl_add_double(double* to, double amount) noexcept nogil

cdef enum:
    INDEX_BITS = 20
    INDEX_MASK = (1 << 20) - 1
    GENERATION_MASK = (1 << 28) - 1
    SLOT_LIMIT = 1 << 16

TICKET_BITS = 48
MAX_TICKETS = (1 << INDEX_BITS) - 1
cdef double TOKEN_LIMIT = 2.0 ** 40


class LedgerFull(BufferError):
    """No free ticket: max_tickets are open. The caller sheds or goes on without a reservation."""


cdef inline double whole(double tokens) noexcept nogil:
    """Whole tokens, 0 for a negative count; sums of whole doubles are exact."""
    return rint(tokens) if tokens > 0 else 0.0


cdef int check_tokens(double tokens) except -1:
    if not isfinite(tokens) or tokens > TOKEN_LIMIT:
        raise ValueError(f"a token count must be finite and at most 2**40, not {tokens}")
    return 0


cdef class Ledger:
    def __cinit__(self, Py_ssize_t slots=4096, Py_ssize_t max_tickets=65536, columns=None):
        cdef Py_ssize_t at
        cdef int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE
        if not 1 <= slots <= SLOT_LIMIT:
            raise ValueError(f"slots must be 1..{SLOT_LIMIT}, not {slots}")
        if not 1 <= max_tickets <= MAX_TICKETS:
            raise ValueError(f"max_tickets must be 1..{MAX_TICKETS}, not {max_tickets}")
        if columns is None:
            columns = (
                array("i", bytes(4 * slots)),
                array("d", bytes(8 * slots)),
                array("d", bytes(8 * slots)),
                array("i", bytes(4 * slots)),
            )
        self.columns = tuple(columns)
        if len(self.columns) != 4:
            raise ValueError("columns must be requests, prefill_tokens, decode_tokens, running")
        for at in range(4):
            # Held until the end: nobody can resize a column under the pointers below.
            PyObject_GetBuffer(self.columns[at], &self.views[at], flags)
            self.views_held += 1
            code = self.views[at].format[0]
            if code != (c"i" if at in (0, 3) else c"d") or self.views[at].ndim != 1:
                raise TypeError("columns must be flat buffers of 'i', 'd', 'd', 'i' items")
            if self.views[at].len < slots * self.views[at].itemsize:
                raise ValueError("a column is shorter than the number of slots")
        self.request_count = <int32_t*>self.views[0].buf
        self.prefill_sum = <double*>self.views[1].buf
        self.decode_sum = <double*>self.views[2].buf
        self.running_count = <int32_t*>self.views[3].buf
        self.slots = slots
        self.table_size = <uint32_t>max_tickets + 1
        self.used = 1
        self.tickets = <Ticket*>wl_calloc(self.table_size, sizeof(Ticket))
        self.prefilled = <double*>wl_calloc(slots, sizeof(double))
        if self.tickets == NULL or self.prefilled == NULL:
            raise MemoryError

    def __dealloc__(self):
        cdef int at
        for at in range(self.views_held):
            PyBuffer_Release(&self.views[at])
        wl_free(self.tickets)
        wl_free(self.prefilled)

    # ---- core: trusts its callers -----------------------------------------------------

    cdef inline Ticket* live(self, int64_t number) noexcept nogil:
        """The open ticket of this number, or NULL and one stale event counted."""
        cdef uint32_t index = <uint32_t>(number & INDEX_MASK)
        cdef Ticket* ticket
        if 0 < number and 0 < index < self.used:
            ticket = &self.tickets[index]
            if ticket.slot >= 0 and ticket.generation == <uint32_t>(number >> INDEX_BITS):
                return ticket
        self.stale_events += 1
        return NULL

    cdef int slot_now(self, int64_t ticket) noexcept nogil:
        cdef uint32_t index = <uint32_t>(ticket & INDEX_MASK)
        if ticket <= 0 or not 0 < index < self.used:
            return -1
        if self.tickets[index].generation != <uint32_t>(ticket >> INDEX_BITS):
            return -1
        return self.tickets[index].slot

    cdef void release(self, Ticket* ticket) noexcept nogil:
        """Gives everything back and frees the ticket; its number is stale from here on."""
        cdef uint32_t index = <uint32_t>(ticket - self.tickets)
        wl_add_int(&self.request_count[ticket.slot], -1)
        if ticket.prefill != 0:
            wl_add_double(&self.prefill_sum[ticket.slot], -ticket.prefill)
        wl_add_double(&self.decode_sum[ticket.slot], -ticket.decode)
        if ticket.decoding:
            wl_add_int(&self.running_count[ticket.slot], -1)
        self.tickets[ticket.newer].older = ticket.older
        self.tickets[ticket.older].newer = ticket.newer
        ticket.slot = -1
        # Last in, first out keeps the table in cache; 2**28 generations tell late events apart.
        ticket.newer = self.free_head
        self.free_head = index
        self.open_tickets -= 1

    cdef int64_t enter(
        self, Py_ssize_t slot, double prefill, double decode, double now, double output
    ) noexcept:
        cdef uint32_t index
        cdef Ticket* ticket
        if self.free_head != 0:
            index = self.free_head
            self.free_head = self.tickets[index].newer
        elif self.used < self.table_size:
            index = self.used
            self.used += 1
        else:
            self.full_events += 1
            return 0
        ticket = &self.tickets[index]
        ticket.generation = (ticket.generation + 1) & GENERATION_MASK
        if ticket.generation == 0:
            ticket.generation = 1
        ticket.opened = now
        ticket.prefill = whole(prefill)
        ticket.output = whole(output)
        ticket.decode = whole(decode) + ticket.output
        ticket.slot = <int32_t>slot
        ticket.decoding = 0
        ticket.newer = 0
        ticket.older = self.tickets[0].older
        self.tickets[ticket.older].newer = index
        self.tickets[0].older = index
        wl_add_int(&self.request_count[slot], 1)
        wl_add_double(&self.prefill_sum[slot], ticket.prefill)
        ticket.line = self.prefill_sum[slot]
        wl_add_double(&self.decode_sum[slot], ticket.decode)
        self.open_tickets += 1
        return <int64_t>ticket.generation << INDEX_BITS | index

    cdef double line_of(self, int64_t number, double now, double* seconds) noexcept:
        cdef Ticket* entry
        seconds[0] = -1.0
        if self.slot_now(number) < 0:
            return -1.0
        entry = &self.tickets[number & INDEX_MASK]
        if entry.decoding or entry.line < 0.0:
            return -1.0
        seconds[0] = max(0.0, now - entry.opened)
        return entry.line

    cdef double begin_decoding(self, int64_t number, double now) noexcept:
        cdef Ticket* entry = self.live(number)
        if entry == NULL:
            return -1.0
        if entry.decoding:
            self.stale_events += 1
            return -1.0
        entry.decoding = 1
        wl_add_int(&self.running_count[entry.slot], 1)
        wl_add_double(&self.prefill_sum[entry.slot], -entry.prefill)
        self.prefilled[entry.slot] += entry.prefill
        entry.prefill = 0
        entry.began = now
        entry.prefilled = self.prefilled[entry.slot]
        entry.beside = self.running_count[entry.slot]
        if entry.line >= 0.0:
            entry.line = self.context_at(entry.slot)
        return max(0.0, now - entry.opened)

    cdef double context_at(self, Py_ssize_t slot) noexcept nogil:
        # Of all that is charged there, the share of those who decode.
        cdef int32_t requests = self.request_count[slot]
        return self.decode_sum[slot] * self.running_count[slot] / requests if requests > 0 else 0.0

    cdef bint decoding_of(self, int64_t number, double now, Decoding* found) noexcept:
        cdef Ticket* entry
        if self.slot_now(number) < 0:
            return False
        entry = &self.tickets[number & INDEX_MASK]
        if not entry.decoding or entry.line < 0.0:
            return False
        found.seconds = max(0.0, now - entry.began)
        found.running = (entry.beside + self.running_count[entry.slot]) / 2.0
        found.context = (entry.line + self.context_at(entry.slot)) / 2.0
        found.prefilled = self.prefilled[entry.slot] - entry.prefilled
        return True

    cdef void advance(self, int64_t number, double output) noexcept:
        cdef Ticket* entry = self.live(number)
        cdef double more
        if entry == NULL:
            return
        more = whole(output) - entry.output
        if more > 0:
            entry.output += more
            entry.decode += more
            wl_add_double(&self.decode_sum[entry.slot], more)

    cdef int leave(self, int64_t number, double now, double* seconds) noexcept:
        cdef Ticket* entry = self.live(number)
        cdef int slot
        seconds[0] = -1.0
        if entry == NULL:
            return -1
        slot = entry.slot
        seconds[0] = max(0.0, now - entry.opened)
        self.release(entry)
        return slot

    # ---- face: checks -------------------------------------------------------------------

    def open(
        self, Py_ssize_t slot, double prefill_tokens, double decode_tokens, double now,
        double expected_output=0.0,
    ):
        cdef int64_t number
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        check_tokens(prefill_tokens)
        check_tokens(decode_tokens)
        check_tokens(expected_output)
        number = self.enter(slot, prefill_tokens, decode_tokens, now, expected_output)
        if number == 0:
            raise LedgerFull(f"{self.open_tickets} tickets are open")
        return number

    def moved(self, int64_t ticket, Py_ssize_t slot, double prefill_tokens):
        cdef Ticket* entry
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        check_tokens(prefill_tokens)
        entry = self.live(ticket)
        if entry == NULL:
            return False
        wl_add_int(&self.request_count[entry.slot], -1)
        wl_add_int(&self.request_count[slot], 1)
        wl_add_double(&self.decode_sum[entry.slot], -entry.decode)
        wl_add_double(&self.decode_sum[slot], entry.decode)
        if entry.decoding:
            # Told late, after the first token: the prefill is done wherever it was done.
            wl_add_int(&self.running_count[entry.slot], -1)
            wl_add_int(&self.running_count[slot], 1)
        else:
            wl_add_double(&self.prefill_sum[entry.slot], -entry.prefill)
            entry.prefill = whole(prefill_tokens)
            wl_add_double(&self.prefill_sum[slot], entry.prefill)
        entry.slot = <int32_t>slot
        entry.line = -1.0
        return True

    def waited_for(self, int64_t ticket, double now):
        cdef double seconds
        cdef double tokens = self.line_of(ticket, now, &seconds)
        return (tokens, seconds)

    def decoded(self, int64_t ticket, double now):
        cdef Decoding found
        if not self.decoding_of(ticket, now, &found):
            return None
        return (found.seconds, found.running, found.context, found.prefilled)

    def first_token(self, int64_t ticket, double now):
        return self.begin_decoding(ticket, now)

    def progress(self, int64_t ticket, double output_tokens):
        check_tokens(output_tokens)
        if self.live(ticket) == NULL:
            return False
        self.advance(ticket, output_tokens)
        return True

    def close(self, int64_t ticket, double now):
        cdef double seconds
        cdef int slot = self.leave(ticket, now, &seconds)
        return (slot, seconds)

    def expire(self, double older_than, Py_ssize_t limit=1024):
        cdef list closed = []
        cdef uint32_t index = self.tickets[0].newer
        cdef Ticket* entry
        while index != 0 and limit > 0:
            entry = &self.tickets[index]
            if entry.opened >= older_than:
                break
            closed.append(<int64_t>entry.generation << INDEX_BITS | index)
            index = entry.newer
            self.release(entry)
            self.expired_tickets += 1
            limit -= 1
        return closed

    def slot_of(self, int64_t ticket):
        return self.slot_now(ticket)

    @property
    def requests(self):
        return self.columns[0]

    @property
    def prefill_tokens(self):
        return self.columns[1]

    @property
    def decode_tokens(self):
        return self.columns[2]

    @property
    def running(self):
        return self.columns[3]

    @property
    def max_tickets(self):
        return self.table_size - 1

    @property
    def bytes_used(self):
        return self.table_size * sizeof(Ticket) + self.slots * 32

    def check_invariants(self):
        """Adds up the open tickets; only valid while no other process uses the columns."""
        totals = [(0, 0.0, 0.0, 0)] * self.slots
        cdef Py_ssize_t count = 0, free = 0
        cdef uint32_t index = self.tickets[0].newer
        cdef Ticket* entry
        while index != 0:
            entry = &self.tickets[index]
            assert entry.slot >= 0 and self.tickets[entry.newer].older == index, "bad ring"
            assert not (entry.decoding and entry.prefill), "prefill after the first token"
            old = totals[entry.slot]
            totals[entry.slot] = (
                old[0] + 1, old[1] + entry.prefill, old[2] + entry.decode, old[3] + entry.decoding
            )
            count += 1
            index = entry.newer
        assert count == self.open_tickets, "open tickets miscounted"
        index = self.free_head
        while index != 0:
            assert self.tickets[index].slot == -1, "an open ticket is on the free list"
            free += 1
            index = self.tickets[index].newer
        assert free + count + 1 == self.used, "a ticket is lost"
        assert totals == list(zip(*(column[:self.slots] for column in self.columns), strict=True))


def _fail_alloc_after(n):
    wl_alloc_fail_after(n)
