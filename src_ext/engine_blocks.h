/* The block pool of a modelled replica: vLLM's rules for paged blocks and prefix caching.
 *
 * Block 0 is vLLM's null block and, here, the sentinel of the free ring: next[0] is the block that
 * is handed out next, prev[0] the one freed last. A block nobody uses keeps its contents; `find`
 * maps a key to the first block that holds it, further copies hang on `copy` in the order in which
 * they were stored. A tier of slower memory keeps the keys of what is evicted, the least recently
 * used leave it first. Sizes are fixed at creation, so nothing here can fail later.
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

typedef struct { /* key to block: open addressing, at most half full */
    EbSlot *slots;
    uint32_t mask;
} EbMap;

typedef struct { /* keys in slower memory, least recently used first; entry 0 is the sentinel */
    EbMap map;
    uint32_t room, count; /* entries; room 0: no such tier */
    uint64_t *key;
    uint32_t *prev, *next;
} EbTier;

typedef struct {
    uint32_t blocks;
    uint32_t free;
    int32_t *users;
    uint64_t *key;
    uint8_t *full; /* holds the contents named by its key */
    uint32_t *prev, *next, *copy;
    EbMap map;
    EbTier tier;    /* takes what is evicted */
    uint64_t *gone; /* keys evicted since the owner last looked; NULL: not recorded */
    uint64_t gone_count;
} EbPool;

static inline uint32_t eb_home(const EbMap *map, uint64_t key) {
    return (uint32_t)((key * 0x9E3779B97F4A7C15ull) >> 32) & map->mask;
}

static inline EbSlot *eb_slot(const EbMap *map, uint64_t key) {
    uint32_t at = eb_home(map, key);
    while (map->slots[at].block && map->slots[at].key != key) at = (at + 1) & map->mask;
    return &map->slots[at];
}

static inline uint32_t eb_find(const EbPool *pool, uint64_t key) {
    return eb_slot(&pool->map, key)->block;
}

static inline uint32_t eb_find_tier(const EbPool *pool, uint64_t key) {
    return pool->tier.room ? eb_slot(&pool->tier.map, key)->block : 0;
}

/* 0: no memory. */
static int eb_open_map(EbMap *map, uint32_t entries) {
    uint32_t size = 16;
    while (size < 2 * entries) size *= 2;
    map->mask = size - 1;
    map->slots = wl_calloc(size, sizeof *map->slots);
    return map->slots != NULL;
}

static void eb_close(EbPool *pool) {
    wl_free(pool->users);
    wl_free(pool->key);
    wl_free(pool->full);
    wl_free(pool->prev);
    wl_free(pool->next);
    wl_free(pool->copy);
    wl_free(pool->map.slots);
    wl_free(pool->tier.map.slots);
    wl_free(pool->tier.key);
    wl_free(pool->tier.prev);
    wl_free(pool->tier.next);
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

/* 0: no memory. */
static int eb_open_tier(EbTier *tier, uint32_t room) {
    tier->room = room;
    if (!room) return 1;
    tier->key = wl_calloc((size_t)room + 1, sizeof *tier->key);
    tier->prev = wl_calloc((size_t)room + 1, sizeof *tier->prev);
    tier->next = wl_calloc((size_t)room + 1, sizeof *tier->next);
    return tier->key && tier->prev && tier->next && eb_open_map(&tier->map, room);
}

/* 0: no memory; the pool is closed. */
static int eb_open(EbPool *pool, uint32_t blocks, uint32_t tier, int record) {
    memset(pool, 0, sizeof *pool);
    pool->blocks = blocks;
    pool->users = wl_calloc(blocks, sizeof *pool->users);
    pool->key = wl_calloc(blocks, sizeof *pool->key);
    pool->full = wl_calloc(blocks, 1);
    pool->prev = wl_calloc(blocks, sizeof *pool->prev);
    pool->next = wl_calloc(blocks, sizeof *pool->next);
    pool->copy = wl_calloc(blocks, sizeof *pool->copy);
    pool->gone = record ? wl_calloc(blocks, sizeof *pool->gone) : NULL;
    if (!pool->users || !pool->key || !pool->full || !pool->prev || !pool->next || !pool->copy ||
        !eb_open_map(&pool->map, blocks) || !eb_open_tier(&pool->tier, tier) ||
        (record && !pool->gone)) {
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

static void eb_erase(EbMap *map, EbSlot *slot) {
    uint32_t hole = (uint32_t)(slot - map->slots), at = hole;
    for (;;) { /* entries behind the hole move up unless they would leave their own run */
        at = (at + 1) & map->mask;
        if (!map->slots[at].block) break;
        uint32_t home = eb_home(map, map->slots[at].key);
        if (((at - home) & map->mask) >= ((at - hole) & map->mask)) {
            map->slots[hole] = map->slots[at];
            hole = at;
        }
    }
    map->slots[hole].block = 0;
}

/* The key is the most recently used of the tier; the least recently used one leaves a full one. */
static void eb_keep(EbTier *tier, uint64_t key) {
    if (!tier->room) return;
    EbSlot *slot = eb_slot(&tier->map, key);
    uint32_t entry = slot->block;
    if (!entry && tier->count < tier->room) {
        entry = ++tier->count;
    } else {
        if (!entry) {
            entry = tier->next[0];
            eb_erase(&tier->map, eb_slot(&tier->map, tier->key[entry]));
        }
        tier->next[tier->prev[entry]] = tier->next[entry];
        tier->prev[tier->next[entry]] = tier->prev[entry];
    }
    tier->key[entry] = key;
    slot = eb_slot(&tier->map, key);
    slot->key = key;
    slot->block = entry;
    tier->prev[entry] = tier->prev[0];
    tier->next[entry] = 0;
    tier->next[tier->prev[0]] = entry;
    tier->prev[0] = entry;
}

static void eb_forget(EbPool *pool, uint32_t block) {
    EbSlot *slot = eb_slot(&pool->map, pool->key[block]);
    pool->full[block] = 0;
    if (slot->block == block) {
        if (pool->copy[block]) slot->block = pool->copy[block];
        else eb_erase(&pool->map, slot);
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
        eb_keep(&pool->tier, pool->key[block]);
        eb_forget(pool, block);
    }
    pool->users[block] = 1;
    return block;
}

static inline void eb_store(EbPool *pool, uint32_t block, uint64_t key) {
    EbSlot *slot = eb_slot(&pool->map, key);
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
    memset(pool->map.slots, 0, ((size_t)pool->map.mask + 1) * sizeof *pool->map.slots);
    return 1;
}

#endif
