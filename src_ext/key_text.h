/* Prompt text straight into block keys: the canonical bytes of a long text are the body's own bytes
 * but for its escapes, so most blocks are keyed where they lie, and are looked through for the end
 * of the run in the same loop: its steps fit into the time that the chain waits for itself.
 *
 *   body    ..."content":"| plain | plain | plain | pla \n in ...
 *   blocks   [ marks  tex ][ keyed in place ][ gathered in `out`  ]
 *
 * Only whole strings of text go this way. What can be taken back (wl_emit_value) is written to
 * `out` as ever, and is keyed when the next text begins or the prompt ends. */
#ifndef WARMLANE_KEY_TEXT_H
#define WARMLANE_KEY_TEXT_H

#include "json_text.h"

/* The block size whose loop the compiler sees whole: the default one (hashing.BLOCK_BYTES). */
#define WL_USUAL_BLOCK 128

/* A run of plain bytes that is worth leaving `out` for: two blocks of the usual size. */
#define WL_LONG_RUN 256
/* Bytes that may wait in `out` before they are keyed: they are still in the first cache then. */
#define WL_WAITING 4096

/* Keys for the whole blocks that wait in `out`; what is left moves to its start. */
static inline void wl_key_waiting(wl_writer *w) {
    wl_chain *c = w->chain;
    size_t at = 0;
    for (; w->pos - at >= c->block; at += c->block) {
        if (c->count == c->room) {
            w->truncated = 1;
            return;
        }
        c->parent = wl_block_key(c->parent, w->out + at, c->block);
        c->keys[c->count++] = c->parent;
    }
    if (at) memmove(w->out, w->out + at, w->pos -= at);
}

/* How far ahead of the present block the body is asked for: it has just come through the kernel and
 * lies in an outer cache, and the chain leaves no slack of its own for that. */
#define WL_FETCH_AHEAD 1024

static inline const uint8_t *wl_key_usual(wl_chain *c, const uint8_t *p, const uint8_t *end) {
    uint64_t parent = c->parent, *key = c->keys + c->count, *last = c->keys + c->room;
    for (; end - p >= WL_USUAL_BLOCK && key < last; p += WL_USUAL_BLOCK) {
        uintptr_t ahead = (uintptr_t)p + WL_FETCH_AHEAD; /* may be behind the end: only a hint */
        __builtin_prefetch((const void *)ahead);
        __builtin_prefetch((const void *)(ahead + 64));
        if (!wl_all_plain(p, WL_USUAL_BLOCK)) break;
        *key++ = parent = wl_block_key(parent, p, WL_USUAL_BLOCK);
    }
    c->parent = parent;
    c->count = (size_t)(key - c->keys);
    return p;
}

/* Keys for the blocks from p on that hold plain bytes alone; returns where the next one begins. */
static inline const uint8_t *wl_key_plain(wl_chain *c, const uint8_t *p, const uint8_t *end) {
    if (c->block == WL_USUAL_BLOCK) return wl_key_usual(c, p, end);
    while ((size_t)(end - p) >= c->block && c->count < c->room) {
        if (wl_find_special(p, p + c->block) != p + c->block) break;
        c->parent = wl_block_key(c->parent, p, c->block);
        c->keys[c->count++] = c->parent;
        p += c->block;
    }
    return p;
}

/* Copies up to `most` plain bytes to `out`; the first byte that is none, or the one behind them. */
static inline const uint8_t *wl_gather(wl_writer *w, const uint8_t *p, const uint8_t *end,
                                       size_t most) {
    const uint8_t *stop = (size_t)(end - p) > most ? p + most : end;
    const uint8_t *q = wl_copy_plain(w->out + w->pos, p, stop);
    w->pos += (size_t)(q - p);
    return q;
}

/* A whole string of text, as wl_emit_string; into keys where the writer has a chain. */
static inline const uint8_t *wl_emit_text(wl_writer *w, const uint8_t *p, const uint8_t *end) {
    if (w->chain == NULL) return wl_emit_string(w, p, end);
    for (;;) {
        const uint8_t *from;
        size_t most;
        wl_key_waiting(w);
        if (w->pos == 0) p = wl_key_plain(w->chain, p, end);
        most = w->chain->block - w->pos; /* the rest of a block, then runs while they are short */
        for (;;) {
            /* A full writer skips the rest, and one whose chain is full. */
            if (w->truncated || w->pos + WL_LONG_RUN > w->cap) return wl_emit_string(w, p, end);
            from = p;
            p = wl_gather(w, p, end, most);
            if (p == end) return NULL;
            if ((size_t)(p - from) == most) break;
            if (*p == '"') return p + 1;
            if (*p != '\\') return NULL;
            if (!(p = wl_escape(p, end, w->out + w->pos, &w->pos))) return NULL;
            most = WL_LONG_RUN;
            if (w->pos >= WL_WAITING) wl_key_waiting(w);
        }
    }
}

#endif
