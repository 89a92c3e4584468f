/* libnghttp2 differs between distributions; what we ask of it beyond 1.43 is asked here. */
#ifndef WARMLANE_H2_COMPAT_H
#define WARMLANE_H2_COMPAT_H

#include <nghttp2/nghttp2.h>

/* Weak: a library that lacks the function (before 1.57 and its backports) has no limit to raise. */
__attribute__((weak)) void
nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *option, uint64_t burst, uint64_t rate);

/* Envoy ends every stream with RST_STREAM. The library's own limit (1,000, then 33 a second) would
 * end the connection; connection.pyx bounds the resets that came before an answer instead. */
static inline void wl_raise_reset_limit(nghttp2_option *option) {
    if (nghttp2_option_set_stream_reset_rate_limit)
        nghttp2_option_set_stream_reset_rate_limit(option, 1u << 31, 1u << 31);
}

#endif
