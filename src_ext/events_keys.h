/* Own keys of an event's blocks, from token ids, adapter, salt and images (events_apply.h, rule 1).
 */
#ifndef WARMLANE_EVENTS_KEYS_H
#define WARMLANE_EVENTS_KEYS_H

#include "events_source.h"

static inline uint64_t ev_part_key(uint64_t parent, const uint8_t *text, size_t size) {
    return wl_block_key(parent, text, size);
}

/* Members of one block's extra_keys. `first`: it is the first block of a prompt, where the last
 * bare string is the salt. Returns the parent to hash the block after. *bad: no msgpack. */
static inline uint64_t ev_extras(EvSource *s, EvIn *in, const EvEvent *e, uint64_t parent,
                                 int first, uint64_t root, int *bad) {
    EvItem list, each;
    EvIn begin;
    uint64_t i, salt_at = UINT64_MAX, lora_at = UINT64_MAX;
    if (ev_next(in, &list)) { *bad = 1; return 0; }
    if (list.kind != EV_ARRAY) {
        if (ev_skip_rest(in, &list)) *bad = 1;
        return parent;
    }
    begin = *in;
    for (i = 0; i < list.value; i++) {
        if (ev_next(in, &each) || ev_skip_rest(in, &each)) { *bad = 1; return 0; }
        if (each.kind != EV_STR) continue;
        if (i == 0 && e->lora && each.value == e->lora_bytes &&
            !memcmp(each.data, e->lora, e->lora_bytes))
            lora_at = i;
        else if (first)
            salt_at = i;
    }
    *in = begin;
    if (salt_at != UINT64_MAX) {
        for (i = 0; i <= salt_at; i++)
            if (ev_next(in, &each) || ev_skip_rest(in, &each)) { *bad = 1; return 0; }
        parent = ev_part_key(root, each.data, (size_t)each.value);
        *in = begin;
    }
    for (i = 0; i < list.value; i++) {
        const uint8_t *from = in->at;
        if (ev_skip(in)) { *bad = 1; return 0; }
        if (i == salt_at || i == lora_at) continue;
        parent = ev_part_key(parent, from, (size_t)(in->at - from));
        s->count.embedded++;
    }
    return parent;
}

/* Root of (model, adapter); the salt is the last part of a root and may be empty. */
static inline uint64_t ev_adapter_root(EvSource *s, const EvEvent *e) {
    char text[40];
    uint32_t at = sizeof text;
    uint64_t id = e->lora_id;
    if (e->lora) return ev_part_key(s->model_key, e->lora, e->lora_bytes);
    if (!e->has_lora_id) return ev_part_key(s->model_key, NULL, 0);
    /* The number is of that process alone: such blocks must match no request. */
    s->count.unnamed_adapters++;
    do text[--at] = (char)('0' + id % 10); while (id /= 10);
    memcpy(&text[at -= 8], "\1lora_id", 8);
    return ev_part_key(s->model_key, (const uint8_t *)text + at, sizeof text - at);
}

/* Own keys of the event's blocks into the scratch. 0, or -1: extra_keys is no msgpack. */
static inline int ev_keys(EvIntake *x, EvSource *s, EvEvent *e, uint64_t parent) {
    const uint8_t *tokens = (const uint8_t *)x->scratch.tokens;
    size_t size = (size_t)e->block_size * 4;
    uint64_t *keys = x->scratch.keys, root = 0;
    uint32_t i;
    int bad = 0;
    if (!e->has_parent) {
        root = ev_adapter_root(s, e);
        parent = ev_part_key(root, NULL, 0);
    }
    for (i = 0; i < e->hashes; i++) {
        if (i < e->extras) {
            if (e->extra.at < e->extra.end && *e->extra.at == 0xc0) e->extra.at++; /* nil */
            else parent = ev_extras(s, &e->extra, e, parent, !e->has_parent && !i, root, &bad);
            if (bad) return -1;
        }
        keys[i] = parent = wl_block_key(parent, tokens + i * size, size);
    }
    return 0;
}

#endif
