/* Block key -> node. 4,096 partitions by hash, each a table of 64-byte buckets (one cache line):
 * 10 node ids and 10 tags of 16 bits. A key goes to its home bucket or the first later one with
 * room; `over` counts the keys that passed a bucket by, so a search knows when to stop and nothing
 * is left behind by a deletion (the scheme of Facebook's F14).
 *
 * The home bucket is tag * buckets >> 16: the tag alone places a key, so a partition grows without
 * touching a node. It grows by a fifth when 88 % full: 7.3-8.8 bytes a block, and the longest stop
 * is one partition (2,400 keys at 10M blocks). The hash is seeded: keys come from clients' prompts
 * and must not be able to choose their bucket.
 */
#ifndef WARMLANE_RADIX_KEYS_H
#define WARMLANE_RADIX_KEYS_H

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "radix_nodes.h"
#include "radix_sets.h"

#define RX_PARTS 4096u
#define RX_SLOTS 10u

typedef struct {
    uint32_t id[RX_SLOTS];
    uint16_t tag[RX_SLOTS];
    uint16_t full; /* bit i: slot i is taken */
    uint16_t over; /* keys stored further on that have passed this bucket */
} RxBucket;

typedef struct {
    RxBucket *bucket;
    uint32_t buckets;
    uint32_t count;
} RxPart;

typedef struct {
    RxMem *mem;
    RxPart *part;
    uint64_t seed;
    uint64_t moves; /* partitions that have moved so far */
} RxKeys;

_Static_assert(sizeof(RxBucket) == 64, "a bucket is one cache line");

static inline uint64_t rx_hash64(const RxKeys *k, uint64_t key) {
    uint64_t x = key ^ k->seed;
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL; /* C. Wellons, rrmxmx and kin: one multiply, two xorshifts */
    x ^= x >> 32;
    x *= 0xd6e8feb86659fd93ULL;
    return x;
}

static inline RxPart *rx_part(const RxKeys *k, uint64_t hash) { return &k->part[hash >> 52]; }
static inline uint32_t rx_tag(uint64_t hash) { return (uint32_t)(hash >> 36) & 0xffffu; }
static inline uint32_t rx_home(const RxPart *p, uint32_t tag) { return tag * p->buckets >> 16; }

/* Bit i: slot i is taken and has this tag. */
static inline uint32_t rx_tag_hits(const RxBucket *b, uint32_t tag) {
    uint32_t hits;
#ifdef __SSE2__
    __m128i tags = _mm_loadu_si128((const __m128i *)b->tag);
    __m128i same = _mm_cmpeq_epi16(tags, _mm_set1_epi16((short)tag));
    hits = (uint32_t)_mm_movemask_epi8(_mm_packs_epi16(same, _mm_setzero_si128()));
    hits |= (uint32_t)(b->tag[8] == tag) << 8 | (uint32_t)(b->tag[9] == tag) << 9;
#else
    uint32_t i;
    for (hits = 0, i = 0; i < RX_SLOTS; i++) hits |= (uint32_t)(b->tag[i] == tag) << i;
#endif
    return hits & b->full;
}

/* Segments are 64-byte aligned by hand: calloc promises 16. */
static inline RxBucket *rx_buckets_new(RxMem *m, uint32_t count) {
    char *raw = (char *)rx_alloc(m, (size_t)(count + 1) * sizeof(RxBucket));
    size_t shift;
    if (!raw) return NULL;
    shift = 64 - ((uintptr_t)raw & 63u);
    raw[shift - 1] = (char)shift; /* 1..64: always inside the spare bucket */
    return (RxBucket *)(raw + shift);
}

static inline void rx_buckets_free(RxMem *m, RxBucket *bucket, uint32_t count) {
    if (bucket)
        rx_free(m, (char *)bucket - ((char *)bucket)[-1], (size_t)(count + 1) * sizeof(RxBucket));
}

static inline int rx_keys_init(RxMem *m, RxKeys *k, uint64_t seed) {
    k->mem = m;
    k->seed = seed;
    k->part = (RxPart *)rx_alloc(m, RX_PARTS * sizeof(RxPart));
    return k->part ? 0 : -1;
}

static inline void rx_keys_free(RxKeys *k) {
    uint32_t i;
    if (!k->part) return;
    for (i = 0; i < RX_PARTS; i++)
        rx_buckets_free(k->mem, k->part[i].bucket, k->part[i].buckets);
    rx_free(k->mem, k->part, RX_PARTS * sizeof(RxPart));
    k->part = NULL;
}

/* Where a search for the key begins, NULL while its partition is empty. */
static inline RxBucket *rx_keys_home(const RxKeys *k, uint64_t hash) {
    RxPart *p = rx_part(k, hash);
    return p->buckets ? &p->bucket[rx_home(p, rx_tag(hash))] : NULL;
}

static inline void rx_keys_prefetch(const RxKeys *k, uint64_t hash) {
    rx_prefetch(rx_keys_home(k, hash));
}

/* The first node that may have the key (by tag, unchecked), RX_NONE if none: to prefetch it. */
static inline uint32_t rx_bucket_maybe(const RxBucket *home, uint64_t hash) {
    uint32_t hits = home ? rx_tag_hits(home, rx_tag(hash)) : 0;
    return hits ? home->id[__builtin_ctz(hits)] : RX_NONE;
}

/* Node of the key, RX_NONE if the tree does not have it. */
static inline uint32_t rx_keys_find(const RxKeys *k, const RxNodes *n, uint64_t key,
                                    uint64_t hash) {
    RxPart *p = rx_part(k, hash);
    uint32_t tag = rx_tag(hash), at, left = p->buckets;
    if (!left) return RX_NONE;
    for (at = rx_home(p, tag); left; left--) {
        RxBucket *b = &p->bucket[at];
        uint32_t hits = rx_tag_hits(b, tag);
        for (; hits; hits &= hits - 1) {
            uint32_t id = b->id[__builtin_ctz(hits)];
            if (rx_hot(n, id)->key == key) return id;
        }
        if (!b->over) return RX_NONE;
        if (++at == p->buckets) at = 0;
    }
    return RX_NONE;
}

static inline void rx_bucket_put(RxPart *p, uint32_t tag, uint32_t id) {
    uint32_t at = rx_home(p, tag), slot;
    while (p->bucket[at].full == (1u << RX_SLOTS) - 1u) {
        p->bucket[at].over++;
        if (++at == p->buckets) at = 0;
    }
    slot = (uint32_t)__builtin_ctz(~(uint32_t)p->bucket[at].full);
    p->bucket[at].full |= (uint16_t)(1u << slot);
    p->bucket[at].tag[slot] = (uint16_t)tag;
    p->bucket[at].id[slot] = id;
}

RX_RARE int rx_part_grow(RxKeys *k, RxPart *p) {
    RxMem *m = k->mem;
    RxPart grown;
    uint32_t i;
    grown.buckets = p->buckets + p->buckets / 5 + 1;
    grown.count = p->count;
    if (grown.buckets > 0xffffu) return -1;
    grown.bucket = rx_buckets_new(m, grown.buckets);
    if (!grown.bucket) return -1;
    for (i = 0; i < p->buckets; i++) {
        RxBucket *b = &p->bucket[i];
        uint32_t left = b->full;
        for (; left; left &= left - 1) {
            uint32_t slot = (uint32_t)__builtin_ctz(left);
            rx_bucket_put(&grown, b->tag[slot], b->id[slot]);
        }
    }
    rx_buckets_free(m, p->bucket, p->buckets);
    *p = grown;
    k->moves++;
    return 0;
}

/* Grow a partition that is 88 % full; where memory is refused it may fill to 97 %. */
RX_RARE int rx_keys_full(RxKeys *k, RxPart *p) {
    uint32_t slots = p->buckets * RX_SLOTS;
    if (!rx_part_grow(k, p)) return 0;
    return (p->count + 1) * 100 <= slots * 97 ? 0 : -1;
}

/* Make sure that the key can be put. */
static inline int rx_keys_reserve(RxKeys *k, uint64_t hash) {
    RxPart *p = rx_part(k, hash);
    return (p->count + 1) * 100 <= p->buckets * (RX_SLOTS * 88) ? 0 : rx_keys_full(k, p);
}

static inline void rx_keys_put(RxKeys *k, uint64_t hash, uint32_t id) {
    RxPart *p = rx_part(k, hash);
    rx_bucket_put(p, rx_tag(hash), id);
    p->count++;
}

/* Take the key's node out; it is there. */
static inline void rx_keys_cut(RxKeys *k, uint64_t hash, uint32_t id) {
    RxPart *p = rx_part(k, hash);
    uint32_t tag = rx_tag(hash), at = rx_home(p, tag);
    for (;;) {
        RxBucket *b = &p->bucket[at];
        uint32_t hits = rx_tag_hits(b, tag);
        for (; hits; hits &= hits - 1) {
            uint32_t slot = (uint32_t)__builtin_ctz(hits);
            if (b->id[slot] != id) continue;
            b->full &= (uint16_t)~(1u << slot);
            p->count--;
            return;
        }
        b->over--;
        if (++at == p->buckets) at = 0;
    }
}

/* A run of keys to look up one by one: hashes, buckets and nodes are fetched ahead, so that the
 * look-up itself waits for nothing. Nodes may come and go between fetch and look-up. */
#define RX_AHEAD_BUCKET 32u
#define RX_AHEAD_NODE 16u

typedef struct {
    uint64_t hash;
    RxBucket *home; /* right while index->moves is `moves` */
    uint64_t moves;
    uint32_t maybe;
} RxAhead;

typedef struct {
    const RxKeys *index;
    const RxNodes *nodes;
    const uint64_t *keys;
    size_t n;
    RxAhead ahead[RX_AHEAD_BUCKET];
} RxRun;

static inline void rx_run_bucket(RxRun *r, size_t i) {
    RxAhead *a = &r->ahead[i % RX_AHEAD_BUCKET];
    if (i >= r->n) return;
    a->hash = rx_hash64(r->index, r->keys[i]);
    a->home = rx_keys_home(r->index, a->hash);
    a->moves = r->index->moves;
    rx_prefetch(a->home);
}

static inline void rx_run_node(RxRun *r, size_t i) {
    RxAhead *a = &r->ahead[i % RX_AHEAD_BUCKET];
    if (i >= r->n) return;
    if (a->moves != r->index->moves) rx_run_bucket(r, i);
    a->maybe = rx_bucket_maybe(a->home, a->hash);
    if (a->maybe == RX_NONE) return;
    rx_prefetch(rx_hot(r->nodes, a->maybe));
    rx_prefetch(rx_cold(r->nodes, a->maybe));
}

static inline void rx_run_begin(RxRun *r, const RxKeys *index, const RxNodes *nodes,
                                const uint64_t *keys, size_t n) {
    size_t i;
    r->index = index;
    r->nodes = nodes;
    r->keys = keys;
    r->n = n;
    for (i = 0; i < RX_AHEAD_BUCKET; i++) rx_run_bucket(r, i);
}

/* Second half of the beginning: other fetches should lie between the two. */
static inline void rx_run_go(RxRun *r) {
    size_t i;
    for (i = 0; i < RX_AHEAD_NODE; i++) rx_run_node(r, i);
}

/* Look up key i (once each, in order) and give its hash. */
static inline uint32_t rx_run_find(RxRun *r, size_t i, uint64_t *hash) {
    const RxAhead *a = &r->ahead[i % RX_AHEAD_BUCKET];
    uint32_t node = a->maybe;
    *hash = a->hash;
    if (node == RX_NONE || rx_hot(r->nodes, node)->key != r->keys[i]) {
        node = RX_NONE;
        if (!a->home || a->moves != r->index->moves || a->home->over ||
            rx_tag_hits(a->home, rx_tag(a->hash)))
            node = rx_keys_find(r->index, r->nodes, r->keys[i], a->hash);
    }
    rx_run_node(r, i + RX_AHEAD_NODE);
    rx_run_bucket(r, i + RX_AHEAD_BUCKET);
    return node;
}

#endif
