"""How far predicted prefix hits come true (see trust.pxd; meanings in trust.pyi)."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport pow
from libc.string cimport memset

from array import array


cdef extern from "alloc.h":
    void* wl_calloc(size_t count, size_t size_bytes) nogil
    void wl_free(void* block) nogil
    void wl_alloc_fail_after(long n)

FLOOR = 0.1  # a replica that is never believed would never be tried again
cdef double LEAST = 0.1
cdef double DECAY_STEP_S = 1.0  # ages within it count as none: a power an answer is saved


cdef class Trust:
    def __cinit__(
        self, Py_ssize_t slots=4096, *, double half_life_s=120.0, double prior_tokens=4096.0,
        int min_samples=4,
    ):
        if not 1 <= slots <= 1 << 20:
            raise ValueError(f"slots is {slots}, must be 1 to 2**20")
        if not half_life_s > 0 or not prior_tokens > 0:
            raise ValueError("half_life_s and prior_tokens must be positive")
        self.slots = slots
        self.half_life = half_life_s
        self.prior = prior_tokens
        self.min_samples = min_samples
        self.beliefs = <Belief*>wl_calloc(<size_t>slots, sizeof(Belief))
        if self.beliefs == NULL:
            raise MemoryError
        self.factors = array("d", [1.0]) * slots
        PyObject_GetBuffer(self.factors, &self.view, PyBUF_WRITABLE)
        self.held = True
        self.factor = <double*>self.view.buf

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)
        wl_free(self.beliefs)

    # ---- core: trusts its callers -----------------------------------------------------

    cdef Belief* of(self, Py_ssize_t slot) except NULL:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slot {slot} of {self.slots}")
        return &self.beliefs[slot]

    cdef void set_factor(self, Py_ssize_t slot) noexcept:
        cdef Belief* belief = &self.beliefs[slot]
        cdef double ratio
        if belief.samples < self.min_samples:
            return
        ratio = (belief.actual + self.prior) / (belief.predicted + self.prior)
        self.factor[slot] = LEAST if ratio < LEAST else ratio if ratio < 1.0 else 1.0

    cdef void decay(self, Py_ssize_t slot, double now) noexcept:
        cdef Belief* belief = &self.beliefs[slot]
        cdef double age = now - belief.updated
        cdef double kept = pow(0.5, (age if age > 0 else 0.0) / self.half_life)
        belief.updated = now
        belief.predicted *= kept
        belief.actual *= kept
        self.set_factor(slot)

    cdef void learn(self, Py_ssize_t slot, double predicted, double actual, double now) noexcept:
        cdef Belief* belief = &self.beliefs[slot]
        if now - belief.updated >= DECAY_STEP_S:
            self.decay(slot, now)
        belief.predicted += predicted
        belief.actual += actual if actual > 0 else 0.0
        if belief.samples < self.min_samples:
            belief.samples += 1
        self.set_factor(slot)

    # ---- face: checks -------------------------------------------------------------------

    def sent(self, Py_ssize_t slot, double predicted_tokens, double prompt_tokens):
        cdef Belief* belief = self.of(slot)
        belief.sent_predicted += predicted_tokens
        belief.sent_prompt += prompt_tokens

    def answered(
        self, Py_ssize_t slot, double predicted_tokens, double cached_tokens, double prompt_tokens,
        double now,
    ):
        self.of(slot).answered_prompt += prompt_tokens
        if predicted_tokens > 0:
            if cached_tokens > predicted_tokens:
                cached_tokens = predicted_tokens
            self.learn(slot, predicted_tokens, cached_tokens, now)

    def scraped(self, Py_ssize_t slot, queries, hits, double now):
        cdef Belief* belief = self.of(slot)
        cdef double predicted = belief.sent_predicted, prompt = belief.sent_prompt
        cdef double answered = belief.answered_prompt, new_queries, new_hits, ours
        cdef bint known = belief.scraped
        belief.sent_predicted = belief.sent_prompt = belief.answered_prompt = 0.0
        if queries is None or hits is None:
            return False
        new_queries, new_hits = queries, hits
        new_queries, new_hits = new_queries - belief.queries, new_hits - belief.hits
        belief.queries, belief.hits, belief.scraped = queries, hits, True
        if not known:
            return False
        if new_queries < 0 or new_hits < 0:
            return True
        if predicted > 0 and new_queries > 0 and answered < 0.5 * prompt:
            ours = min(1.0, prompt / new_queries)
            self.learn(slot, predicted, min(new_hits * ours, predicted), now)
        elif belief.samples:
            self.decay(slot, now)
        return False

    def reset(self, Py_ssize_t slot):
        memset(self.of(slot), 0, sizeof(Belief))
        self.factor[slot] = 1.0


def _fail_alloc_after(n):
    wl_alloc_fail_after(n)
