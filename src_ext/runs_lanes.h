/* What callers see of the run tree: replicas with a capacity, touch, match, clear, drop, and the
 * work that is done in slices. Arguments are checked by the face (runs.pyx). */
#ifndef WARMLANE_RUNS_LANES_H
#define WARMLANE_RUNS_LANES_H

#include "runs_tree.h"

#define RT_ATTEMPTS 8u    /* evictions that one touch may try under the memory cap */
#define RT_LEAST_ROOM 64u /* blocks that one of them evicts at least */
/* Taking a run apart reads its node, its holders, its parent and its keys' allocator: about six
 * cache misses, at most 1 us. */
#define RT_STEPS_PER_US 1u

static inline int rt_lives(const RtTree *t, uint32_t replica) {
    return t->inside[replica] != RT_NOBODY;
}

/* ---- the queue of lanes with work ---- */

static inline void rt_enqueue(RtTree *t, uint32_t lane) {
    if (t->lane[lane].queued) return;
    t->lane[lane].queued = 1;
    t->queue[(t->queue_at + t->queue_count++) % t->lanes] = lane;
}

static inline void rt_give_back(RtTree *t, uint32_t lane) {
    t->sweeps[t->lane[lane].replica]--;
    memset(&t->lane[lane], 0, sizeof t->lane[lane]);
    t->unused[t->unused_count++] = lane;
}

/* Work on the first lane of the queue; returns its steps, or 0 when it left the queue. */
static inline uint32_t rt_work(RtTree *t, uint32_t most) {
    uint32_t lane = t->queue[t->queue_at];
    RtLane *l = &t->lane[lane];
    uint32_t target = l->state == RT_DEAD ? 0 : l->limit;
    if (l->size > target) return rt_evict(t, lane, l->size - target, most);
    t->queue_at = (t->queue_at + 1) % t->lanes;
    t->queue_count--;
    l->queued = 0;
    if (l->state == RT_DEAD) rt_give_back(t, lane);
    return 0;
}

/* About so many steps of pending work; 1 when work remains. */
static inline int rt_maintain(RtTree *t, uint32_t steps) {
    while (t->queue_count) {
        uint32_t done = rt_work(t, steps);
        if (done >= steps) return 1; /* at least this lane is still in the queue */
        steps -= done;
    }
    return 0;
}

/* ---- lives of replicas ---- */

static inline void rt_give_up(RtTree *t, uint32_t lane) {
    RtLane *l = &t->lane[lane];
    t->outside[lane] = RT_NOBODY;
    t->inside[l->replica] = RT_NOBODY;
    t->sweeps[l->replica]++;
    l->state = RT_DEAD;
    if (l->size || l->queued) rt_enqueue(t, lane);
    else rt_give_back(t, lane);
}

static inline void rt_set_limit(RtTree *t, uint32_t lane, uint32_t limit) {
    RtLane *l = &t->lane[lane];
    l->limit = limit;
    if (l->size > limit) rt_enqueue(t, lane);
}

/* Begin a life. There are twice as many lanes as replicas: should all be taken, half of them are
 * dead, and the first in the queue is taken apart here and now. */
static inline void rt_open_lane(RtTree *t, uint32_t replica, uint32_t limit) {
    uint32_t lane;
    while (!t->unused_count) (void)rt_work(t, 0xffffffffu);
    lane = t->unused[--t->unused_count];
    t->lane[lane] = (RtLane){0, 0, 0, limit, replica, RT_LIVE, 0};
    t->outside[lane] = replica;
    t->inside[replica] = lane;
}

static inline void rt_clear(RtTree *t, uint32_t replica) {
    uint32_t lane = t->inside[replica], limit;
    if (lane == RT_NOBODY || !t->lane[lane].size) return;
    limit = t->lane[lane].limit;
    rt_give_up(t, lane);
    rt_open_lane(t, replica, limit);
}

/* ---- touch ---- */

/* Under the cap: evict the oldest blocks of whom it hurts least: of a dead lane, else of the lane
 * itself, else of the one that holds most. 0 when nobody holds anything. O(lanes), and rare. */
static inline int rt_make_room(RtTree *t, uint32_t lane, uint32_t blocks) {
    uint32_t i, victim = t->queue_count ? t->queue[t->queue_at] : lane;
    if (t->lane[victim].state != RT_DEAD || !t->lane[victim].size) victim = lane;
    if (!t->lane[victim].size)
        for (i = 0; i < t->lanes; i++)
            if (t->lane[i].size > t->lane[victim].size) victim = i;
    return rt_evict(t, victim, blocks < RT_LEAST_ROOM ? RT_LEAST_ROOM : blocks, 0xffffffffu) > 0;
}

/* The chain becomes the newest of a live replica; count <= its limit. Returns how many leading
 * keys it held; RT_FAIL without memory, nothing changed; RT_REFUSED by the cap, not stored. */
static inline int64_t rt_touch(RtTree *t, uint32_t replica, const uint64_t *keys, uint32_t count) {
    uint32_t lane = t->inside[replica], known, first = 0, attempt, fresh;
    uint64_t cap = t->nodes.mem.cap;
    RtLane *l = &t->lane[lane];
    for (attempt = 0; rt_touch_once(t, lane, keys, count, &known); attempt++) {
        if (!t->nodes.mem.refused) return RT_FAIL;
        if (!attempt) {
            first = known;
            t->capped++;
        }
        /* One chain shall not push all others out. */
        if (attempt == RT_ATTEMPTS || count * sizeof *keys > cap / 2 ||
            !rt_make_room(t, lane, count))
            return RT_REFUSED;
    }
    fresh = count - known;
    if (l->size > l->limit) {
        /* After a shrink each new block evicts two, until the limit is reached. */
        uint32_t over = l->size - l->limit;
        (void)rt_evict(t, lane, over < 2 * fresh ? over : 2 * fresh, 0xffffffffu);
    }
    return attempt ? first : known;
}

/* ---- match ---- */

/* Leading keys that each replica holds, into out[0..room), zeroed first; the greatest of them. */
static inline uint32_t rt_match(RtTree *t, const uint64_t *keys, uint32_t count, int32_t *out,
                                uint32_t room) {
    RtNodes *s = &t->nodes;
    uint32_t at = 0, id = 0, best = 0, i;
    memset(out, 0, room * sizeof *out);
    while (at < count && (id = rt_child(s, id, keys[at]))) {
        RtNode *n = rt_node(s, id);
        const RtHolder *h = rt_holders(n);
        uint32_t most = count - at < n->len ? count - at : n->len;
        uint32_t same = rt_same(n->keys, keys + at, most);
        for (i = 0; i < n->holders; i++) {
            uint32_t replica = t->outside[h[i].lane], hit;
            if (replica >= room) continue; /* a dead lane is nobody's */
            hit = at + (h[i].held < same ? h[i].held : same);
            out[replica] = (int32_t)hit;
            if (hit > best) best = hit;
        }
        at += same;
        if (same < n->len) break;
    }
    return best;
}

/* ---- open and close ---- */

static inline void rt_close(RtTree *t) {
    rt_nodes_close(&t->nodes);
    wl_free(t->lane);
    wl_free(t->outside);
    wl_free(t->inside);
    wl_free(t->sweeps);
    wl_free(t->queue);
    wl_free(t->unused);
    wl_free(t);
}

static inline uint64_t rt_fixed_bytes(uint32_t max_replicas) {
    uint64_t lanes = 2ull * max_replicas;
    return sizeof(RtTree) + lanes * (sizeof(RtLane) + 3 * sizeof(uint32_t)) +
           2ull * max_replicas * sizeof(uint32_t);
}

static inline RtTree *rt_open(uint64_t cap, uint32_t max_replicas, const uint64_t seed[2]) {
    RtTree *t = (RtTree *)wl_calloc(1, sizeof *t);
    uint32_t i, lanes = 2 * max_replicas;
    if (!t) return NULL;
    t->lanes = lanes;
    t->max_replicas = max_replicas;
    t->nodes.mem.cap = cap;
    t->nodes.mem.used = rt_fixed_bytes(max_replicas);
    t->nodes.seed[0] = seed[0];
    t->nodes.seed[1] = seed[1];
    t->lane = (RtLane *)wl_calloc(lanes, sizeof *t->lane);
    t->outside = (uint32_t *)wl_calloc(lanes, sizeof(uint32_t));
    t->queue = (uint32_t *)wl_calloc(lanes, sizeof(uint32_t));
    t->unused = (uint32_t *)wl_calloc(lanes, sizeof(uint32_t));
    t->inside = (uint32_t *)wl_calloc(max_replicas, sizeof(uint32_t));
    t->sweeps = (uint32_t *)wl_calloc(max_replicas, sizeof(uint32_t));
    if (!t->lane || !t->outside || !t->queue || !t->unused || !t->inside || !t->sweeps ||
        rt_nodes_init(&t->nodes)) {
        rt_close(t);
        return NULL;
    }
    for (i = 0; i < lanes; i++) {
        t->outside[i] = RT_NOBODY;
        t->unused[t->unused_count++] = lanes - 1 - i;
    }
    for (i = 0; i < max_replicas; i++) t->inside[i] = RT_NOBODY;
    return t;
}

#endif
