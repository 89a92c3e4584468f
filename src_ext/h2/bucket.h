/* A token bucket: how much of something that costs us work a peer may make us do. */
#ifndef WARMLANE_H2_BUCKET_H
#define WARMLANE_H2_BUCKET_H

#include <time.h>

typedef struct {
    double tokens;
    double burst;      /* most tokens it holds */
    double per_second; /* tokens that come back */
    double at_s;       /* when it was last filled */
} wl_bucket;

static inline double wl_now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static inline void wl_bucket_init(wl_bucket *bucket, double burst, double per_second) {
    bucket->tokens = bucket->burst = burst;
    bucket->per_second = per_second;
    bucket->at_s = wl_now_s();
}

static inline void wl_bucket_give(wl_bucket *bucket, double count) {
    double sum = bucket->tokens + count;
    bucket->tokens = sum > bucket->burst ? bucket->burst : sum;
}

/* 1: taken. 0: empty. The clock is read only when the tokens have run out. */
static inline int wl_bucket_take(wl_bucket *bucket) {
    if (bucket->tokens < 1.0) {
        double now_s = wl_now_s();
        wl_bucket_give(bucket, (now_s - bucket->at_s) * bucket->per_second);
        bucket->at_s = now_s;
        if (bucket->tokens < 1.0) return 0;
    }
    bucket->tokens -= 1.0;
    return 1;
}

#endif
