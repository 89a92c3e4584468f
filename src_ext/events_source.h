/* Event sources, and the spaces of hashes that they share (events_map.h).
 *
 * A source is one publisher: a replica, or one data-parallel rank of it. It fills one replica
 * number of the tree.
 */
#ifndef WARMLANE_EVENTS_SOURCE_H
#define WARMLANE_EVENTS_SOURCE_H

#include "events_fields.h"
#include "events_map.h"

#define EV_WITNESSES 1024u
#define EV_MERGE_MOST 65536u /* entries moved when two functions are proven equal: 2 ms */
#define EV_GIANT (1u << 18)  /* scratch beyond this is given back after the frame */

enum { EV_DONE = 0, EV_MORE = 1, EV_BROKEN = 2, EV_CLEARED_ALL = 4, EV_NO_MEMORY = -2 };

typedef struct {
    uint64_t events, stored, removed, clears, broken, odd, unknown_kinds, orphans, unknown_removals,
        other_groups, other_sizes, ambiguous, refused, unnamed_adapters, embedded;
} EvCounts;

typedef struct {
    EvSpace *space;
    uint64_t model_key;
    uint32_t block_size; /* tokens; 0: not told yet */
    int64_t group;       /* the group that decides, -1: none told yet */
    int64_t rank;        /* data-parallel rank that the last batch named, -1: none */
    EvCounts count;
    /* A batch that is being applied in slices: */
    uint64_t at, events_left, rest_left;
    int in_map;
} EvSource;

typedef struct {
    uint64_t own, hash;
    EvSpace *space;
} EvWitness;

typedef struct {
    RxTree *tree;
    EvMem mem;
    EvScratch scratch;
    EvSource **source;
    uint32_t sources; /* room */
    uint64_t merges;
    EvWitness witness[EV_WITNESSES];
} EvIntake;

/* ---- sources and spaces ---- */

static inline void ev_leave_space(EvIntake *x, EvSource *s) {
    uint32_t i;
    EvSpace *space = s->space;
    s->space = NULL;
    if (!space || --space->sources) return;
    for (i = 0; i < EV_WITNESSES; i++)
        if (x->witness[i].space == space) x->witness[i].space = NULL;
    ev_space_close(&x->mem, space);
}

static inline int ev_own_space(EvIntake *x, EvSource *s) {
    EvSpace *space = ev_space_open(&x->mem);
    if (!space) return -1;
    ev_leave_space(x, s);
    s->space = space;
    space->sources = 1;
    space->capped = x->tree->capped;
    return 0;
}

/* Both spaces' functions agree on a block: from here on they are one. */
RX_RARE void ev_merge(EvIntake *x, EvSpace *into, EvSpace *from) {
    uint32_t i, at;
    for (i = 0; i < EV_PARTS; i++)
        for (at = 0; at < from->part[i].room; at++) {
            EvSlot *slot = &from->part[i].slot[at];
            if (slot->own && ev_put(&x->mem, into, slot->hash, slot->own, x->tree) < 0) return;
        }
    for (i = 0; i < EV_WITNESSES; i++)
        if (x->witness[i].space == from) x->witness[i].space = into;
    for (i = 0; i < x->sources; i++)
        if (x->source[i] && x->source[i]->space == from) {
            x->source[i]->space = into;
            into->sources++;
        }
    x->merges++;
    ev_space_close(&x->mem, from);
}

/* Look whether another space calls this block by the same 64-bit hash: then algorithm and seed are
 * the same, but for a chance of 2^-64. */
static inline void ev_prove(EvIntake *x, EvSource *s, uint64_t own, uint64_t hash) {
    EvWitness *w = &x->witness[own % EV_WITNESSES];
    EvSpace *a = w->space, *b = s->space;
    if (a && a != b && w->own == own && w->hash == hash) {
        if (a->entries < b->entries) { EvSpace *swap = a; a = b; b = swap; }
        if (b->entries <= EV_MERGE_MOST) ev_merge(x, a, b);
    }
    w->own = own;
    w->hash = hash;
    w->space = s->space;
}

static inline void ev_forget_all(EvIntake *x, uint32_t replica) {
    EvSource *s = x->source[replica];
    rx_clear(x->tree, replica, 3);
    if (s->space->sources == 1) ev_space_empty(&x->mem, s->space);
    else ev_doubt_all(s->space);
}

#endif
