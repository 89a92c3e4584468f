/* Match: how many leading blocks of a prompt each replica holds, at each level, in one walk.
 *
 * Sets along a chain can only shrink in what they show, so two blocks with one set id have the same
 * visible replicas at all blocks between them. The walk jumps 64 blocks at a time and looks inside
 * only where the set id changes: first every 8th block, then every block. The probes of a round do
 * not depend on each other: their cache misses overlap. A chain that was stored at once has its
 * nodes in a row, so the node of block i + d is guessed to be that of block i plus d; a wrong guess
 * costs a look-up.
 *
 *   0 ─────── 64 ─────── 128 ─────── 192        same id at both ends: nothing to do
 *   A          A          B           B
 *              └ 72 80 88 .. 120 ┘              A A B: then 81 82 .. 88
 *
 * While a hide walk is pending the sets below it show too much. Then every block is looked at, and
 * the running maximum of v over the path is what counts; it is exact for hidden blocks whatever
 * the walks have done so far.
 *
 * Keys after the first that do not continue the chain of the key before are the caller's mistake;
 * chained hashes cannot produce them.
 */
#ifndef WARMLANE_RADIX_MATCH_H
#define WARMLANE_RADIX_MATCH_H

#include "radix_work.h"

#define RX_JUMP 64u
#define RX_STEP 8u
#define RX_PROBES 8u

typedef struct {
    const RxTree *t;
    const uint64_t *keys;
    uint32_t n;
    int32_t *out[3]; /* counts by level, `room` entries each, zeroed */
    uint32_t room, levels;
    uint32_t best; /* greatest any-level count */
} RxMatch;

/* A place on the path: block number, its node or RX_NONE, and the node's set (0 for no node). */
typedef struct {
    uint32_t at, node, set;
} RxSpot;

/* Set counts of levels from..to-1 of the lane's replica to `at`. */
static inline void rx_emit(RxMatch *m, uint32_t lane, uint32_t from, uint32_t to, uint32_t at) {
    uint32_t replica = m->t->outside[lane], level;
    if (replica >= m->room) return;
    for (level = from; level < to && level < m->levels; level++)
        m->out[level][replica] = (int32_t)at;
    if (from < m->levels) m->best = at; /* counts come in rising order */
}

/* The visible sets change from `from` to `to` at block `at`: those who lose a level get their
 * count. Returns whether anything stays visible. */
static inline int rx_emit_change(RxMatch *m, uint32_t from, uint32_t to, uint32_t at) {
    const RxSet *a = rx_set(&m->t->sets, from), *b = rx_set(&m->t->sets, to);
    const uint16_t *x = rx_members(a), *y = rx_members(b);
    const uint16_t *x_end = x + a->count, *y_end = y + b->count;
    if (b->visible == 0) {
        for (; x < x_end; x++) {
            uint32_t v = RX_VIS(*x & 7u);
            if (v < RX_HIDDEN) rx_emit(m, *x >> 3, v, RX_HIDDEN, at);
        }
        return 0;
    }
    for (; x < x_end; x++) {
        uint32_t v = RX_VIS(*x & 7u), after = RX_HIDDEN;
        while (y < y_end && *y >> 3 < *x >> 3) y++;
        if (y < y_end && *y >> 3 == *x >> 3) after = RX_VIS(*y & 7u);
        if (after > v) rx_emit(m, *x >> 3, v, after, at);
    }
    return 1;
}

/* Find the nodes of `count` blocks at..at + (count-1) * step, all after `from`. */
static inline void rx_probe(const RxMatch *m, const RxSpot *from, uint32_t at, uint32_t step,
                            uint32_t count, RxSpot *spots) {
    const RxTree *t = m->t;
    uint32_t i, guess;
    for (i = 0; i < count; i++) {
        guess = from->node + (at + i * step - from->at);
        spots[i].at = at + i * step;
        spots[i].node = from->node != RX_NONE && guess < t->nodes.used ? guess : RX_NONE;
        if (spots[i].node != RX_NONE) rx_prefetch(rx_hot(&t->nodes, guess));
    }
    for (i = 0; i < count; i++) {
        guess = spots[i].node;
        if (guess != RX_NONE && rx_hot(&t->nodes, guess)->key == m->keys[spots[i].at]) {
            spots[i].set = rx_set_of(&t->nodes, guess);
        } else {
            spots[i].set = RX_NONE; /* guessed wrong: look it up below */
            rx_keys_prefetch(&t->keys, rx_hash64(&t->keys, m->keys[spots[i].at]));
        }
    }
    for (i = 0; i < count; i++)
        if (spots[i].set == RX_NONE) {
            guess = rx_maybe(t, m->keys[spots[i].at]);
            if (guess != RX_NONE) rx_prefetch(rx_hot(&t->nodes, guess));
        }
    for (i = 0; i < count; i++)
        if (spots[i].set == RX_NONE) {
            spots[i].node = rx_find(t, m->keys[spots[i].at]);
            spots[i].set = spots[i].node == RX_NONE ? 0 : rx_set_of(&t->nodes, spots[i].node);
        }
}

/* Emit every change between two spots whose sets differ. Returns whether anything stays visible. */
static inline int rx_resolve(RxMatch *m, RxSpot from, RxSpot to) {
    RxSpot inner[RX_PROBES];
    uint32_t gap = to.at - from.at, step = gap > RX_STEP ? RX_STEP : 1, count, i;
    if (gap == 1) return rx_emit_change(m, from.set, to.set, to.at);
    count = (gap - 1) / step;
    rx_probe(m, &from, from.at + step, step, count, inner);
    for (i = 0; i <= count; i++) {
        RxSpot next = i < count ? inner[i] : to;
        if (next.set != from.set && !rx_resolve(m, from, next)) return 0;
        from = next;
    }
    return 1;
}

static inline void rx_match_jump(RxMatch *m, RxSpot spot) {
    RxSpot ahead[RX_PROBES];
    uint32_t left, count, i;
    while ((left = m->n - 1 - spot.at) != 0) {
        count = left / RX_JUMP;
        if (count >= RX_PROBES) {
            rx_probe(m, &spot, spot.at + RX_JUMP, RX_JUMP, count = RX_PROBES, ahead);
        } else {
            if (count) rx_probe(m, &spot, spot.at + RX_JUMP, RX_JUMP, count, ahead);
            if (count * RX_JUMP != left) rx_probe(m, &spot, m->n - 1, 1, 1, &ahead[count++]);
        }
        for (i = 0; i < count; i++) {
            if (ahead[i].set != spot.set && !rx_resolve(m, spot, ahead[i])) return;
            spot = ahead[i];
        }
    }
    rx_emit_change(m, spot.set, 0, m->n);
}

/* Lower what is visible to what the set at block `at` shows, starting from the first set. */
static inline uint32_t rx_linear_step(RxMatch *m, const RxSet *first, uint32_t set, uint32_t at) {
    const RxSet *b = rx_set(&m->t->sets, set);
    const uint16_t *x = rx_members(first), *x_end = x + first->count;
    const uint16_t *y = rx_members(b), *y_end = y + b->count;
    uint32_t alive = 0;
    for (; x < x_end; x++) {
        uint32_t lane = *x >> 3, v = m->t->seen_v[lane], after = RX_HIDDEN;
        while (y < y_end && *y >> 3 < lane) y++;
        if (y < y_end && *y >> 3 == lane) after = RX_VIS(*y & 7u);
        if (after > v) {
            rx_emit(m, lane, v, after, at);
            m->t->seen_v[lane] = (uint8_t)after;
        }
        alive += m->t->seen_v[lane] < RX_HIDDEN;
    }
    return alive;
}

static inline void rx_match_linear(RxMatch *m, RxSpot spot) {
    const RxSet *first = rx_set(&m->t->sets, spot.set);
    const uint16_t *x = rx_members(first);
    uint32_t i, at, last = spot.set, alive = 1;
    for (i = 0; i < first->count; i++) m->t->seen_v[x[i] >> 3] = (uint8_t)RX_VIS(x[i] & 7u);
    for (at = 1; at < m->n && alive; at++) {
        RxSpot next;
        if (at + 8 < m->n) rx_keys_prefetch(&m->t->keys, rx_hash64(&m->t->keys, m->keys[at + 8]));
        rx_probe(m, &spot, at, 1, 1, &next);
        if (next.set != last) alive = rx_linear_step(m, first, next.set, at);
        last = next.set;
        spot = next;
    }
    if (alive) rx_linear_step(m, first, 0, m->n);
    for (i = 0; i < first->count; i++) m->t->seen_v[x[i] >> 3] = RX_HIDDEN;
}

/* Fill the first `levels` (1 or 3) of out[], `room` entries each. Returns the greatest count of
 * the widest level filled. */
static inline uint32_t rx_match(const RxTree *t, const uint64_t *keys, size_t n, int32_t *out[3],
                                size_t room, uint32_t levels) {
    RxMatch m = {t, keys, n > INT32_MAX ? INT32_MAX : (uint32_t)n, {out[0], out[1], out[2]},
                 room > RX_MAX_REPLICAS ? RX_MAX_REPLICAS : (uint32_t)room, levels, 0};
    RxSpot spot = {0, RX_NONE, 0};
    uint32_t level;
    for (level = 0; level < levels; level++) memset(out[level], 0, room * sizeof(int32_t));
    if (n == 0) return 0;
    spot.node = rx_find(t, keys[0]);
    if (spot.node == RX_NONE || rx_hot(&t->nodes, spot.node)->parent != RX_ROOT) return 0;
    spot.set = rx_set_of(&t->nodes, spot.node);
    if (!rx_set(&t->sets, spot.set)->visible) return 0;
    if (rx_pending(t, RX_HIDE)) rx_match_linear(&m, spot);
    else rx_match_jump(&m, spot);
    return m.best;
}

#endif
