/* Nodes of the run tree: a run of block keys, its place under a parent, its holders.
 *
 *   node { keys -> [k0 k1 k2 ...], parent, holders -> [{lane, held, older, newer} ...] }
 *
 * A node is found by (parent node, first key) in chains whose heads grow by linear hashing, so no
 * update ever rehashes or walks the children of a node. Node 0 is the root: it has no keys. Nodes
 * live in fixed segments and never move; a freed one is used again. The hash is seeded: keys are
 * hashes of a client's bytes, and no client shall choose the chain that they fall into.
 */
#ifndef WARMLANE_RUNS_NODES_H
#define WARMLANE_RUNS_NODES_H

#include "radix_heads.h"

#define RT_SEG 256u            /* nodes a segment: 14 KiB */
#define RT_FREE 0xffffffffu    /* parent of a free node */
#define RT_MAX_NODES 0xfffffff0u
#define RT_SPARE_KEYS 16u      /* unused key slots that are not worth a shrink */

/* One replica at one node, and its neighbours in that replica's recency list, which are nodes: an
 * entry is named by (node, lane). 0: no neighbour. */
typedef struct {
    uint32_t lane;
    uint32_t held; /* leading keys of the run, 1..len */
    uint32_t older, newer;
} RtHolder;

typedef struct {
    uint64_t *keys;
    union {
        RtHolder one;   /* holder_room 0: the only holder, no array */
        RtHolder *many; /* sorted by lane */
    } h;
    uint32_t parent;
    uint32_t next; /* in its hash chain; of a free node the next free one */
    uint32_t hash;
    uint32_t len, room; /* keys in use and allocated */
    uint32_t children;
    uint32_t holders, holder_room;
} RtNode;

typedef struct {
    RxMem mem;
    RxSegs segs;
    RxHeads heads;
    uint32_t used; /* node numbers ever given out, the root included */
    uint32_t live; /* nodes in use, without the root */
    uint32_t free_head;
    uint64_t blocks; /* keys in all runs */
    uint64_t seed[2];
} RtNodes;

RX_HOT RtNode *rt_node(const RtNodes *s, uint32_t id) {
    return (RtNode *)s->segs.seg[id / RT_SEG] + id % RT_SEG;
}

/* 64 x 64 bits to 128, folded: both halves depend on every bit of both factors. */
RX_HOT uint32_t rt_hash(const RtNodes *s, uint32_t parent, uint64_t key) {
    unsigned __int128 wide = (unsigned __int128)(key ^ s->seed[0]) *
                             (s->seed[1] + parent * 0x9e3779b97f4a7c15ull);
    uint64_t folded = (uint64_t)wide ^ (uint64_t)(wide >> 64);
    return (uint32_t)(folded ^ folded >> 32);
}

static inline uint32_t rt_hash_of(void *owner, uint32_t id) {
    return rt_node((RtNodes *)owner, id)->hash;
}

static inline uint32_t *rt_next_of(void *owner, uint32_t id) {
    return &rt_node((RtNodes *)owner, id)->next;
}

/* The child of `parent` whose run begins with `key`, or 0. */
RX_HOT uint32_t rt_child(RtNodes *s, uint32_t parent, uint64_t key) {
    uint32_t hash = rt_hash(s, parent, key), id = *rx_head(&s->heads, hash);
    while (id) {
        RtNode *n = rt_node(s, id);
        if (n->hash == hash && n->parent == parent && n->keys[0] == key) return id;
        id = n->next;
    }
    return 0;
}

/* Enter a node whose parent and first key are set into its chain. Never fails. */
static inline void rt_enter(RtNodes *s, uint32_t id) {
    RtNode *n = rt_node(s, id);
    uint32_t *head;
    n->hash = rt_hash(s, n->parent, n->keys[0]);
    head = rx_head(&s->heads, n->hash);
    n->next = *head;
    *head = id;
    s->heads.items++;
    rx_heads_grow(&s->mem, &s->heads, s, rt_hash_of, rt_next_of);
}

static inline void rt_leave(RtNodes *s, uint32_t id) {
    uint32_t *at = rx_head(&s->heads, rt_node(s, id)->hash);
    while (*at != id) at = &rt_node(s, *at)->next;
    *at = rt_node(s, id)->next;
    s->heads.items--;
}

/* Give a block of `old` bytes the size `size`; NULL (and the old one as it was) without memory.
 * `refused` tells then whether the cap was the reason. */
static inline void *rt_resize(RxMem *m, void *block, size_t old, size_t size) {
    void *got;
    m->refused = 0;
    if (size > old && !rx_mem_fits(m, size - old, 0)) return NULL;
    got = wl_realloc(block, size);
    if (got) m->used = m->used - old + size;
    return got;
}

/* Room for exactly `room` keys, at least as many as are in use. */
static inline int rt_keys_room(RtNodes *s, RtNode *n, uint32_t room) {
    void *got = rt_resize(&s->mem, n->keys, n->room * sizeof(uint64_t), room * sizeof(uint64_t));
    if (!got) return -1;
    n->keys = (uint64_t *)got;
    n->room = room;
    return 0;
}

/* Room for `count` keys; a run that grows again and again is copied a bounded number of times. */
static inline int rt_keys_reserve(RtNodes *s, RtNode *n, uint32_t count) {
    if (count <= n->room) return 0;
    return rt_keys_room(s, n, n->room ? count + count / 8 : count);
}

/* Give back what a shortened run has left over; without memory for the copy it keeps it. */
static inline void rt_keys_trim(RtNodes *s, RtNode *n) {
    if (n->room > 2 * n->len + RT_SPARE_KEYS) (void)rt_keys_room(s, n, n->len);
}

/* A blank node in no chain, or 0 without memory. */
static inline uint32_t rt_node_new(RtNodes *s) {
    uint32_t id = s->free_head;
    if (id) {
        s->free_head = rt_node(s, id)->next;
    } else {
        s->mem.refused = 0;
        if (s->used == RT_MAX_NODES) return 0;
        if (s->used == s->segs.count * RT_SEG &&
            rx_segs_add(&s->mem, &s->segs, RT_SEG * sizeof(RtNode)))
            return 0;
        id = s->used++;
    }
    memset(rt_node(s, id), 0, sizeof(RtNode));
    s->live++;
    return id;
}

/* Take back a node that is in no chain and has no children. */
static inline void rt_node_free(RtNodes *s, uint32_t id) {
    RtNode *n = rt_node(s, id);
    rx_free(&s->mem, n->keys, n->room * sizeof(uint64_t));
    if (n->holder_room) rx_free(&s->mem, n->h.many, n->holder_room * sizeof(RtHolder));
    memset(n, 0, sizeof *n);
    n->parent = RT_FREE;
    n->next = s->free_head;
    s->free_head = id;
    s->live--;
}

static inline int rt_nodes_init(RtNodes *s) {
    if (rx_heads_init(&s->mem, &s->heads)) return -1;
    if (rx_segs_add(&s->mem, &s->segs, RT_SEG * sizeof(RtNode))) return -1;
    s->used = 1; /* the root: all zero */
    return 0;
}

static inline void rt_nodes_close(RtNodes *s) {
    uint32_t id;
    for (id = 1; id < s->used; id++)
        if (rt_node(s, id)->parent != RT_FREE) rt_node_free(s, id);
    rx_segs_free(&s->mem, &s->segs, RT_SEG * sizeof(RtNode));
    rx_heads_free(&s->mem, &s->heads);
}

/* How many of the first `count` keys of two runs are equal. */
RX_HOT uint32_t rt_same(const uint64_t *a, const uint64_t *b, uint32_t count) {
    uint32_t at = 0;
    if (!memcmp(a, b, count * sizeof *a)) return count;
    while (a[at] == b[at]) at++;
    return at;
}

#endif
