"""The decision of one pool and its later events, for plain text prompts under the default mix.

`Desk` is the compiled half of `router.lane.Lane`, which does the same for every other request and
is the oracle of the tests: from the body's `Plain` to keys, match, mix, reservation; and from the
answer to what it teaches. A `Lead` is all that a model name leads to, found once and used until the
pool changes. A `Pick` is one decided request; its owner keeps it: nothing is allocated per request.
"""
from cpython cimport array
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from warmlane._core.answer_found cimport Answer
from warmlane._core.journal cimport Journal
from warmlane._core.ledger cimport Ledger
from warmlane._core.mix cimport Mix
from warmlane._core.plain cimport Plain
from warmlane._core.runs cimport RunTree
from warmlane._core.scan cimport BodyWalk
from warmlane._core.trust cimport Trust
from warmlane._core.upkeep cimport Placements

cdef enum:
    MOST_SLOTS = 16
    MOST_BLOCK = 232


# Sums over answers of one slot and sort, for the watchdog.
cdef struct Evidence:
    double requests, prompt, predicted, cached


cdef struct Pick:
    int64_t ticket              # of the ledger; 0: none is open
    int32_t slots[16]           # best first
    int64_t hits[16]            # whole predicted hit tokens of each
    int count
    double prompt_tokens        # estimated
    double raw_hit              # of the first slot, before trust
    uint64_t root
    uint64_t *keys              # of the prompt's full blocks
    size_t key_count
    size_t key_room
    size_t prompt_size          # bytes
    uint8_t carry[232]          # the prompt's bytes behind its last full block
    size_t carry_size
    bint chat                   # for the watchdog: anything but completions
    int turn                    # how the next turn sends the answer: TURN_*

cdef enum:  # turn
    TURN_NONE, TURN_CHAT, TURN_PLAIN


cdef class Lead:
    cdef readonly Desk desk
    cdef readonly object side           # what the face keeps of the pool
    cdef readonly object target         # what the name means
    cdef array.array mask               # 'B'
    cdef uint64_t root
    cdef object link_of                 # slot -> link
    cdef list links                     # by slot, None: not asked for yet
    cdef object names                   # slot -> the replica's name
    cdef object metrics
    cdef list hit_cells                 # by slot
    cdef list request_keys              # by slot, kind, and whether the status is 0 or 200
    cdef dict requests
    cdef list ttft
    cdef list duration
    cdef list decision

    cdef object link(self, Py_ssize_t slot)


cdef class Desk:
    cdef Ledger ledger
    cdef Mix mix
    cdef Trust trust
    cdef RunTree tree                   # of text blocks; None until there is one
    cdef public bint apart              # ties go by the prompt's head (see router.apart)
    cdef public Journal journal         # of what is booked, for other routers; None: nobody reads
    cdef array.array blocks             # 'i', scratch
    cdef Placements pool
    cdef object foreign                 # of the pool: `some` says whether there is any
    cdef size_t block                   # bytes
    cdef public double ratio            # bytes a token
    cdef public double output_tokens    # mean of answers
    cdef public int64_t learned_bytes   # told and not yet passed on
    cdef public int64_t learned_tokens
    cdef Evidence *evidence             # by slot * SORTS + sort, since it was last taken
    cdef Py_ssize_t evidence_slots

    cdef int note(
        self, Py_ssize_t slot, bint told, bint chat, double prompt, double predicted, double cached
    ) except -1

    # The keys of a prompt whose walk has come to it (see plain.pxd); 0: it is not for this path.
    # work: body size + PLAIN_SLACK bytes, lent until `choose`.
    cdef int read(
        self, Lead lead, BodyWalk *walk, Plain *plain, size_t size, int kind, uint8_t *work,
        Pick *pick,
    ) except -1
    # Choose and reserve, from what was read; 0: it is not for this path, nothing happened.
    cdef int choose(
        self, Lead lead, const Plain *plain, int kind, double now, uint64_t rand, Pick *pick
    ) except -1
    cdef int sent(self, Pick *pick) except -1
    cdef int book(self, int slot, const uint64_t *keys, size_t count) except -1
    cdef int first_token(self, Lead lead, Pick *pick, double now) except -1
    # A streamed first token was seen (not predicted, no whole answer): before `first_token`.
    cdef int learn_pace(self, Pick *pick, double now) except -1
    # The end of a good answer. answer: what it said, NULL when it was not read.
    cdef int settle(self, Lead lead, Pick *pick, const Answer *answer, double now) except -1
    # The end of another one, which teaches nothing: its slot, -1 when it was closed before.
    cdef int fail(self, Lead lead, Pick *pick, double now) except -2
    cdef int learn(
        self, Lead lead, Pick *pick, const Answer *answer, int slot, double now
    ) except -1
    cdef int next_turn(self, Pick *pick, const Answer *answer, int slot) except -1


# One more observation in a histogram's cell (see router.metrics).
cdef int observe(list cell, tuple bounds, double value) except -1
# One more request of this kind that was answered with this status; 0: nobody saw it.
cdef int count_done(Lead lead, Py_ssize_t slot, int kind, int status) except -1
cdef int note_decision(Lead lead, double seconds) except -1
cdef void free_pick(Pick *pick) noexcept
cdef tuple slots_of(const Pick *pick)
cdef tuple hits_of(const Pick *pick)
