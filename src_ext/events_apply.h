/* Events applied: own keys from token ids, into the tree of all replicas.
 *
 * An engine's hashes are labels: what a block is called here follows from its tokens, its adapter,
 * its salt and its images. Rules:
 *
 *  1. A block's own key is that of hashing.pxd over (own key of its parent, its token ids). The
 *     parent of a first block is the root of (model, adapter, salt). Where extra_keys names more
 *     for a block (images, prompt embeddings), the parent is first chained with the msgpack bytes
 *     of each: such blocks never equal blocks of plain text.
 *  2. A stored block counts as one more copy in its tier, a removed one as one less, as engines
 *     send them. A block whose parent is unknown has no place and is left out (`orphans`).
 *  3. Of a hybrid model the first full-attention group that stores something decides; events of
 *     other groups are left out (`other_groups`).
 *  4. Offloaded copies may come without tokens: copies then of what the hash already means.
 *  5. A hash that stands for two different blocks is counted (`ambiguous`): such a source cannot be
 *     trusted, since a removal may mean either.
 */
#ifndef WARMLANE_EVENTS_APPLY_H
#define WARMLANE_EVENTS_APPLY_H

#include "events_keys.h"

/* ---- stored ---- */

/* The own key of the block before `own` in the tree. 0: a first block, or (*place 0) not known. */
static inline uint64_t ev_place(const EvIntake *x, uint64_t own, int *place) {
    uint32_t node = rx_find(x->tree, own), parent;
    *place = 0;
    if (node == RX_NONE) return 0;
    parent = rx_hot(&x->tree->nodes, node)->parent;
    if (parent == RX_ORPHAN) return 0;
    *place = 1;
    return rx_is_real(parent) ? rx_hot(&x->tree->nodes, parent)->key : 0;
}

static inline int ev_insert(EvIntake *x, EvSource *s, uint32_t replica, const uint64_t *keys,
                            uint32_t n, uint64_t parent, uint32_t tier) {
    int64_t fresh = rx_insert(x->tree, replica, keys, n, parent, tier, 0);
    if (fresh == RX_FAIL) return EV_NO_MEMORY;
    if (fresh == RX_DROPPED) s->count.refused += n;
    else s->count.stored += n;
    return 0;
}

/* One more copy of each block that the hashes already mean (offloading without tokens). */
static inline int ev_copies(EvIntake *x, EvSource *s, uint32_t replica, const EvEvent *e) {
    uint32_t i;
    for (i = 0; i < e->hashes; i++) {
        uint64_t own = ev_get(&x->mem, s->space, x->scratch.hashes[i]), parent;
        int place = 0, status;
        parent = own ? ev_place(x, own, &place) : 0;
        if (!place) {
            s->count.orphans++;
            continue;
        }
        status = ev_insert(x, s, replica, &own, 1, parent, e->tier);
        if (status) return status;
    }
    return 0;
}

static inline int ev_is_other_group(EvSource *s, const EvEvent *e) {
    if (e->spec == EV_OTHER_SPEC) return 1;
    if (e->group < 0) return 0;
    if (s->group < 0) s->group = e->group;
    return s->group != e->group;
}

/* Remember what the hashes mean; how many blocks of the event can be stored (a prefix). */
static inline uint32_t ev_learn(EvIntake *x, EvSource *s, const EvEvent *e) {
    const uint64_t *hashes = x->scratch.hashes;
    uint64_t *keys = x->scratch.keys;
    uint32_t i;
    for (i = 0; i < e->hashes; i++) {
        int status;
        if (i + 8 < e->hashes) ev_prefetch(&x->mem, s->space, hashes[i + 8]);
        status = ev_put(&x->mem, s->space, hashes[i], keys[i], x->tree);
        if (status < 0) break;
        if (status > 0) s->count.ambiguous++;
    }
    s->count.refused += e->hashes - i;
    return i;
}

/* Offloaded blocks with tokens say nothing of salt and images: a hash that is known keeps its
 * meaning. */
static inline void ev_keep_meaning(EvIntake *x, EvSource *s, const EvEvent *e, uint64_t parent) {
    const uint8_t *tokens = (const uint8_t *)x->scratch.tokens;
    size_t size = (size_t)e->block_size * 4;
    uint32_t i;
    if (!e->has_parent && e->hashes) parent = 0;
    for (i = 0; i < e->hashes; i++) {
        uint64_t own = ev_get(&x->mem, s->space, x->scratch.hashes[i]);
        if (own) x->scratch.keys[i] = own;
        else if (parent) x->scratch.keys[i] = wl_block_key(parent, tokens + i * size, size);
        parent = x->scratch.keys[i];
    }
}

static inline int ev_stored(EvIntake *x, EvSource *s, uint32_t replica, EvEvent *e) {
    uint64_t parent = 0;
    uint32_t i, n;
    if (!e->hashes) return 0;
    if (ev_is_other_group(s, e)) {
        s->count.other_groups += e->hashes;
        return 0;
    }
    if (!e->tokens || !e->block_size) return ev_copies(x, s, replica, e);
    if ((uint64_t)e->hashes * e->block_size != e->tokens) {
        s->count.odd++;
        return 0;
    }
    if (!s->block_size && !e->tier) s->block_size = e->block_size;
    if (s->block_size != e->block_size) {
        s->count.other_sizes += e->hashes;
        return 0;
    }
    for (i = 0; i < e->hashes && i < 8; i++) ev_prefetch(&x->mem, s->space, x->scratch.hashes[i]);
    if (e->has_parent && !(parent = ev_get(&x->mem, s->space, e->parent))) {
        s->count.orphans += e->hashes;
        return 0;
    }
    if (ev_keys(x, s, e, parent)) return EV_BROKEN;
    if (e->tier) ev_keep_meaning(x, s, e, parent);
    else ev_prove(x, s, x->scratch.keys[0], x->scratch.hashes[0]);
    n = ev_learn(x, s, e);
    return n ? ev_insert(x, s, replica, x->scratch.keys, n, parent, e->tier) : 0;
}

/* ---- removed, cleared ---- */

static inline int ev_removed(EvIntake *x, EvSource *s, uint32_t replica, const EvEvent *e) {
    uint64_t *hashes = x->scratch.hashes, *keys = x->scratch.keys;
    uint32_t i, n = 0;
    int64_t known;
    if (e->group >= 0 && s->group >= 0 && e->group != s->group) {
        s->count.other_groups += e->hashes;
        return 0;
    }
    for (i = 0; i < e->hashes; i++) {
        uint64_t own = ev_get(&x->mem, s->space, hashes[i]);
        if (!own) continue;
        hashes[n] = hashes[i];
        keys[n++] = own;
    }
    known = n ? rx_remove(x->tree, replica, keys, n, e->tier) : 0;
    if (known == RX_FAIL) return EV_NO_MEMORY;
    s->count.removed += (uint64_t)known;
    s->count.unknown_removals += e->hashes - (uint64_t)known;
    for (i = 0; i < n; i++) {
        /* Gone from every replica: nobody will speak of it. Else it may go unnoticed later. */
        if (rx_find(x->tree, keys[i]) == RX_NONE) ev_forget(&x->mem, s->space, hashes[i]);
        else ev_doubt(&x->mem, s->space, hashes[i]);
    }
    return 0;
}

/* EV_DONE, EV_CLEARED_ALL, EV_BROKEN, EV_NO_MEMORY. */
static inline int ev_event(EvIntake *x, EvSource *s, uint32_t replica, EvEvent *e) {
    s->count.events++;
    if (e->odd && e->kind != EV_UNKNOWN_KIND) {
        s->count.odd++;
        return 0;
    }
    switch (e->kind) {
    case EV_STORED: return ev_stored(x, s, replica, e);
    case EV_REMOVED: return ev_removed(x, s, replica, e);
    case EV_CLEARED:
        s->count.clears++;
        ev_forget_all(x, replica);
        return EV_CLEARED_ALL;
    default: s->count.unknown_kinds++; return 0;
    }
}

/* ---- batches ---- */

/* Read the batch up to its first event. Batch: [time, events, rank] or a map of the same. */
static inline int ev_begin(EvSource *s, EvIn *in, const uint8_t *start) {
    EvItem item, name;
    uint64_t i;
    if (ev_next(in, &item) || (item.kind != EV_ARRAY && item.kind != EV_MAP)) return -1;
    s->in_map = item.kind == EV_MAP;
    for (i = 0; i < item.value; i++) {
        int here = !s->in_map && i == 1;
        if (s->in_map) {
            if (ev_next(in, &name) || ev_skip_rest(in, &name)) return -1;
            here = ev_is(&name, "events", 6);
        }
        if (!here) {
            if (ev_skip(in)) return -1;
            continue;
        }
        if (ev_next(in, &name) || name.kind != EV_ARRAY) return -1;
        s->events_left = name.value;
        s->rest_left = item.value - i - 1;
        s->at = (uint64_t)(in->at - start);
        return 0;
    }
    return -1;
}

/* What follows the events: the rank. */
static inline int ev_finish(EvSource *s, EvIn *in) {
    EvItem name, item;
    uint64_t i;
    for (i = 0; i < s->rest_left; i++) {
        int here = i == 0;
        if (s->in_map) {
            if (ev_next(in, &name) || ev_skip_rest(in, &name)) return -1;
            here = ev_is(&name, "data_parallel_rank", 18);
        }
        if (ev_next(in, &item)) return -1;
        if (here && item.kind == EV_UINT) s->rank = (int64_t)(item.value & 0x7fffffff);
        if (ev_skip_rest(in, &item)) return -1;
    }
    return in->at == in->end ? 0 : -1;
}

/* Apply a batch, at most about `budget` blocks of it (0: all); EV_MORE: call again with the same
 * bytes. A broken batch is left where it breaks: what came before stays applied. */
static inline int ev_apply(EvIntake *x, uint32_t replica, const uint8_t *data, size_t size,
                           uint64_t budget) {
    EvSource *s = x->source[replica];
    EvIn in = {data + s->at, data + size};
    EvEvent e;
    uint64_t done = 0;
    int status = 0, found = EV_DONE;
    if (s->at > size || (!s->at && ev_begin(s, &in, data))) goto broken;
    while (s->events_left) {
        if (budget && done >= budget) {
            s->at = (uint64_t)(in.at - data);
            return found | EV_MORE;
        }
        status = ev_read_event(&in, &e, &x->scratch);
        if (status == -1) goto broken;
        if (!status) status = ev_event(x, s, replica, &e);
        if (status == EV_BROKEN) goto broken;
        if (status == EV_NO_MEMORY) break;
        found |= status;
        done += e.hashes + 4; /* an event without blocks costs, too */
        s->events_left--;
    }
    s->at = 0;
    if (x->scratch.token_room > EV_GIANT || x->scratch.hash_room > EV_GIANT)
        ev_scratch_free(&x->scratch);
    if (status == EV_NO_MEMORY) return EV_NO_MEMORY;
    if (!ev_finish(s, &in)) return found;
broken:
    s->at = 0;
    s->count.broken++;
    return found | EV_BROKEN;
}

#endif
