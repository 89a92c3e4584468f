/* One engine event, out of its bytes: the array of vLLM up to 0.23 and of SGLang, or the map of
 * vLLM from 0.24 and of TensorRT-LLM. A field has one meaning, whichever way it came; fields that are not known
 * are stepped over. The order of array fields is that of vLLM's declarations (vllm/distributed/kv_events.py).
 */
#ifndef WARMLANE_EVENTS_FIELDS_H
#define WARMLANE_EVENTS_FIELDS_H

#include "alloc.h"
#include "events_read.h"
#include "xxh3.h"

#define EV_MAX_HASHES (1u << 20)
#define EV_MAX_TOKENS (1u << 22) /* of one event: 16 MB */

enum { EV_UNKNOWN_KIND, EV_STORED, EV_REMOVED, EV_CLEARED };
enum { EV_NO_SPEC, EV_FULL_SPEC, EV_OTHER_SPEC };

enum {
    EV_F_SKIP, EV_F_TYPE, EV_F_HASHES, EV_F_PARENT, EV_F_TOKENS, EV_F_SIZE, EV_F_LORA_ID,
    EV_F_MEDIUM, EV_F_LORA, EV_F_EXTRA, EV_F_GROUP, EV_F_SPEC, EV_F_LOCALITY, EV_F_MM
};

/* Arrays that grow to the longest event seen, and are given back when it was a giant. */
typedef struct {
    uint64_t *hashes, *keys;
    uint32_t *tokens;
    uint32_t hash_room, token_room;
} EvScratch;

typedef struct {
    int kind, odd; /* odd: a field has a form that no engine is known to send: not applied */
    uint32_t hashes, tokens; /* in the scratch */
    int has_parent;
    uint64_t parent;
    uint32_t block_size;
    uint32_t tier;
    int spec;
    int64_t group; /* -1: not said */
    int has_lora_id;
    uint64_t lora_id;
    const uint8_t *lora; /* the adapter's name, NULL: none said */
    uint32_t lora_bytes;
    EvIn extra; /* the members of extra_keys */
    uint32_t extras;
} EvEvent;

static inline void ev_event_begin(EvEvent *e) {
    memset(e, 0, sizeof *e);
    e->group = -1;
}

static inline void ev_scratch_free(EvScratch *s) {
    wl_free(s->hashes);
    wl_free(s->keys);
    wl_free(s->tokens);
    memset(s, 0, sizeof *s);
}

static inline int ev_scratch_hashes(EvScratch *s, uint32_t count) {
    uint32_t room = count + count / 2 + 64;
    uint64_t *grown;
    if (count <= s->hash_room) return 0;
    if (!(grown = (uint64_t *)wl_realloc(s->hashes, room * sizeof *grown))) return -1;
    s->hashes = grown;
    if (!(grown = (uint64_t *)wl_realloc(s->keys, room * sizeof *grown))) return -1;
    s->keys = grown;
    s->hash_room = room;
    return 0;
}

static inline int ev_scratch_tokens(EvScratch *s, uint32_t count) {
    uint32_t room = count + count / 2 + 1024, *grown;
    if (count <= s->token_room) return 0;
    if (!(grown = (uint32_t *)wl_realloc(s->tokens, room * sizeof *grown))) return -1;
    s->tokens = grown;
    s->token_room = room;
    return 0;
}

/* Where the copy lies: 0 gpu, 1 cpu, 2 anything slower or further away. Unknown names count as the
 * slowest, so that they are never taken for the fastest. */
static inline uint32_t ev_tier(const EvItem *item) {
    const uint8_t *text = item->data;
    if (item->kind != EV_STR) return 0; /* nil: engines without tiers */
    if (item->value >= 3 && (text[0] | 32) == 'g' && (text[1] | 32) == 'p') return 0;
    if (item->value >= 3 && (text[0] | 32) == 'c' && (text[1] | 32) == 'p') return 1;
    if (item->value >= 4 && (text[0] | 32) == 'h' && (text[1] | 32) == 'o') return 1; /* HOST */
    return 2;
}

/* Kinds of KV cache group whose blocks stay as long as the prompt's prefix: they decide what a hit
 * is. Window and state groups keep less (vllm/v1/kv_cache_interface.py). */
static inline int ev_spec(const EvItem *item) {
    if (item->kind != EV_STR) return EV_NO_SPEC;
    if (ev_is(item, "full_attention", 14) || ev_is(item, "mla_attention", 13) ||
        ev_is(item, "sink_full_attention", 19) || ev_is(item, "unknown", 7))
        return EV_FULL_SPEC;
    return EV_OTHER_SPEC;
}

static inline int ev_kind(const EvItem *item) {
    if (ev_is(item, "BlockStored", 11)) return EV_STORED;
    if (ev_is(item, "BlockRemoved", 12)) return EV_REMOVED;
    if (ev_is(item, "AllBlocksCleared", 16)) return EV_CLEARED;
    return EV_UNKNOWN_KIND;
}

static inline int ev_read_hashes(EvIn *in, EvItem *item, EvEvent *e, EvScratch *s) {
    uint64_t i;
    if (item->kind != EV_ARRAY || item->value > EV_MAX_HASHES) {
        e->odd = 1;
        return ev_skip_rest(in, item);
    }
    e->hashes = (uint32_t)item->value;
    if (ev_scratch_hashes(s, e->hashes)) return -2;
    for (i = 0; i < e->hashes; i++) {
        EvItem each;
        if (ev_next(in, &each)) return -1;
        if (ev_hash(&each, &s->hashes[i])) {
            e->odd = 1;
            if (ev_skip_rest(in, &each)) return -1;
        }
    }
    return 0;
}

/* One token that is not plainly an id. SGLang with a speculative cache tells pairs, each token with
 * the one after it: the first one counts. TensorRT-LLM tells the digest of an image in place of its
 * placeholders: such a number is no token's, and different for different digests. 1: neither. */
static inline int ev_other_token(EvIn *in, uint32_t *token) {
    EvItem item, first;
    if (ev_next(in, &item)) return -1;
    if (item.kind == EV_UINT || item.kind == EV_NEGATIVE) {
        *token = (uint32_t)item.value;
        return 0;
    }
    if (item.kind == EV_STR || item.kind == EV_BIN) {
        *token = (uint32_t)wl_block_key(0, item.data, (size_t)item.value) | 0x80000000u;
        return 0;
    }
    if (item.kind != EV_ARRAY || item.value != 2) return ev_skip_rest(in, &item) ? -1 : 1;
    if (ev_next(in, &first)) return -1;
    *token = (uint32_t)first.value;
    if (ev_skip_rest(in, &first) || ev_skip(in)) return -1;
    return first.kind != EV_UINT;
}

static inline int ev_read_tokens(EvIn *in, EvItem *item, EvEvent *e, EvScratch *s) {
    EvIn begin = *in;
    uint64_t i;
    int status;
    if (item->kind == EV_NIL) return 0;
    if (item->kind != EV_ARRAY || item->value > EV_MAX_TOKENS) {
        e->odd = 1;
        return ev_skip_rest(in, item);
    }
    e->tokens = (uint32_t)item->value;
    if (ev_scratch_tokens(s, e->tokens)) return -2;
    status = ev_token_ids(in, s->tokens, e->tokens);
    if (status <= 0) return status;
    *in = begin;
    for (i = 0; i < item->value; i++) {
        status = ev_other_token(in, &s->tokens[i]);
        if (status < 0) return -1;
        e->odd |= status;
    }
    return 0;
}

static inline int ev_read_extra(EvIn *in, EvItem *item, EvEvent *e) {
    e->extras = 0;
    if (item->kind == EV_ARRAY) {
        e->extra = *in;
        e->extras = item->value < EV_MAX_HASHES ? (uint32_t)item->value : 0;
    } else if (item->kind != EV_NIL) {
        e->odd = 1;
    }
    return ev_skip_rest(in, item);
}

static inline void ev_set_lora(EvEvent *e, const EvItem *item) {
    if (item->kind != EV_STR || !item->value || item->value > 4096) return;
    e->lora = item->data;
    e->lora_bytes = (uint32_t)item->value;
}

/* One field's value. -1: no msgpack, -2: no memory. */
static inline int ev_field(EvIn *in, int field, EvEvent *e, EvScratch *s) {
    EvItem item;
    if (ev_next(in, &item)) return -1;
    switch (field) {
    case EV_F_HASHES: return ev_read_hashes(in, &item, e, s);
    case EV_F_TOKENS: return ev_read_tokens(in, &item, e, s);
    case EV_F_EXTRA: return ev_read_extra(in, &item, e);
    case EV_F_MM: /* TensorRT-LLM: images of each block, in a field of their own */
        return e->extras ? ev_skip_rest(in, &item) : ev_read_extra(in, &item, e);
    case EV_F_TYPE: e->kind = ev_kind(&item); break;
    case EV_F_PARENT:
        e->has_parent = item.kind != EV_NIL;
        if (e->has_parent && ev_hash(&item, &e->parent)) e->odd = 1;
        break;
    case EV_F_SIZE:
        if (item.kind == EV_UINT && item.value <= 65536) e->block_size = (uint32_t)item.value;
        else if (item.kind != EV_NIL) e->odd = 1;
        break;
    case EV_F_LORA_ID:
        e->has_lora_id = item.kind == EV_UINT;
        e->lora_id = item.value;
        if (!e->lora) ev_set_lora(e, &item);
        break;
    case EV_F_MEDIUM: {
        uint32_t tier = ev_tier(&item);
        if (tier > e->tier) e->tier = tier;
        break;
    }
    case EV_F_LORA: ev_set_lora(e, &item); break;
    case EV_F_GROUP:
        e->group = item.kind == EV_UINT ? (int64_t)(item.value & 0x7fffffff) : -1;
        break;
    case EV_F_SPEC: e->spec = ev_spec(&item); break;
    case EV_F_LOCALITY:
        if (ev_is(&item, "REMOTE", 6)) e->tier = 2; /* to be fetched, wherever it lies there */
        break;
    default: break;
    }
    return ev_skip_rest(in, &item);
}

#define EV_NAME(text, field) \
    if (!memcmp(item->data, text, sizeof text - 1)) return field

static inline int ev_field_of(const EvItem *item) {
    if (item->kind != EV_STR) return EV_F_SKIP;
    switch (item->value) {
    case 4: EV_NAME("type", EV_F_TYPE); break;
    case 6: EV_NAME("medium", EV_F_MEDIUM); break;
    case 7:
        EV_NAME("lora_id", EV_F_LORA_ID);
        EV_NAME("mm_keys", EV_F_MM);
        break;
    case 8: EV_NAME("locality", EV_F_LOCALITY); break;
    case 9:
        EV_NAME("token_ids", EV_F_TOKENS);
        EV_NAME("lora_name", EV_F_LORA);
        EV_NAME("group_idx", EV_F_GROUP);
        break;
    case 10:
        EV_NAME("block_size", EV_F_SIZE);
        EV_NAME("extra_keys", EV_F_EXTRA);
        break;
    case 12: EV_NAME("block_hashes", EV_F_HASHES); break;
    case 17: EV_NAME("parent_block_hash", EV_F_PARENT); break;
    case 18: EV_NAME("kv_cache_spec_kind", EV_F_SPEC); break;
    default: break;
    }
    return EV_F_SKIP;
}

static inline int ev_array_field(int kind, uint64_t at) {
    static const uint8_t stored[] = {
        EV_F_TYPE, EV_F_HASHES, EV_F_PARENT, EV_F_TOKENS, EV_F_SIZE, EV_F_LORA_ID, EV_F_MEDIUM,
        EV_F_LORA, EV_F_EXTRA, EV_F_GROUP, EV_F_SPEC, EV_F_SKIP, EV_F_LOCALITY};
    static const uint8_t removed[] = {
        EV_F_TYPE, EV_F_HASHES, EV_F_MEDIUM, EV_F_GROUP, EV_F_LOCALITY};
    if (at == 0) return EV_F_TYPE;
    if (kind == EV_STORED) return at < sizeof stored ? stored[at] : EV_F_SKIP;
    if (kind == EV_REMOVED) return at < sizeof removed ? removed[at] : EV_F_SKIP;
    return EV_F_SKIP;
}

/* The next event of a batch. -1: no msgpack or neither array nor map, -2: no memory. */
static inline int ev_read_event(EvIn *in, EvEvent *e, EvScratch *s) {
    EvItem item, name;
    uint64_t i;
    int status = 0;
    ev_event_begin(e);
    if (ev_next(in, &item)) return -1;
    if (item.kind == EV_ARRAY) {
        for (i = 0; i < item.value && !status; i++)
            status = ev_field(in, ev_array_field(e->kind, i), e, s);
        return status;
    }
    if (item.kind != EV_MAP) return -1;
    for (i = 0; i < item.value && !status; i++) {
        if (ev_next(in, &name)) return -1;
        if (ev_skip_rest(in, &name)) return -1;
        status = ev_field(in, ev_field_of(&name), e, s);
    }
    return status;
}

#endif
