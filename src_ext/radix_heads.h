/* Heads of hash chains that grow by linear hashing (W. Litwin, VLDB 1980).
 *
 * The items and their `next` fields live elsewhere, named by index; 0 ends a chain. When there are
 * more items than heads one chain is split in two: growth costs one chain at a time, there is no
 * rehash. Used for the two small tables (replica sets, uncommon reference counts).
 *
 *   heads:  [0 .. split) use level+1 bits | [split .. 2^level) use level bits | [2^level .. ) new
 */
#ifndef WARMLANE_RADIX_HEADS_H
#define WARMLANE_RADIX_HEADS_H

#include "radix_mem.h"

#define RX_HEADS_SEG 1024u

typedef struct {
    RxSegs segs;
    uint32_t level; /* heads = (1 << level) + split */
    uint32_t split;
    uint32_t items;
} RxHeads;

typedef uint32_t (*RxHashOf)(void *owner, uint32_t item);
typedef uint32_t *(*RxNextOf)(void *owner, uint32_t item);

static inline uint32_t *rx_head_at(RxHeads *h, uint32_t i) {
    return (uint32_t *)h->segs.seg[i / RX_HEADS_SEG] + i % RX_HEADS_SEG;
}

static inline uint32_t *rx_head(RxHeads *h, uint32_t hash) {
    uint32_t i = hash & ((1u << h->level) - 1u);
    if (i < h->split) i = hash & ((2u << h->level) - 1u);
    return rx_head_at(h, i);
}

static inline int rx_heads_init(RxMem *m, RxHeads *h) {
    memset(h, 0, sizeof *h);
    h->level = 6;
    return rx_segs_add(m, &h->segs, RX_HEADS_SEG * sizeof(uint32_t));
}

/* Split one chain if chains have become longer than one on average. A failed allocation only
 * leaves the chains longer: not an error. */
static inline void rx_heads_grow(RxMem *m, RxHeads *h, void *owner, RxHashOf hash_of,
                                 RxNextOf next_of) {
    uint32_t heads = (1u << h->level) + h->split, item, *from, *to, low = 0, high = 0;
    if (h->items < heads || h->level >= 30) return;
    if (heads == h->segs.count * RX_HEADS_SEG &&
        rx_segs_add(m, &h->segs, RX_HEADS_SEG * sizeof(uint32_t)))
        return;
    from = rx_head_at(h, h->split);
    to = rx_head_at(h, heads);
    for (item = *from; item;) {
        uint32_t *next = next_of(owner, item), after = *next;
        uint32_t up = hash_of(owner, item) >> h->level & 1u;
        *next = up ? high : low;
        if (up) high = item; else low = item;
        item = after;
    }
    *from = low;
    *to = high;
    if (++h->split == 1u << h->level) {
        h->split = 0;
        h->level++;
    }
}

static inline void rx_heads_free(RxMem *m, RxHeads *h) {
    rx_segs_free(m, &h->segs, RX_HEADS_SEG * sizeof(uint32_t));
}

#endif
