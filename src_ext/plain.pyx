"""Keys of a plain text prompt straight from the body. See plain.pxd for the contract.

Cost: 0.9 us for 4 KB, 3.5 us for 64 KB of prose; 1.5 us more for 64 KB where the model's name comes
after the prompt.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr

from warmlane._core.hashing cimport KeyArray, new_keys
from warmlane._core.json_text cimport (
    WL_SLACK, wl_chain, wl_key_waiting, wl_skip_value,
)
from warmlane._core.scan cimport (
    AT_MAIN, F_EC, F_KV, F_LOGPROBS, F_MODEL, F_SALT, F_SAMPLES, F_STREAM, K_COMPLETIONS, Span,
    BodyWalk, cap_of, emit_all, prelude_bits, start_walk, walk_members, walk_on,
)


cdef extern from "alloc.h" nogil:
    void *wl_malloc(size_t size_bytes)
    void wl_free(void *block)
    void wl_alloc_fail_after(long n)

cdef enum:
    TEXT = 1
    TEXTS = 3
    MOST_BLOCK = 232
    NEXT_PROMPT = 0xF5      # between the prompts of one request (json_text.h)


cdef size_t most_keys(size_t size, size_t block) noexcept nogil:
    return (size + PLAIN_SLACK) // block + 1


cdef inline bint has(const BodyWalk *walk, int field) noexcept nogil:
    return walk.spans[field].start != NULL


cdef int plain_model(
    BodyWalk *walk, Plain *plain, const uint8_t *body, size_t size, int kind
) noexcept nogil:
    cdef Span *model = &walk.spans[F_MODEL]
    if size > MOST_PLAIN or not start_walk(walk, body, size, kind):
        return 0
    cdef int found = walk_members(walk)
    if found == AT_MAIN and model.start == NULL:
        found = walk_on(walk, wl_skip_value(walk.at, walk.end))
    if not found or walk.plan.main < 0 or not has(walk, walk.plan.main):
        return 0
    plain.model = NULL
    plain.model_size = 0
    if model.start != NULL and model.start[0] == c'"':
        plain.model = model.start + 1
        plain.model_size = model.stop - model.start - 2
        if memchr(plain.model, c'\\', plain.model_size) != NULL:
            return 0
    return 1


cdef const uint8_t *key_prompt(BodyWalk *walk, wl_chain *chain, uint64_t root) noexcept nogil:
    # The prompt as far as the body is known; where it ends.
    cdef const uint8_t *p = walk.spans[walk.plan.main].start
    chain.parent = root
    chain.count = 0
    walk.out.pos = 0
    return emit_all(walk, p)


cdef int plain_keys(
    BodyWalk *walk, Plain *plain, size_t size, int kind, wl_chain *chain, uint8_t *work
) noexcept nogil:
    cdef Span *main = &walk.spans[walk.plan.main]
    cdef uint64_t root = chain.parent
    # Canonical text is never longer than the JSON text it came from, but for a role or two.
    walk.out.out, walk.out.cap = work, size + PLAIN_SLACK - WL_SLACK
    walk.out.chain = chain
    cdef const uint8_t *p = key_prompt(walk, chain, root)
    if main.stop == NULL:
        if not walk_on(walk, p):
            return 0
    elif main.stop != p:
        return 0
    if prelude_bits(walk) != walk.before:
        key_prompt(walk, chain, root)
    wl_key_waiting(&walk.out)
    if walk.irregular or walk.out.truncated or (walk.unit != TEXT and walk.unit != TEXTS):
        return 0
    if has(walk, F_SALT) or has(walk, F_KV) or has(walk, F_EC):
        return 0
    if has(walk, F_SAMPLES) or has(walk, F_LOGPROBS):
        return 0
    plain.carry = walk.out.out
    plain.carry_size = walk.out.pos
    plain.prompt_size = chain.count * chain.block + plain.carry_size
    plain.stream = has(walk, F_STREAM) and walk.spans[F_STREAM].start[0] == c't'
    plain.max_tokens = cap_of(walk)
    # In bytes that are no UTF-8 the mark may stand by itself; the canonical bytes have it then.
    plain.several = walk.unit == TEXTS or (
        kind == K_COMPLETIONS and memchr(main.start, NEXT_PROMPT, main.stop - main.start) != NULL
    )
    return 1


def keys_of(bytes body not None, int kind, uint64_t root, size_t block=128):
    """What the compiled paths make of a body: (model, keys, carry, several, stream, max_tokens).

    None: it is not plain. root, block: as of `hashing.text_keys`; model: as written.
    """
    cdef BodyWalk walk
    cdef Plain plain
    cdef wl_chain chain
    cdef size_t size = len(body)
    cdef KeyArray keys
    cdef uint8_t *work
    if not 1 <= block <= MOST_BLOCK or root == 0:
        raise ValueError(f"block is {block}, must be 1 to 232; root is {root}, must not be 0")
    if not plain_model(&walk, &plain, body, size, kind):
        return None
    keys = new_keys(most_keys(size, block))
    work = <uint8_t *>wl_malloc(size + PLAIN_SLACK)
    if work == NULL:
        raise MemoryError("no memory for a scan")
    chain.parent, chain.keys, chain.room, chain.block = root, keys.keys, keys.size, block
    try:
        if not plain_keys(&walk, &plain, size, kind, &chain, work):
            return None
        model = plain.model[:plain.model_size] if plain.model != NULL else b""
        return (
            model, keys.head(chain.count), plain.carry[:plain.carry_size], plain.several,
            plain.stream, plain.max_tokens,
        )
    finally:
        wl_free(work)


def _fail_allocation_after(long count):
    wl_alloc_fail_after(count)
