"""From totals to an order: what `cost` and `mix` share, inlined in both."""

from libc.math cimport isnan
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.string cimport memmove


cdef inline double share(double value, double scale) noexcept nogil:
    """value / scale within 0..1; a scale of 0 or less is the limit of a small one; NaN gives 0."""
    if not value > 0:
        return 0.0
    return 1.0 if value >= scale else value / scale


cdef inline uint64_t tie_rank(uint64_t seed, uint64_t home) noexcept nogil:
    """Finaliser of SplitMix64 (Steele, Lea, Flood 2014) over both words: the rank of a tie."""
    cdef uint64_t word = seed ^ (home * <uint64_t>0x9E3779B97F4A7C15)
    word = (word ^ (word >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    word = (word ^ (word >> 27)) * <uint64_t>0x94D049BB133111EB
    return word ^ (word >> 31)


cdef inline bint before(
    const double* total, const uint64_t* homes, uint64_t seed, int32_t left, int32_t right
) noexcept nogil:
    """Does slot `left` come before `right`: greater total, then greater rank, then lower slot."""
    cdef uint64_t left_rank, right_rank
    if total[left] != total[right]:
        return total[left] > total[right]
    left_rank = tie_rank(seed, homes[left] if homes != NULL else <uint64_t>left + 1)
    right_rank = tie_rank(seed, homes[right] if homes != NULL else <uint64_t>right + 1)
    if left_rank != right_rank:
        return left_rank > right_rank
    return left < right


cdef inline Py_ssize_t best_slots(
    const double* values, const uint8_t* kept, const uint64_t* homes, Py_ssize_t size,
    Py_ssize_t k, uint64_t seed, int32_t* places,
) except -1:
    """The best k kept slots into `places`, best first; how many there are."""
    cdef Py_ssize_t at, found = 0, low, high, middle
    for at in range(size):
        if kept[at] == 0 or k <= 0:
            continue
        if isnan(values[at]):
            raise ValueError(f"the total of slot {at} is NaN")
        # Binary insertion: k is the number of attempts, a few.
        low, high = 0, found
        while low < high:
            middle = (low + high) >> 1
            if before(values, homes, seed, <int32_t>at, places[middle]):
                high = middle
            else:
                low = middle + 1
        if low < k:
            if found < k:
                found += 1
            memmove(&places[low + 1], &places[low], (found - low - 1) * sizeof(int32_t))
            places[low] = <int32_t>at
    return found
