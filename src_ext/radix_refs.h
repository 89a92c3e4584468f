/* Uncommon reference counts. A member of a replica set stands for one copy of the block in the
 * tier that its state names (radix_sets.h). Where the truth differs (a block stored twice, or in
 * two tiers) the counts of (node, lane) are here. Most blocks have no entry; a node that has one
 * carries RX_REFS_FLAG until it is freed.
 */
#ifndef WARMLANE_RADIX_REFS_H
#define WARMLANE_RADIX_REFS_H

#include "radix_heads.h"

#define RX_REFS_SEG 512u

typedef struct {
    uint32_t count[3]; /* copies in gpu, cpu, disk; saturating */
} RxCounts;

typedef struct {
    uint32_t node, lane;
    RxCounts counts;
    uint32_t next; /* hash chain, or free list */
} RxRef;

typedef struct {
    RxMem *mem;
    RxSegs segs;
    RxHeads heads;
    uint32_t used, free;
} RxRefs;

static inline RxRef *rx_ref(const RxRefs *r, uint32_t i) {
    return (RxRef *)r->segs.seg[i / RX_REFS_SEG] + i % RX_REFS_SEG;
}

static inline uint32_t rx_ref_hash(uint32_t node, uint32_t lane) {
    return rx_mix32(node ^ rx_mix32(lane + 1u));
}

static inline uint32_t rx_ref_hash_of(void *owner, uint32_t i) {
    RxRef *ref = rx_ref((RxRefs *)owner, i);
    return rx_ref_hash(ref->node, ref->lane);
}

static inline uint32_t *rx_ref_next_of(void *owner, uint32_t i) {
    return &rx_ref((RxRefs *)owner, i)->next;
}

static inline int rx_refs_init(RxMem *m, RxRefs *r) {
    memset(r, 0, sizeof *r);
    r->mem = m;
    r->used = 1;
    return rx_heads_init(m, &r->heads);
}

static inline void rx_refs_free(RxRefs *r) {
    if (!r->mem) return;
    rx_segs_free(r->mem, &r->segs, RX_REFS_SEG * sizeof(RxRef));
    rx_heads_free(r->mem, &r->heads);
}

/* The link that points at the entry of (node, lane), or at the 0 that ends its chain. */
static inline uint32_t *rx_refs_link(RxRefs *r, uint32_t node, uint32_t lane) {
    uint32_t *link = rx_head(&r->heads, rx_ref_hash(node, lane));
    while (*link) {
        RxRef *ref = rx_ref(r, *link);
        if (ref->node == node && ref->lane == lane) break;
        link = &ref->next;
    }
    return link;
}

static inline RxCounts *rx_refs_get(RxRefs *r, uint32_t node, uint32_t lane) {
    uint32_t i = *rx_refs_link(r, node, lane);
    return i ? &rx_ref(r, i)->counts : NULL;
}

/* Make sure that the next rx_refs_put succeeds. */
static inline int rx_refs_reserve(RxRefs *r) {
    if (r->free || r->used < r->segs.count * RX_REFS_SEG) return 0;
    return rx_segs_add(r->mem, &r->segs, RX_REFS_SEG * sizeof(RxRef));
}

static inline void rx_refs_put(RxRefs *r, uint32_t node, uint32_t lane, const RxCounts *counts) {
    uint32_t *link = rx_refs_link(r, node, lane), i = *link;
    RxRef *ref;
    if (!i) {
        i = r->free;
        if (i) r->free = rx_ref(r, i)->next; else i = r->used++;
        ref = rx_ref(r, i);
        ref->node = node;
        ref->lane = lane;
        ref->next = 0;
        *link = i;
        r->heads.items++;
        rx_heads_grow(r->mem, &r->heads, r, rx_ref_hash_of, rx_ref_next_of);
    }
    rx_ref(r, i)->counts = *counts;
}

static inline void rx_refs_cut(RxRefs *r, uint32_t node, uint32_t lane) {
    uint32_t *link = rx_refs_link(r, node, lane), i = *link;
    if (!i) return;
    *link = rx_ref(r, i)->next;
    rx_ref(r, i)->node = 0;
    rx_ref(r, i)->next = r->free;
    r->free = i;
    r->heads.items--;
}

#endif
