/* What every session of libnghttp2 is made with: its memory, and its options. */
#ifndef WARMLANE_H2_MEMORY_H
#define WARMLANE_H2_MEMORY_H

#include <nghttp2/nghttp2.h>

#include "alloc.h"
#include "h2/compat.h"

/* libnghttp2's memory comes through alloc.h too, so that a test can refuse it. */
static void *wl_h2_malloc(size_t size, void *nothing) {
    (void) nothing;
    return wl_malloc(size);
}

static void *wl_h2_calloc(size_t count, size_t size, void *nothing) {
    (void) nothing;
    return wl_calloc(count, size);
}

static void *wl_h2_realloc(void *old, size_t size, void *nothing) {
    (void) nothing;
    return wl_realloc(old, size);
}

static void wl_h2_free(void *block, void *nothing) {
    (void) nothing;
    wl_free(block);
}

static nghttp2_mem wl_h2_memory = {
    .mem_user_data = NULL,
    .malloc = wl_h2_malloc,
    .free = wl_h2_free,
    .calloc = wl_h2_calloc,
    .realloc = wl_h2_realloc,
};

/* NULL: no memory. */
static inline nghttp2_option *wl_h2_options(void) {
    nghttp2_option *made;
    if (nghttp2_option_new(&made)) return NULL;
    nghttp2_option_set_no_auto_window_update(made, 1);
    nghttp2_option_set_no_closed_streams(made, 1);
    wl_raise_reset_limit(made);
    return made;
}

#endif
