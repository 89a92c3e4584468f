/* Replica sets, interned: equal sets have one id, so "the same replicas hold both blocks" is one
 * integer comparison. Id 0 is the empty set.
 *
 * A member is 16 bits: lane << 3 | state. A lane is the internal number of one life of a replica
 * (radix_lanes.h). The state says how far the lane's copy of the block is visible, and in which
 * tier its one copy lies:
 *
 *   state     0    1    2    3    4    5    6    7
 *   visible   gpu  cpu  disk cpu  no   no   disk disk   from this level on (radix_tree.h)
 *   best tier gpu  cpu  disk gpu  gpu* cpu  cpu  gpu    * or disk, then radix_refs.h has an entry
 *
 * Members are sorted, so equal sets are equal arrays. The hash is a sum over the members: the hash
 * of a set with one member changed is known without building it, and a set is only allocated when
 * it is new. Up to 4 members live in the record itself. Reference counts: one per node that has
 * the set; at 0 the set is freed at once. Cost of a change: one binary search, one chain look-up,
 * one memcmp; the last change is remembered, since a chain of blocks makes the same change again
 * and again.
 */
#ifndef WARMLANE_RADIX_SETS_H
#define WARMLANE_RADIX_SETS_H

#include "radix_heads.h"

#define RX_SET_SEG 1024u
#define RX_SET_INLINE 4u
#define RX_MAX_SETS 0x3fffffffu
#define RX_NONE 0xffffffffu /* no set, no node */
#define RX_ABSENT 8u        /* as a state: the lane is not a member */

/* Tables of 2-bit fields: state -> visible from this level on (3: hidden), state -> best tier. */
#define RX_VIS(state) (0xaf64u >> 2 * (state) & 3u)
#define RX_BEST(state) (0x1424u >> 2 * (state) & 3u)

typedef struct {
    uint32_t hash;
    uint32_t refs;
    uint32_t next; /* hash chain, or free list */
    uint16_t count;
    uint16_t visible; /* members that are visible at some level */
    union {
        uint16_t few[RX_SET_INLINE];
        uint16_t *many;
    } at;
} RxSet;

typedef struct {
    RxMem *mem;
    RxSegs segs;
    RxHeads heads;
    uint32_t used;  /* ids ever used, id 0 included */
    uint32_t free;  /* head of the free list */
    uint32_t live;
    uint32_t last_from, last_what, last_to; /* the last change; last_from RX_NONE: none */
} RxSets;

static inline RxSet *rx_set(const RxSets *s, uint32_t id) {
    return (RxSet *)s->segs.seg[id / RX_SET_SEG] + id % RX_SET_SEG;
}

static inline const uint16_t *rx_members(const RxSet *set) {
    return set->count <= RX_SET_INLINE ? set->at.few : set->at.many;
}

static inline size_t rx_members_bytes(uint32_t count) {
    return count <= RX_SET_INLINE ? 0 : (size_t)((count + 3u) & ~3u) * sizeof(uint16_t);
}

static inline uint32_t rx_set_hash_of(void *owner, uint32_t id) {
    return rx_set((RxSets *)owner, id)->hash;
}

static inline uint32_t *rx_set_next_of(void *owner, uint32_t id) {
    return &rx_set((RxSets *)owner, id)->next;
}

/* Index of the first member whose lane is >= lane. */
static inline uint32_t rx_set_find(const uint16_t *members, uint32_t count, uint32_t lane) {
    uint32_t low = 0, want = lane << 3;
    while (count) {
        uint32_t half = count / 2;
        if (members[low + half] < want) {
            low += half + 1;
            count -= half + 1;
        } else {
            count = half;
        }
    }
    return low;
}

/* State of the lane in the set, RX_ABSENT if it is no member. */
static inline uint32_t rx_set_state(const RxSets *s, uint32_t id, uint32_t lane) {
    const RxSet *set = rx_set(s, id);
    const uint16_t *members = rx_members(set);
    uint32_t at = rx_set_find(members, set->count, lane);
    return at < set->count && members[at] >> 3 == lane ? members[at] & 7u : RX_ABSENT;
}

static inline int rx_sets_init(RxMem *m, RxSets *s) {
    memset(s, 0, sizeof *s);
    s->mem = m;
    s->last_from = RX_NONE;
    if (rx_segs_add(m, &s->segs, RX_SET_SEG * sizeof(RxSet)) || rx_heads_init(m, &s->heads))
        return -1;
    s->used = 1;
    return 0;
}

static inline void rx_sets_free(RxSets *s) {
    uint32_t id;
    if (!s->mem) return;
    for (id = 1; id < s->used; id++) {
        RxSet *set = rx_set(s, id);
        if (set->refs && set->count > RX_SET_INLINE)
            rx_free(s->mem, set->at.many, rx_members_bytes(set->count));
    }
    rx_segs_free(s->mem, &s->segs, RX_SET_SEG * sizeof(RxSet));
    rx_heads_free(s->mem, &s->heads);
}

static inline void rx_set_unref(RxSets *s, uint32_t id) {
    RxSet *set;
    uint32_t *link;
    if (id == 0) return;
    set = rx_set(s, id);
    if (--set->refs) return;
    if (s->last_from == id || s->last_to == id) s->last_from = RX_NONE;
    for (link = rx_head(&s->heads, set->hash); *link != id; link = &rx_set(s, *link)->next) {}
    *link = set->next;
    if (set->count > RX_SET_INLINE)
        rx_free(s->mem, set->at.many, rx_members_bytes(set->count));
    set->next = s->free;
    set->count = 0;
    s->free = id;
    s->live--;
    s->heads.items--;
}

/* One member replaced, added or dropped: where, what was there, what comes. */
typedef struct {
    const uint16_t *from;
    uint32_t count, at, cut, put, fresh; /* cut, put: 0 or 1 members */
} RxEdit;

static inline int rx_edit_equals(const RxEdit *e, const RxSet *other) {
    const uint16_t *to = rx_members(other);
    uint32_t tail = e->count - e->at - e->cut;
    if (other->count != e->count - e->cut + e->put) return 0;
    if (e->put && to[e->at] != e->fresh) return 0;
    return memcmp(to, e->from, e->at * sizeof *to) == 0 &&
           memcmp(to + e->at + e->put, e->from + e->at + e->cut, tail * sizeof *to) == 0;
}

/* A record for a new set with the edited members; not yet in the table. RX_NONE: no memory. */
static inline uint32_t rx_set_build(RxSets *s, const RxEdit *e, uint32_t hash, uint32_t visible) {
    uint32_t id = s->free, count = e->count - e->cut + e->put;
    uint16_t *many = NULL, *to;
    RxSet *set;
    if (!id) {
        if (s->used > RX_MAX_SETS) return RX_NONE;
        if (s->used == s->segs.count * RX_SET_SEG &&
            rx_segs_add(s->mem, &s->segs, RX_SET_SEG * sizeof(RxSet)))
            return RX_NONE;
    }
    if (count > RX_SET_INLINE) {
        many = (uint16_t *)rx_alloc(s->mem, rx_members_bytes(count));
        if (!many) return RX_NONE;
    }
    if (id) s->free = rx_set(s, id)->next; else id = s->used++;
    set = rx_set(s, id);
    set->hash = hash;
    set->refs = 0;
    set->count = (uint16_t)count;
    set->visible = (uint16_t)visible;
    if (many) set->at.many = many;
    to = many ? many : set->at.few;
    memcpy(to, e->from, e->at * sizeof *to);
    if (e->put) to[e->at] = (uint16_t)e->fresh;
    memcpy(to + e->at + e->put, e->from + e->at + e->cut,
           (e->count - e->at - e->cut) * sizeof *to);
    return id;
}

/* The set `id` with `lane` in `state` (RX_ABSENT: without it), one reference taken for the caller.
 * RX_NONE: no memory, nothing changed. */
static inline uint32_t rx_set_change(RxSets *s, uint32_t id, uint32_t lane, uint32_t state) {
    const RxSet *set;
    RxEdit e;
    uint32_t hash, visible, to, what = lane << 4 | state, *head;
    if (s->last_from == id && s->last_what == what) {
        if (s->last_to) rx_set(s, s->last_to)->refs++;
        return s->last_to;
    }
    set = rx_set(s, id);
    e.from = rx_members(set);
    e.count = set->count;
    e.at = rx_set_find(e.from, e.count, lane);
    e.cut = e.at < e.count && (uint32_t)(e.from[e.at] >> 3) == lane;
    e.put = state != RX_ABSENT;
    e.fresh = lane << 3 | (state & 7u);
    hash = set->hash;
    visible = set->visible;
    if (e.cut) {
        hash -= rx_mix32(e.from[e.at] + 1u);
        visible -= RX_VIS(e.from[e.at] & 7u) != 3;
    }
    if (e.put) {
        hash += rx_mix32(e.fresh + 1u);
        visible += RX_VIS(state) != 3;
    }
    if (e.count - e.cut + e.put == 0) {
        to = 0;
    } else {
        head = rx_head(&s->heads, hash);
        for (to = *head; to; to = rx_set(s, to)->next)
            if (rx_set(s, to)->hash == hash && rx_edit_equals(&e, rx_set(s, to))) break;
        if (!to) {
            to = rx_set_build(s, &e, hash, visible);
            if (to == RX_NONE) return RX_NONE;
            rx_set(s, to)->next = *head;
            *head = to;
            s->live++;
            s->heads.items++;
            rx_heads_grow(s->mem, &s->heads, s, rx_set_hash_of, rx_set_next_of);
        }
        rx_set(s, to)->refs++;
    }
    s->last_from = id;
    s->last_what = what;
    s->last_to = to;
    return to;
}

#endif
