/* Accounted memory of one radix tree: exact bytes in use, a hard cap, and segmented arrays.
 *
 * Every allocation of the tree goes through rx_alloc/rx_free with its size, so `used` is exact (as
 * requested; what malloc adds per call is not seen, so calls are few and large). With a cap, growth
 * may use the cap less a reserve; taking things away (remove, evict, hide) may use the reserve
 * too, since it can need a new replica set. Arrays grow in fixed segments: nothing is ever moved
 * except the short table of segment addresses.
 */
#ifndef WARMLANE_RADIX_MEM_H
#define WARMLANE_RADIX_MEM_H

#include <stdint.h>
#include <string.h>

#include "alloc.h"

/* Rare paths, kept out of line so that the common ones keep their registers. */
#define RX_RARE static __attribute__((noinline, cold, unused))
#define RX_HOT static inline __attribute__((always_inline))

typedef struct {
    uint64_t used;    /* bytes */
    uint64_t cap;     /* bytes, 0: none */
    uint64_t reserve; /* bytes of the cap that only taking away may use */
    int taking;       /* > 0: inside an operation that takes away */
    int refused;      /* the last failure was the cap's, not the allocator's */
} RxMem;

static inline int rx_mem_fits(RxMem *m, size_t size, uint64_t slack) {
    uint64_t kept = m->taking ? 0 : m->reserve + slack;
    if (m->cap == 0 || m->used + size + kept <= m->cap) return 1;
    m->refused = 1;
    return 0;
}

/* Zeroed memory or NULL (then m->refused says whether the cap was the reason). */
RX_RARE void *rx_alloc(RxMem *m, size_t size) {
    void *got;
    m->refused = 0;
    if (!rx_mem_fits(m, size, 0)) return NULL;
    got = wl_calloc(1, size);
    if (got) m->used += size;
    return got;
}

RX_RARE void rx_free(RxMem *m, void *block, size_t size) {
    if (!block) return;
    m->used -= size;
    wl_free(block);
}

/* A table of equally long segments. The table doubles, the segments stay where they are. */
typedef struct {
    char **seg;
    uint32_t count; /* segments in use */
    uint32_t room;  /* segments the table has room for */
} RxSegs;

RX_RARE int rx_segs_add(RxMem *m, RxSegs *s, size_t seg_bytes) {
    char *fresh;
    if (s->count == s->room) {
        uint32_t room = s->room ? s->room * 2 : 8;
        char **table = (char **)rx_alloc(m, room * sizeof(char *));
        if (!table) return -1;
        if (s->count) memcpy(table, s->seg, s->count * sizeof(char *));
        rx_free(m, s->seg, s->room * sizeof(char *));
        s->seg = table;
        s->room = room;
    }
    fresh = (char *)rx_alloc(m, seg_bytes);
    if (!fresh) return -1;
    s->seg[s->count++] = fresh;
    return 0;
}

static inline void rx_segs_free(RxMem *m, RxSegs *s, size_t seg_bytes) {
    uint32_t i;
    for (i = 0; i < s->count; i++) rx_free(m, s->seg[i], seg_bytes);
    rx_free(m, s->seg, s->room * sizeof(char *));
    memset(s, 0, sizeof *s);
}

/* Bytes that the table and its segments take, for the recount in check_invariants. */
static inline uint64_t rx_segs_bytes(const RxSegs *s, size_t seg_bytes) {
    return (uint64_t)s->count * seg_bytes + (uint64_t)s->room * sizeof(char *);
}

/* gcc takes a function that only prefetches for one without effect and drops its calls: the empty
 * asm is an effect. */
static inline void rx_prefetch(const void *at) {
    __builtin_prefetch(at);
    __asm__ volatile("" ::: );
}

static inline uint32_t rx_mix32(uint32_t x) {
    /* Finaliser with full avalanche (constants: C. Wellons, hash-prospector, lowbias32). */
    x ^= x >> 16;
    x *= 0x7feb352dU;
    x ^= x >> 15;
    x *= 0x846ca68bU;
    return x ^ (x >> 16);
}

#endif
