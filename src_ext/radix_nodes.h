/* Node store: one node per distinct block, named by a dense index, in fixed segments.
 *
 *   hot  16 B {key, set | flag, parent}        what a match reads; never straddles a cache line
 *   cold 12 B {first child, next, prev sibling}  what insert, remove and the walks read
 *
 * Node 0 is the root. Children of the root are not linked to each other: nobody walks them.
 * A node whose parent is not known yet has parent RX_ORPHAN; a free one has RX_FREE and key 0.
 * Freed nodes are reused last in, first out: a chain freed tail first comes back head first, so
 * that chains stay contiguous and a match can guess where the next block lies.
 */
#ifndef WARMLANE_RADIX_NODES_H
#define WARMLANE_RADIX_NODES_H

#include "radix_mem.h"

#define RX_NODE_BITS 13
#define RX_NODE_SEG (1u << RX_NODE_BITS)
#define RX_ROOT 0u
#define RX_ORPHAN 0xfffffffeu
#define RX_FREE 0xffffffffu
#define RX_MAX_NODES 0x7ffffff0u /* ids leave the top bit to the records of radix_lanes.h */
#define RX_REFS_FLAG 0x80000000u /* in RxHot.set: some lane's counts are in radix_refs.h */
#define RX_SET_MASK 0x3fffffffu

typedef struct {
    uint64_t key;
    uint32_t set;
    uint32_t parent;
} RxHot;

typedef struct {
    uint32_t child, next, prev; /* 0: none */
} RxCold;

typedef struct {
    RxHot hot[RX_NODE_SEG];
    RxCold cold[RX_NODE_SEG];
} RxNodeSeg;

typedef struct {
    RxMem *mem;
    RxSegs segs;
    uint32_t used; /* ids ever used, the root included */
    uint32_t free; /* head of the free list through RxCold.next */
    uint32_t live; /* nodes in the tree, without the root */
} RxNodes;

static inline RxHot *rx_hot(const RxNodes *n, uint32_t id) {
    return &((RxNodeSeg *)n->segs.seg[id >> RX_NODE_BITS])->hot[id & (RX_NODE_SEG - 1)];
}

static inline RxCold *rx_cold(const RxNodes *n, uint32_t id) {
    return &((RxNodeSeg *)n->segs.seg[id >> RX_NODE_BITS])->cold[id & (RX_NODE_SEG - 1)];
}

static inline uint32_t rx_set_of(const RxNodes *n, uint32_t id) {
    return rx_hot(n, id)->set & RX_SET_MASK;
}

static inline int rx_is_real(uint32_t parent) { return parent != RX_ROOT && parent < RX_ORPHAN; }

static inline int rx_nodes_init(RxMem *m, RxNodes *n) {
    memset(n, 0, sizeof *n);
    n->mem = m;
    n->used = 1;
    return rx_segs_add(m, &n->segs, sizeof(RxNodeSeg));
}

static inline void rx_nodes_free(RxNodes *n) {
    if (n->mem) rx_segs_free(n->mem, &n->segs, sizeof(RxNodeSeg));
}

/* Under a cap nodes leave an eighth of it to the index, the sets and the records that grow with
 * them. */
RX_RARE int rx_nodes_grow(RxNodes *n) {
    n->mem->refused = 0;
    if (n->used > RX_MAX_NODES || !rx_mem_fits(n->mem, sizeof(RxNodeSeg), n->mem->cap / 8))
        return -1;
    return rx_segs_add(n->mem, &n->segs, sizeof(RxNodeSeg));
}

/* Make sure that the next rx_node_take succeeds. */
static inline int rx_nodes_reserve(RxNodes *n) {
    return n->free || n->used < n->segs.count << RX_NODE_BITS ? 0 : rx_nodes_grow(n);
}

/* A node with this key and parent, in the parent's child list. Call rx_nodes_reserve before. */
static inline void rx_node_link(RxNodes *n, uint32_t id, uint32_t parent) {
    RxCold *cold = rx_cold(n, id);
    rx_hot(n, id)->parent = parent;
    cold->next = cold->prev = 0;
    if (rx_is_real(parent)) {
        RxCold *above = rx_cold(n, parent);
        if (above->child) rx_cold(n, above->child)->prev = id;
        cold->next = above->child;
        above->child = id;
    }
}

static inline uint32_t rx_node_take(RxNodes *n, uint64_t key, uint32_t parent) {
    uint32_t id = n->free;
    if (id) n->free = rx_cold(n, id)->next; else id = n->used++;
    rx_hot(n, id)->key = key;
    rx_hot(n, id)->set = 0;
    rx_cold(n, id)->child = 0;
    rx_node_link(n, id, parent);
    n->live++;
    return id;
}

/* Give the node back. It has no children and the empty set. */
static inline void rx_node_drop(RxNodes *n, uint32_t id) {
    RxHot *hot = rx_hot(n, id);
    RxCold *cold = rx_cold(n, id);
    if (rx_is_real(hot->parent)) {
        if (cold->prev) rx_cold(n, cold->prev)->next = cold->next;
        else rx_cold(n, hot->parent)->child = cold->next;
        if (cold->next) rx_cold(n, cold->next)->prev = cold->prev;
    }
    hot->key = 0;
    hot->set = 0;
    hot->parent = RX_FREE;
    cold->child = cold->prev = 0;
    cold->next = n->free;
    n->free = id;
    n->live--;
}

#endif
