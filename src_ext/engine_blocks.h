/* The block pool of a modelled replica: vLLM's rules for paged blocks and prefix caching.
 *
 * Block 0 is vLLM's null block and, here, the sentinel of the free ring: next[0] is the block that
 * is handed out next, prev[0] the one freed last. A block nobody uses keeps its contents; `find`
 * maps a key to the first block that holds it, further copies hang on `copy` in the order in which
 * they were stored. Sizes are fixed at creation, so nothing here can fail later.
 *
 * The plain twin is router/sim/blocks.py. */
#ifndef WARMLANE_ENGINE_BLOCKS_H
#define WARMLANE_ENGINE_BLOCKS_H

#include <stdint.h>
#include <string.h>
#include "alloc.h"

typedef struct {
    uint64_t key;
    uint32_t block; /* 0: empty */
} EbSlot;

typedef struct {
    uint32_t blocks;
    uint32_t free;
    uint32_t mask;
    int32_t *users;
    uint64_t *key;
    uint8_t *full; /* holds the contents named by its key */
    uint32_t *prev, *next, *copy;
    EbSlot *slots;
    uint64_t *gone; /* keys evicted since the owner last looked; NULL: not recorded */
    uint64_t gone_count;
} EbPool;

static inline uint32_t eb_home(const EbPool *pool, uint64_t key) {
    return (uint32_t)((key * 0x9E3779B97F4A7C15ull) >> 32) & pool->mask;
}

static inline EbSlot *eb_slot(const EbPool *pool, uint64_t key) {
    uint32_t at = eb_home(pool, key);
    while (pool->slots[at].block && pool->slots[at].key != key) at = (at + 1) & pool->mask;
    return &pool->slots[at];
}

static inline uint32_t eb_find(const EbPool *pool, uint64_t key) {
    return eb_slot(pool, key)->block;
}

static void eb_close(EbPool *pool) {
    wl_free(pool->users);
    wl_free(pool->key);
    wl_free(pool->full);
    wl_free(pool->prev);
    wl_free(pool->next);
    wl_free(pool->copy);
    wl_free(pool->slots);
    wl_free(pool->gone);
    memset(pool, 0, sizeof *pool);
}

static void eb_link_all(EbPool *pool) {
    for (uint32_t block = 0; block < pool->blocks; block++) {
        pool->next[block] = block + 1 < pool->blocks ? block + 1 : 0;
        pool->prev[block] = block ? block - 1 : pool->blocks - 1;
    }
    pool->free = pool->blocks - 1;
}

/* 0: no memory; the pool is closed. */
static int eb_open(EbPool *pool, uint32_t blocks, int record) {
    memset(pool, 0, sizeof *pool);
    uint32_t size = 16;
    while (size < 2 * blocks) size *= 2;
    pool->blocks = blocks;
    pool->mask = size - 1;
    pool->users = wl_calloc(blocks, sizeof *pool->users);
    pool->key = wl_calloc(blocks, sizeof *pool->key);
    pool->full = wl_calloc(blocks, 1);
    pool->prev = wl_calloc(blocks, sizeof *pool->prev);
    pool->next = wl_calloc(blocks, sizeof *pool->next);
    pool->copy = wl_calloc(blocks, sizeof *pool->copy);
    pool->slots = wl_calloc(size, sizeof *pool->slots);
    pool->gone = record ? wl_calloc(blocks, sizeof *pool->gone) : NULL;
    if (!pool->users || !pool->key || !pool->full || !pool->prev || !pool->next || !pool->copy ||
        !pool->slots || (record && !pool->gone)) {
        eb_close(pool);
        return 0;
    }
    eb_link_all(pool);
    return 1;
}

static inline void eb_unlink(EbPool *pool, uint32_t block) {
    pool->next[pool->prev[block]] = pool->next[block];
    pool->prev[pool->next[block]] = pool->prev[block];
    pool->free--;
}

static inline void eb_use(EbPool *pool, uint32_t block) {
    if (pool->users[block]++ == 0) eb_unlink(pool, block);
}

static inline void eb_unuse(EbPool *pool, uint32_t block) {
    if (--pool->users[block]) return;
    uint32_t last = pool->prev[0];
    pool->next[last] = block;
    pool->prev[block] = last;
    pool->next[block] = 0;
    pool->prev[0] = block;
    pool->free++;
}

static void eb_erase(EbPool *pool, EbSlot *slot) {
    uint32_t hole = (uint32_t)(slot - pool->slots), at = hole;
    for (;;) { /* entries behind the hole move up unless they would leave their own run */
        at = (at + 1) & pool->mask;
        if (!pool->slots[at].block) break;
        uint32_t home = eb_home(pool, pool->slots[at].key);
        if (((at - home) & pool->mask) >= ((at - hole) & pool->mask)) {
            pool->slots[hole] = pool->slots[at];
            hole = at;
        }
    }
    pool->slots[hole].block = 0;
}

static void eb_forget(EbPool *pool, uint32_t block) {
    EbSlot *slot = eb_slot(pool, pool->key[block]);
    pool->full[block] = 0;
    if (slot->block == block) {
        if (pool->copy[block]) slot->block = pool->copy[block];
        else eb_erase(pool, slot);
    } else {
        uint32_t before = slot->block;
        while (pool->copy[before] != block) before = pool->copy[before];
        pool->copy[before] = pool->copy[block];
    }
    pool->copy[block] = 0;
}

/* The block that is handed out next, emptied and used once. The caller has checked `free`. */
static inline uint32_t eb_allocate(EbPool *pool) {
    uint32_t block = pool->next[0];
    eb_unlink(pool, block);
    if (pool->full[block]) {
        if (pool->gone && pool->gone_count < pool->blocks)
            pool->gone[pool->gone_count++] = pool->key[block];
        eb_forget(pool, block);
    }
    pool->users[block] = 1;
    return block;
}

static inline void eb_store(EbPool *pool, uint32_t block, uint64_t key) {
    EbSlot *slot = eb_slot(pool, key);
    pool->key[block] = key;
    pool->full[block] = 1;
    if (!slot->block) {
        slot->key = key;
        slot->block = block;
        return;
    }
    uint32_t last = slot->block;
    while (pool->copy[last]) last = pool->copy[last];
    if (last != block) pool->copy[last] = block;
}

/* 1: all contents forgotten; 0: refused, as vLLM does while any block is in use. */
static int eb_clear(EbPool *pool) {
    if (pool->free + 1 != pool->blocks) return 0;
    memset(pool->full, 0, pool->blocks);
    memset(pool->copy, 0, pool->blocks * sizeof *pool->copy);
    memset(pool->slots, 0, ((size_t)pool->mask + 1) * sizeof *pool->slots);
    return 1;
}

#endif
