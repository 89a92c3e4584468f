/* Allocation for the compiled core. Every block goes through these functions, so that a test can
 * make the n-th allocation of one module fail and prove that the structure stays whole. The count
 * is per translation unit (one Cython module) and costs one predictable branch per allocation;
 * modules allocate whole segments, never per block. */
#ifndef WARMLANE_ALLOC_H
#define WARMLANE_ALLOC_H

#include <stddef.h>
#include <stdlib.h>

/* Allocations that still succeed before one fails; negative: never fail. */
static long wl_alloc_countdown = -1;

static inline int wl_alloc_refused(void) {
    if (wl_alloc_countdown < 0) return 0;
    if (wl_alloc_countdown == 0) { wl_alloc_countdown = -1; return 1; }
    wl_alloc_countdown--;
    return 0;
}

static inline void wl_alloc_fail_after(long n) { wl_alloc_countdown = n; }

static inline void *wl_malloc(size_t size_bytes) {
    return wl_alloc_refused() ? NULL : malloc(size_bytes ? size_bytes : 1);
}

static inline void *wl_calloc(size_t count, size_t size_bytes) {
    return wl_alloc_refused() ? NULL : calloc(count ? count : 1, size_bytes ? size_bytes : 1);
}

static inline void *wl_realloc(void *old, size_t size_bytes) {
    return wl_alloc_refused() ? NULL : realloc(old, size_bytes ? size_bytes : 1);
}

static inline void wl_free(void *block) { free(block); }

#endif
