"""The price of sending a request to each replica, in tokens of prefill. See price.pyi.

own(u, c)  = u + q u (c + u / 2)            work of u new tokens behind c cached ones
price(r)   = F_r V_r f                      prefill in line there, f the work of a token of it
           + own (F_r + theta)              mine, delays later
           + F_r i' n'_r                    delays of those that run there
           + x max(n_r - e n, 0) o (k (L + o / 2) + s)   what my o tokens of decoding cost them
                                            where more of them are than elsewhere, n the mean of n_r
           + y o T_r                        what they take longer than where decoding is quickest
           + g own(c_max - c, c)            a copy of what another replica holds pushes others out
           + min(w (P_r - P_min), limit)    lately placed tokens: caches are filled evenly
           + d_r max(V_r + u - R_r, 0)      tokens that find no room in the KV cache, until it has
           + Z_r + z own                    another zone than the router's, own of a typical request
n'_r       = min(n_r, m') min(own, U') + max(n - m', 0) own: up to m' a busy replica is dearer, for
             long prompts no more than for those of U'; what the mean batch is beyond makes new
             tokens dear everywhere alike
m'         = m + v; U' = U (1 + v); i' = min(i (1 + v / 24), 0.7)
v          = h max(min(w - 4, 4 (T - T0)), 0): overload, by w requests in line per replica, the
             mean (V over uncached tokens of a request), and T seconds to the first token of late
theta      = p lambda mean(V + d max(V - R, 0)) / (1 - rho)   arrivals until the backlog clears
F_r        how much slower than the middle replica this one prefills, learned (pace.h); what is
           saved for others is in tokens of the middle one, else a slow replica looks dear when
           everybody is busy and a fast one cheap whatever its line
T_r        (D'_r - D'_min) times the middle of the seconds from token to token of a lone answer
           (learned, tempo.h) over a. D_r: how much slower than the middle one r decodes; D'_r: what
           F_r does not say anyway, that of the slowest as the KV cache of r fills up
a          seconds a token of prefill at the middle replica, learned (pace.h)
R_r        KV tokens that are free there less a share of all for the growth of those who run
d_r        b S / (a K_r): K_r tokens in use come free in S seconds, the mean stay of a request
"""

from libc.stdint cimport int64_t, uint8_t

from warmlane._core.ledger cimport Decoding, Ledger


cdef extern from "pace.h":
    ctypedef struct Pace:
        double base
        double slope
        double count
        double told
        double foretold
        double took
        double missed

cdef extern from "tempo.h":
    ctypedef struct Tempo:
        double base
        double load
        double stall
        double batch
        double usage
        double pace
        double factor
        double slower
        double count
        Pace calm


cdef struct Rates:
    double pair, interference, decode, context, sequence, copy      # q, i, x, k, s, g
    double output                   # o, tokens
    double spread, spread_limit     # w, tokens
    double crowd, overload          # m, requests; h, requests by one in line
    double slack, large             # e, share of n; U, tokens of work
    double late                     # 4 (T - T0), requests; 0: not late
    double uncached                 # tokens of a typical request
    double stay                     # b S / a, tokens of prefill
    double ahead                    # p lambda a / (1 - rho), 1 / tokens of mean backlog
    double work                     # f
    double distance                 # z times the work of a typical request
    double tie                      # t: all below least + t own(L, 0) are equally good


cdef struct Site:                   # of one replica
    double factor                   # F
    double slower                   # tokens of prefill a token of the answer, beyond the quickest
    double away                     # Z, tokens
    double room                     # R, tokens; infinity: not known
    double used                     # K, tokens


cdef enum:
    TERMS = 9                       # of a price, in the order of the sum above


cdef double own_work(const Rates* rates, double uncached, double cached) noexcept nogil
# Fills `prices` where kept; the greatest of them, infinity when one is not finite. hits, waiting,
# placed: tokens; running: requests. terms: TERMS of each slot, or NULL.
cdef double fill_prices(
    const Rates* rates, const Site* sites, double prompt, const double* hits,
    const double* waiting, const double* running, const double* placed, const uint8_t* kept,
    Py_ssize_t size, double* prices, double* terms,
) noexcept nogil


cdef class Price:
    cdef Rates rates
    cdef double strength, rho_cap, window               # p, cap of rho, seconds
    cdef readonly double seconds                        # a
    cdef double given                                   # a, as configured
    cdef double quickness                               # y
    cdef double scarcity, reserve, far                  # b, share kept for growth, z
    cdef double late_s, took                            # T0, T, seconds
    cdef double arrived, worked, tokens, at, known
    cdef double mean_own, mean_uncached, mean_prompt
    cdef readonly double own_rate, own_work             # of this router: 1/s, tokens a second
    cdef double other_rate, other_work                  # of the others at the same replicas

    cdef bint learns
    cdef Pace* paces                                    # by slot
    cdef Tempo* tempos                                  # by slot
    cdef Site* sites                                    # by slot
    cdef Py_ssize_t slots

    cdef void note(self, double prompt, double hit) noexcept nogil
    cdef void compare(self) noexcept nogil              # factors from paces
    cdef void follow(self) noexcept nogil               # a from paces
    cdef void contrast(self) noexcept nogil             # who decodes slower, from tempos
    cdef void blank(self, Py_ssize_t slot) noexcept nogil    # nothing is known of it
    cdef object told(self, double prompt, hits, waiting, running, placed, mask, out, parts)
    cdef int cover(self, Py_ssize_t slots) except -1    # room for so many slots
    # A first token came `seconds` after the decision, with so many tokens in line at that time.
    cdef int learn(self, Py_ssize_t slot, double tokens, double seconds) except -1
    # An answer of so many tokens was seen to stream to its end.
    cdef int learn_tempo(self, Py_ssize_t slot, double output, const Decoding* seen) except -1
    # A first token was seen, or the end of a streamed answer of so many tokens: of an open ticket.
    cpdef int began(self, Ledger book, int64_t ticket, int slot, double now) except -1
    cpdef int ended(self, Ledger book, int64_t ticket, int slot, double made, double now) except -1
