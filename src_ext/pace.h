/* Pace of each replica: seconds to the first token = base + slope x thousand tokens ahead.
 *
 * Recursive least squares with forgetting, one sample an observed first token. A sample weighs
 * 1 / (tokens + 2): what counts is the relative error, and a prompt of a few tokens says little of
 * the slope. Residuals are clipped at what is usual there, so that a preemption or a prompt whose
 * hit did not come true moves little. */
#ifndef WARMLANE_PACE_H
#define WARMLANE_PACE_H

#include <math.h>
#include <stdint.h>

typedef struct {
    double base, slope;    /* seconds, seconds a thousand tokens */
    double p00, p01, p11;  /* covariance */
    double usual;          /* absolute residual, weighted; below the mean */
    double count;
    double told, foretold, took, missed; /* since it is believed: samples, seconds, |difference| */
} Pace;

#define PACE_KEPT 0.9965      /* half-life of 200 samples */
#define PACE_FIRST 30.0       /* samples before a pace is believed */
#define PACE_LEAST 1e-3       /* seconds a thousand tokens: 1 us a token */
#define PACE_MOST 5.0
#define PACE_FAR 4.0          /* beyond, a replica is ill rather than slow */
#define PACE_ALIKE 1.54       /* closer ones may differ by their load alone */
#define PACE_DOUBT 4.0        /* mean absolute residuals: some three standard errors */

static inline void pace_reset(Pace *p, double slope) {
    p->base = 0.02;
    p->slope = slope;
    p->p00 = p->p11 = 10.0;
    p->p01 = p->usual = p->count = 0.0;
    p->told = p->foretold = p->took = p->missed = 0.0;
}

static inline void pace_learn(Pace *p, double thousands, double seconds) {
    if (p->count >= PACE_FIRST) { /* judged by what was known before this sample */
        double foretold = p->base + p->slope * thousands;
        p->told += 1.0;
        p->foretold += foretold;
        p->took += seconds;
        p->missed += fabs(seconds - foretold);
    }
    double weight = 1.0 / (thousands + 2.0), x0 = weight, x1 = weight * thousands;
    double k0 = p->p00 * x0 + p->p01 * x1, k1 = p->p01 * x0 + p->p11 * x1;
    double under = PACE_KEPT + x0 * k0 + x1 * k1;
    double error = weight * seconds - p->base * x0 - p->slope * x1, size = fabs(error);
    if (p->count >= 3.0) {
        double most = 3.0 * p->usual;
        if (size > most) {
            error = error < 0.0 ? -most : most;
            size = most; /* what is usual may grow by 4 % a sample: a pace may change for good */
        }
    }
    /* Down faster than up: one outlier among the first samples is soon forgotten. */
    double rate = size < p->usual ? 0.05 : 0.02, begin = 1.0 / (p->count + 1.0);
    p->usual += (rate > begin ? rate : begin) * (size - p->usual);
    p->count += 1.0;
    p->base += k0 / under * error;
    p->slope += k1 / under * error;
    double a = (p->p00 - k0 * k0 / under) / PACE_KEPT, b = (p->p01 - k0 * k1 / under) / PACE_KEPT;
    double c = (p->p11 - k1 * k1 / under) / PACE_KEPT;
    if (a + c < 1e4) { /* no wind-up while nothing new is learned */
        p->p00 = a;
        p->p01 = b;
        p->p11 = c;
    }
    if (p->base < 0.0) p->base = 0.0;
    if (p->base > PACE_MOST) p->base = PACE_MOST;
    if (p->slope < PACE_LEAST) p->slope = PACE_LEAST;
    if (p->slope > PACE_MOST) p->slope = PACE_MOST;
}

/* How much slower than the middle slope (0: not known) this one is, 1 / PACE_FAR to PACE_FAR. What
 * the slope's own error explains does not count: where prompts are alike, or a first token hardly
 * takes longer the more is in line, it says little. Nor does what is left count within PACE_ALIKE. */
static inline double pace_factor(const Pace *p, double middle) {
    double noise = PACE_DOUBT * p->usual * sqrt(p->p11), apart = p->slope - middle;
    if (!(middle > 0.0) || p->count < PACE_FIRST) return 1.0;
    apart = apart > noise ? apart - noise : apart < -noise ? apart + noise : 0.0;
    double factor = (middle + apart) / middle;
    if (factor >= 1.0 / PACE_ALIKE && factor <= PACE_ALIKE) return 1.0;
    return factor > PACE_FAR ? PACE_FAR : factor < 1.0 / PACE_FAR ? 1.0 / PACE_FAR : factor;
}

/* The middle slope of the `ready` slots whose pace is believed (the lower of two); 0: fewer than
 * two are. */
static inline double pace_middle(const Pace *all, int64_t size) {
    int64_t many = 0;
    for (int64_t i = 0; i < size; i++) many += all[i].count >= PACE_FIRST;
    if (many < 2) return 0.0;
    for (int64_t i = 0; i < size; i++) {
        int64_t below = 0, equal = 0;
        if (all[i].count < PACE_FIRST) continue;
        for (int64_t j = 0; j < size; j++) {
            if (all[j].count < PACE_FIRST) continue;
            below += all[j].slope < all[i].slope;
            equal += all[j].slope == all[i].slope;
        }
        if (below <= (many - 1) / 2 && (many - 1) / 2 < below + equal) return all[i].slope;
    }
    return 0.0;
}

#endif
