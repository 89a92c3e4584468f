/* The run tree: a path-compressed prefix tree of block keys with one recency list per replica.
 *
 * Rules (counted again by runs_check.h):
 *  1. Two children of a node begin with different keys; a chain of keys is one path from the root.
 *  2. A lane holds a prefix of a run; it holds a node only if it holds the parent's run whole.
 *  3. Somebody holds the last key of every run: what nobody holds is cut off.
 *  4. All blocks that a lane holds of one run were last touched together. A touch that ends, or
 *     leaves, inside a run that the lane holds further splits the run there.
 *  5. In a recency list a node is older than its parent; within a run the tail is older. Together
 *     with 4 this is exactly the block by block order of _core.lru, at one entry per run.
 *  6. Runs that 4 has split and that belong together again are joined when they are touched.
 *
 * A lane is one life of a replica: clear and drop give up a lane as it is, so that nothing of it
 * matches from there on, and rt_maintain takes it apart later in slices.
 */
#ifndef WARMLANE_RUNS_TREE_H
#define WARMLANE_RUNS_TREE_H

#include "runs_holders.h"

#define RT_NOBODY 0xffffffffu
#define RT_FAIL (-1)
#define RT_REFUSED (-2)
#define RT_JOINS 8u         /* runs that one touch joins at most: each costs a copy */
#define RT_STEP_HOLDERS 512u /* 8 KiB to move: about 1 us */
#define RT_JOIN_HOLDERS 64u /* more holders are not compared: their entries outweigh the node */

enum { RT_UNUSED, RT_LIVE, RT_DEAD };

typedef struct {
    RtNodes nodes;
    RtLane *lane;      /* by lane */
    uint32_t *outside; /* lane -> replica, RT_NOBODY when it is not alive */
    uint32_t *inside;  /* replica -> lane or RT_NOBODY */
    uint32_t *sweeps;  /* by replica: dead lanes that are not taken apart yet */
    uint32_t *queue;   /* ring of lanes with work: dead, or above their limit */
    uint32_t *unused;  /* stack of unused lanes */
    uint32_t queue_at, queue_count, unused_count;
    uint32_t lanes, max_replicas;
    uint64_t capped; /* touches that met the memory cap: it evicted for them, or refused them */
} RtTree;

/* Where a chain of keys leaves the tree. */
typedef struct {
    uint32_t node, part; /* the last node it enters, and how many of its keys are the chain's */
    uint32_t at;         /* keys of the chain that are in the tree */
    uint32_t known;      /* of these, leading ones that the lane holds */
} RtEnd;

static inline RtEnd rt_walk(RtNodes *s, uint32_t lane, const uint64_t *keys, uint32_t count) {
    RtEnd end = {0, 0, 0, 0};
    int mine = 1;
    while (end.at < count) {
        uint32_t id = rt_child(s, end.node, keys[end.at]), most = count - end.at;
        RtNode *n;
        if (!id) break;
        n = rt_node(s, id);
        end.node = id;
        end.part = rt_same(n->keys, keys + end.at, n->len < most ? n->len : most);
        if (mine) {
            RtHolder *h = rt_holder(n, lane);
            uint32_t held = h ? h->held : 0;
            end.known = end.at + (held < end.part ? held : end.part);
            mine = held == n->len;
        }
        end.at += end.part;
        if (end.part < n->len) break;
    }
    return end;
}

/* ---- split and join ---- */

/* The holders of a run that is split after `at` keys: all hold of the upper part, some of the
 * lower. In every recency list the upper part follows right after the lower one. */
static inline void rt_split_holders(RtTree *t, uint32_t low_id, uint32_t up_id, uint32_t at) {
    RtNodes *s = &t->nodes;
    RtNode *low = rt_node(s, low_id), *up = rt_node(s, up_id);
    RtHolder *from = rt_holders(low), *to = rt_holders(up);
    uint32_t i, kept = 0;
    for (i = 0; i < low->holders; i++) {
        RtHolder h = from[i];
        RtLane *l = &t->lane[h.lane];
        to[i] = (RtHolder){h.lane, h.held < at ? h.held : at, h.older, h.newer};
        rt_join_newer(s, l, h.lane, h.newer, up_id);
        if (h.held > at) {
            to[i].older = low_id;
            from[kept++] = (RtHolder){h.lane, h.held - at, h.older, up_id};
        } else {
            rt_join_older(s, l, h.lane, h.older, up_id);
        }
    }
    up->holders = low->holders;
    low->holders = kept;
    rt_holders_trim(s, low);
}

/* Split a run after `at` keys. Returns the new node above, or 0 without memory. The lower part
 * keeps the number, so that its children need no change. */
static inline uint32_t rt_split(RtTree *t, uint32_t id, uint32_t at) {
    RtNodes *s = &t->nodes;
    uint32_t up_id = rt_node_new(s);
    RtNode *low = rt_node(s, id), *up;
    if (!up_id) return 0;
    up = rt_node(s, up_id);
    if (rt_keys_room(s, up, at) || rt_holders_reserve(s, up, low->holders)) {
        rt_node_free(s, up_id);
        return 0;
    }
    rt_leave(s, id);
    memcpy(up->keys, low->keys, at * sizeof *up->keys);
    up->len = at;
    up->parent = low->parent;
    up->children = 1;
    low->len -= at;
    memmove(low->keys, low->keys + at, low->len * sizeof *low->keys);
    low->parent = up_id;
    rt_split_holders(t, id, up_id, at);
    rt_keys_trim(s, low);
    rt_enter(s, up_id);
    rt_enter(s, id);
    return up_id;
}

/* May `id` and the run above it be one again: an only child, held by the same lanes, and in every
 * recency list right before its parent? */
static inline int rt_joinable(RtNodes *s, uint32_t id) {
    RtNode *n = rt_node(s, id), *up = rt_node(s, n->parent);
    RtHolder *a = rt_holders(n), *b = rt_holders(up);
    uint32_t i;
    if (!n->parent || up->children != 1 || up->holders != n->holders ||
        n->holders > RT_JOIN_HOLDERS)
        return 0;
    for (i = 0; i < n->holders; i++)
        if (a[i].lane != b[i].lane || a[i].newer != n->parent) return 0;
    return 1;
}

/* Append a run to the one above it; the node keeps its number, the one above goes. */
static inline int rt_join(RtTree *t, uint32_t id) {
    RtNodes *s = &t->nodes;
    RtNode *n = rt_node(s, id), *up = rt_node(s, n->parent);
    uint32_t i, up_id = n->parent, room = n->room, len = up->len;
    RtHolder *a = rt_holders(n), *b = rt_holders(up);
    uint64_t *keys = n->keys;
    if (rt_keys_reserve(s, up, len + n->len)) return -1;
    rt_leave(s, id);
    rt_leave(s, up_id);
    memcpy(up->keys + len, keys, n->len * sizeof *keys);
    n->keys = up->keys;
    n->room = up->room;
    n->len += len;
    n->parent = up->parent;
    up->keys = keys; /* goes with the node */
    up->room = room;
    for (i = 0; i < n->holders; i++) {
        a[i].held += len;
        a[i].newer = b[i].newer;
        rt_join_newer(s, &t->lane[a[i].lane], a[i].lane, b[i].newer, id);
    }
    rt_node_free(s, up_id);
    rt_enter(s, id);
    return 0;
}

static inline void rt_join_path(RtTree *t, uint32_t id) {
    uint32_t joins = 0;
    while (id && joins < RT_JOINS) {
        if (!rt_joinable(&t->nodes, id)) id = rt_node(&t->nodes, id)->parent;
        else if (rt_join(t, id)) return;
        else joins++;
    }
}

/* ---- eviction ---- */

/* Cut off what nobody holds any more (rule 3). A run with children is held whole. */
static inline void rt_cut(RtNodes *s, uint32_t id) {
    RtNode *n = rt_node(s, id);
    const RtHolder *h = rt_holders(n);
    uint32_t i, most = 0;
    if (n->children) return;
    for (i = 0; i < n->holders && most < n->len; i++)
        if (h[i].held > most) most = h[i].held;
    s->blocks -= n->len - most;
    if (most == 0) {
        rt_leave(s, id);
        rt_node(s, n->parent)->children--;
        rt_node_free(s, id);
    } else if (most < n->len) {
        n->len = most;
        rt_keys_trim(s, n);
    }
}

/* Evict up to `blocks` of a lane's oldest blocks, in about `most` steps; returns the steps: one for
 * each run, and more for a run whose holders are many to move and to look through. */
static inline uint32_t rt_evict(RtTree *t, uint32_t lane, uint32_t blocks, uint32_t most) {
    RtNodes *s = &t->nodes;
    RtLane *l = &t->lane[lane];
    uint32_t steps = 0;
    while (blocks && l->oldest && steps < most) {
        uint32_t id = l->oldest, cut;
        RtNode *n = rt_node(s, id);
        RtHolder *h = rt_holder(n, lane);
        steps += 1 + n->holders / RT_STEP_HOLDERS;
        cut = h->held < blocks ? h->held : blocks;
        blocks -= cut;
        l->size -= cut;
        h->held -= cut;
        if (!h->held) {
            rt_take_out(s, l, h);
            rt_holder_remove(s, n, h);
        }
        rt_cut(s, id);
    }
    return steps;
}

/* ---- touch ---- */

/* The lane holds `part` keys of the node and all runs above it, the root newest. Needs room for
 * one more holder in each. */
static inline void rt_restamp(RtTree *t, uint32_t lane, uint32_t id, uint32_t part) {
    RtNodes *s = &t->nodes;
    RtLane *l = &t->lane[lane];
    while (id) {
        RtNode *n = rt_node(s, id);
        RtHolder *h = rt_holder(n, lane);
        if (h) rt_take_out(s, l, h);
        else h = rt_holder_add(n, lane);
        l->size += part - h->held;
        h->held = part;
        rt_put_newest(s, l, id, h);
        id = n->parent;
        part = rt_node(s, id)->len;
    }
}

/* Room for what a touch adds below `end`: keys in the node itself when it is a leaf, else a new
 * leaf, whose number is returned (0: none needed); and for a holder on the whole path. */
static inline int rt_reserve(RtNodes *s, uint32_t lane, const RtEnd *end, uint32_t fresh,
                             uint32_t *leaf) {
    RtNode *n = rt_node(s, end->node);
    uint32_t id;
    *leaf = 0;
    if (fresh && end->node && !n->children) {
        if (rt_keys_reserve(s, n, n->len + fresh)) return -1;
    } else if (fresh) {
        if (!(*leaf = rt_node_new(s))) return -1;
        if (rt_keys_room(s, rt_node(s, *leaf), fresh)) return -1;
    }
    for (id = end->node; id; id = n->parent) {
        n = rt_node(s, id);
        if (rt_holder(n, lane)) break; /* rule 2: then it is a holder further up as well */
        if (rt_holders_reserve(s, n, n->holders + 1)) return -1;
    }
    return 0;
}

/* One attempt: the lane's leading blocks in *known; RT_FAIL without memory, nothing changed. */
static inline int rt_touch_once(RtTree *t, uint32_t lane, const uint64_t *keys, uint32_t count,
                                uint32_t *known) {
    RtNodes *s = &t->nodes;
    RtEnd end = rt_walk(s, lane, keys, count);
    RtNode *n = rt_node(s, end.node);
    uint32_t leaf, fresh = count - end.at;
    *known = end.known;
    if (end.part < n->len) {
        RtHolder *h = rt_holder(n, lane);
        if (fresh || (h && h->held > end.part)) {
            if (!(end.node = rt_split(t, end.node, end.part))) return RT_FAIL;
            n = rt_node(s, end.node);
        }
    }
    if (rt_reserve(s, lane, &end, fresh, &leaf)) {
        int refused = s->mem.refused;
        if (leaf) rt_node_free(s, leaf);
        else rt_keys_trim(s, n);
        s->mem.refused = refused;
        return RT_FAIL;
    }
    s->blocks += fresh;
    if (leaf) {
        RtNode *new = rt_node(s, leaf);
        memcpy(new->keys, keys + end.at, fresh * sizeof *keys);
        new->len = fresh;
        new->parent = end.node;
        n->children++;
        rt_enter(s, leaf);
        rt_restamp(t, lane, leaf, fresh);
    } else {
        memcpy(n->keys + n->len, keys + end.at, fresh * sizeof *keys);
        n->len += fresh;
        rt_restamp(t, lane, end.node, end.part + fresh);
    }
    rt_join_path(t, leaf ? leaf : end.node);
    return 0;
}

#endif
