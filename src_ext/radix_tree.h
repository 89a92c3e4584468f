/* The tree and its one primitive: give a lane other reference counts or another visibility at a
 * node. Insert, remove, the walks, sweeps and eviction are made of it.
 *
 * Levels. A block is *present* for a lane while any of its counts is above 0; its best tier p is
 * the lowest tier (gpu 0, cpu 1, disk 2) with a count. It is *visible* at level l (gpu; gpu or
 * cpu; any) when it and all blocks above it are present in a tier <= l. So one number per (node,
 * lane), the least such level v = max of p over the path from the root, gives all three counts of
 * a match; v = 3 means hidden. Along a chain v never falls: this makes jumping exact.
 *
 *   root ── A p=0 v=0 ── B p=1 v=1 ── C p=0 v=1 ── (hole: D) ── E p=0 v=3
 *           gpu count 1, gpu|cpu count 3, any count 3
 *
 * Edges. v(child) = max(v(parent), p(child)) holds on every edge of a live lane, except below
 * nodes whose v has changed and whose walk is still to come (radix_work.h). p <= v always holds,
 * so the running maximum of v over a path never over-counts, walks pending or not.
 *
 * Every function that can fail returns RX_FAIL and has then changed nothing.
 */
#ifndef WARMLANE_RADIX_TREE_H
#define WARMLANE_RADIX_TREE_H

#include "radix_keys.h"
#include "radix_lanes.h"
#include "radix_nodes.h"
#include "radix_refs.h"
#include "radix_sets.h"

#define RX_FAIL (-1)
#define RX_HIDDEN 3u

typedef struct {
    uint32_t node, lane;
} RxTodo;

typedef struct {
    RxTodo *todo; /* ring of roots of walks to come */
    uint32_t room, first, count;
    uint32_t active, top, cur, lane, rising; /* the walk under way; rising: cur's subtree is done */
} RxWalks;

enum { RX_HIDE = 0, RX_SHOW = 1, RX_REAP = 2 };

typedef struct {
    RxMem mem;
    RxNodes nodes;
    RxKeys keys;
    RxSets sets;
    RxRefs refs;
    RxWalks walks[3]; /* hides, shows, and empty leaves to free */
    RxLane **lane;    /* lanes entries, NULL: never used */
    uint16_t *outside; /* lane -> replica, RX_NOBODY when dead or unused */
    uint16_t *inside;  /* replica -> lane, RX_NOBODY: none */
    uint16_t *sweeps;  /* replica -> its dead lanes still to be swept */
    uint8_t *dropped;  /* replica -> dropped, and not yet swept */
    uint8_t *brief;    /* replica -> lost blocks to the cap since its last clear or drop */
    uint16_t *dead;    /* the dead lanes, oldest first */
    uint8_t *seen_v;   /* scratch of the linear match, per lane; RX_HIDDEN at rest */
    uint32_t lanes, max_replicas, lanes_used, dead_count;
    uint32_t brief_count;         /* replicas with `brief` set */
    uint32_t compact_lane;        /* the lane under compaction, RX_NOBODY: none */
    uint8_t *compact_seen;        /* a bit per node id below compact_limit */
    uint32_t compact_limit;
    uint64_t holes;               /* removals that hid blocks below */
    uint64_t capped;              /* blocks evicted or refused for the cap */
    uint64_t unknown_removals;
    uint64_t conflicts;           /* inserts under another parent than the known one */
} RxTree;

static inline uint32_t rx_best(const RxCounts *c) {
    return c->count[0] ? 0 : c->count[1] ? 1 : c->count[2] ? 2 : RX_HIDDEN;
}

/* What the lane has at the node: its state in the set, RX_ABSENT if nothing. */
static inline uint32_t rx_state(const RxTree *t, uint32_t node, uint32_t lane) {
    return rx_set_state(&t->sets, rx_set_of(&t->nodes, node), lane);
}

static inline uint32_t rx_vis(uint32_t state) {
    return state == RX_ABSENT ? RX_HIDDEN : RX_VIS(state);
}

static inline RxCounts rx_counts(RxTree *t, uint32_t node, uint32_t lane, uint32_t state) {
    RxCounts counts = {{0, 0, 0}};
    RxCounts *uncommon;
    if (state == RX_ABSENT) return counts;
    if (rx_hot(&t->nodes, node)->set & RX_REFS_FLAG) {
        uncommon = rx_refs_get(&t->refs, node, lane);
        if (uncommon) return *uncommon;
    }
    counts.count[RX_BEST(state)] = 1;
    return counts;
}

/* The state for best tier p and visibility v (p <= v); hidden on disk alone shares state 4. */
static inline uint32_t rx_state_for(uint32_t p, uint32_t v) {
    static const uint8_t table[3][4] = {{0, 3, 7, 4}, {8, 1, 6, 5}, {8, 8, 2, 4}};
    return table[p][v];
}

/* v of the lane at a parent: what reaches its children from above. */
static inline uint32_t rx_vis_from(const RxTree *t, uint32_t parent, uint32_t lane) {
    if (parent == RX_ROOT) return 0;
    if (!rx_is_real(parent)) return RX_HIDDEN;
    return rx_vis(rx_state(t, parent, lane));
}

/* Node of the key, RX_NONE if the tree does not have it. */
static inline uint32_t rx_find(const RxTree *t, uint64_t key) {
    return rx_keys_find(&t->keys, &t->nodes, key, rx_hash64(&t->keys, key));
}

/* A node that may have the key, to prefetch it. */
static inline uint32_t rx_maybe(const RxTree *t, uint64_t key) {
    uint64_t hash = rx_hash64(&t->keys, key);
    return rx_bucket_maybe(rx_keys_home(&t->keys, hash), hash);
}

static inline int rx_walks_reserve(RxMem *m, RxWalks *w) {
    RxTodo *grown;
    uint32_t i, room;
    if (w->count < w->room) return 0;
    room = w->room ? w->room * 2 : 16;
    grown = (RxTodo *)rx_alloc(m, room * sizeof(RxTodo));
    if (!grown) return RX_FAIL;
    for (i = 0; i < w->count; i++) grown[i] = w->todo[(w->first + i) % w->room];
    rx_free(m, w->todo, w->room * sizeof(RxTodo));
    w->todo = grown;
    w->room = room;
    w->first = 0;
    return 0;
}

static inline void rx_walks_push(RxWalks *w, uint32_t node, uint32_t lane) {
    RxTodo *todo = &w->todo[(w->first + w->count++) % w->room];
    todo->node = node;
    todo->lane = lane;
}

/* One lane at one node: from `state` and its counts to `counts` with visibility v (ignored when
 * all counts are 0). With `push` the walk that the node's children then need is queued. */
static inline int rx_change(RxTree *t, uint32_t node, uint32_t lane, uint32_t state,
                            const RxCounts *counts, uint32_t v, int push) {
    RxHot *hot = rx_hot(&t->nodes, node);
    RxLane *me = t->lane[lane];
    uint32_t p = rx_best(counts), from = hot->set & RX_SET_MASK, to = from;
    uint32_t before = rx_vis(state), fresh = p == RX_HIDDEN ? RX_ABSENT : rx_state_for(p, v);
    uint32_t after = rx_vis(fresh), kind = after > before ? RX_HIDE : RX_SHOW, walk, uncommon;
    uncommon = fresh != RX_ABSENT && ((uint64_t)counts->count[0] + counts->count[1] +
               counts->count[2] != 1 || counts->count[RX_BEST(fresh)] != 1);
    walk = push && after != before && rx_cold(&t->nodes, node)->child && me->state == RX_LIVE &&
           (kind == RX_HIDE || me->held);
    if (uncommon && rx_refs_reserve(&t->refs)) return RX_FAIL;
    if (walk && rx_walks_reserve(&t->mem, &t->walks[kind])) return RX_FAIL;
    if (state == RX_ABSENT && fresh != RX_ABSENT &&
        rx_record_reserve(&t->mem, rx_lane_record(me)))
        return RX_FAIL;
    if (fresh != state) {
        to = rx_set_change(&t->sets, from, lane, fresh);
        if (to == RX_NONE) return RX_FAIL;
    }
    if (uncommon) {
        rx_refs_put(&t->refs, node, lane, counts);
        hot->set |= RX_REFS_FLAG;
    } else if (hot->set & RX_REFS_FLAG) {
        rx_refs_cut(&t->refs, node, lane);
    }
    if (fresh == state) return 0;
    hot->set = to | (hot->set & RX_REFS_FLAG);
    rx_set_unref(&t->sets, from);
    if (walk) rx_walks_push(&t->walks[kind], node, lane);
    me->held += (fresh != RX_ABSENT && fresh >= 3) - (state != RX_ABSENT && state >= 3);
    if (state == RX_ABSENT) {
        me->blocks++;
        rx_record_add(rx_lane_record(me), node);
    } else if (fresh == RX_ABSENT) {
        me->blocks--;
    }
    return 0;
}

/* A walk must not stand on a node that goes away. */
static inline void rx_walk_leave(RxTree *t, RxWalks *w, uint32_t node) {
    uint32_t next = rx_cold(&t->nodes, node)->next;
    if (!w->active || w->cur != node) return;
    w->cur = next ? next : rx_hot(&t->nodes, node)->parent;
    w->rising = !next;
    if (w->cur == w->top) w->active = 0;
}

/* Free the node if nothing needs it, then its parent, and so on, up to `limit` nodes; the rest of
 * a long empty chain is left to maintain. Call rx_walks_reserve(.. RX_REAP) before. */
static inline uint32_t rx_prune(RxTree *t, uint32_t node, uint32_t limit) {
    uint32_t freed = 0;
    while (rx_is_real(node)) {
        RxHot *hot = rx_hot(&t->nodes, node);
        uint32_t parent = hot->parent;
        if (parent == RX_FREE || (hot->set & RX_SET_MASK) || rx_cold(&t->nodes, node)->child)
            break;
        if (freed == limit) {
            rx_walks_push(&t->walks[RX_REAP], node, 0);
            break;
        }
        rx_walk_leave(t, &t->walks[RX_HIDE], node);
        rx_walk_leave(t, &t->walks[RX_SHOW], node);
        rx_keys_cut(&t->keys, rx_hash64(&t->keys, hot->key), node);
        rx_node_drop(&t->nodes, node);
        freed++;
        node = parent;
    }
    return freed;
}

#endif
