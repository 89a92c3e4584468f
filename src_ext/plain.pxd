"""A body whose prompt is plain text, from its first byte to the keys of its blocks.

`scan.scan_body` writes the canonical bytes of every prompt, for whoever wants to hash or tokenize
them. Here the same walk leads to the same keys without them: most of a text is keyed where it lies
in the body (key_text.h). Keys need a root and the root needs the model's name, so it goes in two
steps, between which the caller finds out where the name leads:

    plain_model:  the members up to the prompt, or all of them where the name comes after it
    plain_keys:   the prompt, and what follows it

A prompt that turns out to have tools or a system prompt behind it is keyed again from its start.
"""
from libc.stdint cimport uint8_t, uint64_t

from warmlane._core.json_text cimport wl_chain
from warmlane._core.scan cimport BodyWalk

cdef enum:
    PLAIN_SLACK = 256       # bytes that the memory lent to `plain_keys` is larger than the body
    MOST_PLAIN = 4194304    # bytes of a body: no prompt is above scan.PROMPT_CAP then


cdef struct Plain:
    # As pointers into the body. After `plain_model`:
    const uint8_t *model    # as written, without escapes; NULL when absent or not a string
    size_t model_size
    # After `plain_keys`:
    size_t prompt_size      # canonical bytes
    const uint8_t *carry    # those behind the last full block, in the lent memory
    size_t carry_size
    long long max_tokens    # -1: not set
    bint stream
    bint several            # prompts, one behind the other


# Both: 0, it is not plain: ask `scan_body`. Not plain are, besides what that refuses: no text
# prompt, a body above MOST_PLAIN, a salt, transfer parameters, `n`, `prompt_logprobs`, a model name
# with escapes.
cdef int plain_model(
    BodyWalk *walk, Plain *plain, const uint8_t *body, size_t size, int kind
) noexcept nogil
# chain: its parent is the root; has room for `most_keys`. work: body size + PLAIN_SLACK bytes.
cdef int plain_keys(
    BodyWalk *walk, Plain *plain, size_t size, int kind, wl_chain *chain, uint8_t *work
) noexcept nogil
# Keys that a body of this size has at most, in blocks of this size.
cdef size_t most_keys(size_t size, size_t block) noexcept nogil
