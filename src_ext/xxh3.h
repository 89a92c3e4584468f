/* XXH3-64, seed 0 and default secret, written from the published specification (xxHash fast digest
 * algorithm, section "XXH3 algorithm overview"). Names follow the specification.
 *
 * Two faces: wl_xxh3(input, length), and wl_xxh3_after(parent, input, length), which is the hash of
 * the 8 little-endian bytes of `parent` followed by `input`, without copying them together. In the
 * second one only the first 16-byte chunk depends on the parent, so that along a chain of blocks
 * the processor overlaps the other chunks of block n+1 with the tail of block n.
 *
 * Little-endian 64-bit targets with a 128-bit integer only; anything else stops the build. */
#ifndef WARMLANE_XXH3_H
#define WARMLANE_XXH3_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__SIZEOF_INT128__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "warmlane needs a little-endian 64-bit target with __int128"
#endif

#define WL_PRIME32_1 0x9E3779B1ULL
#define WL_PRIME32_2 0x85EBCA77ULL
#define WL_PRIME32_3 0xC2B2AE3DULL
#define WL_PRIME64_1 0x9E3779B185EBCA87ULL
#define WL_PRIME64_2 0xC2B2AE3D27D4EB4FULL
#define WL_PRIME64_3 0x165667B19E3779F9ULL
#define WL_PRIME64_4 0x85EBCA77C2B2AE63ULL
#define WL_PRIME64_5 0x27D4EB2F165667C5ULL
#define WL_PRIME_MX1 0x165667919E3779F9ULL
#define WL_PRIME_MX2 0x9FB21C651E98DF25ULL

/* What a key that would be 0 becomes: 0 means "no parent" in the index. */
#define WL_KEY_FOR_ZERO WL_PRIME64_1

static const uint8_t wl_secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t wl_read64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint64_t wl_read32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t wl_rotl64(uint64_t x, int s) { return (x << s) | (x >> (64 - s)); }

static inline uint64_t wl_fold(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t wl_avalanche(uint64_t x) {
    x ^= x >> 37;
    x *= WL_PRIME_MX1;
    return x ^ (x >> 32);
}

static inline uint64_t wl_avalanche_xxh64(uint64_t x) {
    x ^= x >> 33;
    x *= WL_PRIME64_2;
    x ^= x >> 29;
    x *= WL_PRIME64_3;
    return x ^ (x >> 32);
}

/* The specification's mixStep with seed 0, on two words that are already loaded. */
static inline uint64_t wl_mix_words(uint64_t first, uint64_t second, size_t secret_offset) {
    return wl_fold(first ^ wl_read64(wl_secret + secret_offset),
                   second ^ wl_read64(wl_secret + secret_offset + 8));
}

static inline uint64_t wl_mix(const uint8_t *p, size_t secret_offset) {
    return wl_mix_words(wl_read64(p), wl_read64(p + 8), secret_offset);
}

static inline uint64_t wl_xxh3_0to16(const uint8_t *p, size_t n) {
    if (n > 8) {
        uint64_t low = wl_read64(p) ^ wl_read64(wl_secret + 24) ^ wl_read64(wl_secret + 32);
        uint64_t high =
            wl_read64(p + n - 8) ^ wl_read64(wl_secret + 40) ^ wl_read64(wl_secret + 48);
        return wl_avalanche(n + __builtin_bswap64(low) + high + wl_fold(low, high));
    }
    if (n >= 4) {
        uint64_t x = wl_read32(p + n - 4) | (wl_read32(p) << 32);
        x ^= wl_read64(wl_secret + 8) ^ wl_read64(wl_secret + 16);
        x ^= wl_rotl64(x, 49) ^ wl_rotl64(x, 24);
        x *= WL_PRIME_MX2;
        x ^= (x >> 35) + n;
        x *= WL_PRIME_MX2;
        return x ^ (x >> 28);
    }
    if (n) {
        uint64_t combined = (uint64_t)p[n - 1] | ((uint64_t)n << 8) | ((uint64_t)p[0] << 16) |
                            ((uint64_t)p[n >> 1] << 24);
        return wl_avalanche_xxh64(combined ^ wl_read32(wl_secret) ^ wl_read32(wl_secret + 4));
    }
    return wl_avalanche_xxh64(wl_read64(wl_secret + 56) ^ wl_read64(wl_secret + 64));
}

/* What is known without the parent is summed up first: left alone, a compiler may begin with the
 * parent's part, and then each of the other additions lengthens the chain of keys. */
#define WL_SUM_FIRST(sum) __asm__("" : "+r"(sum))

/* Medium inputs. Byte o of the input lies at p[o - skip], skip being 0 (plain) or 8 (the first 8 bytes
 * are a parent key that is not in memory). The first 16 bytes are given as two words; the caller
 * made sure that no chunk but the first one starts below skip. */
static inline uint64_t wl_xxh3_17to240(uint64_t first, uint64_t second, const uint8_t *p,
                                       size_t skip, size_t n) {
    uint64_t acc = n * WL_PRIME64_1;
    const uint8_t *end = p + (n - skip);
    if (n <= 128) {
        size_t rounds = ((n - 1) >> 5) + 1;
        for (size_t i = rounds - 1; i > 0; i--) {
            acc += wl_mix(p + (i * 16 - skip), i * 32);
            acc += wl_mix(end - i * 16 - 16, i * 32 + 16);
        }
        acc += wl_mix(end - 16, 16);
        WL_SUM_FIRST(acc);
        return wl_avalanche(acc + wl_mix_words(first, second, 0));
    }
    for (size_t i = 1; i < 8; i++) acc += wl_mix(p + (i * 16 - skip), i * 16);
    uint64_t rest = wl_mix(end - 16, 119);
    for (size_t i = 8; i < (n >> 4); i++) rest += wl_mix(p + (i * 16 - skip), (i - 8) * 16 + 3);
    WL_SUM_FIRST(acc);
    WL_SUM_FIRST(rest);
    return wl_avalanche(wl_avalanche(acc + wl_mix_words(first, second, 0)) + rest);
}

static inline void wl_accumulate(uint64_t *acc, const uint8_t *stripe, size_t secret_offset) {
    for (int i = 0; i < 8; i++) {
        uint64_t lane = wl_read64(stripe + i * 8);
        uint64_t value = lane ^ wl_read64(wl_secret + secret_offset + (size_t)i * 8);
        acc[i ^ 1] += lane;
        acc[i] += (value & 0xFFFFFFFFULL) * (value >> 32);
    }
}

/* Large inputs (over 240 bytes); `head` holds the first 64 bytes, `p` and `skip` as above. */
static inline uint64_t wl_xxh3_long(const uint8_t *head, const uint8_t *p, size_t skip, size_t n) {
    uint64_t acc[8] = {WL_PRIME32_3, WL_PRIME64_1, WL_PRIME64_2, WL_PRIME64_3,
                       WL_PRIME64_4, WL_PRIME32_2, WL_PRIME64_5, WL_PRIME32_1};
    size_t stripes = (n - 1) / 64; /* all but the last, which is the last 64 bytes */
    for (size_t i = 0; i < stripes; i++) {
        wl_accumulate(acc, i ? p + (i * 64 - skip) : head, (i & 15) * 8);
        if ((i & 15) == 15) {
            for (int k = 0; k < 8; k++) {
                acc[k] ^= acc[k] >> 47;
                acc[k] ^= wl_read64(wl_secret + 128 + k * 8);
                acc[k] *= WL_PRIME32_1;
            }
        }
    }
    wl_accumulate(acc, p + (n - skip - 64), 192 - 71);
    uint64_t result = n * WL_PRIME64_1;
    for (int i = 0; i < 4; i++)
        result += wl_fold(acc[2 * i] ^ wl_read64(wl_secret + 11 + i * 16),
                          acc[2 * i + 1] ^ wl_read64(wl_secret + 19 + i * 16));
    return wl_avalanche(result);
}

static inline uint64_t wl_xxh3(const uint8_t *p, size_t n) {
    if (n <= 16) return wl_xxh3_0to16(p, n);
    if (n <= 240) return wl_xxh3_17to240(wl_read64(p), wl_read64(p + 8), p, 0, n);
    return wl_xxh3_long(p, p, 0, n);
}

static inline uint64_t wl_xxh3_after(uint64_t parent, const uint8_t *p, size_t n) {
    size_t whole = n + 8;
    size_t rounds = ((whole - 1) >> 5) + 1;
    if (whole > 240) {
        uint8_t head[64];
        memcpy(head, &parent, 8);
        memcpy(head + 8, p, 56);
        return wl_xxh3_long(head, p, 8, whole);
    }
    /* Chunks counted from the end of a short input may begin inside the parent: copy then. */
    if (whole > 128 || (whole > 16 && whole >= rounds * 16 + 8))
        return wl_xxh3_17to240(parent, wl_read64(p), p, 8, whole);
    uint8_t joined[136];
    memcpy(joined, &parent, 8);
    if (n) memcpy(joined + 8, p, n); /* an empty buffer may have no address */
    return wl_xxh3(joined, whole);
}

/* The key of one block after `parent`. Never 0. */
static inline uint64_t wl_block_key(uint64_t parent, const uint8_t *block, size_t size_bytes) {
    uint64_t key = wl_xxh3_after(parent, block, size_bytes);
    /* A branch that is never taken is not in the way of the next block; a choice would be. */
    return __builtin_expect(key != 0, 1) ? key : WL_KEY_FOR_ZERO;
}

/* The digest of a long opaque string (an image, a file): a chain over pieces of 4096 bytes, so that
 * it can be computed from a small scratch buffer when the string arrives escaped. */
#define WL_DIGEST_PIECE 4096

static inline uint64_t wl_digest(const uint8_t *p, size_t n) {
    uint64_t digest = 0;
    for (; n >= WL_DIGEST_PIECE; p += WL_DIGEST_PIECE, n -= WL_DIGEST_PIECE)
        digest = wl_block_key(digest, p, WL_DIGEST_PIECE);
    return wl_block_key(digest, p, n);
}

#endif
