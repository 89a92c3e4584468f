"""The default mix in one call (see mix.pxd; meanings and ranges in mix.pyi)."""

from cpython cimport array
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from cpython.ref cimport Py_INCREF
from libc.math cimport INFINITY, isfinite, isnan
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from array import array as new_array

from warmlane._core.columns cimport Column, Scope, borrow, give_back, long_enough
from warmlane._core.price cimport Price, fill_prices
from warmlane._core.ranking cimport best_slots, share


cdef extern from "Python.h":
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? 0xFFFFFFFFFFFFFFFF

cdef enum:
    COLUMNS = 9
    MOST_CHOICES = 16

cdef tuple NAMES = (
    "requests", "prefill_tokens", "decode_tokens", "placed_tokens", "kv_usage",
    "foreign_requests", "foreign_tokens", "foreign_kv_tokens", "trust",
)


cdef inline double open_at(const View* view, Py_ssize_t at) noexcept nogil:
    cdef double own = view.requests[at]
    return own if view.foreign_requests == NULL else own + view.foreign_requests[at]


cdef inline double prefill_at(const View* view, Py_ssize_t at) noexcept nogil:
    cdef double own = view.prefill[at]
    return own if view.foreign_tokens == NULL else own + view.foreign_tokens[at]


cdef inline double decode_at(const View* view, Py_ssize_t at) noexcept nogil:
    cdef double own = view.decode[at]
    return own if view.foreign_kv == NULL else own + view.foreign_kv[at]


cdef inline double left_of(double value, double limit) noexcept nogil:
    """1 - value / limit within 0..1; NaN gives 0, as in `cost.saturate`."""
    return 0.0 if isnan(value) else 1.0 - share(value, limit)


cdef double scale_of(const View* view, const Scales* set, double* least_placed) noexcept nogil:
    """Tokens that one whole score stands for, as `CandidateColumns.scale` sums them."""
    cdef double prefill = 0.0, requests = 0.0, decode = 0.0, least = INFINITY, value
    cdef Py_ssize_t at
    for at in range(view.size):
        if view.kept[at] == 0:
            continue
        value = prefill_at(view, at)
        prefill = value if value > prefill else prefill
        value = open_at(view, at)
        requests = value if value > requests else requests
        value = decode_at(view, at)
        decode = value if value > decode else decode
        value = view.placed[at]
        least = value if value < least else least
    least_placed[0] = least
    value = view.prompt if view.prompt > set.least_scale else set.least_scale
    value += prefill
    value += requests * set.request_tokens
    return value + decode * set.context_share


cdef void score(const View* view, const Scales* set, double* hits, double* totals) noexcept nogil:
    cdef double least, hit, work, total, most = view.prompt - 1.0 if view.prompt > 1.0 else 0.0
    cdef double scale = scale_of(view, set, &least)
    cdef Py_ssize_t at
    for at in range(view.size):
        hits[at] = 0.0
        if view.kept[at] == 0:
            totals[at] = -INFINITY
            continue
        if view.blocks != NULL:
            hit = view.blocks[at] * view.block_tokens
            hits[at] = (hit if hit < most else most) * view.trust[at]
        # One after the other, as `cost.combine` adds: the sums are equal to the last bit.
        total = set.prefix * share(hits[at], scale)
        total += set.prefill * left_of(prefill_at(view, at), scale)
        work = set.request_tokens * open_at(view, at) + set.context_share * decode_at(view, at)
        total += set.open * left_of(work, scale)
        work = set.spread_rate * (view.placed[at] - least)
        work = 0.0 if work < 0.0 else work  # NaN stays: it scores 0 below
        work = set.spread_limit if work > set.spread_limit else work
        total += set.spread * left_of(work, scale)
        totals[at] = total + set.usage * left_of(view.usage[at], 1.0)


cdef int score_prices(
    const View* view, Price price, double weight, double* hits, double* totals, double* room,
) except -1:
    """By price alone: as the scorer `price` and `cost.combine` together. room: 2 x size."""
    cdef double hit, greatest, most = view.prompt - 1.0 if view.prompt > 1.0 else 0.0
    cdef double* waiting = room
    cdef double* running = room + view.size
    cdef Py_ssize_t at
    for at in range(view.size):
        hits[at] = 0.0
        if view.kept[at] == 0:
            continue
        if view.blocks != NULL:
            hit = view.blocks[at] * view.block_tokens
            hits[at] = (hit if hit < most else most) * view.trust[at]
        waiting[at] = prefill_at(view, at)
        running[at] = open_at(view, at)
    price.cover(view.size)
    greatest = fill_prices(
        &price.rates, price.sites, view.prompt, hits, waiting, running, view.placed, view.kept,
        view.size, totals, NULL,
    )
    if not isfinite(greatest):
        raise ValueError("a price is not finite")
    for at in range(view.size):
        if view.kept[at]:
            totals[at] = weight * left_of(totals[at], greatest)
        else:
            totals[at] = -INFINITY
    return 0


cdef tuple answer(const View* view, const double* hits, const int32_t* order, Py_ssize_t count):
    """(slots, whole hit tokens a slot, hit of the first, the same before trust)."""
    cdef tuple slots = PyTuple_New(count), tokens = PyTuple_New(count)
    cdef Py_ssize_t place
    cdef object number
    for place in range(count):
        number = order[place]
        Py_INCREF(number)
        PyTuple_SET_ITEM(slots, place, number)
        number = <int64_t>hits[order[place]]
        Py_INCREF(number)
        PyTuple_SET_ITEM(tokens, place, number)
    cdef double hit = hits[order[0]] if count else 0.0
    cdef double raw = hit / view.trust[order[0]] if count and hit != 0.0 else 0.0
    return (slots, tokens, hit, raw)


cdef class Mix:
    def __init__(
        self, weights, double spread_rate, double spread_limit, *, double least_scale,
        double request_tokens, double context_share, int limit=5, Price price=None,
    ):
        if len(weights) != 5 or not all(isfinite(each) for each in weights):
            raise ValueError(f"weights are {weights!r}, five finite numbers are needed")
        if not 1 <= limit <= MOST_CHOICES:
            raise ValueError(f"limit is {limit}, must be 1 to 16")
        self.set.prefix, self.set.prefill, self.set.open, self.set.spread, self.set.usage = weights
        self.set.spread_rate = spread_rate
        self.set.spread_limit = spread_limit
        self.set.least_scale = least_scale
        self.set.request_tokens = request_tokens
        self.set.context_share = context_share
        self.limit = limit
        self.price = price
        self.room = new_array("d")
        self.columns = None
        self.totals = new_array("d")
        self.hits = new_array("d")

    def bind(
        self, requests, prefill_tokens, decode_tokens, placed_tokens, kv_usage, foreign_requests,
        foreign_tokens, foreign_kv_tokens, trust,
    ):
        self.columns = (
            requests, prefill_tokens, decode_tokens, placed_tokens, kv_usage, foreign_requests,
            foreign_tokens, foreign_kv_tokens, trust,
        )

    cdef int pick(
        self, const int32_t* blocks, double block_tokens, double prompt_tokens, array.array kept,
        bint foreign, uint64_t seed, int32_t* order,
    ) except -1:
        cdef View view
        cdef array.array column
        cdef const char* data[COLUMNS]
        cdef Py_ssize_t at
        if self.columns is None:
            raise ValueError("bind comes first")
        view.kept, view.size = kept.data.as_uchars, len(kept)
        for at in range(COLUMNS):
            column = self.columns[at]
            if len(column) < view.size:
                raise ValueError(f"{NAMES[at]} has {len(column)} slots, {view.size} are needed")
            data[at] = column.data.as_chars
        view.blocks = blocks
        view.block_tokens, view.prompt = block_tokens, prompt_tokens
        self.rank(&view, data, foreign)
        at = best_slots(
            self.totals.data.as_doubles, view.kept, self.homes_for(view.size), view.size,
            self.limit, seed, order,
        )
        if self.price is not None and at:
            self.price.note(prompt_tokens, self.hits.data.as_doubles[order[0]])
        return <int>at

    cdef const uint64_t* homes_for(self, Py_ssize_t size) except? NULL:
        # A column that has not followed the pool yet: ties go by slot for a moment.
        if self.homes is None or len(self.homes) < size or self.homes.ob_descr.typecode != c"Q":
            return NULL
        return <const uint64_t*>self.homes.data.as_chars

    cdef int rank(self, View* view, const char** data, bint foreign) except -1:
        # Scores into `hits` and `totals`, from the columns in `data`.
        view.requests = <const int32_t*>data[0]
        view.prefill, view.decode = <const double*>data[1], <const double*>data[2]
        view.placed, view.usage = <const double*>data[3], <const double*>data[4]
        view.foreign_requests = <const double*>data[5] if foreign else NULL
        view.foreign_tokens = <const double*>data[6] if foreign else NULL
        view.foreign_kv = <const double*>data[7] if foreign else NULL
        view.trust = <const double*>data[8]
        if len(self.totals) != view.size:
            self.totals = new_array("d", bytes(8 * view.size))
            self.hits = new_array("d", bytes(8 * view.size))
            self.room = new_array("d", bytes(16 * view.size))
        if self.price is None:
            score(view, &self.set, self.hits.data.as_doubles, self.totals.data.as_doubles)
        else:
            score_prices(
                view, self.price, self.set.prefix, self.hits.data.as_doubles,
                self.totals.data.as_doubles, self.room.data.as_doubles,
            )
        return 0

    def choose(
        self, blocks, double block_tokens, double prompt_tokens, mask, bint foreign, rand
    ):
        cdef Scope scope
        cdef Column kept, column
        cdef View view
        cdef const char* data[COLUMNS]
        cdef int32_t order[MOST_CHOICES]
        cdef uint64_t seed = PyLong_AsUnsignedLongLongMask(rand)
        cdef Py_ssize_t at, count
        scope.held = 0
        if self.columns is None:
            raise ValueError("bind comes first")
        try:
            borrow(&scope, mask, b"B", &kept)
            view.kept, view.size = <const uint8_t*>kept.data, kept.size
            for at in range(COLUMNS):
                borrow(&scope, self.columns[at], b"i" if at == 0 else b"d", &column)
                long_enough(&column, view.size, NAMES[at])
                data[at] = column.data
            view.blocks = NULL
            if blocks is not None:
                borrow(&scope, blocks, b"i", &column)
                long_enough(&column, view.size, "blocks")
                view.blocks = <const int32_t*>column.data
            view.block_tokens, view.prompt = block_tokens, prompt_tokens
            self.rank(&view, data, foreign)
            count = best_slots(
                self.totals.data.as_doubles, view.kept, self.homes_for(view.size), view.size,
                self.limit, seed, order,
            )
            if self.price is not None and count:
                self.price.note(prompt_tokens, self.hits.data.as_doubles[order[0]])
            return answer(&view, self.hits.data.as_doubles, order, count)
        finally:
            give_back(&scope)
