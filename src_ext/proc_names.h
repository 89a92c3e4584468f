/* Which headers of an external processing message a session reads. Names come in lower case. */
#ifndef WARMLANE_PROC_NAMES_H
#define WARMLANE_PROC_NAMES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum wl_proc_header {
    WL_P_OTHER,
    WL_P_READ,     /* kept under its own name */
    WL_P_INTERNAL, /* kept, and never passed on to an engine */
    WL_P_METHOD,
    WL_P_PATH,
    WL_P_STATUS,
    WL_P_CONTENT_TYPE,
    WL_P_CONTENT_LENGTH,
};

#define WL_NAME(text, id) \
    if (size == sizeof(text) - 1 && memcmp(p, text, size) == 0) return id
#define WL_PREFIX(text, id) \
    if (size >= sizeof(text) - 1 && memcmp(p, text, sizeof(text) - 1) == 0) return id

static inline int wl_proc_name(const uint8_t *p, size_t size) {
    if (size == 0) return WL_P_OTHER;
    switch (p[0]) {
        case ':':
            WL_NAME(":path", WL_P_PATH);
            WL_NAME(":method", WL_P_METHOD);
            WL_NAME(":status", WL_P_STATUS);
            return WL_P_OTHER;
        case 'c':
            WL_NAME("content-type", WL_P_CONTENT_TYPE);
            WL_NAME("content-length", WL_P_CONTENT_LENGTH);
            WL_NAME("content-encoding", WL_P_READ);
            return WL_P_OTHER;
        case 'p':
            WL_NAME("prefer", WL_P_READ);
            return WL_P_OTHER;
        case 't':
            WL_NAME("test-epp-endpoint-selection", WL_P_READ);
            return WL_P_OTHER;
        case 'x':
            WL_PREFIX("x-llm-d-", WL_P_INTERNAL);
            WL_PREFIX("x-gateway-", WL_P_INTERNAL);
            WL_PREFIX("x-warmlane-", WL_P_INTERNAL);
            WL_NAME("x-session-id", WL_P_READ);
            WL_NAME("x-vllm-priority", WL_P_READ);
            WL_NAME("x-ai-eg-model", WL_P_READ);
            WL_NAME("x-session-token", WL_P_READ);
            WL_NAME("x-data-parallel-rank", WL_P_INTERNAL);
            /* Where a side-car would fetch KV blocks from: only a router may say so. */
            WL_NAME("x-data-parallel-host-port", WL_P_INTERNAL);
            WL_NAME("x-prefiller-host-port", WL_P_INTERNAL);
            WL_NAME("x-encoder-hosts-ports", WL_P_INTERNAL);
            WL_NAME("x-kv-cache-source-host-port", WL_P_INTERNAL);
            return WL_P_OTHER;
        default: return WL_P_OTHER;
    }
}

#endif
