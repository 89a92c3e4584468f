/* What an engine's block hashes mean: hash -> own key.
 *
 * A space holds facts of one hash function (algorithm and seed), so an entry is never wrong, only
 * useless once nobody holds the block. Sources whose functions were proven equal share a space.
 *
 *   space -- 64 parts, by the top bits of the mixed hash -- slots {hash, own key}, linear probing
 *
 * 16 bytes a slot; a part grows by half at 7/8, so that an entry takes 18 to 28 bytes. Before it
 * grows it is swept: entries whose block is in no replica any more go. A part is small (400 entries
 * of a cache of 25,000 blocks), so growing never stops for long.
 */
#ifndef WARMLANE_EVENTS_MAP_H
#define WARMLANE_EVENTS_MAP_H

#include "radix_check.h"
#include "xxh3.h"

#define EV_PARTS 64u
#define EV_LEAST 8u          /* slots of a part */
#define EV_MOST (1u << 26)   /* slots of a part */
#define EV_SWEEP 32u         /* keys looked up in one go */

typedef struct {
    uint64_t hash, own; /* own 0: empty */
} EvSlot;

typedef struct {
    EvSlot *slot;
    uint32_t room, used;
    uint32_t stale; /* at least about so many entries may be useless */
} EvPart;

typedef struct {
    EvPart part[EV_PARTS];
    uint64_t entries, bytes;
    uint64_t capped; /* the tree's count when the entries were last doubted for it */
    uint32_t sources;
} EvSpace;

typedef struct {
    uint64_t used, cap; /* bytes of all spaces; cap 0: none */
    uint64_t seed;      /* places hashes, so that no engine can choose where they lie */
    uint32_t sources;   /* that share the cap evenly */
} EvMem;

static inline EvSpace *ev_space_open(EvMem *m) {
    EvSpace *s = (EvSpace *)wl_calloc(1, sizeof *s);
    if (s) m->used += sizeof *s;
    return s;
}

static inline void ev_space_empty(EvMem *m, EvSpace *s) {
    uint32_t i;
    for (i = 0; i < EV_PARTS; i++) {
        m->used -= (uint64_t)s->part[i].room * sizeof(EvSlot);
        wl_free(s->part[i].slot);
    }
    memset(s->part, 0, sizeof s->part);
    s->entries = s->bytes = 0;
}

static inline void ev_space_close(EvMem *m, EvSpace *s) {
    ev_space_empty(m, s);
    m->used -= sizeof *s;
    wl_free(s);
}

static inline uint64_t ev_mix(const EvMem *m, uint64_t hash) {
    return wl_fold(hash ^ m->seed, 0x9E3779B97F4A7C15ull);
}

static inline EvPart *ev_part(EvSpace *s, uint64_t mixed) { return &s->part[mixed >> 58]; }

static inline uint32_t ev_home(const EvPart *p, uint64_t mixed) {
    return (uint32_t)((mixed & 0xffffffffu) * p->room >> 32);
}

static inline void ev_prefetch(const EvMem *m, EvSpace *s, uint64_t hash) {
    uint64_t mixed = ev_mix(m, hash);
    EvPart *p = ev_part(s, mixed);
    if (p->room) rx_prefetch(&p->slot[ev_home(p, mixed)]);
}

/* The slot that holds the hash, or the empty one where it belongs. The part has room. */
static inline EvSlot *ev_slot(EvPart *p, uint64_t hash, uint64_t mixed) {
    uint32_t at = ev_home(p, mixed);
    while (p->slot[at].own && p->slot[at].hash != hash)
        if (++at == p->room) at = 0;
    return &p->slot[at];
}

/* Own key of an engine's hash, 0: unknown. */
static inline uint64_t ev_get(const EvMem *m, EvSpace *s, uint64_t hash) {
    uint64_t mixed = ev_mix(m, hash);
    EvPart *p = ev_part(s, mixed);
    return p->used ? ev_slot(p, hash, mixed)->own : 0;
}

static inline void ev_cut(const EvMem *m, EvSpace *s, EvPart *p, EvSlot *slot) {
    uint32_t gap = (uint32_t)(slot - p->slot), at = gap;
    for (;;) {
        uint32_t home;
        if (++at == p->room) at = 0;
        if (!p->slot[at].own) break;
        home = ev_home(p, ev_mix(m, p->slot[at].hash));
        /* It may fill the gap unless its home lies after the gap, cyclically. */
        if (gap <= at ? (home > gap && home <= at) : (home > gap || home <= at)) continue;
        p->slot[gap] = p->slot[at];
        gap = at;
    }
    p->slot[gap].own = 0;
    p->used--;
    s->entries--;
}

static inline void ev_forget(const EvMem *m, EvSpace *s, uint64_t hash) {
    uint64_t mixed = ev_mix(m, hash);
    EvPart *p = ev_part(s, mixed);
    EvSlot *slot = p->used ? ev_slot(p, hash, mixed) : NULL;
    if (slot && slot->own) ev_cut(m, s, p, slot);
}

/* The block may have no holder left: look at it when the part is swept. */
static inline void ev_doubt(const EvMem *m, EvSpace *s, uint64_t hash) {
    ev_part(s, ev_mix(m, hash))->stale++;
}

static inline void ev_doubt_all(EvSpace *s) {
    uint32_t i;
    for (i = 0; i < EV_PARTS; i++) s->part[i].stale = s->part[i].used;
}

/* Take out the entries whose block is not in the tree. */
RX_RARE void ev_sweep(const EvMem *m, EvSpace *s, EvPart *p, const RxTree *t) {
    uint64_t own[EV_SWEEP], hashes[EV_SWEEP];
    uint32_t at = 0, n, i;
    while (at < p->room) {
        RxRun run;
        uint64_t hash;
        for (n = 0; n < EV_SWEEP && at < p->room; at++) {
            if (!p->slot[at].own) continue;
            own[n] = p->slot[at].own;
            hashes[n++] = p->slot[at].hash;
        }
        rx_run_begin(&run, &t->keys, &t->nodes, own, n);
        rx_run_go(&run);
        /* A cut moves later entries back, at most to slots already read: those are met by the next
         * sweep. */
        for (i = 0; i < n; i++)
            if (rx_run_find(&run, i, &hash) == RX_NONE) ev_forget(m, s, hashes[i]);
    }
    p->stale = 0;
}

/* Within the cap, and within the even share of it that the space's sources have. */
static inline int ev_may_grow(const EvMem *m, const EvSpace *s, uint64_t more) {
    if (!m->cap) return 1;
    return m->used + more <= m->cap && s->bytes + more <= m->cap / m->sources * s->sources;
}

RX_RARE int ev_resize(EvMem *m, EvSpace *s, EvPart *p, uint32_t room) {
    EvPart grown = {NULL, room, p->used, p->stale};
    uint64_t more = (uint64_t)room * sizeof(EvSlot), less = (uint64_t)p->room * sizeof(EvSlot);
    uint32_t i;
    if (room > EV_MOST || !ev_may_grow(m, s, more - less)) return -1;
    grown.slot = (EvSlot *)wl_calloc(room, sizeof(EvSlot));
    if (!grown.slot) return -1;
    for (i = 0; i < p->room; i++)
        if (p->slot[i].own)
            *ev_slot(&grown, p->slot[i].hash, ev_mix(m, p->slot[i].hash)) = p->slot[i];
    wl_free(p->slot);
    m->used += more - less;
    s->bytes += more - less;
    *p = grown;
    return 0;
}

static inline int ev_full(const EvPart *p) { return (p->used + 1) * 8ull > p->room * 7ull; }

/* Room for one more in the part; -1: none to be had. */
RX_RARE int ev_room(EvMem *m, EvSpace *s, EvPart *p, const RxTree *t) {
    if (s->capped != t->capped) { /* the tree's cap took blocks away, nobody knows whose */
        s->capped = t->capped;
        ev_doubt_all(s);
    }
    if (p->stale * 4ull >= p->used && p->used) ev_sweep(m, s, p, t);
    if (p->used * 8ull <= p->room * 5ull && p->room) return 0;
    if (!ev_resize(m, s, p, p->room ? p->room + p->room / 2 : EV_LEAST)) return 0;
    if (p->used) ev_sweep(m, s, p, t);
    return ev_full(p) ? -1 : 0;
}

/* Remember hash -> own. 0: new or known, 1: it was known as something else and is now this; -1: no
 * room. */
static inline int ev_put(EvMem *m, EvSpace *s, uint64_t hash, uint64_t own, const RxTree *t) {
    uint64_t mixed = ev_mix(m, hash);
    EvPart *p = ev_part(s, mixed);
    EvSlot *slot;
    int other;
    if (ev_full(p)) {
        slot = p->used ? ev_slot(p, hash, mixed) : NULL;
        if (!(slot && slot->own) && ev_room(m, s, p, t)) return -1;
    }
    slot = ev_slot(p, hash, mixed);
    other = slot->own && slot->own != own;
    if (!slot->own) {
        p->used++;
        s->entries++;
    }
    slot->hash = hash;
    slot->own = own;
    return other;
}

#endif
