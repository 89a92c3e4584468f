/* Walking over JSON text and writing canonical bytes (docs/hashing.md). No recursion, no allocation.
 *
 * Functions take p (where to begin) and end, and return the position after what they consumed, or
 * NULL when the text is malformed there. They check what they need in order to walk, no more: text
 * that they accept may still be invalid JSON, but on valid JSON they are exact. */
#ifndef WARMLANE_JSON_TEXT_H
#define WARMLANE_JSON_TEXT_H

#include "simd.h"
#include "xxh3.h"

/* Canonical bytes are UTF-8 plus these markers, which never occur in UTF-8. */
enum {
    WL_MESSAGE = 0xFF,    /* a message; its role follows */
    WL_CONTENT = 0xFE,    /* its content */
    WL_STRING = 0xFD,     /* inside other values: a string ... */
    WL_STRING_END = 0xFC, /* ... and its end */
    WL_PART = 0xFB,       /* between two parts of a content */
    WL_DIGEST = 0xFA,     /* 8 bytes: digest of a long media string */
    WL_ITEM = 0xF9,       /* a part that is not text, a message without a role */
    WL_TOOLS = 0xF8,      /* the tools */
    WL_SCALAR = 0xF7,     /* a number or literal, as written */
    WL_FIELD = 0xF6,      /* another field of a message; its letter follows */
    WL_NEXT = 0xF5,       /* between two prompts of one request */
};

/* Longest media string that is written out rather than digested. */
#define WL_MEDIA_PLAIN 256
/* Bytes that may be written beyond a writer's cap: one vector, or one escape (4). */
#define WL_SLACK 64

/* Where block keys of canonical bytes go (key_text.h). */
typedef struct {
    uint64_t parent; /* of the next block */
    uint64_t *keys;
    size_t count, room;
    size_t block; /* bytes */
} wl_chain;

typedef struct {
    uint8_t *out; /* cap + WL_SLACK bytes */
    size_t pos, cap;
    int truncated; /* something did not fit; pos == cap */
    wl_chain *chain; /* NULL: bytes only; else `out` holds those whose keys are still to come */
} wl_writer;

static inline const uint8_t *wl_space(const uint8_t *p, const uint8_t *end) {
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) p++;
    return p;
}

static inline void wl_put(wl_writer *w, uint8_t byte) {
    if (w->pos < w->cap) w->out[w->pos++] = byte;
    else w->truncated = 1;
}

static inline void wl_put_bytes(wl_writer *w, const uint8_t *from, size_t n) {
    if (n > w->cap - w->pos) { n = w->cap - w->pos; w->truncated = 1; }
    if (n) memcpy(w->out + w->pos, from, n);
    w->pos += n;
}

/* p: after the opening quote. */
static inline const uint8_t *wl_skip_string(const uint8_t *p, const uint8_t *end) {
    for (;;) {
        p = wl_find_special(p, end);
        if (p == end || *p < 0x20) return NULL;
        if (*p == '"') return p + 1;
        if (end - p < 2) return NULL;
        p += 2;
    }
}

static inline const uint8_t *wl_skip_scalar(const uint8_t *p, const uint8_t *end) {
    const uint8_t *start = p;
    for (; p < end; p++) {
        uint8_t c = *p, letter = c | 0x20;
        if (!((c >= '0' && c <= '9') || c == '-' || c == '+' || c == '.' ||
              (letter >= 'a' && letter <= 'z')))
            break;
    }
    return p == start ? NULL : p;
}

/* p: at the first byte of a value. */
static inline const uint8_t *wl_skip_value(const uint8_t *p, const uint8_t *end) {
    if (p == end) return NULL;
    if (*p == '"') return wl_skip_string(p + 1, end);
    if ((*p | 0x20) != '{') return wl_skip_scalar(p, end);
    size_t depth = 0;
    while ((p = wl_find_structure(p, end)) != end) {
        if (*p == '"') {
            if (!(p = wl_skip_string(p + 1, end))) return NULL;
            continue;
        }
        depth += (*p | 0x20) == '{' ? 1 : (size_t)-1;
        p++;
        if (depth == 0) return p;
    }
    return NULL;
}

/* A decimal number of 1 to 10 digits without a leading zero and below 2^32 - 1; NULL otherwise. Up to
 * seven digits are read as one word, without a branch per digit: shift them to the top of the word,
 * then add neighbours pairwise (digits, then pairs, then fours). */
static inline const uint8_t *wl_token_id(const uint8_t *p, const uint8_t *end, uint32_t *id) {
    const uint8_t *start = p;
    uint64_t value = 0;
    if (end - p >= 8) {
        uint64_t word = wl_read64(p) ^ 0x3030303030303030ULL;
        uint64_t others = ((word + 0x7676767676767676ULL) | word) & 0x8080808080808080ULL;
        int n = others ? __builtin_ctzll(others) >> 3 : 8;
        if (n > 0 && n < 8) {
            word <<= (8 - n) * 8;
            word = (word * 10 + (word >> 8)) & 0x00FF00FF00FF00FFULL;
            word = (word * 100 + (word >> 16)) & 0x0000FFFF0000FFFFULL;
            *id = (uint32_t)(word * 10000 + (word >> 32));
            return n > 1 && *start == '0' ? NULL : p + n;
        }
    }
    for (; p < end && *p >= '0' && *p <= '9' && p - start < 11; p++)
        value = value * 10 + (uint64_t)(*p - '0');
    if (p == start || value >= 0xFFFFFFFFULL || (*start == '0' && p - start > 1)) return NULL;
    *id = (uint32_t)value;
    return p;
}

static inline int32_t wl_hex4(const uint8_t *p) {
    int32_t value = 0;
    for (int i = 0; i < 4; i++) {
        uint8_t c = p[i], letter = c | 0x20;
        int32_t digit;
        if (c >= '0' && c <= '9') digit = c - '0';
        else if (letter >= 'a' && letter <= 'f') digit = letter - 'a' + 10;
        else return -1;
        value = value * 16 + digit;
    }
    return value;
}

static inline size_t wl_utf8(uint32_t code, uint8_t *to) {
    if (code < 0x80) { to[0] = (uint8_t)code; return 1; }
    if (code < 0x800) {
        to[0] = (uint8_t)(0xC0 | code >> 6);
        to[1] = (uint8_t)(0x80 | (code & 63));
        return 2;
    }
    if (code < 0x10000) {
        to[0] = (uint8_t)(0xE0 | code >> 12);
        to[1] = (uint8_t)(0x80 | (code >> 6 & 63));
        to[2] = (uint8_t)(0x80 | (code & 63));
        return 3;
    }
    to[0] = (uint8_t)(0xF0 | code >> 18);
    to[1] = (uint8_t)(0x80 | (code >> 12 & 63));
    to[2] = (uint8_t)(0x80 | (code >> 6 & 63));
    to[3] = (uint8_t)(0x80 | (code & 63));
    return 4;
}

/* What a backslash and this letter stand for, 0 if nothing (no short escape means NUL). */
static inline uint8_t wl_short_escape(uint8_t letter) {
    switch (letter) {
    case '"': case '\\': case '/': return letter;
    case 'n': return '\n';
    case 't': return '\t';
    case 'r': return '\r';
    case 'b': return '\b';
    case 'f': return '\f';
    default: return 0;
    }
}

/* One escape; p: at the backslash. Writes 1 to 4 bytes and adds their number to *n. A surrogate
 * without its partner becomes the three bytes that Python's "surrogatepass" writes. */
static inline const uint8_t *wl_escape(const uint8_t *p, const uint8_t *end, uint8_t *to,
                                       size_t *n) {
    if (end - p < 2) return NULL;
    if (p[1] == 'u') {
        int32_t code = end - p < 6 ? -1 : wl_hex4(p + 2);
        if (code < 0) return NULL;
        p += 6;
        if (code >= 0xD800 && code < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
            int32_t low = wl_hex4(p + 2);
            if (low >= 0xDC00 && low < 0xE000) {
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                p += 6;
            }
        }
        *n += wl_utf8((uint32_t)code, to);
        return p;
    }
    *to = wl_short_escape(p[1]);
    *n += 1;
    return *to ? p + 2 : NULL;
}

/* Writes a string's unescaped bytes until its end (*done = 1) or until the writer is full (pos may
 * then be up to 3 beyond cap). p: inside the string, not within an escape. */
static inline const uint8_t *wl_emit_some(wl_writer *w, const uint8_t *p, const uint8_t *end,
                                          int *done) {
    *done = 0;
    while (w->pos < w->cap) {
        size_t room = w->cap - w->pos;
        const uint8_t *stop = (size_t)(end - p) > room ? p + room : end;
        const uint8_t *q = wl_copy_plain(w->out + w->pos, p, stop);
        w->pos += (size_t)(q - p);
        p = q;
        if (p == end) return NULL;
        if (p == stop) return p;
        if (*p == '"') { *done = 1; return p + 1; }
        if (*p != '\\') return NULL;
        if (!(p = wl_escape(p, end, w->out + w->pos, &w->pos))) return NULL;
    }
    return p;
}

/* A whole string, unescaped; p: after the opening quote. Beyond the cap it is only skipped. */
static inline const uint8_t *wl_emit_string(wl_writer *w, const uint8_t *p, const uint8_t *end) {
    int done;
    p = wl_emit_some(w, p, end, &done);
    if (p == NULL || done) return p;
    if (w->pos > w->cap) { w->pos = w->cap; w->truncated = 1; }
    if (p < end && *p != '"') w->truncated = 1;
    return wl_skip_string(p, end);
}

/* A string under a media key: written out when short, else its digest. p: after the quote. */
static inline const uint8_t *wl_emit_media(wl_writer *w, const uint8_t *p, const uint8_t *end) {
    uint8_t scratch[WL_DIGEST_PIECE + WL_SLACK];
    wl_writer piece = {scratch, 0, WL_DIGEST_PIECE, 0, NULL};
    uint64_t digest = 0;
    const uint8_t *stop = wl_find_special(p, end);
    if (stop < end && *stop == '"' && stop - p > WL_MEDIA_PLAIN) {
        digest = wl_digest(p, (size_t)(stop - p)); /* no escapes: digest it in place */
        p = stop + 1;
    } else {
        for (int done = 0; !done;) {
            if (!(p = wl_emit_some(&piece, p, end, &done))) return NULL;
            if (piece.pos >= WL_DIGEST_PIECE) {
                digest = wl_block_key(digest, scratch, WL_DIGEST_PIECE);
                piece.pos -= WL_DIGEST_PIECE;
                memmove(scratch, scratch + WL_DIGEST_PIECE, piece.pos);
            }
        }
        if (digest == 0 && piece.pos <= WL_MEDIA_PLAIN) {
            wl_put(w, WL_STRING);
            wl_put_bytes(w, scratch, piece.pos);
            wl_put(w, WL_STRING_END);
            return p;
        }
        digest = wl_block_key(digest, scratch, piece.pos);
    }
    wl_put(w, WL_DIGEST);
    wl_put_bytes(w, (const uint8_t *)&digest, 8);
    return p;
}

/* Is the string between p (after its opening quote) and after (behind its closing one) `name`? */
static inline int wl_string_is(const uint8_t *p, const uint8_t *after, const char *name,
                               size_t size) {
    size_t n = (size_t)(after - p) - 1;
    if (n == size) return memcmp(p, name, size) == 0;
    if (n < size || n > size * 6 || !memchr(p, '\\', n)) return 0;
    uint8_t plain[32 + WL_SLACK];
    wl_writer w = {plain, 0, 32, 0, NULL};
    return wl_emit_string(&w, p, after) && w.pos == size && memcmp(plain, name, size) == 0;
}

#define WL_IS(p, after, name) wl_string_is(p, after, name, sizeof(name) - 1)

static inline int wl_is_media_key(const uint8_t *p, const uint8_t *after) {
    return WL_IS(p, after, "url") || WL_IS(p, after, "data") || WL_IS(p, after, "image_url") ||
           WL_IS(p, after, "file_data") || WL_IS(p, after, "image_embeds");
}

/* Any value in canonical form; p: at its first byte. Members named cache_control are left out: they
 * are advice to a cache, move from turn to turn and never reach the model. media: long strings
 * under media keys enter by digest. */
static inline const uint8_t *wl_emit_value(wl_writer *w, const uint8_t *p, const uint8_t *end,
                                           int media) {
    size_t depth = 0;
    int digest = 0;
    do {
        p = wl_space(p, end);
        if (p == end) return NULL;
        if (*p == '"') {
            size_t start = w->pos;
            int truncated = w->truncated;
            const uint8_t *text = p + 1;
            if (digest) {
                p = wl_emit_media(w, text, end);
            } else {
                wl_put(w, WL_STRING);
                p = wl_emit_string(w, text, end);
                wl_put(w, WL_STRING_END);
            }
            if (p == NULL) return NULL;
            digest = 0;
            const uint8_t *next = wl_space(p, end);
            if (depth == 0 || next == end || *next != ':') continue;
            if (WL_IS(text, p, "cache_control")) {
                w->pos = start;
                w->truncated = truncated;
                if (!(p = wl_skip_value(wl_space(next + 1, end), end))) return NULL;
                continue;
            }
            digest = media && wl_is_media_key(text, p);
            p = next + 1;
        } else if ((*p | 0x20) == '{') {
            wl_put(w, *p++);
            depth++;
            digest = 0;
        } else if ((*p | 0x20) == '}') {
            if (depth == 0) return NULL;
            wl_put(w, *p++);
            depth--;
        } else if (*p == ',') {
            if (depth == 0) return NULL;
            p++;
        } else {
            const uint8_t *after = wl_skip_scalar(p, end);
            if (after == NULL) return NULL;
            wl_put(w, WL_SCALAR);
            wl_put_bytes(w, p, (size_t)(after - p));
            p = after;
            digest = 0;
        }
    } while (depth);
    return p;
}

/* One member of an object. p: after '{' or after ','. Sets *key and *size (the bytes between the
 * quotes) and returns the position of the value. *escaped: the key holds a backslash. */
static inline const uint8_t *wl_member(const uint8_t *p, const uint8_t *end, const uint8_t **key,
                                       size_t *size, int *escaped) {
    p = wl_space(p, end);
    if (p == end || *p != '"') return NULL;
    *key = ++p;
    const uint8_t *after = wl_skip_string(p, end);
    if (after == NULL) return NULL;
    *size = (size_t)(after - p) - 1;
    *escaped = memchr(p, '\\', *size) != NULL;
    p = wl_space(after, end);
    if (p == end || *p != ':') return NULL;
    p = wl_space(p + 1, end);
    return p == end ? NULL : p;
}

/* After a value inside a container: behind ',' (*more = 1) or behind the closing byte. */
static inline const uint8_t *wl_more(const uint8_t *p, const uint8_t *end, uint8_t close,
                                     int *more) {
    p = wl_space(p, end);
    if (p == end || (*p != ',' && *p != close)) return NULL;
    *more = *p == ',';
    return p + 1;
}

/* After '{' or '[': is the container empty? Then behind its closing byte, else where it began. */
static inline const uint8_t *wl_opened(const uint8_t *p, const uint8_t *end, uint8_t close,
                                       int *more) {
    const uint8_t *q = wl_space(p, end);
    *more = !(q < end && *q == close);
    return *more ? p : q + 1;
}

#endif
