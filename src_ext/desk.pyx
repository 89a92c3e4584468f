"""One pool's decisions for plain text prompts. See desk.pxd for the contract.

Cost: 1.5 us a decision of 32 blocks among 8 replicas, all later events 1 us.
"""
cimport cython
from cpython cimport array
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport isfinite
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from array import array as new_array

from warmlane._core.answer_found cimport tokens_of
from warmlane._core.hashing cimport wl_block_key
from warmlane._core.json_text cimport wl_chain
from warmlane._core.plain cimport most_keys, plain_keys


cdef extern from "alloc.h" nogil:
    void *wl_realloc(void *old, size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef enum:
    SORTS = 4               # of evidence: told or not, chat or not
    KINDS = 6               # of requests, see scan.pyx
    KEPT_KEYS = 4096        # a longer chain's memory is given back after its request
    LENGTH_PORTION = 4096   # tokens: a sample of a few thousand is a good one
    HEAD_BYTES = 8192       # of text: 2,048 tokens (router.prefix)
    K_CHAT = 0
    K_COMPLETIONS = 1
    K_EMBEDDINGS = 4

cdef double MEAN_STEP = 0.02        # exponential mean over about the last 50 answers
cdef double TOKEN_LIMIT = 2.0 ** 40
# The next turn sends the answer as this message (markers of json_text.h: message, content).
cdef const char *ASSISTANT_TURN = b"\xffassistant\xfe"
cdef enum:
    TURN_SIZE = 11

# Bounds of the three histograms; set by the owner of the names (router.metrics).
cdef tuple TTFT = ()
cdef tuple DURATION = ()
cdef tuple DECISION = ()
cdef tuple KIND_NAMES = ()          # label values, in the order of scan.pyx


def set_bounds(tuple ttft, tuple duration, tuple decision, tuple kinds):
    """The histograms' bounds in seconds (time to first token, duration, decision), kinds' names."""
    global TTFT, DURATION, DECISION, KIND_NAMES
    TTFT, DURATION, DECISION, KIND_NAMES = ttft, duration, decision, kinds


cdef int observe(list cell, tuple bounds, double value) except -1:
    # A value exactly on a bound counts into that bucket.
    cdef Py_ssize_t low = 0, middle, high = PyTuple_GET_SIZE(bounds)
    while low < high:
        middle = (low + high) >> 1
        if PyFloat_AS_DOUBLE(<object>PyTuple_GET_ITEM(bounds, middle)) < value:
            low = middle + 1
        else:
            high = middle
    cell[low] += 1
    low = len(cell) - 1
    cell[low] = <double>cell[low] + value
    return 0


@cython.final
cdef class Lead:
    """Where a model name leads, until its pool changes.

    mask: the replicas that may serve it. link_of, names: slot -> link, slot -> replica name.
    """

    def __init__(
        self, Desk desk not None, side, target, array.array mask not None, uint64_t root, metrics,
        link_of, names,
    ):
        cdef Py_ssize_t size = len(mask)
        self.desk = desk
        self.side = side
        self.target = target
        self.mask = mask
        self.root = root
        self.metrics = metrics
        self.link_of = link_of
        self.names = names
        self.links = [None] * size
        self.hit_cells = [None] * size
        self.request_keys = [None] * (2 * KINDS * size)
        self.requests = metrics.requests
        self.ttft, self.duration, self.decision = metrics.cells(side.name)

    cdef object link(self, Py_ssize_t slot):
        found = self.links[slot]
        if found is None:
            found = self.links[slot] = self.link_of(slot)
        return found


cdef int count_done(Lead lead, Py_ssize_t slot, int kind, int status) except -1:
    cdef Py_ssize_t at = 2 * (slot * KINDS + kind) + (status == 0)
    if status != 0 and status != 200:
        lead.metrics.request_done(lead.side.name, lead.names(slot), KIND_NAMES[kind], status)
        return 0
    key = lead.request_keys[at]
    if key is None:
        key = lead.request_keys[at] = (
            lead.side.name, lead.names(slot), KIND_NAMES[kind], status
        )
    lead.requests[key] = lead.requests.get(key, 0) + 1
    return 0


cdef int note_decision(Lead lead, double seconds) except -1:
    return observe(lead.decision, DECISION, seconds)


cdef void free_pick(Pick *pick) noexcept:
    wl_free(pick.keys)
    pick.keys = NULL
    pick.key_room = pick.key_count = 0


cdef int reserve(Pick *pick, size_t count) except -1:
    cdef uint64_t *grown
    if count > pick.key_room:
        count += count >> 1
        grown = <uint64_t *>wl_realloc(pick.keys, count * 8)
        if grown == NULL:
            raise MemoryError("no memory for block keys")
        pick.keys, pick.key_room = grown, count
    return 0


cdef tuple slots_of(const Pick *pick):
    return tuple([pick.slots[at] for at in range(pick.count)])


cdef tuple hits_of(const Pick *pick):
    return tuple([pick.hits[at] for at in range(pick.count)])


cdef class Desk:
    """The compiled half of a lane; see desk.pxd."""

    def furnish(
        self, Ledger ledger not None, Trust trust not None, Placements pool not None,
        size_t block, mix,
    ):
        """What it decides with. block: bytes of a text block; mix: None for no default mix."""
        if not 1 <= block <= MOST_BLOCK:
            raise ValueError(f"block is {block}, must be 1 to 232 bytes")
        self.ledger = ledger
        self.trust = trust
        self.pool = pool
        self.foreign = pool.foreign
        self.block = block
        self.mix = mix
        self.blocks = new_array("i")

    def set_tree(self, RunTree tree):
        """Who holds which text blocks; None: nobody holds any yet."""
        self.tree = tree

    def _learn_length(self):
        raise NotImplementedError

    def _charge(self, slot, tokens):
        raise NotImplementedError

    def __dealloc__(self):
        wl_free(self.evidence)

    cdef int note(
        self, Py_ssize_t slot, bint told, bint chat, double prompt, double predicted, double cached
    ) except -1:
        cdef Py_ssize_t slots = max(slot + 1, 2 * self.evidence_slots)
        cdef Evidence *sums
        if slot >= self.evidence_slots:
            sums = <Evidence *>wl_realloc(self.evidence, slots * SORTS * sizeof(Evidence))
            if sums == NULL:
                raise MemoryError("no memory for evidence")
            self.evidence = sums
            memset(
                &sums[self.evidence_slots * SORTS], 0,
                (slots - self.evidence_slots) * SORTS * sizeof(Evidence),
            )
            self.evidence_slots = slots
        sums = &self.evidence[slot * SORTS + 2 * told + chat]
        sums.requests += 1
        sums.prompt += prompt
        sums.predicted += predicted
        sums.cached += cached
        return 0

    def take_evidence(self):
        """Sums since the last call: (slot, told, chat, requests, prompt, predicted, cached)."""
        cdef Py_ssize_t at
        cdef Evidence *sums
        cdef list found = []
        for at in range(self.evidence_slots * SORTS):
            sums = &self.evidence[at]
            if sums.requests > 0:
                found.append((
                    at // SORTS, at % SORTS >= 2, at % 2 == 1, sums.requests, sums.prompt,
                    sums.predicted, sums.cached,
                ))
                sums.requests = sums.prompt = sums.predicted = sums.cached = 0
        return found

    cdef int read(
        self, Lead lead, BodyWalk *walk, Plain *plain, size_t size, int kind, uint8_t *work,
        Pick *pick,
    ) except -1:
        cdef wl_chain chain
        pick.ticket = 0
        if self.tree is None or self.mix is None:
            return 0
        reserve(pick, most_keys(size, self.block))
        chain.parent, chain.block = lead.root, self.block
        chain.keys, chain.room = pick.keys, pick.key_room
        if not plain_keys(walk, plain, size, kind, &chain, work):
            return 0
        pick.root, pick.key_count, pick.prompt_size = lead.root, chain.count, plain.prompt_size
        pick.carry_size = plain.carry_size
        memcpy(pick.carry, plain.carry, pick.carry_size)
        return 1

    cdef int choose(
        self, Lead lead, const Plain *plain, int kind, double now, uint64_t rand, Pick *pick
    ) except -1:
        cdef Py_ssize_t size = len(lead.mask)
        cdef size_t at, count = pick.key_count
        cdef uint32_t best = 0
        cdef double prompt = plain.prompt_size / self.ratio
        cdef double output = self.output_tokens
        cdef int32_t *blocks
        cdef double *hits
        cdef double hit
        if not isfinite(prompt) or prompt > TOKEN_LIMIT:
            return 0
        if len(self.blocks) != size:
            self.blocks = new_array("i", bytes(4 * size))
        blocks = <int32_t *>self.blocks.data.as_ints
        self.pool.make_fresh(now)
        if self.apart and count:
            rand = pick.keys[min(count, max(HEAD_BYTES // self.block, <size_t>1)) - 1]
        if count:
            best = self.tree.match_keys(pick.keys, count, blocks, size)
        pick.count = self.mix.pick(
            blocks if best else NULL, self.block / self.ratio, prompt, lead.mask,
            self.foreign.some, rand, pick.slots,
        )
        if pick.count < 1:
            return 0
        hits = self.mix.hits.data.as_doubles
        for at in range(<size_t>pick.count):
            pick.hits[at] = <int64_t>hits[pick.slots[at]]
        hit = hits[pick.slots[0]]
        if 0 <= plain.max_tokens < output:
            output = plain.max_tokens
        pick.ticket = self.ledger.enter(pick.slots[0], prompt - hit, prompt, now, output)
        if pick.ticket == 0:
            return 0
        self.pool.place(pick.slots[0], prompt - hit)
        pick.prompt_tokens = <double><int64_t>prompt
        pick.raw_hit = hit / self.trust.factor[pick.slots[0]] if hit != 0.0 else 0.0
        pick.chat = kind != K_COMPLETIONS
        pick.turn = TURN_CHAT
        if kind == K_EMBEDDINGS:
            pick.turn = TURN_NONE
        elif kind == K_COMPLETIONS:
            pick.turn = TURN_NONE if plain.several else TURN_PLAIN
        return 1

    cdef int sent(self, Pick *pick) except -1:
        return self.book(pick.slots[0], pick.keys, pick.key_count)

    cdef int book(self, int slot, const uint64_t *keys, size_t count) except -1:
        if self.journal is not None:
            self.journal.note(slot, 0, keys, count)
        return self.tree.touch_keys(slot, keys, count)

    cdef int learn_pace(self, Pick *pick, double now) except -1:
        if self.mix is not None and self.mix.price is not None:
            self.mix.price.began(self.ledger, pick.ticket, pick.slots[0], now)
        return 0

    cdef int first_token(self, Lead lead, Pick *pick, double now) except -1:
        cdef double seconds = self.ledger.begin_decoding(pick.ticket, now)
        if seconds >= 0:
            observe(lead.ttft, TTFT, seconds)
            self.trust.beliefs[pick.slots[0]].sent_predicted += pick.raw_hit
            self.trust.beliefs[pick.slots[0]].sent_prompt += pick.prompt_tokens
        return 0

    cdef int settle(self, Lead lead, Pick *pick, const Answer *answer, double now) except -1:
        cdef int slot
        if answer != NULL and self.mix is not None and self.mix.price is not None:
            slot = pick.slots[0]
            self.mix.price.ended(self.ledger, pick.ticket, slot, tokens_of(answer), now)
        slot = self.fail(lead, pick, now)
        if slot >= 0:
            self.learn(lead, pick, answer, slot, now)
        if pick.key_room > KEPT_KEYS:
            free_pick(pick)
        return 0

    cdef int fail(self, Lead lead, Pick *pick, double now) except -2:
        cdef double seconds
        cdef int slot = self.ledger.leave(pick.ticket, now, &seconds)
        pick.ticket = 0
        if slot >= 0:
            observe(lead.duration, DURATION, seconds)
        return slot

    cdef int learn(
        self, Lead lead, Pick *pick, const Answer *answer, int slot, double now
    ) except -1:
        cdef int64_t prompt = -1, cached = -1, output = -1, predicted = pick.hits[0]
        cdef list cell = lead.hit_cells[slot]
        if answer != NULL:
            prompt, output = answer.prompt_count, answer.output_count
            cached = max(answer.cached, answer.cache_read)
            if prompt >= 0:
                prompt += max(answer.cache_read, <int64_t>0) + max(answer.cache_made, <int64_t>0)
        if output >= 0:
            self.output_tokens += MEAN_STEP * (output - self.output_tokens)
        if prompt < 0:
            prompt = <int64_t>pick.prompt_tokens
        else:
            self.learned_bytes += pick.prompt_size
            self.learned_tokens += prompt
            if self.learned_tokens >= LENGTH_PORTION:
                self._learn_length()
        if cell is None:
            cell = lead.hit_cells[slot] = lead.metrics.hit_cell(lead.side.name, lead.names(slot))
        self.note(slot, cached >= 0, pick.chat, prompt, pick.raw_hit, max(cached, <int64_t>0))
        cell[0] += prompt
        cell[1] += predicted
        if cached >= 0:
            self.trust.beliefs[slot].answered_prompt += prompt
            if pick.raw_hit > 0:
                self.trust.learn(slot, pick.raw_hit, min(<double>cached, pick.raw_hit), now)
            cell[2] += prompt
            cell[3] += predicted
            cell[4] += cached
            if predicted > cached:
                cell[5] += predicted - cached
            else:
                cell[6] += cached - predicted
        if answer != NULL and answer.text_size:
            return self.next_turn(pick, answer, slot)
        if output > 0:
            self._charge(slot, output)
        return 0

    cdef int next_turn(self, Pick *pick, const Answer *answer, int slot) except -1:
        # Touch the prompt as the next turn will send it: prompt, then the generated text.
        cdef uint8_t block[MOST_BLOCK + 24]  # the compiler sees reads of long blocks, too
        cdef uint64_t parent
        cdef const uint8_t *p = answer.text
        cdef const uint8_t *end = p + answer.text_size
        cdef const uint8_t *turn = <const uint8_t *>ASSISTANT_TURN
        cdef size_t ahead = TURN_SIZE if pick.turn == TURN_CHAT else 0
        cdef size_t filled = pick.carry_size, take
        if pick.turn != TURN_NONE:
            reserve(pick, pick.key_count + (filled + ahead + answer.text_size) // self.block)
            parent = pick.keys[pick.key_count - 1] if pick.key_count else pick.root
            memcpy(block, pick.carry, filled)
            while True:
                if ahead:
                    take = min(self.block - filled, ahead)
                    memcpy(block + filled, turn, take)
                    turn += take
                    ahead -= take
                else:
                    take = min(self.block - filled, <size_t>(end - p))
                    memcpy(block + filled, p, take)
                    p += take
                filled += take
                if filled == self.block:
                    parent = wl_block_key(parent, block, self.block)
                    pick.keys[pick.key_count] = parent
                    pick.key_count += 1
                    filled = 0
                elif not ahead and p == end:
                    break
        return self.book(slot, pick.keys, pick.key_count)


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
