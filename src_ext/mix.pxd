"""The default mix in one call: hits, scores, totals, order. The same sums as its scorers make.

Reads the columns of one pool in place (columns.pxd). Holds its parameters, the columns and two
scratch columns that grow with the pool; nothing else is allocated but the answer.
"""

from cpython cimport array


cdef struct Scales:
    double prefix, prefill, open, spread, usage     # weights
    double spread_rate, spread_limit                # tokens of work a token, tokens
    double least_scale, request_tokens, context_share


cdef class Mix:
    cdef Scales set
    cdef int limit
    cdef tuple columns
    cdef readonly array.array totals                # 'd', of the last call, -inf where masked
    cdef readonly array.array hits                  # 'd', of the last call, tokens
