"""One pass over a JSON request body: the top-level values that routing needs, and the prompt.

`scan_body` answers None when the body is not plain: a top-level key with a backslash or twice, or
text that it cannot walk. The caller then decodes it in full. What it accepts may still be invalid
JSON deep inside; on valid JSON its answers are exact. The prompt comes as canonical bytes, defined
in docs/hashing.md and written by json_text.h.
"""

from libc.stdint cimport uint8_t

from warmlane._core.json_text cimport wl_writer


cdef enum:
    K_CHAT, K_COMPLETIONS, K_RESPONSES, K_MESSAGES, K_EMBEDDINGS, K_OTHER

# Top-level members that are read; the number is the index into `BodyWalk.spans`.
cdef enum:
    F_MODEL, F_STREAM, F_MESSAGES, F_PROMPT, F_INPUT, F_TOOLS, F_SYSTEM, F_INSTRUCTIONS
    F_MAX_COMPLETION, F_MAX_OUTPUT, F_MAX_TOKENS, F_SALT, F_SESSION, F_PRIORITY, F_KV, F_EC
    F_SAMPLES, F_LOGPROBS, FIELDS


cdef class Scan:
    cdef readonly str model            # "" when absent or not a string
    cdef readonly bint stream
    cdef readonly object max_tokens    # int or None
    cdef readonly str salt
    cdef readonly str session
    cdef readonly long priority
    cdef readonly bytes prompt         # canonical bytes, or None
    cdef readonly bytes tokens         # uint32 token ids, or None
    cdef readonly str transfer         # name of a forbidden top-level key that is present, or ""
    cdef readonly long samples         # `n`, at least 1
    cdef readonly bint reads_cache     # no `prompt_logprobs`, for which engines compute all anew
    cdef readonly bint truncated       # the prompt was longer than the cap


cdef struct Span:
    const uint8_t *start
    const uint8_t *stop


# What a kind's prompt is made of: one main field, and fields that stand before it whatever their
# place in the body.
cdef struct Plan:
    int main
    int prelude         # the text field that becomes a system message, or -1
    bint chat           # main is a list of messages (or, as `input`, may be)


# A body under way.
cdef struct BodyWalk:
    const uint8_t *at   # where the next member begins; or the main field's value (AT_MAIN)
    const uint8_t *end
    int more            # a member follows
    Span spans[FIELDS]  # values by field; start NULL when absent
    wl_writer out
    Plan plan
    int before          # prelude fields written before the main field, as bits
    size_t main_at      # where in `out` the main field's bytes begin ...
    size_t main_end     # ... and end
    int unit            # of the main field: 0 none, 1 text, 2 token ids, 3 several texts
    bint main_done
    bint irregular      # no canonical bytes

cdef enum:
    AT_MAIN = 2

# A walk before the first member; 0: no object.
cdef int start_walk(BodyWalk *walk, const uint8_t *body, size_t size, int kind) noexcept nogil
# Members up to the main field, whose value is then at `at`: AT_MAIN. 1: the body ended, 0: it is
# not plain.
cdef int walk_members(BodyWalk *walk) noexcept nogil
# The same from behind the main field's value, which ends at p (NULL: not plain).
cdef int walk_on(BodyWalk *walk, const uint8_t *p) noexcept nogil
# The prelude known so far and the main field at p, to `out`. Where that ends, NULL: nowhere.
cdef const uint8_t *emit_all(BodyWalk *walk, const uint8_t *p) noexcept nogil
# Prelude fields that the body has, as `before`.
cdef int prelude_bits(BodyWalk *walk) noexcept nogil
# The cap on output tokens, -1: none.
cdef long long cap_of(BodyWalk *walk) noexcept nogil
