"""How far predicted prefix hits come true, per replica slot. router/trust.py has the formula.

One record a slot: the decayed sums of answered and predicted hit tokens, and what was sent and
answered since the last scrape. A call per request reads and writes one record and one factor.
"""


cdef struct Belief:
    double actual, predicted        # hit tokens, decayed up to `updated`
    double updated                  # seconds
    double sent_prompt, sent_predicted, answered_prompt     # since the last scrape, tokens
    double queries, hits            # counters of the last scrape
    int samples                     # up to min_samples
    bint scraped                    # `queries` and `hits` are set


cdef class Trust:
    cdef Belief* beliefs
    cdef double* factor
    cdef Py_buffer view             # of `factors`, held: nobody can resize it
    cdef readonly object factors    # array('d'), the column for scorers
    cdef Py_ssize_t slots
    cdef double half_life, prior
    cdef int min_samples
    cdef bint held

    cdef Belief* of(self, Py_ssize_t slot) except NULL
    cdef void learn(self, Py_ssize_t slot, double predicted, double actual, double now) noexcept
    cdef void decay(self, Py_ssize_t slot, double now) noexcept
    cdef void set_factor(self, Py_ssize_t slot) noexcept
