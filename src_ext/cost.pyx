"""Arithmetic over per-replica columns (see cost.pxd; meanings and ranges in cost.pyi)."""

from libc.math cimport INFINITY, isfinite, isnan
from libc.stdint cimport int32_t, uint8_t, uint64_t

from warmlane._core.columns cimport borrow, borrow_out, give_back, item, long_enough
from warmlane._core.ranking cimport before, best_slots, share, tie_rank


cdef extern from "Python.h":
    unsigned long long PyLong_AsUnsignedLongLongMask(object number) except? 0xFFFFFFFFFFFFFFFF

# A score of 1 + 2e-16 is a rounding error of its scorer, 1.001 is a mistake.
cdef double TOLERANCE = 1e-9


class ScoreError(ValueError):
    """A score is NaN or outside 0..1. `scorer` and `slot` say where, `value` what it was."""

    def __init__(self, scorer, slot, value):
        super().__init__(f"scorer {scorer}: {value} at slot {slot} is outside 0..1")
        self.scorer = scorer
        self.slot = slot
        self.value = value


cdef enum Shape:
    FRACTION
    SATURATE
    INVERSE


cdef inline double shaped(Shape shape, double value, double scale) noexcept nogil:
    if isnan(value):
        return 0.0
    if shape == FRACTION:
        return share(value, scale)
    if shape == SATURATE:
        return 1.0 - share(value, scale)
    return 1.0 / (1.0 + value) if value > 0 else 1.0


cdef int score_column(Shape shape, object col, double scale, object out) except -1:
    cdef Scope scope
    cdef Column source, target
    cdef Py_ssize_t at
    scope.held = 0
    try:
        borrow_out(&scope, out, b"d", &target)
        borrow(&scope, col, b"di", &source)
        long_enough(&source, target.size, "col")
        for at in range(target.size):
            (<double*>target.data)[at] = shaped(shape, item(&source, at), scale)
    finally:
        give_back(&scope)
    return 0


def fraction(col, double scale, out):
    score_column(FRACTION, col, scale, out)


def saturate(col, double limit, out):
    score_column(SATURATE, col, limit, out)


def inverse(col, out):
    score_column(INVERSE, col, 1.0, out)


def less_is_better(col, mask, out):
    cdef Scope scope
    cdef Column source, kept, target
    cdef Py_ssize_t at
    cdef double value, least = INFINITY, most = -INFINITY
    scope.held = 0
    try:
        borrow(&scope, mask, b"B", &kept)
        borrow_out(&scope, out, b"d", &target)
        borrow(&scope, col, b"di", &source)
        long_enough(&target, kept.size, "out")
        long_enough(&source, kept.size, "col")
        for at in range(kept.size):
            value = item(&source, at)
            if kept.data[at] != 0 and isfinite(value):
                least = min(least, value)
                most = max(most, value)
        for at in range(kept.size):
            value = item(&source, at)
            if kept.data[at] == 0 or not isfinite(value):
                (<double*>target.data)[at] = 0.0
            elif most > least:
                (<double*>target.data)[at] = (most - value) / (most - least)
            else:
                (<double*>target.data)[at] = 1.0
    finally:
        give_back(&scope)


def tokens_saved(hit, double prompt_tokens, out, double floor_tokens=1024.0):
    score_column(FRACTION, hit, max(prompt_tokens, floor_tokens), out)


def hit_tokens(blocks, double tokens_per_block, double prompt_tokens, trust, out):
    cdef Scope scope
    cdef Column source, factor, target
    cdef Py_ssize_t at
    cdef double value, most = max(0.0, prompt_tokens - 1.0)
    scope.held = 0
    try:
        borrow_out(&scope, out, b"d", &target)
        borrow(&scope, blocks, b"i", &source)
        long_enough(&source, target.size, "blocks")
        if trust is not None:
            borrow(&scope, trust, b"d", &factor)
            long_enough(&factor, target.size, "trust")
        for at in range(target.size):
            value = item(&source, at) * tokens_per_block
            value = value if value < most else most
            (<double*>target.data)[at] = value if trust is None else value * item(&factor, at)
    finally:
        give_back(&scope)


def whole_tokens(blocks, double tokens_per_block, trust, out):
    cdef Scope scope
    cdef Column source, factor, target
    cdef Py_ssize_t at
    scope.held = 0
    try:
        borrow_out(&scope, out, b"i", &target)
        borrow(&scope, blocks, b"i", &source)
        borrow(&scope, trust, b"d", &factor)
        long_enough(&source, target.size, "blocks")
        long_enough(&factor, target.size, "trust")
        for at in range(target.size):
            (<int32_t*>target.data)[at] = <int32_t>(
                item(&source, at) * tokens_per_block * item(&factor, at)
            )
    finally:
        give_back(&scope)


def tier_tokens(gpu, cpu, any_tier, soon, sizes, int32_t size, int32_t limit, double cpu_worth,
                double disk_worth, out):
    cdef Scope scope
    cdef Column near, middle, far, ahead, kinds, target
    cdef Py_ssize_t at
    cdef double fast, slow, slowest
    scope.held = 0
    try:
        borrow_out(&scope, out, b"i", &target)
        borrow(&scope, gpu, b"i", &near)
        borrow(&scope, cpu, b"i", &middle)
        borrow(&scope, any_tier, b"i", &far)
        borrow(&scope, soon, b"i", &ahead)
        borrow(&scope, sizes, b"i", &kinds)
        long_enough(&ahead, target.size, "soon")
        long_enough(&near, target.size, "gpu")
        long_enough(&middle, target.size, "cpu")
        long_enough(&far, target.size, "any_tier")
        long_enough(&kinds, target.size, "sizes")
        for at in range(target.size):
            if (<int32_t*>kinds.data)[at] != size:
                continue
            fast = min(item(&near, at), <double>limit)
            slow = min(item(&middle, at), <double>limit)
            slowest = min(item(&far, at), <double>limit)
            fast += (slow - fast) * cpu_worth + (slowest - slow) * disk_worth
            fast = max(fast, min(item(&ahead, at), <double>limit))
            (<int32_t*>target.data)[at] = <int32_t>(fast * size)
    finally:
        give_back(&scope)


def count(mask):
    cdef Scope scope
    cdef Column kept
    cdef Py_ssize_t at, total = 0
    scope.held = 0
    try:
        borrow(&scope, mask, b"B", &kept)
        for at in range(kept.size):
            total += kept.data[at] != 0
        return total
    finally:
        give_back(&scope)


def keep_below(col, double limit, mask):
    cdef Scope scope
    cdef Column source, kept
    cdef Py_ssize_t at, removed = 0
    scope.held = 0
    try:
        borrow_out(&scope, mask, b"B", &kept)
        borrow(&scope, col, b"di", &source)
        long_enough(&source, kept.size, "col")
        for at in range(kept.size):
            if kept.data[at] != 0 and not item(&source, at) < limit:
                kept.data[at] = 0
                removed += 1
        return removed
    finally:
        give_back(&scope)


def greatest(col, mask):
    cdef Scope scope
    cdef Column source, kept
    cdef Py_ssize_t at
    cdef double value, most = 0.0
    scope.held = 0
    try:
        borrow(&scope, mask, b"B", &kept)
        borrow(&scope, col, b"di", &source)
        long_enough(&source, kept.size, "col")
        for at in range(kept.size):
            value = item(&source, at)
            if kept.data[at] != 0 and value > most:
                most = value
        return most
    finally:
        give_back(&scope)


def excess(col, mask, double factor, double limit, out):
    cdef Scope scope
    cdef Column source, kept, target
    cdef Py_ssize_t at
    cdef double value, least = INFINITY
    scope.held = 0
    try:
        borrow(&scope, mask, b"B", &kept)
        borrow(&scope, col, b"di", &source)
        borrow_out(&scope, out, b"d", &target)
        long_enough(&source, kept.size, "col")
        long_enough(&target, kept.size, "out")
        for at in range(kept.size):
            value = item(&source, at)
            if kept.data[at] != 0 and value < least:
                least = value
        for at in range(kept.size):
            value = factor * (item(&source, at) - least)
            (<double*>target.data)[at] = min(max(value, 0.0), limit)
    finally:
        give_back(&scope)


def blend(col, double factor, other, double other_factor, out):
    cdef Scope scope
    cdef Column left, right, target
    cdef Py_ssize_t at
    scope.held = 0
    try:
        borrow_out(&scope, out, b"d", &target)
        borrow(&scope, col, b"di", &left)
        borrow(&scope, other, b"di", &right)
        long_enough(&left, target.size, "col")
        long_enough(&right, target.size, "other")
        for at in range(target.size):
            (<double*>target.data)[at] = factor * item(&left, at) + other_factor * item(&right, at)
    finally:
        give_back(&scope)


# ---- scores to an order -----------------------------------------------------------------------


cdef int add_scores(
    double* total, const uint8_t* kept, Py_ssize_t size, object score, Py_ssize_t which,
    double weight,
) except -1:
    """total += weight * score at the kept slots, each score checked."""
    cdef Scope scope
    cdef Column source
    cdef Py_ssize_t at
    cdef double value
    cdef bint listed = isinstance(score, (list, tuple))
    scope.held = 0
    try:
        if listed:
            source.size = len(score)
        else:
            borrow(&scope, score, b"d", &source)
        long_enough(&source, size, f"scorer {which}")
        for at in range(size):
            if kept[at] == 0:
                continue
            value = <double>score[at] if listed else (<double*>source.data)[at]
            if not -TOLERANCE <= value <= 1.0 + TOLERANCE:
                raise ScoreError(which, at, value)
            total[at] += weight * min(max(value, 0.0), 1.0)
    finally:
        give_back(&scope)
    return 0


def combine(scores, weights, mask, out):
    cdef Scope scope
    cdef Column weight, kept, target
    cdef Py_ssize_t at, which
    cdef double factor
    scope.held = 0
    try:
        borrow(&scope, weights, b"d", &weight)
        borrow(&scope, mask, b"B", &kept)
        borrow_out(&scope, out, b"d", &target)
        long_enough(&target, kept.size, "out")
        long_enough(&weight, len(scores), "weights")
        for at in range(kept.size):
            (<double*>target.data)[at] = 0.0 if kept.data[at] != 0 else -INFINITY
        for which in range(len(scores)):
            factor = (<double*>weight.data)[which]
            if not isfinite(factor):
                raise ValueError(f"weight {which} is {factor}")
            add_scores(
                <double*>target.data, <uint8_t*>kept.data, kept.size, scores[which], which, factor
            )
    finally:
        give_back(&scope)


cdef int borrow_homes(Scope* scope, object homes, Py_ssize_t need, Column* names) except -1:
    """Hashes of the replicas' names; no data when there are none."""
    names.data = NULL
    if homes is not None:
        borrow(scope, homes, b"Q", names)
        long_enough(names, need, "homes")
    return 0


def top_k(out, mask, Py_ssize_t k, rand, order, homes=None):
    cdef Scope scope
    cdef Column total, kept, target, names
    cdef uint64_t seed = PyLong_AsUnsignedLongLongMask(rand)
    scope.held = 0
    try:
        borrow(&scope, mask, b"B", &kept)
        borrow(&scope, out, b"d", &total)
        long_enough(&total, kept.size, "out")
        borrow_out(&scope, order, b"i", &target)
        long_enough(&target, min(max(k, 0), kept.size), "order")
        borrow_homes(&scope, homes, kept.size, &names)
        return best_slots(
            <double*>total.data, <uint8_t*>kept.data, <uint64_t*>names.data, kept.size, k, seed,
            <int32_t*>target.data,
        )
    finally:
        give_back(&scope)


def arg_max(out, mask, rand, homes=None):
    cdef Scope scope
    cdef Column total, kept, names
    cdef uint64_t seed = PyLong_AsUnsignedLongLongMask(rand)
    cdef double* values
    cdef Py_ssize_t at
    cdef int32_t best = -1
    scope.held = 0
    try:
        borrow(&scope, mask, b"B", &kept)
        borrow(&scope, out, b"d", &total)
        long_enough(&total, kept.size, "out")
        borrow_homes(&scope, homes, kept.size, &names)
        values = <double*>total.data
        for at in range(kept.size):
            if kept.data[at] == 0:
                continue
            if isnan(values[at]):
                raise ValueError(f"the total of slot {at} is NaN")
            if best < 0 or before(values, <uint64_t*>names.data, seed, <int32_t>at, best):
                best = <int32_t>at
        return best
    finally:
        give_back(&scope)


def rendezvous(key, homes, mask):
    cdef Scope scope
    cdef Column names, kept
    cdef uint64_t seed = PyLong_AsUnsignedLongLongMask(key)
    cdef uint64_t rank, greatest = 0
    cdef Py_ssize_t at, best = -1
    scope.held = 0
    try:
        borrow(&scope, mask, b"B", &kept)
        borrow(&scope, homes, b"Q", &names)
        long_enough(&names, kept.size, "homes")
        for at in range(kept.size):
            rank = tie_rank(seed, (<uint64_t*>names.data)[at])
            if kept.data[at] != 0 and (best < 0 or rank > greatest):
                best, greatest = at, rank
        return best
    finally:
        give_back(&scope)
