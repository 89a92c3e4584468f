/* What the outside asks for: open and close a tree, insert, remove, clear, drop. */
#ifndef WARMLANE_RADIX_UPDATE_H
#define WARMLANE_RADIX_UPDATE_H

#include "radix_evict.h"

#define RX_DROPPED (-2) /* the replica is dropped and not yet swept */
#define RX_FULL (-3)    /* the cap refuses the block */
#define RX_MIN_BYTES (4ull << 20) /* least cap: the fixed part and some segments fit */

static inline void rx_close(RxTree *t) {
    uint32_t i;
    for (i = 0; i < t->lanes_used; i++) {
        rx_lane_close(t, i);
        rx_free(&t->mem, t->lane[i], sizeof(RxLane));
    }
    for (i = 0; i < 3; i++)
        rx_free(&t->mem, t->walks[i].todo, t->walks[i].room * sizeof(RxTodo));
    if (t->compact_seen) rx_compact_end(t);
    rx_free(&t->mem, t->lane, t->lanes * sizeof *t->lane);
    rx_free(&t->mem, t->outside, t->lanes * sizeof *t->outside);
    rx_free(&t->mem, t->dead, t->lanes * sizeof *t->dead);
    rx_free(&t->mem, t->seen_v, t->lanes);
    rx_free(&t->mem, t->inside, t->max_replicas * sizeof *t->inside);
    rx_free(&t->mem, t->sweeps, t->max_replicas * sizeof *t->sweeps);
    rx_free(&t->mem, t->dropped, t->max_replicas);
    rx_free(&t->mem, t->brief, t->max_replicas);
    rx_refs_free(&t->refs);
    rx_sets_free(&t->sets);
    rx_keys_free(&t->keys);
    rx_nodes_free(&t->nodes);
    wl_free(t);
}

/* An empty tree, NULL without memory. cap: bytes, 0 for none, else at least RX_MIN_BYTES. */
static inline RxTree *rx_open(uint64_t cap, uint32_t max_replicas, uint64_t seed) {
    RxTree *t = (RxTree *)wl_calloc(1, sizeof *t);
    RxMem *m;
    if (!t) return NULL;
    m = &t->mem;
    m->used = sizeof *t;
    m->cap = cap;
    m->reserve = cap / 16;
    t->max_replicas = max_replicas;
    t->lanes = 2 * max_replicas < 256u ? 256u : 2 * max_replicas;
    t->compact_lane = RX_NOBODY;
    t->lane = (RxLane **)rx_alloc(m, t->lanes * sizeof *t->lane);
    t->outside = (uint16_t *)rx_alloc(m, t->lanes * sizeof *t->outside);
    t->dead = (uint16_t *)rx_alloc(m, t->lanes * sizeof *t->dead);
    t->seen_v = (uint8_t *)rx_alloc(m, t->lanes);
    t->inside = (uint16_t *)rx_alloc(m, max_replicas * sizeof *t->inside);
    t->sweeps = (uint16_t *)rx_alloc(m, max_replicas * sizeof *t->sweeps);
    t->dropped = (uint8_t *)rx_alloc(m, max_replicas);
    t->brief = (uint8_t *)rx_alloc(m, max_replicas);
    if (!t->lane || !t->outside || !t->dead || !t->seen_v || !t->inside || !t->sweeps ||
        !t->dropped || !t->brief || rx_nodes_init(m, &t->nodes) ||
        rx_keys_init(m, &t->keys, seed) || rx_sets_init(m, &t->sets) ||
        rx_refs_init(m, &t->refs)) {
        rx_close(t);
        return NULL;
    }
    memset(t->outside, 0xff, t->lanes * sizeof *t->outside);
    memset(t->inside, 0xff, max_replicas * sizeof *t->inside);
    memset(t->seen_v, RX_HIDDEN, t->lanes);
    return t;
}

/* Hang an orphan under its parent, now that it is known. It stays an orphan where that would
 * close a ring, which only a stream with wrong parents asks for. */
static inline int rx_attach(RxTree *t, uint32_t node, uint32_t parent) {
    uint32_t at;
    if (rx_set_of(&t->nodes, node)) return 0;
    for (at = parent; rx_is_real(at); at = rx_hot(&t->nodes, at)->parent)
        if (at == node) return 0;
    rx_node_link(&t->nodes, node, parent);
    return 1;
}

/* A new node for the key; RX_NONE: no memory. */
static inline uint32_t rx_node_new(RxTree *t, uint64_t key, uint64_t hash, uint32_t parent) {
    uint32_t node;
    if (rx_nodes_reserve(&t->nodes) || rx_keys_reserve(&t->keys, hash)) return RX_NONE;
    node = rx_node_take(&t->nodes, key, parent);
    rx_keys_put(&t->keys, hash, node);
    return node;
}

typedef struct {
    uint32_t lane, tier, once;
    uint32_t above; /* node of the block before */
    uint32_t v;     /* how visible `above` is */
    uint32_t from, to, from_v, held; /* the last plain step, see rx_insert_again */
} RxChain;

/* Blocks of a chain mostly go the same way: from set `from`, where the lane is absent, to set `to`.
 * Repeat that step without looking at the sets. 1: done, 0: it does not apply here, RX_FAIL. */
RX_HOT int rx_insert_again(RxTree *t, RxChain *c, uint32_t node) {
    RxHot *hot = rx_hot(&t->nodes, node);
    RxLane *me = t->lane[c->lane];
    if (hot->set != c->from || c->v != c->from_v || hot->parent != c->above) return 0;
    if (me->held && rx_cold(&t->nodes, node)->child) return 0; /* a walk may be needed */
    if (rx_record_reserve(&t->mem, rx_lane_record(me))) return RX_FAIL;
    rx_set(&t->sets, c->to)->refs++;
    hot->set = c->to;
    if (c->from && rx_set(&t->sets, c->from)->refs == 1) {
        rx_set_unref(&t->sets, c->from);
        c->from = RX_NONE; /* freed: the id may come back as another set */
    } else if (c->from) {
        rx_set(&t->sets, c->from)->refs--;
    }
    me->blocks++;
    me->held += c->held;
    rx_record_add(rx_lane_record(me), node);
    c->above = node;
    return 1; /* c->v stays: v was from_v before and is after, else there was no plain step */
}

/* The lane has come to `node`, whose set was `from`: go on below it, and remember a plain step. */
static inline void rx_chain_step(RxTree *t, RxChain *c, uint32_t node, uint32_t from, uint32_t v) {
    uint32_t to = rx_hot(&t->nodes, node)->set;
    int plain = v == c->v && !((from | to) & RX_REFS_FLAG) &&
                (from == 0 || rx_set(&t->sets, from)->refs); /* else it was freed just now */
    c->from = plain ? from : RX_NONE;
    c->to = to;
    c->from_v = v;
    c->held = v > c->tier;
    c->above = node;
    c->v = v;
}

/* The lane comes to a block in the general way. 1: newly present, 0: not, RX_FAIL. */
static __attribute__((noinline, unused)) int rx_insert_slow(RxTree *t, RxChain *c, uint32_t node) {
    uint32_t parent = rx_hot(&t->nodes, node)->parent, state, v = c->v, p, from;
    RxCounts counts;
    if (parent != c->above && (parent != RX_ORPHAN || !rx_attach(t, node, c->above))) {
        t->conflicts++;
        v = rx_vis_from(t, parent, c->lane);
    }
    from = rx_hot(&t->nodes, node)->set;
    state = rx_state(t, node, c->lane);
    counts = rx_counts(t, node, c->lane, state);
    if (!(c->once && counts.count[c->tier])) {
        counts.count[c->tier] += counts.count[c->tier] != UINT32_MAX;
        p = rx_best(&counts);
        if (v < p) v = p;
        if (rx_change(t, node, c->lane, state, &counts, v, 1)) return RX_FAIL;
    } else {
        v = rx_vis(state);
    }
    rx_chain_step(t, c, node, state == RX_ABSENT ? from : RX_NONE, v);
    return state == RX_ABSENT;
}

/* One block of a chain; `node` RX_NONE if the tree does not have it. 1: newly present, 0: not,
 * RX_FAIL: no memory, nothing changed. */
RX_HOT int rx_insert_one(RxTree *t, RxChain *c, uint32_t node, uint64_t key, uint64_t hash) {
    int fresh = node == RX_NONE, status;
    if (fresh) {
        node = rx_node_new(t, key, hash, c->above);
        if (node == RX_NONE) return RX_FAIL;
    }
    status = rx_insert_again(t, c, node);
    if (!status) status = rx_insert_slow(t, c, node);
    if (status == RX_FAIL && fresh) {
        rx_keys_cut(&t->keys, hash, node);
        rx_node_drop(&t->nodes, node);
    }
    return status;
}

/* Begin a chain: the replica's lane and the node of the parent. */
static inline int rx_chain_begin(RxTree *t, RxChain *c, uint32_t replica, uint64_t parent) {
    if (t->dropped[replica]) return RX_DROPPED;
    if (t->inside[replica] == RX_NOBODY && t->dead_count >= t->lanes - t->max_replicas &&
        rx_sweep_lane(t))
        return RX_FAIL;
    c->lane = rx_lane_open(t, replica);
    if (c->lane == RX_NOBODY) return RX_FAIL;
    t->lane[c->lane]->tiers |= (uint8_t)(1u << c->tier);
    c->above = parent ? rx_find(t, parent) : RX_ROOT;
    if (c->above == RX_NONE)
        c->above = rx_node_new(t, parent, rx_hash64(&t->keys, parent), RX_ORPHAN);
    if (c->above == RX_NONE) return RX_FAIL;
    c->v = rx_vis_from(t, c->above, c->lane);
    return 0;
}

/* Free the node made for an unknown parent if no block came to hang below it. */
static inline void rx_forget_orphan(RxTree *t, uint32_t node) {
    RxHot *hot = rx_hot(&t->nodes, node);
    if (hot->parent != RX_ORPHAN || (hot->set & RX_SET_MASK)) return;
    if (rx_cold(&t->nodes, node)->child) return;
    rx_keys_cut(&t->keys, rx_hash64(&t->keys, hot->key), node);
    rx_node_drop(&t->nodes, node);
}

/* Make room after a refusal by the cap. 0: try again. */
RX_RARE int rx_chain_room(RxTree *t, RxChain *c, uint32_t *rounds) {
    if (++*rounds > RX_EVICT_ROUNDS || !rx_evict(t)) return RX_FAIL;
    if (rx_is_real(c->above) && rx_hot(&t->nodes, c->above)->parent == RX_FREE) return RX_FAIL;
    c->from = RX_NONE; /* sets may have been freed */
    c->v = rx_vis_from(t, c->above, c->lane);
    return 0;
}

/* Insert a block again, evicting until the cap lets it in; RX_FULL if it does not. */
RX_RARE int rx_insert_retry(RxTree *t, RxChain *c, uint64_t key, uint64_t hash,
                            uint32_t *rounds) {
    int status;
    do {
        if (rx_chain_room(t, c, rounds)) return RX_FULL;
        status = rx_insert_one(t, c, rx_find(t, key), key, hash);
    } while (status == RX_FAIL && t->mem.refused);
    return status;
}

static inline void rx_prefetch_lane(const RxTree *t, uint32_t replica) {
    uint32_t lane = t->inside[replica];
    if (lane == RX_NOBODY) return;
    rx_prefetch(t->lane[lane]);
    rx_prefetch(&t->lane[lane]->blocks);
}

/* Blocks of a chain, the first below `parent` (0: a first block), for the replica in the tier. One
 * more reference each, or with `once` presence only. Returns how many are newly present; RX_FAIL
 * (blocks before the failure stay), RX_DROPPED. No key is 0. */
static inline int64_t rx_insert(RxTree *t, uint32_t replica, const uint64_t *keys, size_t n,
                                uint64_t parent, uint32_t tier, int once) {
    RxChain c = {0, tier, (uint32_t)once, RX_ROOT, 0, RX_NONE, 0, 0, 0};
    RxRun run;
    int64_t fresh = 0;
    uint32_t rounds = 0, node, start;
    uint64_t hash;
    size_t i = 0;
    int status, full = 0;
    if (n == 0) return 0;
    rx_prefetch_lane(t, replica);
    rx_run_begin(&run, &t->keys, &t->nodes, keys, n);
    while ((status = rx_chain_begin(t, &c, replica, parent)) == RX_FAIL && t->mem.refused) {
        if (++rounds <= RX_EVICT_ROUNDS && rx_evict(t)) continue;
        rx_note_capped(t, replica, n);
        return 0;
    }
    if (status) return status;
    start = c.above;
    rx_run_go(&run);
    for (; i < n && status >= 0; i++) {
        node = rx_run_find(&run, i, &hash);
        status = rx_insert_one(t, &c, node, keys[i], hash);
        if (status == RX_FAIL && t->mem.refused) {
            status = rx_insert_retry(t, &c, keys[i], hash, &rounds);
            full = status == RX_FULL;
        }
        fresh += status > 0;
    }
    if (full) {
        rx_note_capped(t, replica, n - i + 1);
        status = 0;
    }
    rx_forget_orphan(t, start);
    rx_compact_begin(t, c.lane);
    for (i = 2 * n; i && t->compact_lane != RX_NOBODY && rx_compact_step(t) >= 0; i--) {}
    if (rx_settle(t, RX_INLINE_UNITS) < 0 && !t->mem.refused) status = RX_FAIL;
    return status < 0 ? RX_FAIL : fresh;
}

/* One copy less for the lane at the node. 1: done, 0: the lane has none there. */
static inline int rx_take(RxTree *t, uint32_t node, uint32_t lane, uint32_t tier) {
    uint32_t state = rx_state(t, node, lane), p, v = rx_vis(state);
    RxCounts counts = rx_counts(t, node, lane, state);
    if (!counts.count[tier]) return 0;
    if (rx_walks_reserve(&t->mem, &t->walks[RX_REAP])) return RX_FAIL;
    counts.count[tier]--;
    p = rx_best(&counts);
    if (rx_change(t, node, lane, state, &counts, p > v ? p : v, 1)) return RX_FAIL;
    if (p == RX_HIDDEN && v != RX_HIDDEN && rx_cold(&t->nodes, node)->child) t->holes++;
    rx_prune(t, node, RX_PRUNE_UNITS);
    return 1;
}

static inline int rx_remove_one(RxTree *t, uint32_t replica, uint32_t node, uint32_t tier) {
    uint32_t lane = t->inside[replica], i;
    int got = 0;
    if (node == RX_NONE) return 0;
    if (lane != RX_NOBODY) got = rx_take(t, node, lane, tier);
    if (got == RX_FAIL && t->mem.refused) {
        /* Even the reserve is used up. Forgetting the replica needs no memory and never
         * over-counts; what it still holds comes back as its engine stores it again. */
        rx_note_capped(t, replica, t->lane[lane]->blocks);
        rx_lane_kill(t, lane, 0);
        return 1;
    }
    if (got || !t->sweeps[replica]) return got;
    for (i = 0; i < t->dead_count && !got; i++) {
        RxLane *dead = t->lane[t->dead[i]];
        if (dead->replica == replica && dead->keep >> tier & 1)
            got = rx_take(t, node, t->dead[i], tier);
    }
    return got;
}

/* One copy less of each block, in any order. Returns how many were known; RX_FAIL. */
static inline int64_t rx_remove(RxTree *t, uint32_t replica, const uint64_t *keys, size_t n,
                                uint32_t tier) {
    RxRun run;
    uint64_t hash;
    int64_t known = 0;
    int got = 0;
    size_t i;
    t->mem.taking++;
    rx_prefetch_lane(t, replica);
    rx_run_begin(&run, &t->keys, &t->nodes, keys, n);
    rx_run_go(&run);
    for (i = 0; i < n && got >= 0; i++) {
        got = rx_remove_one(t, replica, rx_run_find(&run, i, &hash), tier);
        if (got > 0) known++;
        else if (!got) t->unknown_removals++;
    }
    if (rx_settle(t, RX_INLINE_UNITS) < 0 && !t->mem.refused) got = RX_FAIL;
    t->mem.taking--;
    return got < 0 ? RX_FAIL : known;
}

/* Forget the replica's blocks: all (tier 3), or those in one tier. Hidden at once. */
static inline void rx_clear(RxTree *t, uint32_t replica, uint32_t tier) {
    uint32_t lane = t->inside[replica], gone = tier < 3 ? 1u << tier : 7u, i;
    for (i = 0; i < t->dead_count; i++)
        if (t->lane[t->dead[i]]->replica == replica) t->lane[t->dead[i]]->keep &= (uint8_t)~gone;
    if (lane != RX_NOBODY && t->lane[lane]->tiers & gone)
        rx_lane_kill(t, lane, t->lane[lane]->tiers & ~gone);
    if (gone == 7u && t->brief[replica]) {
        t->brief[replica] = 0;
        t->brief_count--;
    }
}

/* rx_work, and room for it where the cap refuses it some. */
static inline int rx_maintain(RxTree *t, uint32_t budget) {
    int status = rx_work(t, budget);
    if (status != RX_FAIL || !t->mem.refused) return status;
    return rx_evict(t) ? 1 : RX_FAIL;
}

static inline void rx_drop(RxTree *t, uint32_t replica) {
    rx_clear(t, replica, 3);
    t->dropped[replica] = t->sweeps[replica] != 0;
}

#endif
