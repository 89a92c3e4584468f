"""See price.pxd for the formula and price.pyi for meanings. 10 ns a replica."""

cimport cython
from libc.math cimport INFINITY, exp, isfinite
from libc.stdint cimport uint8_t

from warmlane._core.columns cimport Column, Scope, borrow, borrow_out, give_back

cdef double MEAN_STEP = 0.005  # exponential mean over about the last 200 decisions


cdef double own_work(const Rates* rates, double uncached, double cached) noexcept nogil:
    return uncached + rates.pair * uncached * (cached + uncached / 2.0)


cdef double fill_prices(
    const Rates* rates, double prompt, const double* hits, const double* waiting,
    const double* running, const double* placed, const uint8_t* kept, Py_ssize_t size,
    double* prices,
) noexcept nogil:
    cdef double most = 0.0, total = 0.0, own, ahead, decode, count = 0.0, greatest = 0.0
    cdef double least = INFINITY, filled, crowd, best = INFINITY
    cdef Py_ssize_t at
    for at in range(size):
        if kept[at]:
            most = hits[at] if hits[at] > most else most
            total += waiting[at]
            count += 1.0
            least = placed[at] if placed[at] < least else least
    ahead = rates.ahead * rates.work * total / count if count else 0.0
    decode = rates.output * (rates.context * (prompt + rates.output / 2.0) + rates.sequence)
    for at in range(size):
        if not kept[at]:
            continue
        own = own_work(rates, prompt - hits[at], hits[at])
        crowd = running[at] if running[at] < rates.crowd else rates.crowd
        filled = rates.spread * (placed[at] - least)
        prices[at] = (
            waiting[at] * rates.work
            + own * (1.0 + ahead + rates.interference * crowd)
            + rates.decode * running[at] * decode
            + rates.copy * own_work(rates, most - hits[at], hits[at])
            + (filled if filled < rates.spread_limit else rates.spread_limit)
        )
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


@cython.final
cdef class Price:
    def __init__(
        self, *, double pair=3.5e-5, double interference=0.3, double decode=0.3,
        double context=1e-3, double sequence=0.2, double copy=1.0, double strength=2.0,
        double seconds_per_token=40e-6, double rho_cap=0.9, double window_s=60.0,
        double output=256.0, double spread=0.005, double spread_limit=4096.0,
        double crowd=20.0,
    ):
        given = (pair, interference, decode, context, sequence, copy, strength, output,
                 spread, spread_limit, crowd)
        if not all(isfinite(each) and each >= 0.0 for each in given):
            raise ValueError("the price's constants must be finite and not negative")
        if not (0.0 < seconds_per_token < 1.0 and 0.0 <= rho_cap < 1.0 and window_s > 0.0):
            raise ValueError("seconds_per_token, rho_cap or window_s is out of range")
        self.rates.pair, self.rates.interference = pair, interference
        self.rates.decode, self.rates.context = decode, context
        self.rates.sequence, self.rates.copy = sequence, copy
        self.rates.output = output
        self.rates.crowd = crowd
        self.rates.spread, self.rates.spread_limit = spread, spread_limit
        self.rates.ahead, self.rates.work, self.rates.tie = 0.0, 1.0, 0.0
        self.strength, self.seconds = strength, seconds_per_token
        self.rho_cap, self.window = rho_cap, window_s
        self.arrived = self.worked = self.known = 0.0
        self.at = -1.0
        self.mean_own = self.mean_uncached = self.mean_prompt = 0.0
        self.own_rate = self.own_work = self.other_rate = self.other_work = 0.0

    cdef void note(self, double prompt, double hit) noexcept nogil:
        cdef double own = own_work(&self.rates, prompt - hit, hit)
        self.arrived += 1.0
        self.worked += own
        self.mean_own += MEAN_STEP * (own - self.mean_own)
        self.mean_uncached += MEAN_STEP * (prompt - hit - self.mean_uncached)
        self.mean_prompt += MEAN_STEP * (prompt - self.mean_prompt)

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

    def tick(self, double now, Py_ssize_t replicas, double output):
        cdef double kept, rate, rho
        if self.at < 0.0 or now <= self.at or replicas < 1:
            self.at = now if self.at < 0.0 else self.at
            return
        kept = exp(-(now - self.at) / self.window)
        self.known = self.known * kept + (now - self.at)
        self.at = now
        self.own_rate = self.arrived / self.known
        self.own_work = self.worked / self.known
        rate = (self.own_rate + self.other_rate) / replicas
        rho = (self.own_work + self.other_work) * self.seconds / replicas
        rho = rho if rho < self.rho_cap else self.rho_cap
        self.rates.ahead = self.strength * rate * self.seconds / (1.0 - rho)
        self.rates.output = output if isfinite(output) and output > 0.0 else 0.0
        if self.mean_uncached > 1.0:
            self.rates.work = self.mean_own / self.mean_uncached
        self.arrived *= kept
        self.worked *= kept

    def prices(self, double prompt, hits, waiting, running, placed, mask, out):
        cdef Scope scope
        cdef Column held, line, busy, filled, kept, prices
        cdef double greatest
        scope.held = 0
        try:
            borrow(&scope, mask, b"B", &kept)
            borrow(&scope, hits, b"d", &held)
            borrow(&scope, waiting, b"d", &line)
            borrow(&scope, running, b"d", &busy)
            borrow(&scope, placed, b"d", &filled)
            borrow_out(&scope, out, b"d", &prices)
            for each, name in ((held.size, "hits"), (line.size, "waiting"),
                               (busy.size, "running"), (filled.size, "placed"),
                               (prices.size, "out")):
                if each < kept.size:
                    raise ValueError(f"{name} has {each} slots, {kept.size} are needed")
            greatest = fill_prices(
                &self.rates, prompt, <const double*>held.data, <const double*>line.data,
                <const double*>busy.data, <const double*>filled.data,
                <const uint8_t*>kept.data, kept.size, <double*>prices.data,
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
