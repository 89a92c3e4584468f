"""One pass over a JSON request body. See scan.pxd for the contract, docs/hashing.md for the bytes.

No recursion and no work that grows faster than the body. The prompt is written while the body is
walked; only when tools or a system prompt stand after the messages are the two parts swapped.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t
from libc.string cimport memchr, memcpy, memset

from warmlane._core.canonical cimport (
    emit_as_message, emit_messages, emit_prompt, field_of,
)
from warmlane._core.json_text cimport (
    WL_SLACK, WL_TOOLS, wl_emit_string, wl_emit_value, wl_member, wl_more, wl_opened, wl_put,
    wl_skip_value, wl_space, wl_writer,
)


# Kinds of body, in the order of types.Kind.
CHAT, COMPLETIONS, RESPONSES, MESSAGES, EMBEDDINGS, OTHER = range(6)
# Prompt bytes hashed at most; a longer prompt shares at most this much with another.
PROMPT_CAP = 4 << 20

cdef enum:
    K_CHAT, K_COMPLETIONS, K_RESPONSES, K_MESSAGES, K_EMBEDDINGS, K_OTHER

# Top-level members that are read; the number is the index into `spans` and FIELD_NAMES.
cdef enum:
    F_MODEL, F_STREAM, F_MESSAGES, F_PROMPT, F_INPUT, F_TOOLS, F_SYSTEM, F_INSTRUCTIONS
    F_MAX_COMPLETION, F_MAX_OUTPUT, F_MAX_TOKENS, F_SALT, F_SESSION, F_PRIORITY, F_KV, F_EC
    F_SAMPLES, F_LOGPROBS, FIELDS

cdef const char **FIELD_NAMES = [
    "model", "stream", "messages", "prompt", "input", "tools", "system", "instructions",
    "max_completion_tokens", "max_output_tokens", "max_tokens", "cache_salt", "session_id",
    "priority", "kv_transfer_params", "ec_transfer_params", "n", "prompt_logprobs",
]


cdef struct Span:
    const uint8_t *start
    const uint8_t *stop


# What a kind's prompt is made of: one main field, and fields that stand before it whatever their
# place in the body.
cdef struct Plan:
    int main
    int prelude         # the text field that becomes a system message, or -1
    bint chat           # main is a list of messages (or, as `input`, may be)


cdef struct Walk:
    const uint8_t *end
    Span spans[FIELDS]  # values by field; start NULL when absent
    wl_writer out
    Plan plan
    int before          # prelude fields written before the main field, as bits
    size_t main_at      # where in `out` the main field's bytes begin ...
    size_t main_end     # ... and end
    int unit            # of the main field: 0 none, 1 text, 2 token ids
    uint8_t *lent       # where to write, NULL: memory of its own
    bint main_done
    bint irregular      # no canonical bytes


@cython.final
cdef class Scan:
    """What `scan_body` found. The fields are described in scan.pxd."""

    def __init__(self):
        raise TypeError("a Scan is made by scan_body")


cdef Plan plan_of(int kind) noexcept:
    if kind == K_CHAT:
        return Plan(F_MESSAGES, -1, True)
    if kind == K_MESSAGES:
        return Plan(F_MESSAGES, F_SYSTEM, True)
    if kind == K_RESPONSES:
        return Plan(F_INPUT, F_INSTRUCTIONS, True)
    if kind == K_COMPLETIONS:
        return Plan(F_PROMPT, -1, False)
    if kind == K_EMBEDDINGS:
        return Plan(F_INPUT, -1, False)
    return Plan(-1, -1, False)


cdef int prelude_bits(Walk *walk) noexcept:
    # The prelude fields that the body has, as bits.
    cdef int bits = 0
    if walk.plan.chat and walk.spans[F_TOOLS].start != NULL:
        bits |= 1 << F_TOOLS
    if walk.plan.prelude >= 0 and walk.spans[walk.plan.prelude].start != NULL:
        bits |= 1 << walk.plan.prelude
    return bits


cdef void emit_prelude(Walk *walk, int bits) noexcept:
    cdef const uint8_t *p
    if bits & 1 << F_TOOLS:
        p = walk.spans[F_TOOLS].start
        if p[0] != c'n':
            wl_put(&walk.out, WL_TOOLS)
            if wl_emit_value(&walk.out, p, walk.end, False) == NULL:
                walk.irregular = True
    if walk.plan.prelude >= 0 and bits & 1 << walk.plan.prelude:
        p = walk.spans[walk.plan.prelude].start
        if emit_as_message(&walk.out, "system", p, walk.end) == NULL:
            walk.irregular = True


cdef const uint8_t *emit_main(Walk *walk, const uint8_t *p) noexcept:
    # The main field at p; sets unit, or irregular and skips it.
    cdef const uint8_t *after
    walk.main_at = walk.out.pos
    if not walk.plan.chat:
        after = emit_prompt(&walk.out, p, walk.end, &walk.unit)
    elif p[0] == c'n':
        after = wl_skip_value(p, walk.end)
    else:
        walk.unit = 1
        if p[0] == c'"' and walk.plan.main == F_INPUT:
            after = emit_as_message(&walk.out, "user", p, walk.end)
        else:
            after = emit_messages(&walk.out, p, walk.end)
    walk.main_end = walk.out.pos
    walk.main_done = True
    if after != NULL:
        return after
    walk.irregular = True
    return wl_skip_value(p, walk.end)


cdef bytes open_out(Walk *walk, Py_ssize_t cap, const uint8_t *p):
    # Canonical text is never longer than the JSON text it came from; a token id of one digit and
    # its comma become four bytes.
    cdef Py_ssize_t size = walk.end - p
    cdef int bits = prelude_bits(walk)
    cdef int field
    for field in (F_TOOLS, F_SYSTEM, F_INSTRUCTIONS):
        if bits & 1 << field:
            size += walk.spans[field].stop - walk.spans[field].start + 16
    if not walk.plan.chat and p[0] == c'[':
        size *= 2
    size = min(size + 16, cap) & ~3
    cdef bytes out = b""
    walk.out.cap = size
    if walk.lent != NULL:
        walk.out.out = walk.lent
        return out
    out = PyBytes_FromStringAndSize(NULL, size + WL_SLACK)
    walk.out.out = <uint8_t *>PyBytes_AS_STRING(out)
    return out


cdef bytes close_out(Walk *walk, bytes out):
    # The canonical bytes in their order: prelude, then main. None when there are none.
    cdef int bits = prelude_bits(walk)
    cdef size_t main_size = walk.main_end - walk.main_at
    cdef size_t ahead
    cdef bytes joined
    if walk.irregular or walk.unit == 0:
        return None
    if bits == walk.before:
        return out[:walk.out.pos]
    ahead = walk.out.pos
    emit_prelude(walk, bits)
    if walk.out.truncated:  # write all again, in order
        walk.out.pos = walk.out.truncated = 0
        emit_prelude(walk, bits)
        emit_main(walk, walk.spans[walk.plan.main].start)
        return None if walk.irregular else out[:walk.out.pos]
    if walk.irregular:
        return None
    joined = PyBytes_FromStringAndSize(NULL, walk.out.pos - ahead + main_size)
    memcpy(PyBytes_AS_STRING(joined), walk.out.out + ahead, walk.out.pos - ahead)
    memcpy(
        PyBytes_AS_STRING(joined) + walk.out.pos - ahead, walk.out.out + walk.main_at, main_size
    )
    return joined


cdef int walk_members(Walk *walk, const uint8_t *p, Py_ssize_t cap, list out) except -1:
    # All top-level members; 0 when the body is not plain.
    cdef const uint8_t *key
    cdef size_t size
    cdef int escaped, more, field
    p = wl_space(p, walk.end)
    if p == walk.end or p[0] != c'{':
        return 0
    p = wl_opened(p + 1, walk.end, c'}', &more)
    while more:
        p = wl_member(p, walk.end, &key, &size, &escaped)
        if p == NULL or escaped:
            return 0
        field = field_of(key, size, FIELD_NAMES, FIELDS, False)
        if field >= 0:
            if walk.spans[field].start != NULL:
                return 0
            walk.spans[field].start = p
        if field >= 0 and field == walk.plan.main:
            out.append(open_out(walk, cap, p))
            walk.before = prelude_bits(walk)
            emit_prelude(walk, walk.before)
            p = emit_main(walk, p)
        else:
            p = wl_skip_value(p, walk.end)
        if p == NULL:
            return 0
        if field >= 0:
            walk.spans[field].stop = p
        p = wl_more(p, walk.end, c'}', &more)
        if p == NULL:
            return 0
    return wl_space(p, walk.end) == walk.end


cdef str text_of(Span span):
    # A string value, "" for anything else. Raises UnicodeDecodeError.
    cdef wl_writer w
    cdef bytes plain
    cdef Py_ssize_t size = span.stop - span.start
    if span.start == NULL or span.start[0] != c'"':
        return ""
    plain = PyBytes_FromStringAndSize(NULL, size + WL_SLACK)
    w = wl_writer(<uint8_t *>PyBytes_AS_STRING(plain), 0, size, False)
    if wl_emit_string(&w, span.start + 1, span.stop) == NULL:
        raise UnicodeDecodeError("json", b"", 0, 1, "bad escape")
    return PyUnicode_DecodeUTF8(<char *>w.out, w.pos, "surrogatepass")


cdef object integer_of(Span span):
    # An integer value of at most 18 digits, None for anything else.
    cdef long long value = 0
    cdef const uint8_t *p = span.start
    if p == NULL:
        return None
    cdef bint negative = p[0] == c'-'
    p += negative
    if p == span.stop or span.stop - p > 18:
        return None
    while p < span.stop:
        if not c'0' <= p[0] <= c'9':
            return None
        value = value * 10 + (p[0] - c'0')
        p += 1
    return -value if negative else value


cdef object cap_of(Walk *walk):
    # The cap on output tokens: the newest of the three names that is set.
    cdef int field
    for field in (F_MAX_COMPLETION, F_MAX_OUTPUT, F_MAX_TOKENS):
        value = integer_of(walk.spans[field])
        if value is not None:
            return value if value >= 0 else None
    return None


cdef bint arrange(Walk *walk, Plain *plain) noexcept:
    # `close_out` in lent memory, which has room for the swap.
    cdef int bits = prelude_bits(walk)
    cdef size_t size = walk.main_end - walk.main_at
    cdef size_t ahead = walk.out.pos
    plain.prompt = walk.out.out
    if bits != walk.before:
        emit_prelude(walk, bits)
        memcpy(walk.out.out + walk.out.pos, walk.out.out + walk.main_at, size)
        plain.prompt += ahead
        walk.out.pos += size - ahead
    plain.prompt_size = walk.out.pos
    return not (walk.irregular or walk.out.truncated)


cdef bint has_value(Span span) noexcept:
    return span.start != NULL and span.start[0] != c'n'


cdef int scan_plain(
    const uint8_t *body, size_t size, int kind, uint8_t *work, Plain *plain
) except -1:
    cdef Walk walk
    cdef Span *model = &walk.spans[F_MODEL]
    cdef Span *salt = &walk.spans[F_SALT]
    memset(&walk, 0, sizeof(walk))
    walk.end = body + size
    walk.plan = plan_of(kind)
    walk.lent = work
    if not walk_members(&walk, body, PROMPT_CAP, []) or walk.unit != 1:
        return 0
    if not arrange(&walk, plain):
        return 0
    if salt.start != NULL or walk.spans[F_KV].start != NULL or walk.spans[F_EC].start != NULL:
        return 0
    if walk.spans[F_SAMPLES].start != NULL or walk.spans[F_LOGPROBS].start != NULL:
        return 0
    plain.model = NULL
    plain.model_size = 0
    if model.start != NULL and model.start[0] == c'"':
        plain.model = model.start + 1
        plain.model_size = model.stop - model.start - 2
        if memchr(plain.model, c'\\', plain.model_size) != NULL:
            return 0
    plain.stream = walk.spans[F_STREAM].start != NULL and walk.spans[F_STREAM].start[0] == c't'
    most = cap_of(&walk)
    plain.max_tokens = -1 if most is None else most
    return 1


def scan_body(bytes body not None, int kind=K_OTHER, Py_ssize_t cap=PROMPT_CAP):
    """Scan a JSON body. kind: one of CHAT .. OTHER of this module; says where the prompt is.

    cap: canonical prompt bytes at most, at least 4; what is beyond is not hashed. Returns None when
    the body is not plain JSON (see scan.pxd). Cost: 0.8 us for 4 KB, 4 us for 64 KB of prose.
    """
    cdef Walk walk
    cdef list out = []
    cdef Scan scan = Scan.__new__(Scan)
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(body)
    if cap < 4:
        raise ValueError(f"cap is {cap}, must be 4 or more")
    memset(&walk, 0, sizeof(walk))
    walk.end = start + PyBytes_GET_SIZE(body)
    walk.plan = plan_of(kind)
    if not walk_members(&walk, start, cap, out):
        return None
    if kind == K_EMBEDDINGS and not out and walk.spans[F_MESSAGES].start != NULL:
        walk.plan = plan_of(K_CHAT)  # vLLM embeds chats too
        out.append(open_out(&walk, cap, walk.spans[F_MESSAGES].start))
        walk.before = prelude_bits(&walk)
        emit_prelude(&walk, walk.before)
        emit_main(&walk, walk.spans[F_MESSAGES].start)
    if out:
        prompt = close_out(&walk, <bytes>out[0])
        if walk.unit == 2:
            scan.tokens = prompt
        else:
            scan.prompt = prompt
    try:
        scan.model = text_of(walk.spans[F_MODEL])
        scan.salt = text_of(walk.spans[F_SALT])
        scan.session = text_of(walk.spans[F_SESSION])
    except UnicodeDecodeError:
        return None
    scan.stream = walk.spans[F_STREAM].start != NULL and walk.spans[F_STREAM].start[0] == c't'
    scan.max_tokens = cap_of(&walk)
    scan.priority = integer_of(walk.spans[F_PRIORITY]) or 0
    scan.samples = max(1, integer_of(walk.spans[F_SAMPLES]) or 1)
    scan.reads_cache = not has_value(walk.spans[F_LOGPROBS])
    scan.truncated = walk.out.truncated
    scan.transfer = ""
    for field in (F_KV, F_EC):
        if walk.spans[field].start != NULL:
            scan.transfer = (<bytes>FIELD_NAMES[field]).decode()
            break
    return scan


def members(bytes body not None):
    """The top-level members of a JSON object as offsets (key start, value start, value end).

    A key starts at its quote and is as written, maybe escaped. None when the text cannot be walked.
    """
    cdef const uint8_t *start = <const uint8_t *>PyBytes_AS_STRING(body)
    cdef const uint8_t *end = start + PyBytes_GET_SIZE(body)
    cdef const uint8_t *key
    cdef const uint8_t *value
    cdef size_t size
    cdef int escaped, more
    cdef list found = []
    cdef const uint8_t *p = wl_space(start, end)
    if p == end or p[0] != c'{':
        return None
    p = wl_opened(p + 1, end, c'}', &more)
    while more:
        value = wl_member(p, end, &key, &size, &escaped)
        if value == NULL:
            return None
        p = wl_skip_value(value, end)
        if p == NULL:
            return None
        found.append((key - 1 - start, value - start, p - start))
        p = wl_more(p, end, c'}', &more)
        if p == NULL:
            return None
    return found if wl_space(p, end) == end else None
