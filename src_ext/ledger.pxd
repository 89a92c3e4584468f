"""In-flight work per replica, and the tickets that give it back.

Four columns by slot, each a flat buffer that scorers read in place; a change is one atomic add, so
that the same code works on memory shared by several router processes. Doubles hold whole tokens
only: sums and differences stay exact below 2**53.

Tickets live in a table of their own, private to the process: 80 bytes each, a free list and a ring
in order of opening. A ticket number is generation << 20 | index, never 0, below 2**48; a number
whose generation has passed is stale.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t


cdef struct Ticket:
    double opened           # the caller's clock, seconds
    double prefill          # tokens charged and not yet given back
    double decode           # tokens charged, output included
    double output           # of these, output: expected, or heard of when more
    uint32_t generation
    int32_t slot            # -1: free
    uint32_t newer          # ring of open tickets in order of opening; on the free list: next
    uint32_t older
    int32_t decoding        # 1 after the first token
    int32_t beside          # requests that decoded there at its first token, itself too
    # Prefill tokens at the slot when it was opened, its own too; after its first token KV tokens of
    # those who decode there; -1: moved.
    double line
    double began            # when the first token came
    double prefilled        # of its slot, then


# What went on at a replica from a request's first token to now.
cdef struct Decoding:
    double seconds
    double running          # requests that decoded there, itself too: mean of both ends
    double context          # their KV tokens: mean of both ends
    double prefilled        # tokens that were prefilled there meanwhile


cdef class Ledger:
    cdef Py_buffer views[4]
    cdef int views_held
    cdef tuple columns
    cdef int32_t* request_count
    cdef int32_t* running_count
    cdef double* prefill_sum
    cdef double* decode_sum
    cdef double* prefilled      # by slot, tokens since the beginning, of this process alone
    cdef Ticket* tickets    # index 0 is the ring's sentinel
    cdef uint32_t table_size
    cdef uint32_t used
    cdef uint32_t free_head
    cdef readonly Py_ssize_t slots
    cdef readonly Py_ssize_t open_tickets
    cdef readonly int64_t stale_events
    cdef readonly int64_t full_events
    cdef readonly int64_t expired_tickets

    cdef Ticket* live(self, int64_t number) noexcept nogil
    cdef int slot_now(self, int64_t ticket) noexcept nogil  # -1: not open; counts nothing
    cdef double context_at(self, Py_ssize_t slot) noexcept nogil  # KV tokens of who decodes there
    cdef void release(self, Ticket* ticket) noexcept nogil

    # The face without its checks: the slot exists, counts are finite.
    cdef int64_t enter(
        self, Py_ssize_t slot, double prefill, double decode, double now, double output
    ) noexcept                                                      # 0: full
    # Tokens in line at opening, and seconds since; -1: past the first token, moved or closed.
    cdef double line_of(self, int64_t number, double now, double* seconds) noexcept
    # Of a ticket past its first token; 0: it is before that, moved or closed.
    cdef bint decoding_of(self, int64_t number, double now, Decoding* found) noexcept
    cdef double begin_decoding(self, int64_t number, double now) noexcept   # -1: late or repeated
    cdef void advance(self, int64_t number, double output) noexcept
    cdef int leave(self, int64_t number, double now, double* seconds) noexcept  # slot, -1: late
