/* Who holds a run how far, and in which order each replica will lose it.
 *
 * A lane is one life of a replica (see runs_tree.h). Its recency list runs through the holder
 * entries of the nodes that it holds, oldest first; a node stands in it before (older than) its
 * parent, so that evicting from the old end takes tails first and never leaves a gap.
 */
#ifndef WARMLANE_RUNS_HOLDERS_H
#define WARMLANE_RUNS_HOLDERS_H

#include "runs_nodes.h"

typedef struct {
    uint32_t oldest, newest; /* nodes; 0: holds nothing */
    uint32_t size, limit;    /* blocks held, and how many it may hold */
    uint32_t replica;
    uint8_t state;  /* RT_UNUSED, RT_LIVE, RT_DEAD */
    uint8_t queued; /* waits for rt_maintain */
} RtLane;

RX_HOT RtHolder *rt_holders(RtNode *n) { return n->holder_room ? n->h.many : &n->h.one; }

/* Place of the first holder with this lane or a later one. */
RX_HOT uint32_t rt_seek(const RtHolder *h, uint32_t count, uint32_t lane) {
    uint32_t low = 0;
    while (count) {
        uint32_t half = count / 2;
        if (h[low + half].lane < lane) {
            low += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return low;
}

/* The entry of a lane at a node, or NULL. Good until the node's holders change. */
RX_HOT RtHolder *rt_holder(RtNode *n, uint32_t lane) {
    RtHolder *h = rt_holders(n);
    uint32_t at = n->holders > 1 ? rt_seek(h, n->holders, lane) : 0;
    return at < n->holders && h[at].lane == lane ? h + at : NULL;
}

/* Room for so many holders, or -1. */
static inline int rt_holders_reserve(RtNodes *s, RtNode *n, uint32_t count) {
    uint32_t room = n->holder_room ? n->holder_room : 1;
    RtHolder *many;
    if (count <= room) return 0;
    if (room < 2) room = 2;
    while (room < count) room *= 2;
    many = (RtHolder *)rt_resize(&s->mem, n->holder_room ? n->h.many : NULL,
                                 n->holder_room * sizeof *many, room * sizeof *many);
    if (!many) return -1;
    if (!n->holder_room) many[0] = n->h.one;
    n->h.many = many;
    n->holder_room = room;
    return 0;
}

/* Give back room that was left; without memory for the copy it is kept. */
static inline void rt_holders_trim(RtNodes *s, RtNode *n) {
    RtHolder *many = n->h.many;
    uint32_t room = n->holder_room;
    if (!room) return;
    if (n->holders <= 1) {
        n->h.one = many[0];
        n->holder_room = 0;
        rx_free(&s->mem, many, room * sizeof *many);
    } else if (room > 4 && n->holders * 4 <= room) {
        many = (RtHolder *)rt_resize(&s->mem, many, room * sizeof *many, room / 2 * sizeof *many);
        if (!many) return;
        n->h.many = many;
        n->holder_room = room / 2;
    }
}

/* A blank entry in its place; needs the room. */
static inline RtHolder *rt_holder_add(RtNode *n, uint32_t lane) {
    RtHolder *h = rt_holders(n);
    uint32_t at = rt_seek(h, n->holders, lane);
    memmove(h + at + 1, h + at, (n->holders - at) * sizeof *h);
    n->holders++;
    h[at] = (RtHolder){lane, 0, 0, 0};
    return h + at;
}

static inline void rt_holder_remove(RtNodes *s, RtNode *n, RtHolder *gone) {
    RtHolder *end = rt_holders(n) + n->holders;
    memmove(gone, gone + 1, (size_t)(end - gone - 1) * sizeof *gone);
    n->holders--;
    rt_holders_trim(s, n);
}

/* ---- recency lists ---- */

/* The neighbours of an entry, on its older and its newer side, become these nodes. */
RX_HOT void rt_join_older(RtNodes *s, RtLane *l, uint32_t lane, uint32_t older, uint32_t id) {
    if (older) rt_holder(rt_node(s, older), lane)->newer = id;
    else l->oldest = id;
}

RX_HOT void rt_join_newer(RtNodes *s, RtLane *l, uint32_t lane, uint32_t newer, uint32_t id) {
    if (newer) rt_holder(rt_node(s, newer), lane)->older = id;
    else l->newest = id;
}

RX_HOT void rt_take_out(RtNodes *s, RtLane *l, const RtHolder *h) {
    rt_join_older(s, l, h->lane, h->older, h->newer);
    rt_join_newer(s, l, h->lane, h->newer, h->older);
}

RX_HOT void rt_put_newest(RtNodes *s, RtLane *l, uint32_t id, RtHolder *h) {
    h->newer = 0;
    h->older = l->newest;
    rt_join_older(s, l, h->lane, h->older, id);
    l->newest = id;
}

#endif
