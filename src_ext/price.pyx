"""See price.pxd for the formula and price.pyi for meanings. 10 ns a replica."""

cimport cython
from libc.math cimport INFINITY, exp, isfinite
from libc.stdint cimport int64_t, uint8_t

from array import array as new_array

from warmlane._core.columns cimport Column, Scope, borrow, borrow_out, give_back


cdef extern from "alloc.h":
    void* wl_realloc(void* old, size_t size_bytes) nogil
    void wl_free(void* block) nogil
    void wl_alloc_fail_after(long n)

cdef extern from "pace.h":
    void pace_reset(Pace* pace, double slope) nogil
    void pace_learn(Pace* pace, double thousands, double seconds) nogil
    double pace_middle(const Pace* paces, int64_t size) nogil
    double pace_factor(const Pace* pace, double middle) nogil

cdef extern from "tempo.h":
    double TEMPO_OUTPUT
    void tempo_reset(Tempo* tempo, double seconds_per_token) nogil
    void tempo_learn(Tempo* t, double steps, double seconds, double batch, double filled) nogil
    void tempo_contrast(Tempo* all, int64_t size) nogil
    double tempo_prefill(Tempo* all, int64_t size) nogil
    double seconds_toward(double known, double heard) nogil

cdef enum:
    MAX_SLOTS = 1 << 16

cdef tuple NAMES = (
    "line", "own", "later", "delays", "decode", "copy", "spread", "room", "zone",
)

cdef double USED_LEAST = 0.1        # share of a KV cache that is taken to come free in a mean stay
cdef double LEAST_PROMPT = 16.0     # tokens: the mean of uncached ones is taken as no less
cdef double STAY_MOST = 300.0       # seconds
cdef double MEAN_STEP = 0.005  # exponential mean over about the last 200 decisions
cdef double TOOK_STEP = 0.02   # and of times to the first token, over about 50
cdef double QUEUE_FREE = 4.0   # requests in line per replica, the mean, that are no overload
cdef double LATE_PER_S = 4.0   # requests in line that count, for each second beyond late_s
cdef double DELAY_RISE = 24.0  # requests that the bound m rises by while i doubles,
cdef double DELAY_MOST = 0.7   # up to here; 1 is all that those who run lose


cdef double own_work(const Rates* rates, double uncached, double cached) noexcept nogil:
    return uncached + rates.pair * uncached * (cached + uncached / 2.0)


cdef inline double short_of(const Rates* rates, const Site* site, double tokens) noexcept nogil:
    """Wait for room in the KV cache with so many tokens to come, in tokens of prefill."""
    return rates.stay * (tokens - site.room) / site.used if tokens > site.room else 0.0


cdef double fill_prices(
    const Rates* rates, const Site* sites, double prompt, const double* hits,
    const double* waiting, const double* running, const double* placed, const uint8_t* kept,
    Py_ssize_t size, double* prices, double* terms,
) noexcept nogil:
    cdef double most = 0.0, total = 0.0, own, ahead, decode, count = 0.0, greatest = 0.0
    cdef double least = INFINITY, filled, crowd, factor, best = INFINITY, busy = 0.0, beyond
    cdef double line = 0.0, bound = rates.crowd, delay = rates.interference, large = rates.large
    cdef double even, uneven
    cdef double[TERMS] part
    cdef Py_ssize_t at, term
    for at in range(size):
        if kept[at]:
            most = hits[at] if hits[at] > most else most
            line += waiting[at]
            total += waiting[at] + short_of(rates, &sites[at], waiting[at])
            busy += running[at]
            count += 1.0
            least = placed[at] if placed[at] < least else least
    ahead = rates.ahead * rates.work * total / count if count else 0.0
    busy = busy / count if count else 0.0
    if rates.late > 0.0 and count:
        line = line / count / rates.uncached - QUEUE_FREE
        line = line if line < rates.late else rates.late
        line *= rates.overload
        if line > 0.0:
            bound += line
            delay *= 1.0 + line / DELAY_RISE
            delay = delay if delay < DELAY_MOST else max(DELAY_MOST, rates.interference)
            large *= 1.0 + line
    beyond = busy - bound if busy > bound else 0.0
    even = rates.slack * busy
    decode = rates.output * (rates.context * (prompt + rates.output / 2.0) + rates.sequence)
    for at in range(size):
        if not kept[at]:
            continue
        own = own_work(rates, prompt - hits[at], hits[at])
        crowd = running[at] if running[at] < bound else bound
        filled = rates.spread * (placed[at] - least)
        factor = sites[at].factor
        part[0] = factor * waiting[at] * rates.work
        part[1] = factor * own
        part[2] = ahead * own
        part[3] = factor * delay * (crowd * (own if own < large else large) + beyond * own)
        uneven = running[at] - even if running[at] > even else 0.0
        part[4] = rates.decode * uneven * decode + sites[at].slower * rates.output
        part[5] = rates.copy * own_work(rates, most - hits[at], hits[at])
        part[6] = filled if filled < rates.spread_limit else rates.spread_limit
        part[7] = short_of(rates, &sites[at], waiting[at] + prompt - hits[at])
        part[8] = sites[at].away + rates.distance if sites[at].away > 0.0 else 0.0
        prices[at] = 0.0
        for term in range(TERMS):
            prices[at] += part[term]
            if terms != NULL:
                terms[TERMS * at + term] = part[term]
        if not isfinite(prices[at]):
            return INFINITY
        greatest = prices[at] if prices[at] > greatest else greatest
        best = prices[at] if prices[at] < best else best
    if rates.tie > 0.0 and count > 0.0:
        least, greatest = best + rates.tie * own_work(rates, prompt, 0.0), best
        for at in range(size):
            if kept[at] and prices[at] <= least:
                prices[at] = best
            elif kept[at] and prices[at] > greatest:
                greatest = prices[at]
    return greatest


cdef void* regrown(void* old, size_t size_bytes) except NULL:
    cdef void* grown = wl_realloc(old, size_bytes)
    if grown == NULL:
        raise MemoryError("no memory for what is known of replicas")
    return grown


@cython.final
cdef class Price:
    def __init__(
        self, *, double pair=3.5e-5, double interference=0.3, double decode=1.5,
        double context=1e-3, double sequence=0.2, double copy=1.0, double strength=3.0,
        double seconds_per_token=40e-6, double rho_cap=0.9, double window_s=60.0,
        double output=256.0, double spread=0.005, double spread_limit=4096.0,
        double crowd=12.0, double slack=1.1, double large=12e3, double overload=8.0,
        double late_s=2.0, double scarcity=1.0, double reserve=0.1, double tempo=0.15,
        double distance=4.0, bint learn=True,
    ):
        given = (pair, interference, decode, context, sequence, copy, strength, output,
                 spread, spread_limit, crowd, slack, large, overload, late_s, scarcity, tempo,
                 distance)
        if not all(isfinite(each) and each >= 0.0 for each in given):
            raise ValueError("the price's constants must be finite and not negative")
        if not (0.0 < seconds_per_token < 1.0 and 0.0 <= rho_cap < 1.0 and window_s > 0.0):
            raise ValueError("seconds_per_token, rho_cap or window_s is out of range")
        if not 0.0 <= reserve < 1.0:
            raise ValueError("reserve must be 0 to 1, less than all")
        self.scarcity, self.reserve, self.far = scarcity, reserve, distance
        self.rates.pair, self.rates.interference = pair, interference
        self.rates.decode, self.rates.context = decode, context
        self.rates.sequence, self.rates.copy = sequence, copy
        self.rates.output = output
        self.rates.crowd, self.rates.overload = crowd, overload
        self.rates.slack, self.rates.large = slack, large
        self.rates.late, self.rates.uncached = 0.0, LEAST_PROMPT
        self.late_s, self.took = late_s, 0.0
        self.rates.spread, self.rates.spread_limit = spread, spread_limit
        self.rates.ahead, self.rates.work, self.rates.tie = 0.0, 1.0, 0.0
        self.strength, self.seconds = strength, seconds_per_token
        self.given = seconds_per_token
        self.quickness = tempo
        self.rho_cap, self.window = rho_cap, window_s
        self.at = -1.0  # all that is not set here begins at 0
        self.learns = learn

    def __dealloc__(self):
        wl_free(self.paces)
        wl_free(self.tempos)
        wl_free(self.sites)

    cdef int cover(self, Py_ssize_t slots) except -1:
        cdef Py_ssize_t at
        if slots <= self.slots:
            return 0
        if slots > MAX_SLOTS:
            raise ValueError(f"{slots} slots: at most {MAX_SLOTS}")
        self.paces = <Pace*>regrown(self.paces, <size_t>slots * sizeof(Pace))
        self.tempos = <Tempo*>regrown(self.tempos, <size_t>slots * sizeof(Tempo))
        self.sites = <Site*>regrown(self.sites, <size_t>slots * sizeof(Site))
        for at in range(self.slots, slots):
            self.sites[at].away = 0.0
            self.blank(at)
        self.slots = slots
        return 0

    cdef void blank(self, Py_ssize_t slot) noexcept nogil:
        pace_reset(&self.paces[slot], self.given * 1000.0)
        tempo_reset(&self.tempos[slot], self.given)
        self.sites[slot].factor, self.sites[slot].slower = 1.0, 0.0
        self.sites[slot].room, self.sites[slot].used = INFINITY, 1.0

    cdef int learn(self, Py_ssize_t slot, double tokens, double seconds) except -1:
        if slot < 0 or not isfinite(tokens) or not isfinite(seconds):
            return 0
        if seconds >= 0.0:
            self.took += TOOK_STEP * (seconds - self.took)
            self.rates.late = LATE_PER_S * max(self.took - self.late_s, 0.0)
        if not self.learns:
            return 0
        self.cover(slot + 1)
        if tokens >= 0.0 and seconds >= 0.0:
            pace_learn(&self.paces[slot], tokens / 1000.0, seconds)
            if tokens <= self.sites[slot].room:
                pace_learn(&self.tempos[slot].calm, tokens / 1000.0, seconds)
        return 0

    cdef int learn_tempo(self, Py_ssize_t slot, double output, const Decoding* seen) except -1:
        cdef double batch = self.rates.context * seen.context + self.rates.sequence * seen.running
        if self.learns and slot >= 0 and output >= TEMPO_OUTPUT and seen.seconds > 0.0:
            self.cover(slot + 1)
            tempo_learn(&self.tempos[slot], output - 1.0, seen.seconds, batch, seen.prefilled)
        return 0

    cpdef int began(self, Ledger book, int64_t ticket, int slot, double now) except -1:
        cdef double seconds, tokens = book.line_of(ticket, now, &seconds)
        return self.learn(slot, tokens, seconds) if tokens >= 0.0 else 0

    cpdef int ended(self, Ledger book, int64_t ticket, int slot, double made, double now) except -1:
        cdef Decoding seen
        return self.learn_tempo(slot, made, &seen) if book.decoding_of(ticket, now, &seen) else 0

    def streamed(self, Py_ssize_t slot, double output, double seconds, tuple beside):
        cdef Decoding seen = Decoding(seconds, beside[0], beside[1], beside[2])
        if isfinite(output + seconds + sum(beside)):
            self.learn_tempo(slot, output, &seen)

    def heard(self, Py_ssize_t slot, double tokens, double seconds):
        self.learn(slot, tokens, seconds)

    def forget(self, Py_ssize_t slot):
        if 0 <= slot < self.slots:
            self.blank(slot)

    def move(self, Py_ssize_t slot, double tokens):
        if not (isfinite(tokens) and tokens >= 0.0 and slot >= 0):
            raise ValueError(f"tokens must be finite and not negative, slot too: {tokens}, {slot}")
        self.cover(slot + 1)
        self.sites[slot].away = tokens

    def holds(self, Py_ssize_t slot, double capacity, double usage):
        if not (isfinite(capacity) and capacity >= 0.0 and 0.0 <= usage <= 1.0 and slot >= 0):
            raise ValueError(f"{capacity} tokens, usage {usage} or slot {slot} is out of range")
        self.cover(slot + 1)
        self.sites[slot].room, self.sites[slot].used = INFINITY, 1.0
        self.tempos[slot].usage = usage if capacity >= 1.0 else 0.0
        if capacity >= 1.0:
            self.sites[slot].room = (1.0 - usage - self.reserve) * capacity
            self.sites[slot].used = max(usage, USED_LEAST) * capacity

    def pace(self, Py_ssize_t slot):
        if not 0 <= slot < self.slots:
            return (1.0, 0.0, 0.0, 0)
        pace = self.paces[slot]
        return (self.sites[slot].factor, pace.base, pace.slope / 1000.0, int(pace.count))

    def foretold(self, Py_ssize_t slot):
        if not 0 <= slot < self.slots:
            return (0, 0.0, 0.0, 0.0)
        pace = self.paces[slot]
        return (int(pace.told), pace.foretold, pace.took, pace.missed)

    cdef void compare(self) noexcept nogil:
        cdef double middle = pace_middle(self.paces, self.slots)
        cdef Py_ssize_t at
        for at in range(self.slots):
            self.sites[at].factor = pace_factor(&self.paces[at], middle)
            self.tempos[at].pace = self.sites[at].factor

    cdef void follow(self) noexcept nogil:
        # What was heard is seconds a token of the prompts there, with their attention.
        cdef double heard = tempo_prefill(self.tempos, self.slots) / self.rates.work
        if heard > 0.0:
            self.seconds = seconds_toward(self.seconds, heard)

    cdef void contrast(self) noexcept nogil:
        cdef Py_ssize_t at
        tempo_contrast(self.tempos, self.slots)
        for at in range(self.slots):
            self.sites[at].slower = self.quickness * self.tempos[at].slower / self.seconds

    def tempo(self, Py_ssize_t slot):
        if not 0 <= slot < self.slots:
            return (1.0, 0.0, 0.0, 0.0, 0)
        it = self.tempos[slot]
        return (it.factor, it.base, it.load / 1000.0, it.stall / 1000.0, int(it.count))

    cdef void note(self, double prompt, double hit) noexcept nogil:
        cdef double own = own_work(&self.rates, prompt - hit, hit)
        self.arrived += 1.0
        self.worked += own
        self.mean_own += MEAN_STEP * (own - self.mean_own)
        self.mean_uncached += MEAN_STEP * (prompt - hit - self.mean_uncached)
        self.mean_prompt += MEAN_STEP * (prompt - self.mean_prompt)
        self.rates.uncached = max(self.mean_uncached, LEAST_PROMPT)

    def placed(self, double prompt, double hit):
        self.note(prompt, hit)

    def damp(self, double share):
        if not (isfinite(share) and share >= 0.0):
            raise ValueError(f"share must be finite and not negative: {share}")
        self.rates.tie = share

    def others(self, double rate, double work):
        if not (isfinite(rate) and isfinite(work) and rate >= 0.0 and work >= 0.0):
            raise ValueError(f"others' rates must be finite and not negative: {rate}, {work}")
        self.other_rate, self.other_work = rate, work

    def tick(self, double now, Py_ssize_t replicas, double output, double requests=0.0):
        cdef double kept, rate, rho, stay
        if self.at < 0.0 or now <= self.at or replicas < 1:
            self.at = now if self.at < 0.0 else self.at
            return
        kept = exp(-(now - self.at) / self.window)
        self.known = self.known * kept + (now - self.at)
        self.at = now
        self.compare()
        self.follow()
        self.contrast()
        self.own_rate = self.arrived / self.known
        self.own_work = self.worked / self.known
        rate = (self.own_rate + self.other_rate) / replicas
        rho = (self.own_work + self.other_work) * self.seconds / replicas
        rho = rho if rho < self.rho_cap else self.rho_cap
        self.rates.ahead = self.strength * rate * self.seconds / (1.0 - rho)
        stay = requests / self.own_rate if self.own_rate > 0.0 else 0.0  # Little's law
        stay = stay if 0.0 <= stay < STAY_MOST else STAY_MOST
        self.rates.stay = self.scarcity * stay / self.seconds
        self.rates.output = output if isfinite(output) and output > 0.0 else 0.0
        if self.mean_uncached > 1.0:
            self.rates.work = self.mean_own / self.mean_uncached
        self.rates.distance = self.far * self.mean_own
        self.arrived *= kept
        self.worked *= kept

    def prices(self, double prompt, hits, waiting, running, placed, mask, out):
        return self.told(prompt, hits, waiting, running, placed, mask, out, None)

    def terms(self, double prompt, hits, waiting, running, placed, mask):
        size = len(mask)
        out, parts = new_array("d", bytes(8 * size)), new_array("d", bytes(8 * TERMS * size))
        self.told(prompt, hits, waiting, running, placed, mask, out, parts)
        return [
            dict(zip(NAMES, parts[TERMS * at:TERMS * (at + 1)], strict=True)) for at in range(size)
        ]

    cdef object told(self, double prompt, hits, waiting, running, placed, mask, out, parts):
        cdef Scope scope
        cdef Column held, line, busy, filled, kept, prices, terms
        cdef double greatest
        scope.held = 0
        terms.data = NULL
        try:
            borrow(&scope, mask, b"B", &kept)
            borrow(&scope, hits, b"d", &held)
            borrow(&scope, waiting, b"d", &line)
            borrow(&scope, running, b"d", &busy)
            borrow(&scope, placed, b"d", &filled)
            borrow_out(&scope, out, b"d", &prices)
            if parts is not None:
                borrow_out(&scope, parts, b"d", &terms)
            for each, name in ((held.size, "hits"), (line.size, "waiting"),
                               (busy.size, "running"), (filled.size, "placed"),
                               (prices.size, "out")):
                if each < kept.size:
                    raise ValueError(f"{name} has {each} slots, {kept.size} are needed")
            self.cover(kept.size)
            greatest = fill_prices(
                &self.rates, self.sites, prompt, <const double*>held.data,
                <const double*>line.data, <const double*>busy.data, <const double*>filled.data,
                <const uint8_t*>kept.data, kept.size, <double*>prices.data, <double*>terms.data,
            )
            if not isfinite(greatest):
                raise ValueError("a price is not finite")
            return greatest
        finally:
            give_back(&scope)

    @property
    def reuse(self):
        return 1.0 - self.mean_uncached / self.mean_prompt if self.mean_prompt > 0.0 else 0.0

    @property
    def ahead(self):
        return self.rates.ahead

    @property
    def work(self):
        return self.rates.work


def _fail_alloc_after(n):
    wl_alloc_fail_after(n)
