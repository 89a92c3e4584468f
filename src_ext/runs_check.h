/* The rules of the run tree, recounted from scratch, for tests: NULL, or the first fault. */
#ifndef WARMLANE_RUNS_CHECK_H
#define WARMLANE_RUNS_CHECK_H

#include "runs_lanes.h"

static inline const char *rt_check_node(RtTree *t, uint32_t id, uint32_t *children) {
    RtNodes *s = &t->nodes;
    RtNode *n = rt_node(s, id), *up;
    const RtHolder *h = rt_holders(n);
    uint32_t i, most = 0;
    if (n->parent >= s->used) return "a node's parent does not exist";
    up = rt_node(s, n->parent);
    if (up->parent == RT_FREE) return "a node's parent is free";
    if (!n->len || n->len > n->room) return "a run is empty or longer than its room";
    if (rt_child(s, n->parent, n->keys[0]) != id) return "a node is not found by its first key";
    if (n->holders > (n->holder_room ? n->holder_room : 1)) return "holders beyond their room";
    children[n->parent]++;
    for (i = 0; i < n->holders; i++) {
        const RtHolder *above;
        if (i && h[i - 1].lane >= h[i].lane) return "holders are not sorted by lane";
        if (h[i].lane >= t->lanes) return "a holder's lane does not exist";
        if (t->lane[h[i].lane].state == RT_UNUSED) return "a holder's lane is unused";
        if (!h[i].held || h[i].held > n->len) return "a held length is out of range";
        if (h[i].held > most) most = h[i].held;
        above = n->parent ? rt_holder(up, h[i].lane) : NULL;
        if (n->parent && (!above || above->held != up->len))
            return "a lane holds a run but not all of the one above";
    }
    return most == n->len ? NULL : "nobody holds the end of a run";
}

/* One recency list: links both ways, a node before its parent, the count of blocks. */
static inline const char *rt_check_list(RtTree *t, uint32_t lane, uint8_t *seen,
                                        uint64_t *entries) {
    RtNodes *s = &t->nodes;
    RtLane *l = &t->lane[lane];
    uint32_t id, before = 0;
    uint64_t size = 0;
    memset(seen, 0, s->used);
    for (id = l->oldest; id; before = id, id = rt_holder(rt_node(s, id), lane)->newer) {
        const RtHolder *h;
        if (id >= s->used || rt_node(s, id)->parent == RT_FREE) return "a list names no node";
        h = rt_holder(rt_node(s, id), lane);
        if (!h) return "a list names a node that the lane does not hold";
        if (seen[id]) return "a recency list is a ring";
        seen[id] = 1;
        if (h->older != before) return "a recency list points one way";
        if (rt_node(s, id)->parent && seen[rt_node(s, id)->parent])
            return "a node is newer than its parent";
        size += h->held;
        (*entries)++;
    }
    if (before != l->newest) return "a recency list ends elsewhere";
    return size == l->size ? NULL : "a lane's count of blocks is wrong";
}

static inline const char *rt_check_lane(RtTree *t, uint32_t lane) {
    const RtLane *l = &t->lane[lane];
    int live = l->state == RT_LIVE;
    if (l->state == RT_UNUSED && (l->size || l->oldest || l->queued))
        return "an unused lane is in use";
    if (live != (t->outside[lane] != RT_NOBODY)) return "a lane's outside number is wrong";
    if (live && (t->outside[lane] != l->replica || t->inside[l->replica] != lane))
        return "a replica's lane is wrong";
    if (l->state == RT_DEAD && !l->queued) return "a dead lane waits for nobody";
    if (live && l->size > l->limit && !l->queued) return "a lane above its limit does not wait";
    return NULL;
}

static inline const char *rt_check_lanes(RtTree *t, uint8_t *seen, uint64_t holders) {
    const char *wrong = NULL;
    uint32_t lane, r, dead = 0, unused = 0, sweeps = 0, queued = 0;
    uint64_t entries = 0;
    for (lane = 0; lane < t->lanes && !wrong; lane++) {
        wrong = rt_check_lane(t, lane);
        if (!wrong && t->lane[lane].oldest) wrong = rt_check_list(t, lane, seen, &entries);
        else if (!wrong && t->lane[lane].size) wrong = "an empty list has blocks";
        dead += t->lane[lane].state == RT_DEAD;
        unused += t->lane[lane].state == RT_UNUSED;
        queued += t->lane[lane].queued;
    }
    if (wrong) return wrong;
    for (r = 0; r < t->max_replicas; r++) sweeps += t->sweeps[r];
    if (entries != holders) return "a holder is in no recency list";
    if (sweeps != dead || unused != t->unused_count || queued != t->queue_count)
        return "lanes are counted wrongly";
    return NULL;
}

static inline const char *rt_check_count(RtTree *t, uint32_t *children, uint64_t *holders) {
    RtNodes *s = &t->nodes;
    const char *wrong = NULL;
    uint32_t id, live = 0, free_count = 0;
    uint64_t blocks = 0;
    uint64_t bytes = rt_fixed_bytes(t->max_replicas) +
                     rx_segs_bytes(&s->segs, RT_SEG * sizeof(RtNode)) +
                     rx_segs_bytes(&s->heads.segs, RX_HEADS_SEG * sizeof(uint32_t));
    for (id = 1; id < s->used && !wrong; id++) {
        const RtNode *n = rt_node(s, id);
        if (n->parent == RT_FREE) continue;
        live++;
        blocks += n->len;
        *holders += n->holders;
        bytes += n->room * sizeof(uint64_t) + n->holder_room * sizeof(RtHolder);
        wrong = rt_check_node(t, id, children);
    }
    if (wrong) return wrong;
    for (id = 0; id < s->used; id++)
        if (rt_node(s, id)->parent != RT_FREE && rt_node(s, id)->children != children[id])
            return "a count of children is wrong";
    for (id = s->free_head; id; id = rt_node(s, id)->next, free_count++)
        if (rt_node(s, id)->parent != RT_FREE || free_count >= s->used) return "bad free list";
    if (live != s->live || live != s->heads.items || live + free_count + 1 != s->used)
        return "the count of nodes is wrong";
    if (blocks != s->blocks) return "the count of blocks is wrong";
    if (bytes != s->mem.used) return "bytes_used is wrong";
    return s->mem.cap && bytes > s->mem.cap ? "the memory cap is exceeded" : NULL;
}

static inline const char *rt_check(RtTree *t) {
    uint32_t *children = (uint32_t *)calloc(t->nodes.used, sizeof *children);
    uint8_t *seen = (uint8_t *)malloc(t->nodes.used);
    uint64_t holders = 0;
    const char *wrong = children && seen ? NULL : "no memory for the check";
    if (!wrong) wrong = rt_check_count(t, children, &holders);
    if (!wrong) wrong = rt_check_lanes(t, seen, holders);
    free(children);
    free(seen);
    return wrong;
}

#endif
