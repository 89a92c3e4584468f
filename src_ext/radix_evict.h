/* Eviction when the memory cap refuses an allocation: tail first, so that what stays is still a
 * prefix, and from the replica that holds most, so that a small one is not pushed out by a large.
 */
#ifndef WARMLANE_RADIX_EVICT_H
#define WARMLANE_RADIX_EVICT_H

#include "radix_work.h"

#define RX_EVICT_BATCH 64u
#define RX_EVICT_ROUNDS 64u
#define RX_EVICT_CHILDREN 64u

/* The first child that the lane holds; 0: none among the first RX_EVICT_CHILDREN, and then *more
 * says whether there are others. */
static inline uint32_t rx_child_of(const RxTree *t, uint32_t node, uint32_t lane, int *more) {
    uint32_t child = rx_cold(&t->nodes, node)->child, looked;
    for (looked = 0; child && looked < RX_EVICT_CHILDREN; looked++) {
        if (rx_state(t, child, lane) != RX_ABSENT) return child;
        child = rx_cold(&t->nodes, child)->next;
    }
    *more = child != 0;
    return 0;
}

/* From the oldest block of the lane go down to a tail and take blocks away upwards. Returns how
 * many, RX_FAIL without memory. */
static inline int rx_evict_tail(RxTree *t, uint32_t lane, uint32_t limit) {
    static const RxCounts none = {{0, 0, 0}};
    RxLane *me = t->lane[lane];
    RxRecord *r = &me->record[0];
    uint32_t node = me->evict_at, child, parent, taken = 0;
    int more = 0;
    for (; rx_state(t, node, lane) == RX_ABSENT; rx_record_skip(r)) {
        if (!rx_record_seek(&t->mem, r) && !rx_record_seek(&t->mem, r = &me->record[1])) return 0;
        node = rx_record_peek(r);
        if (rx_state(t, node, lane) != RX_ABSENT) break;
    }
    me->evict_at = node;
    while ((child = rx_child_of(t, node, lane, &more))) node = child;
    while (taken < limit) {
        if (rx_walks_reserve(&t->mem, &t->walks[RX_REAP]) ||
            rx_change(t, node, lane, rx_state(t, node, lane), &none, 0, 1))
            return RX_FAIL;
        taken++;
        parent = rx_hot(&t->nodes, node)->parent;
        rx_prune(t, node, RX_PRUNE_UNITS);
        if (!rx_is_real(parent) || rx_hot(&t->nodes, parent)->parent == RX_FREE ||
            rx_state(t, parent, lane) == RX_ABSENT || rx_child_of(t, parent, lane, &more) || more)
            break;
        me->evict_at = node = parent;
    }
    rx_note_capped(t, me->replica, taken);
    return (int)taken;
}

/* Take away about RX_EVICT_BATCH blocks, tails first, from whoever holds most. 0: nothing left. */
RX_RARE uint32_t rx_evict(RxTree *t) {
    uint32_t gone = 0, lane, largest;
    int got = 1;
    t->mem.taking++;
    while (gone < RX_EVICT_BATCH && got > 0) {
        for (largest = RX_NOBODY, lane = 0; lane < t->lanes_used; lane++)
            if (t->lane[lane]->state == RX_LIVE && t->lane[lane]->blocks &&
                (largest == RX_NOBODY || t->lane[lane]->blocks > t->lane[largest]->blocks))
                largest = lane;
        got = largest == RX_NOBODY ? 0 : rx_evict_tail(t, largest, RX_EVICT_BATCH - gone);
        if (got > 0) gone += (uint32_t)got;
    }
    t->mem.taking--;
    return gone;
}

#endif
