/* Lines of an HTTP/1 head: strict reading (RFC 9112), and which headers a proxy has to know.
 *
 * A line is accepted only when every reader must see the same header in it: a token, a colon at
 * once, text without control characters, CR LF. Folded lines, bare CR and bare LF are refused. */
#ifndef WARMLANE_HTTP_TEXT_H
#define WARMLANE_HTTP_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "simd.h"

/* Headers with a meaning here. Up to WL_H_LAST_HOP they end at this hop whatever the message. */
enum wl_header {
    WL_H_OTHER,
    WL_H_CONNECTION,
    WL_H_UPGRADE,
    WL_H_HOP, /* Keep-Alive, Proxy-*, TE */
    WL_H_LAST_HOP = WL_H_HOP,
    WL_H_TRANSFER_ENCODING,
    WL_H_TRAILER,
    WL_H_EXPECT,
    WL_H_HOST,
    WL_H_CONTENT_LENGTH,
    WL_H_INTERNAL,
    WL_H_CONTENT_TYPE,
    WL_H_CONTENT_ENCODING,
    WL_H_AUTHORIZATION,
    WL_H_API_KEY,
    WL_H_SESSION,
    WL_H_PRIORITY,
};

typedef struct {
    const uint8_t *name;
    const uint8_t *name_end;
    const uint8_t *value; /* without the blanks around it */
    const uint8_t *value_end;
    const uint8_t *next; /* behind CR LF */
} wl_line;

/* Classes of bytes: bit 0 a character of a token, bit 1 one of a URL's authority. */
#define WL_TOKEN 1
#define WL_AUTHORITY 2
static uint8_t wl_class[256];

static inline void wl_http_init(void) {
    const char *alike = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    for (const char *c = alike; *c; c++) wl_class[(uint8_t)*c] = WL_TOKEN | WL_AUTHORITY;
    for (const char *c = "!#$%&'*+-.^_`|~"; *c; c++) wl_class[(uint8_t)*c] |= WL_TOKEN;
    for (const char *c = "!$%&'()*+,-.:;=@[]_~"; *c; c++) wl_class[(uint8_t)*c] |= WL_AUTHORITY;
}

/* Equal to `lower` (letters in lower case and '-' only) but for case. The text is a token or a
 * value without control characters, in which OR 0x20 changes nothing else into those. */
static inline int wl_alike(const uint8_t *p, const char *lower, size_t size) {
    for (size_t i = 0; i < size; i++)
        if ((p[i] | 0x20) != (uint8_t)lower[i]) return 0;
    return 1;
}

static inline int wl_is(const uint8_t *p, const uint8_t *end, const char *lower, size_t size) {
    return (size_t)(end - p) == size && wl_alike(p, lower, size);
}

#define WL_IF(text, id) \
    if (wl_alike(p, text, sizeof(text) - 1)) return id

static inline int wl_header_id(const uint8_t *p, const uint8_t *end) {
    size_t size = (size_t)(end - p);
    switch (size) {
        case 2: WL_IF("te", WL_H_HOP); break;
        case 4: WL_IF("host", WL_H_HOST); break;
        case 6: WL_IF("expect", WL_H_EXPECT); break;
        case 7:
            WL_IF("upgrade", WL_H_UPGRADE);
            WL_IF("trailer", WL_H_TRAILER);
            break;
        case 9: WL_IF("x-api-key", WL_H_API_KEY); break;
        case 10:
            WL_IF("connection", WL_H_CONNECTION);
            WL_IF("keep-alive", WL_H_HOP);
            break;
        case 12:
            WL_IF("content-type", WL_H_CONTENT_TYPE);
            WL_IF("x-session-id", WL_H_SESSION);
            break;
        case 13: WL_IF("authorization", WL_H_AUTHORIZATION); break;
        case 14: WL_IF("content-length", WL_H_CONTENT_LENGTH); break;
        case 15: WL_IF("x-vllm-priority", WL_H_PRIORITY); break;
        case 16:
            WL_IF("content-encoding", WL_H_CONTENT_ENCODING);
            WL_IF("proxy-connection", WL_H_HOP);
            break;
        case 17: WL_IF("transfer-encoding", WL_H_TRANSFER_ENCODING); break;
        case 18: WL_IF("proxy-authenticate", WL_H_HOP); break;
        case 19: WL_IF("proxy-authorization", WL_H_HOP); break;
        case 20: WL_IF("x-data-parallel-rank", WL_H_INTERNAL); break;
        default: break;
    }
    if (size >= 8 && (p[0] | 0x20) == 'x') {
        WL_IF("x-llm-d-", WL_H_INTERNAL);
        if (size >= 10) WL_IF("x-gateway-", WL_H_INTERNAL);
        if (size >= 11) WL_IF("x-warmlane-", WL_H_INTERNAL);
    }
    return WL_H_OTHER;
}

static inline int wl_is_text(uint8_t c) { return c == '\t' || (c >= 0x20 && c != 0x7f); }

/* The end of a run of field text: tab, space, visible, and bytes above 127. */
static inline const uint8_t *wl_text_end(const uint8_t *p, const uint8_t *end) {
    for (;;) {
        while (end - p >= WL_WIDTH) {
            wl_vec v = wl_load(p);
            int i = wl_first(wl_either(wl_control(v), wl_equal(v, 0x7f)));
            p += i;
            if (i < WL_WIDTH) break;
        }
        while (p < end && end - p < WL_WIDTH && wl_is_text(*p)) p++;
        if (p == end || !wl_is_text(*p)) return p;
        p++; /* a tab, which the wide test takes for a control character */
    }
}

/* Behind the CR LF at p; NULL when there is none. */
static inline const uint8_t *wl_crlf(const uint8_t *p, const uint8_t *end) {
    return end - p >= 2 && p[0] == '\r' && p[1] == '\n' ? p + 2 : NULL;
}

/* Read the header line at p. 0: it is not one. */
static inline int wl_read_line(const uint8_t *p, const uint8_t *end, wl_line *line) {
    line->name_end = line->value = line->value_end = line->next = p;
    line->name = p;
    while (p < end && wl_class[*p] & WL_TOKEN) p++;
    if (p == line->name || p == end || *p != ':') return 0;
    line->name_end = p++;
    while (p < end && (*p == ' ' || *p == '\t')) p++;
    line->value = p;
    p = wl_text_end(p, end);
    line->next = wl_crlf(p, end);
    while (p > line->value && (p[-1] == ' ' || p[-1] == '\t')) p--;
    line->value_end = p;
    return line->next != NULL;
}

/* Whether a tab stands behind the value. RFC 9112 allows it, readers disagree on it, and behind a
 * value that frames the message that is one disagreement too many. */
static inline int wl_tab_behind(const wl_line *line) {
    return memchr(line->value_end, '\t', (size_t)(line->next - line->value_end)) != NULL;
}

/* Walk a line that wl_read_line has accepted before; only name, name_end and next are set. */
static inline void wl_walk_line(const uint8_t *p, const uint8_t *end, wl_line *line) {
    line->name = p;
    line->name_end = memchr(p, ':', (size_t)(end - p));
    line->next = (const uint8_t *)memchr(line->name_end, '\r', (size_t)(end - line->name_end)) + 2;
}

/* A Content-Length of 1 to 18 digits, -1 for anything else. */
static inline int64_t wl_length(const uint8_t *p, const uint8_t *end) {
    int64_t value = 0;
    if (p == end || end - p > 18) return -1;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9') return -1;
        value = value * 10 + (*p - '0');
    }
    return value;
}

#endif
