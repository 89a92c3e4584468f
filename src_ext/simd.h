/* Finding the next byte that matters, 16 bytes at a time: SSE2 (part of every x86-64), NEON (part of
 * every aarch64), or 8 at a time in plain C. Loads never leave [p, end). */
#ifndef WARMLANE_SIMD_H
#define WARMLANE_SIMD_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(WARMLANE_NO_SIMD)
#elif defined(__SSE2__)
#include <emmintrin.h>
#define WL_WIDTH 16
#define WL_LESSER
typedef __m128i wl_vec;
static inline wl_vec wl_load(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline void wl_store(uint8_t *p, wl_vec v) { _mm_storeu_si128((__m128i *)p, v); }
static inline wl_vec wl_equal(wl_vec v, uint8_t c) {
    return _mm_cmpeq_epi8(v, _mm_set1_epi8((char)c));
}
static inline wl_vec wl_control(wl_vec v) {
    return _mm_cmpeq_epi8(_mm_min_epu8(v, _mm_set1_epi8(0x1f)), v);
}
static inline wl_vec wl_either(wl_vec a, wl_vec b) { return _mm_or_si128(a, b); }
static inline wl_vec wl_differ(wl_vec v, uint8_t c) {
    return _mm_xor_si128(v, _mm_set1_epi8((char)c));
}
static inline wl_vec wl_lesser(wl_vec a, wl_vec b) { return _mm_min_epu8(a, b); }
static inline wl_vec wl_set_bit5(wl_vec v) { return _mm_or_si128(v, _mm_set1_epi8(0x20)); }
/* Index of the first hit, or 16. */
static inline int wl_first(wl_vec hits) {
    return __builtin_ctz((unsigned)_mm_movemask_epi8(hits) | 0x10000u);
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define WL_WIDTH 16
#define WL_LESSER
typedef uint8x16_t wl_vec;
static inline wl_vec wl_load(const uint8_t *p) { return vld1q_u8(p); }
static inline void wl_store(uint8_t *p, wl_vec v) { vst1q_u8(p, v); }
static inline wl_vec wl_equal(wl_vec v, uint8_t c) { return vceqq_u8(v, vdupq_n_u8(c)); }
static inline wl_vec wl_control(wl_vec v) { return vcltq_u8(v, vdupq_n_u8(0x20)); }
static inline wl_vec wl_either(wl_vec a, wl_vec b) { return vorrq_u8(a, b); }
static inline wl_vec wl_differ(wl_vec v, uint8_t c) { return veorq_u8(v, vdupq_n_u8(c)); }
static inline wl_vec wl_lesser(wl_vec a, wl_vec b) { return vminq_u8(a, b); }
static inline wl_vec wl_set_bit5(wl_vec v) { return vorrq_u8(v, vdupq_n_u8(0x20)); }
static inline int wl_first(wl_vec hits) {
    uint64_t nibbles = vget_lane_u64(
        vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(hits), 4)), 0);
    return nibbles ? __builtin_ctzll(nibbles) >> 2 : 16;
}
#endif

#ifndef WL_WIDTH
/* One 64-bit word as 8 lanes; a hit has the top bit of its byte set. The lane tests are exact up to
 * the first hit, which is all that wl_first reads (a borrow only runs upwards). */
#define WL_WIDTH 8
#define WL_ONES 0x0101010101010101ULL
#define WL_TOPS 0x8080808080808080ULL
typedef uint64_t wl_vec;
static inline wl_vec wl_load(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline void wl_store(uint8_t *p, wl_vec v) { memcpy(p, &v, 8); }
static inline wl_vec wl_equal(wl_vec v, uint8_t c) {
    uint64_t x = v ^ (WL_ONES * c);
    return (x - WL_ONES) & ~x & WL_TOPS;
}
static inline wl_vec wl_control(wl_vec v) { return (v - WL_ONES * 0x20) & ~v & WL_TOPS; }
static inline wl_vec wl_either(wl_vec a, wl_vec b) { return a | b; }
static inline wl_vec wl_set_bit5(wl_vec v) { return v | (WL_ONES * 0x20); }
static inline int wl_first(wl_vec hits) { return hits ? __builtin_ctzll(hits) >> 3 : 8; }
#endif

/* The hits of one vector: quote, backslash or control. */
static inline wl_vec wl_specials(wl_vec v) {
    return wl_either(wl_either(wl_equal(v, '"'), wl_equal(v, '\\')), wl_control(v));
}

static inline int wl_is_special(uint8_t c) { return c == '"' || c == '\\' || c < 0x20; }

/* Is there no special byte in [p, p + size)? size: a multiple of 16, at least 16. One test for all
 * of it and few steps a vector, so that it hides behind a chain of keys. */
static inline int wl_all_plain(const uint8_t *p, size_t size) {
#ifdef WL_LESSER
    wl_vec v = wl_load(p), least = v, apart = wl_lesser(wl_differ(v, '"'), wl_differ(v, '\\'));
    for (size_t i = WL_WIDTH; i < size; i += WL_WIDTH) {
        v = wl_load(p + i);
        least = wl_lesser(least, v);
        apart = wl_lesser(apart, wl_lesser(wl_differ(v, '"'), wl_differ(v, '\\')));
    }
    return wl_first(wl_either(wl_equal(apart, 0), wl_control(least))) == WL_WIDTH;
#else
    wl_vec hits = wl_specials(wl_load(p));
    for (size_t i = WL_WIDTH; i < size; i += WL_WIDTH)
        hits = wl_either(hits, wl_specials(wl_load(p + i)));
    return wl_first(hits) == WL_WIDTH;
#endif
}

#define WL_STRIDE 64

/* The first byte of a JSON string's body that ends the plain run: quote, backslash or control. */
static inline const uint8_t *wl_find_special(const uint8_t *p, const uint8_t *end) {
    const uint8_t *far = p + WL_STRIDE; /* names and lines end before it, the rest may be long */
    for (; end - p >= WL_WIDTH; p += WL_WIDTH) {
        int i = wl_first(wl_specials(wl_load(p)));
        if (i < WL_WIDTH) return p + i;
        if (p >= far)
            while (end - p >= WL_WIDTH + WL_STRIDE && wl_all_plain(p + WL_WIDTH, WL_STRIDE))
                p += WL_STRIDE;
    }
    while (p < end && !wl_is_special(*p)) p++;
    return p;
}

/* The same, copying what it passes to `to`; may write WL_WIDTH bytes more than it passes. */
static inline const uint8_t *wl_copy_plain(uint8_t *to, const uint8_t *p, const uint8_t *end) {
    for (; end - p >= WL_WIDTH; p += WL_WIDTH, to += WL_WIDTH) {
        wl_vec v = wl_load(p);
        wl_store(to, v);
        int i = wl_first(wl_specials(v));
        if (i < WL_WIDTH) return p + i;
    }
    while (p < end && !wl_is_special(*p)) *to++ = *p++;
    return p;
}

/* The first quote, brace or bracket ('[' and ']' become braces when bit 5 is set). */
static inline const uint8_t *wl_find_structure(const uint8_t *p, const uint8_t *end) {
    for (; end - p >= WL_WIDTH; p += WL_WIDTH) {
        wl_vec v = wl_load(p), folded = wl_set_bit5(v);
        int i = wl_first(
            wl_either(wl_either(wl_equal(folded, '{'), wl_equal(folded, '}')), wl_equal(v, '"')));
        if (i < WL_WIDTH) return p + i;
    }
    while (p < end && *p != '"' && (*p | 0x20) != '{' && (*p | 0x20) != '}') p++;
    return p;
}

#endif
