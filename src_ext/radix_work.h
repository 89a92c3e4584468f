/* Work that is spread over slices: walks that hide or show blocks below a change, sweeps of dead
 * lanes, compaction of records, and freeing long empty chains.
 *
 * A walk visits the subtree of a changed node in pre-order, in constant memory, and sets every
 * edge right for one lane; where nothing changes it turns back. Hide walks only raise v and show
 * walks only lower it, so a rise that is still to come always has a hide walk queued: a match may
 * jump while no hide walk is pending, and otherwise goes block by block (radix_match.h).
 * The unit of every budget is one node visited; a unit costs 20-120 ns.
 */
#ifndef WARMLANE_RADIX_WORK_H
#define WARMLANE_RADIX_WORK_H

#include "radix_tree.h"

#define RX_INLINE_UNITS 1024u /* done at once at the end of an insert or a remove */
#define RX_PRUNE_UNITS 64u
#define RX_UNITS_PER_US 8u

/* Set the edge above `node` right for the lane, in the direction of `kind`. 1: v has changed. */
static inline int rx_recompute(RxTree *t, uint32_t node, uint32_t lane, uint32_t kind) {
    uint32_t state = rx_state(t, node, lane), v, above;
    RxCounts counts;
    if (state == RX_ABSENT) return 0;
    above = rx_vis_from(t, rx_hot(&t->nodes, node)->parent, lane);
    counts = rx_counts(t, node, lane, state);
    v = rx_best(&counts);
    if (above > v) v = above;
    if (kind == RX_HIDE ? v <= rx_vis(state) : v >= rx_vis(state)) return 0;
    return rx_change(t, node, lane, state, &counts, v, 0) ? RX_FAIL : 1;
}

/* Go on from cur, whose subtree is done. */
static inline void rx_walk_on(RxTree *t, RxWalks *w) {
    uint32_t next = rx_cold(&t->nodes, w->cur)->next;
    w->cur = next ? next : rx_hot(&t->nodes, w->cur)->parent;
    w->rising = !next;
    if (w->cur == w->top) w->active = 0;
}

/* One step of the oldest walk of this kind. 0: nothing to do, 1: done a step. */
static inline int rx_walk_step(RxTree *t, uint32_t kind) {
    RxWalks *w = &t->walks[kind];
    int changed;
    if (!w->active) {
        RxTodo todo;
        if (!w->count) return 0;
        todo = w->todo[w->first];
        w->first = (w->first + 1) % w->room;
        w->count--;
        if (rx_hot(&t->nodes, todo.node)->parent == RX_FREE) return 1;
        w->top = todo.node;
        w->lane = todo.lane;
        w->cur = rx_cold(&t->nodes, w->top)->child;
        w->rising = 0;
        w->active = w->cur != 0;
        return 1;
    }
    if (t->lane[w->lane]->state != RX_LIVE) {
        w->active = 0;
        return 1;
    }
    if (w->rising) {
        rx_walk_on(t, w);
        return 1;
    }
    changed = rx_recompute(t, w->cur, w->lane, kind);
    if (changed < 0) return RX_FAIL;
    if (changed && rx_cold(&t->nodes, w->cur)->child) w->cur = rx_cold(&t->nodes, w->cur)->child;
    else rx_walk_on(t, w);
    return 1;
}

static inline void rx_compact_end(RxTree *t) {
    rx_free(&t->mem, t->compact_seen, t->compact_limit / 8 + 1);
    t->compact_seen = NULL;
    t->compact_lane = RX_NOBODY;
}

/* Begin to compact the lane's record if most of it is stale. No memory: some other time. */
static inline void rx_compact_begin(RxTree *t, uint32_t lane) {
    RxLane *me = t->lane[lane];
    if (t->compact_lane != RX_NOBODY || rx_lane_listed(me) <= 2ull * me->blocks + 1024u) return;
    t->compact_seen = (uint8_t *)rx_alloc(&t->mem, t->nodes.used / 8 + 1);
    if (!t->compact_seen) return;
    t->compact_limit = t->nodes.used;
    t->compact_lane = lane;
    me->compacting = 1;
}

static inline int rx_compact_step(RxTree *t) {
    RxLane *me;
    RxRecord *old;
    uint32_t id;
    if (t->compact_lane == RX_NOBODY) return 0;
    me = t->lane[t->compact_lane];
    old = &me->record[0];
    if (!rx_record_seek(&t->mem, old)) {
        *old = me->record[1];
        memset(&me->record[1], 0, sizeof me->record[1]);
        me->record[1].last = RX_RUN;
        me->compacting = 0;
        rx_compact_end(t);
        return 1;
    }
    if (rx_record_reserve(&t->mem, &me->record[1])) return RX_FAIL;
    id = rx_record_peek(old);
    if (!(id < t->compact_limit && t->compact_seen[id / 8] >> id % 8 & 1) &&
        rx_state(t, id, t->compact_lane) != RX_ABSENT) {
        if (id < t->compact_limit) t->compact_seen[id / 8] |= (uint8_t)(1u << id % 8);
        rx_record_add(&me->record[1], id);
    }
    rx_record_skip(old);
    return 1;
}

/* A lane of the replica to fill: its live one, or a new one. RX_NOBODY: no memory, or no lane is
 * unused (t->mem.refused tells them apart as for an allocation: 0). */
static inline uint32_t rx_lane_open(RxTree *t, uint32_t replica) {
    uint32_t lane = t->inside[replica];
    RxLane *me;
    if (lane != RX_NOBODY) return lane;
    t->mem.refused = 0;
    for (lane = 0; lane < t->lanes_used && t->lane[lane]->state != RX_UNUSED; lane++) {}
    if (lane == t->lanes) return RX_NOBODY;
    if (lane == t->lanes_used) {
        t->lane[lane] = (RxLane *)rx_alloc(&t->mem, sizeof(RxLane));
        if (!t->lane[lane]) return RX_NOBODY;
        t->lanes_used++;
    }
    me = t->lane[lane];
    memset(me, 0, sizeof *me);
    me->record[0].last = me->record[1].last = RX_RUN;
    me->state = RX_LIVE;
    me->replica = (uint16_t)replica;
    t->inside[replica] = (uint16_t)lane;
    t->outside[lane] = (uint16_t)replica;
    return lane;
}

static inline void rx_lane_close(RxTree *t, uint32_t lane) {
    RxLane *me = t->lane[lane];
    rx_record_free(&t->mem, &me->record[0]);
    rx_record_free(&t->mem, &me->record[1]);
    me->state = RX_UNUSED;
}

/* End a live lane: invisible from now on; `keep` names the tiers that move to the next lane. */
static inline void rx_lane_kill(RxTree *t, uint32_t lane, uint32_t keep) {
    RxLane *me = t->lane[lane];
    if (t->compact_lane == lane) rx_compact_end(t);
    me->compacting = 0;
    t->inside[me->replica] = t->outside[lane] = RX_NOBODY;
    if (!me->blocks) {
        rx_lane_close(t, lane);
        return;
    }
    me->state = RX_DEAD;
    me->keep = (uint8_t)keep;
    t->sweeps[me->replica]++;
    t->dead[t->dead_count++] = (uint16_t)lane;
}

/* The replica lost `blocks` blocks to the cap, or to the end of the lanes. */
static inline void rx_note_capped(RxTree *t, uint32_t replica, uint64_t blocks) {
    t->capped += blocks;
    t->brief_count += !t->brief[replica];
    t->brief[replica] = 1;
}

/* Move what the dead lane keeps at the node to the replica's new lane, both or neither. */
static inline int rx_sweep_move(RxTree *t, uint32_t node, uint32_t lane, uint32_t state,
                                const RxCounts *kept) {
    static const RxCounts none = {{0, 0, 0}};
    uint32_t heir = rx_lane_open(t, t->lane[lane]->replica), old, v, p, i, mid, to, set;
    RxCounts sum;
    int status = RX_FAIL;
    if (heir == RX_NOBODY) {
        if (t->dead_count < t->lanes - t->max_replicas) return RX_FAIL;
        /* Every lane is taken: nobody calls maintain. This lane keeps nothing. */
        rx_note_capped(t, t->lane[lane]->replica, t->lane[lane]->blocks);
        t->lane[lane]->keep = 0;
        return rx_change(t, node, lane, state, &none, 0, 0);
    }
    old = rx_state(t, node, heir);
    sum = rx_counts(t, node, heir, old);
    for (i = 0; i < 3; i++) {
        if (kept->count[i]) t->lane[heir]->tiers |= (uint8_t)(1u << i);
        sum.count[i] += sum.count[i] > UINT32_MAX - kept->count[i] ? 0 : kept->count[i];
    }
    p = rx_best(&sum);
    v = rx_vis_from(t, rx_hot(&t->nodes, node)->parent, heir);
    if (v < p) v = p;
    set = rx_set_of(&t->nodes, node);
    mid = rx_set_change(&t->sets, set, lane, RX_ABSENT);
    if (mid == RX_NONE) return RX_FAIL;
    to = rx_set_change(&t->sets, mid, heir, rx_state_for(p, v));
    if (to != RX_NONE) {
        /* Both sets exist and are held, so nothing below needs memory but for the heir's own. */
        status = rx_change(t, node, heir, old, &sum, v, 1);
        if (!status) status = rx_change(t, node, lane, state, &none, 0, 0);
        rx_set_unref(&t->sets, to);
    }
    rx_set_unref(&t->sets, mid);
    return status;
}

/* Take the dead lane off the next node of its record. */
static inline int rx_sweep_step(RxTree *t, uint32_t units_left, uint32_t *units) {
    uint32_t lane = t->dead[0], node, state, i, kept = 0;
    RxLane *me = t->lane[lane];
    RxRecord *r = &me->record[0];
    RxCounts counts, none = {{0, 0, 0}};
    if (!rx_record_seek(&t->mem, r)) r = &me->record[1];
    if (!me->blocks || !rx_record_seek(&t->mem, r)) {
        if (--t->sweeps[me->replica] == 0) t->dropped[me->replica] = 0;
        rx_lane_close(t, lane);
        memmove(t->dead, t->dead + 1, --t->dead_count * sizeof *t->dead);
        return 0;
    }
    node = rx_record_peek(r);
    state = rx_state(t, node, lane);
    if (state != RX_ABSENT) {
        if (rx_walks_reserve(&t->mem, &t->walks[RX_REAP])) return RX_FAIL;
        counts = rx_counts(t, node, lane, state);
        for (i = 0; i < 3; i++) {
            if (!(me->keep >> i & 1)) counts.count[i] = 0;
            kept |= counts.count[i];
        }
        if (kept ? rx_sweep_move(t, node, lane, state, &counts)
                 : rx_change(t, node, lane, state, &none, 0, 0))
            return RX_FAIL;
        *units += rx_prune(t, node, units_left < RX_PRUNE_UNITS ? 1 : RX_PRUNE_UNITS);
    }
    rx_record_skip(r);
    return 0;
}

/* Sweep the oldest dead lane to its end, since no lane is unused. This is the one piece of work
 * that is not sliced; it takes hundreds of clears without a maintain to come here. */
static inline int rx_sweep_lane(RxTree *t) {
    uint32_t before = t->dead_count, units = 0;
    int status = 0;
    t->mem.taking++;
    while (!status && t->dead_count == before && before) status = rx_sweep_step(t, 1, &units);
    t->mem.taking--;
    return status;
}

static inline int rx_reap_step(RxTree *t, uint32_t *units) {
    RxWalks *w = &t->walks[RX_REAP];
    uint32_t node = w->todo[w->first].node;
    w->first = (w->first + 1) % w->room;
    w->count--; /* so there is room for the one push of rx_prune */
    *units += rx_prune(t, node, RX_PRUNE_UNITS);
    return 0;
}

static inline int rx_pending(const RxTree *t, uint32_t kind) {
    return t->walks[kind].active || t->walks[kind].count;
}

/* Walks and empty chains, up to `budget` units. Returns the units done or RX_FAIL. */
static inline int64_t rx_settle(RxTree *t, uint32_t budget) {
    uint32_t units = 0;
    int failed = 0;
    t->mem.taking++;
    while (units < budget && !failed) {
        units++;
        if (rx_pending(t, RX_HIDE)) failed = rx_walk_step(t, RX_HIDE) < 0;
        else if (rx_pending(t, RX_SHOW)) failed = rx_walk_step(t, RX_SHOW) < 0;
        else if (t->walks[RX_REAP].count) failed = rx_reap_step(t, &units) < 0;
        else break;
    }
    t->mem.taking--;
    return failed ? RX_FAIL : (int64_t)units;
}

/* A match may be too low: the cap took blocks, or blocks wait to show or to move. */
static inline int rx_under_counting(const RxTree *t) {
    uint32_t i;
    for (i = 0; i < t->dead_count; i++)
        if (t->lane[t->dead[i]]->keep) return 1;
    return t->brief_count || rx_pending(t, RX_SHOW);
}

static inline int rx_busy(const RxTree *t) {
    return rx_pending(t, RX_HIDE) || rx_pending(t, RX_SHOW) || t->walks[RX_REAP].count ||
           t->dead_count || t->compact_lane != RX_NOBODY;
}

/* All kinds of work, up to `budget` units. 1: work remains, 0: none, RX_FAIL: no memory. */
static inline int rx_work(RxTree *t, uint32_t budget) {
    int64_t done = rx_settle(t, budget);
    uint32_t units;
    int failed = 0;
    if (done < 0) return RX_FAIL;
    t->mem.taking++;
    for (units = (uint32_t)done; units < budget && t->dead_count && !failed; units++)
        failed = rx_sweep_step(t, budget - units, &units) < 0;
    t->mem.taking--;
    for (; units < budget && t->compact_lane != RX_NOBODY && !failed; units++)
        failed = rx_compact_step(t) < 0;
    return failed ? RX_FAIL : rx_busy(t);
}

#endif
