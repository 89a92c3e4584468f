/* Proof of the invariants, for tests and fuzzing: every structure is walked and recounted. Cost:
 * the whole tree, and a bitmap of the nodes per lane. Returns NULL or what is wrong.
 */
#ifndef WARMLANE_RADIX_CHECK_H
#define WARMLANE_RADIX_CHECK_H

#include "radix_match.h"
#include "radix_update.h"

static inline const char *rx_check_links(RxTree *t) {
    uint32_t id, live = 0, linked = 0, child, prev;
    for (id = 1; id < t->nodes.used; id++) {
        RxHot *hot = rx_hot(&t->nodes, id);
        if (hot->parent == RX_FREE) {
            if (hot->key || hot->set) return "a free node has a key or a set";
            continue;
        }
        live++;
        if (rx_find(t, hot->key) != id) return "a node is not in the index";
        if (rx_is_real(hot->parent)) {
            if (hot->parent >= t->nodes.used || rx_hot(&t->nodes, hot->parent)->parent == RX_FREE)
                return "a node's parent is free";
            linked++;
        } else if (rx_cold(&t->nodes, id)->next || rx_cold(&t->nodes, id)->prev) {
            return "a child of the root or an orphan has siblings";
        }
        for (prev = 0, child = rx_cold(&t->nodes, id)->child; child;
             prev = child, child = rx_cold(&t->nodes, child)->next) {
            if (rx_hot(&t->nodes, child)->parent != id) return "a child names another parent";
            if (rx_cold(&t->nodes, child)->prev != prev) return "a child's prev is wrong";
            if (linked-- == 0 && live > t->nodes.live) return "more children than nodes";
        }
        if (!(hot->set & RX_SET_MASK) && !rx_cold(&t->nodes, id)->child &&
            !t->walks[RX_REAP].count)
            return "an empty leaf was not freed";
    }
    if (linked) return "a child is missing from its parent's list";
    if (live != t->nodes.live) return "the count of nodes is wrong";
    return NULL;
}

static inline const char *rx_check_keys(RxTree *t) {
    uint32_t i, b, total = 0, full, over, passed;
    for (i = 0; i < RX_PARTS; i++) {
        RxPart *p = &t->keys.part[i];
        full = over = passed = 0;
        for (b = 0; b < p->buckets; b++) {
            uint32_t left = p->bucket[b].full;
            full += (uint32_t)__builtin_popcount(left);
            over += p->bucket[b].over;
            for (; left; left &= left - 1) {
                uint32_t home = rx_home(p, p->bucket[b].tag[__builtin_ctz(left)]);
                passed += (b + p->buckets - home) % p->buckets;
            }
        }
        if (full != p->count) return "a partition's count is wrong";
        if (over != passed) return "a partition's overflow counts are wrong";
        total += full;
    }
    return total == t->nodes.live ? NULL : "the index has more keys than there are nodes";
}

static inline const char *rx_check_set(RxTree *t, uint32_t id) {
    const RxSet *set = rx_set(&t->sets, id);
    const uint16_t *at = rx_members(set);
    uint32_t i, hash = 0, visible = 0, other, found = 0;
    for (i = 0; i < set->count; i++) {
        if (i && at[i - 1] >> 3 >= at[i] >> 3) return "a set is not sorted by lane";
        if (at[i] >> 3 >= t->lanes_used) return "a set names a lane that never was";
        hash += rx_mix32(at[i] + 1u);
        visible += RX_VIS(at[i] & 7u) != RX_HIDDEN;
    }
    if (hash != set->hash || visible != set->visible) return "a set's hash or count is wrong";
    for (other = *rx_head(&t->sets.heads, hash); other; other = rx_set(&t->sets, other)->next) {
        const RxSet *o = rx_set(&t->sets, other);
        found += other == id;
        if (other != id && o->count == set->count &&
            !memcmp(rx_members(o), at, set->count * sizeof *at))
            return "a set is interned twice";
    }
    return found == 1 ? NULL : "a set is not in its chain";
}

/* Reference counts of sets, through a scratch array of one counter per set id. */
static inline const char *rx_check_sets(RxTree *t) {
    uint32_t *refs = (uint32_t *)calloc(t->sets.used, sizeof *refs), id, live = 0;
    const char *wrong = NULL;
    if (!refs) return "no memory for the check";
    for (id = 1; id < t->nodes.used; id++) refs[rx_set_of(&t->nodes, id)]++;
    for (id = 1; id < t->sets.used && !wrong; id++) {
        const RxSet *set = rx_set(&t->sets, id);
        if (set->count == 0) {
            if (refs[id]) wrong = "a node has a freed set";
            continue;
        }
        live++;
        wrong = refs[id] != set->refs ? "a set's reference count is wrong" : rx_check_set(t, id);
    }
    if (!wrong && (live != t->sets.live || live != t->sets.heads.items))
        wrong = "the count of sets is wrong";
    free(refs);
    return wrong;
}

/* One node: states against counts, and v against the edge above. */
static inline const char *rx_check_node(RxTree *t, uint32_t node, uint32_t *uncommon) {
    const RxSet *set = rx_set(&t->sets, rx_set_of(&t->nodes, node));
    const uint16_t *at = rx_members(set);
    uint32_t i, lane, state, p, v, want, sum;
    for (i = 0; i < set->count; i++) {
        RxCounts counts, *entry = rx_refs_get(&t->refs, node, lane = at[i] >> 3);
        state = at[i] & 7u;
        if (entry && !(rx_hot(&t->nodes, node)->set & RX_REFS_FLAG))
            return "a node with uncommon counts has no flag";
        *uncommon += entry != NULL;
        counts = rx_counts(t, node, lane, state);
        p = rx_best(&counts);
        sum = counts.count[0] + counts.count[1] + counts.count[2];
        if (p == RX_HIDDEN) return "a member has no copies";
        v = rx_vis(state);
        if (v < p || rx_state_for(p, v) != state) return "a member's state is wrong";
        if (entry && sum == 1 && counts.count[RX_BEST(state)] == 1)
            return "common counts are kept apart";
        if (t->lane[lane]->state == RX_UNUSED) return "a member's lane is unused";
        if (t->lane[lane]->state != RX_LIVE) continue;
        want = rx_vis_from(t, rx_hot(&t->nodes, node)->parent, lane);
        if (want < p) want = p;
        if (v < want && !rx_pending(t, RX_HIDE)) return "a member shows too much";
        if (v > want && !rx_pending(t, RX_SHOW)) return "a member shows too little";
    }
    return NULL;
}

static inline const char *rx_check_lane(RxTree *t, uint32_t lane, uint8_t *bits) {
    RxLane *me = t->lane[lane];
    uint32_t id, blocks = 0, held = 0, listed, i;
    memset(bits, 0, t->nodes.used);
    for (i = 0; i < 2; i++) {
        RxRecord copy = me->record[i];
        const RxChunk *c = copy.head;
        uint64_t seen = 0;
        for (; c; c = c->next) {
            uint32_t w = c == copy.head ? copy.at : 0, first, count;
            for (; w < c->count; w++) {
                first = c->word[w] & ~RX_RUN;
                count = c->word[w] & RX_RUN ? c->word[++w] : 1;
                id = c == copy.head && w <= copy.at + 1 && seen == 0 ? copy.offset : 0;
                for (; id < count; id++, seen++) bits[first + id] = 1;
            }
        }
        if (seen != copy.blocks) return "a record's length is wrong";
    }
    for (id = 1; id < t->nodes.used; id++) {
        uint32_t state = rx_state(t, id, lane);
        if (state == RX_ABSENT) continue;
        blocks++;
        held += state >= 3;
        if (!bits[id]) return "a block is missing from its lane's record";
    }
    listed = me->state == RX_UNUSED && (me->record[0].head || me->record[1].head);
    if (listed) return "an unused lane has a record";
    if (me->state == RX_UNUSED) return blocks ? "an unused lane has blocks" : NULL;
    if (blocks != me->blocks) return "a lane's count of blocks is wrong";
    return held == me->held ? NULL : "a lane's count of held blocks is wrong";
}

static inline const char *rx_check_lanes(RxTree *t) {
    uint8_t *bits = (uint8_t *)malloc(t->nodes.used);
    const char *wrong = bits ? NULL : "no memory for the check";
    uint32_t lane, live = 0;
    for (lane = 0; lane < t->lanes_used && !wrong; lane++) {
        RxLane *me = t->lane[lane];
        wrong = rx_check_lane(t, lane, bits);
        if (!wrong && (me->state == RX_LIVE) != (t->outside[lane] != RX_NOBODY))
            wrong = "a lane's outside number is wrong";
        if (!wrong && me->state == RX_LIVE && t->inside[me->replica] != lane)
            wrong = "a replica's lane is wrong";
        live += me->state == RX_DEAD;
        if (!wrong && t->seen_v[lane] != RX_HIDDEN) wrong = "the scratch of match is not at rest";
    }
    free(bits);
    if (!wrong && live != t->dead_count) wrong = "the count of dead lanes is wrong";
    return wrong;
}

static inline const char *rx_check_bytes(RxTree *t) {
    uint64_t bytes = sizeof *t + t->lanes * (sizeof *t->lane + sizeof *t->outside +
                     sizeof *t->dead + 1) + t->max_replicas * (sizeof *t->inside +
                     sizeof *t->sweeps + 2) + RX_PARTS * sizeof(RxPart);
    uint32_t i;
    bytes += rx_segs_bytes(&t->nodes.segs, sizeof(RxNodeSeg));
    bytes += rx_segs_bytes(&t->sets.segs, RX_SET_SEG * sizeof(RxSet));
    bytes += rx_segs_bytes(&t->sets.heads.segs, RX_HEADS_SEG * sizeof(uint32_t));
    bytes += rx_segs_bytes(&t->refs.segs, RX_REFS_SEG * sizeof(RxRef));
    bytes += rx_segs_bytes(&t->refs.heads.segs, RX_HEADS_SEG * sizeof(uint32_t));
    for (i = 0; i < RX_PARTS; i++)
        if (t->keys.part[i].bucket) bytes += (t->keys.part[i].buckets + 1ull) * sizeof(RxBucket);
    for (i = 1; i < t->sets.used; i++) bytes += rx_members_bytes(rx_set(&t->sets, i)->count);
    for (i = 0; i < t->lanes_used; i++)
        bytes += sizeof(RxLane) + rx_record_bytes(&t->lane[i]->record[0]) +
                 rx_record_bytes(&t->lane[i]->record[1]);
    for (i = 0; i < 3; i++) bytes += t->walks[i].room * sizeof(RxTodo);
    if (t->compact_seen) bytes += t->compact_limit / 8 + 1;
    if (bytes != t->mem.used) return "bytes_used is wrong";
    return t->mem.cap && bytes > t->mem.cap ? "the memory cap is exceeded" : NULL;
}

static inline const char *rx_check(RxTree *t) {
    const char *wrong = rx_check_links(t);
    uint32_t id, uncommon = 0;
    if (!wrong) wrong = rx_check_keys(t);
    if (!wrong) wrong = rx_check_sets(t);
    for (id = 1; id < t->nodes.used && !wrong; id++) wrong = rx_check_node(t, id, &uncommon);
    if (!wrong && uncommon != t->refs.heads.items) wrong = "counts are kept for nobody";
    if (!wrong) wrong = rx_check_lanes(t);
    return wrong ? wrong : rx_check_bytes(t);
}

#endif
