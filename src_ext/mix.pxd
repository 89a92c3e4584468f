"""The default mix in one call: hits, scores, totals, order. The same sums as its scorers make.

Reads the columns of one pool in place (columns.pxd). Holds its parameters, the columns and two
scratch columns that grow with the pool; nothing else is allocated but the answer.
"""

from cpython cimport array
from libc.stdint cimport int32_t, uint8_t, uint64_t

from warmlane._core.price cimport Price


cdef struct Scales:
    double prefix, prefill, open, spread, usage     # weights
    double spread_rate, spread_limit                # tokens of work a token, tokens
    double least_scale, request_tokens, context_share


cdef struct View:
    const int32_t* requests
    const double* prefill
    const double* decode
    const double* placed
    const double* usage
    const double* foreign_requests      # NULL: nobody else's work is known
    const double* foreign_tokens
    const double* foreign_kv
    const double* trust
    const int32_t* blocks               # NULL: nothing is held
    const uint8_t* kept
    Py_ssize_t size
    double block_tokens, prompt


cdef class Mix:
    cdef Scales set
    cdef int limit
    cdef readonly Price price                       # None: the weighted mix
    cdef array.array room                           # 'd', scratch, two columns
    cdef tuple columns
    cdef public array.array homes                   # 'Q' by slot, for ties; None: by slot number
    cdef readonly array.array totals                # 'd', of the last call, -inf where masked
    cdef readonly array.array hits                  # 'd', of the last call, tokens

    # `choose` over columns that are arrays: how many slots are in `order`, -1 with an error set.
    # blocks may be NULL; `kept` is as long as the pool. Hits are in `hits`.
    cdef int pick(
        self, const int32_t* blocks, double block_tokens, double prompt_tokens, array.array kept,
        bint foreign, uint64_t seed, int32_t* order,
    ) except -1
    cdef const uint64_t* homes_for(self, Py_ssize_t size) except? NULL
    cdef int rank(self, View* view, const char** data, bint foreign) except -1
