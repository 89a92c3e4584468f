"""The price of sending a request to each replica, in tokens of prefill. See price.pyi.

own(u, c)  = u + q u (c + u / 2)            work of u new tokens behind c cached ones
price(r)   = V_r f                          prefill in line there, f the work of a token of it
           + own (1 + theta + i min(n_r, m))    mine, what it delays later, the n_r that run there
           + x n_r o (k (L + o / 2) + s)    what my o tokens of decoding cost them
           + g own(c_max - c, c)            a copy of what another replica holds pushes others out
           + min(w (P_r - P_min), limit)    lately placed tokens: caches are filled evenly
theta      = p lambda mean(V) / (1 - rho)   arrivals that wait until the backlog clears
"""

from libc.stdint cimport uint8_t


cdef struct Rates:
    double pair, interference, decode, context, sequence, copy      # q, i, x, k, s, g
    double output                   # o, tokens
    double spread, spread_limit     # w, tokens
    double crowd                    # m, requests
    double ahead                    # p lambda a / (1 - rho), 1 / tokens of mean backlog
    double work                     # f
    double tie                      # t: all below least + t own(L, 0) are equally good


cdef double own_work(const Rates* rates, double uncached, double cached) noexcept nogil
# Fills `prices` where kept; the greatest of them, infinity when one is not finite. hits, waiting,
# placed: tokens; running: requests.
cdef double fill_prices(
    const Rates* rates, double prompt, const double* hits, const double* waiting,
    const double* running, const double* placed, const uint8_t* kept, Py_ssize_t size,
    double* prices,
) noexcept nogil


cdef class Price:
    cdef Rates rates
    cdef double strength, seconds, rho_cap, window      # p, a, cap of rho, seconds
    cdef double arrived, worked, tokens, at, known
    cdef double mean_own, mean_uncached, mean_prompt
    cdef readonly double own_rate, own_work             # of this router: 1/s, tokens a second
    cdef double other_rate, other_work                  # of the others at the same replicas

    cdef void note(self, double prompt, double hit) noexcept nogil
