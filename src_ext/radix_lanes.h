/* Lanes: the lives of replicas, and the record that each keeps of its own blocks.
 *
 * A lane is one life of a replica between clears: replica 7 has a lane; after clear(7) or drop(7)
 * the old lane is dead (its outside number is RX_NOBODY, so a match passes over it at once) and is
 * swept from its record in slices, while a cleared replica already fills a new lane. A lane number
 * is reused when its sweep is done. There are twice as many lanes as replicas.
 *
 * The record is an append-only list of node ids in chunks; consecutive ids are one run (2 words),
 * so a chain of any length costs 8 bytes while its nodes lie in a row. A node that the lane no
 * longer holds stays in the record until it is met by a sweep, an eviction or a compaction, which
 * starts when more than half of the record is stale.
 *
 *   words: id | id|RUN length | id | ...        order: oldest first
 */
#ifndef WARMLANE_RADIX_LANES_H
#define WARMLANE_RADIX_LANES_H

#include "radix_mem.h"

#define RX_MAX_REPLICAS 4096u
#define RX_NOBODY 0xffffu
#define RX_RUN 0x80000000u
#define RX_CHUNK_MIN 14u
#define RX_CHUNK_MAX 1022u

typedef struct RxChunk {
    struct RxChunk *next;
    uint32_t room, count; /* words */
    uint32_t word[];
} RxChunk;

typedef struct {
    RxChunk *head, *tail;
    uint32_t at, offset; /* read position in head: word, and how far into its run */
    uint32_t last;       /* word index in tail of the last entry, RX_RUN if there is none */
    uint32_t pad;
    uint64_t blocks;     /* ids not yet read, stale ones included */
} RxRecord;

enum { RX_UNUSED = 0, RX_LIVE = 1, RX_DEAD = 2 };

typedef struct {
    RxRecord record[2]; /* [1] only during compaction: [0] is read, [1] is written */
    uint32_t blocks;    /* nodes that hold this lane */
    uint32_t held;      /* of these, how many are less visible than their own tier allows */
    uint32_t evict_at;  /* where the last eviction stopped; only a hint */
    uint16_t replica;   /* the outside number, also when dead */
    uint8_t state;
    uint8_t keep;       /* dead: bit per tier that moves to the replica's new lane */
    uint8_t compacting;
    uint8_t tiers;      /* bit per tier ever inserted */
} RxLane;

static inline size_t rx_chunk_bytes(uint32_t room) {
    return sizeof(RxChunk) + (size_t)room * sizeof(uint32_t);
}

RX_RARE int rx_record_grow(RxMem *m, RxRecord *r) {
    uint32_t room = r->tail ? r->tail->room * 2 + 2 : RX_CHUNK_MIN;
    RxChunk *fresh;
    if (room > RX_CHUNK_MAX) room = RX_CHUNK_MAX;
    fresh = (RxChunk *)rx_alloc(m, rx_chunk_bytes(room));
    if (!fresh) return -1;
    fresh->room = room;
    if (r->tail) r->tail->next = fresh; else r->head = fresh;
    r->tail = fresh;
    r->last = RX_RUN;
    return 0;
}

/* Make sure that the next rx_record_add succeeds: two words are free in the last chunk. */
static inline int rx_record_reserve(RxMem *m, RxRecord *r) {
    return r->tail && r->tail->count + 2 <= r->tail->room ? 0 : rx_record_grow(m, r);
}

static inline void rx_record_add(RxRecord *r, uint32_t id) {
    RxChunk *c = r->tail;
    r->blocks++;
    if (r->last != RX_RUN && !(c == r->head && r->last < r->at)) {
        uint32_t *word = &c->word[r->last];
        if (*word & RX_RUN) {
            if ((*word & ~RX_RUN) + word[1] == id) {
                word[1]++;
                return;
            }
        } else if (*word + 1 == id) {
            *word |= RX_RUN;
            word[1] = 2;
            c->count++;
            return;
        }
    }
    r->last = c->count;
    c->word[c->count++] = id;
}

/* Bring the read position to an entry, freeing read chunks. 0: the record is empty. */
static inline int rx_record_seek(RxMem *m, RxRecord *r) {
    while (r->head && r->at >= r->head->count) {
        RxChunk *done = r->head;
        r->head = done->next;
        if (!r->head) {
            r->tail = NULL;
            r->last = RX_RUN;
        }
        r->at = r->offset = 0;
        rx_free(m, done, rx_chunk_bytes(done->room));
    }
    return r->head != NULL;
}

/* The oldest id not yet read, which stays in the record; call rx_record_seek before. */
static inline uint32_t rx_record_peek(const RxRecord *r) {
    return (r->head->word[r->at] & ~RX_RUN) + r->offset;
}

static inline void rx_record_skip(RxRecord *r) {
    uint32_t word = r->head->word[r->at];
    r->blocks--;
    if (word & RX_RUN) {
        if (++r->offset < r->head->word[r->at + 1]) return;
        r->at++;
    }
    r->at++;
    r->offset = 0;
}

static inline void rx_record_free(RxMem *m, RxRecord *r) {
    while (r->head) {
        RxChunk *done = r->head;
        r->head = done->next;
        rx_free(m, done, rx_chunk_bytes(done->room));
    }
    memset(r, 0, sizeof *r);
    r->last = RX_RUN;
}

static inline uint64_t rx_record_bytes(const RxRecord *r) {
    const RxChunk *c;
    uint64_t bytes = 0;
    for (c = r->head; c; c = c->next) bytes += rx_chunk_bytes(c->room);
    return bytes;
}

/* Where new ids of the lane go. */
static inline RxRecord *rx_lane_record(RxLane *lane) { return &lane->record[lane->compacting]; }

static inline uint64_t rx_lane_listed(const RxLane *lane) {
    return lane->record[0].blocks + lane->record[1].blocks;
}

#endif
