/* Tempo of each replica: seconds between two tokens of an answer there
 * = base + load x (thousand units of the batch) + stall x (thousand prefill tokens a token).
 *
 * The batch is what runs there beside each other, in the price's own measure (see price.pxd: k a
 * cached token, s a sequence); prefill tokens are those that were computed there meanwhile, over
 * the tokens of the answer: they stall those who decode, which is not how fast it decodes.
 * Recursive least squares with forgetting, one sample an answer that was seen to stream to its end.
 * A sample weighs 1 / its seconds: what counts is the relative error, at any speed of hardware, and
 * an answer that stood still (a preemption, a slow client) counts little. Residuals are clipped at
 * what is usual there. Nothing is held within bounds here: that would take from the other two what
 * one of the three is denied, and the three only mean something together. */
#ifndef WARMLANE_TEMPO_H
#define WARMLANE_TEMPO_H

#include <math.h>
#include <stdint.h>

#include "pace.h"

typedef struct {
    double base, load, stall; /* seconds; a thousand units; a thousand tokens a token */
    double p[6];              /* covariance: 00 01 02 11 12 22 */
    double usual;             /* absolute residual, relative; below the mean */
    double batch;             /* mean units of the batch of late */
    double count;
    double usage, pace;       /* given: share of its KV cache; factor of its prefill (pace.h) */
    double factor, slower;    /* found: of its decoding; seconds a token beyond the quickest */
    Pace calm;                /* of prefill, where memory is no limit: for seconds of the fleet */
    double beat;              /* scratch */
} Tempo;

#define TEMPO_KEPT 0.9965   /* half-life of 200 samples */
#define TEMPO_FIRST 30.0    /* samples before a tempo is believed */
#define TEMPO_OUTPUT 8.0    /* tokens: shorter answers say nothing */
#define TEMPO_ALIKE 1.3     /* closer ones may differ by their load alone */
#define TEMPO_FAR 4.0       /* beyond, a replica is ill rather than slow */
#define TEMPO_FILLS 0.5     /* share of a KV cache in use from which on it counts as filling */
#define TEMPO_FULL 0.85
#define SECONDS_LEAST 1e-6  /* a token of prefill */
#define SECONDS_MOST 1e-2
#define SECONDS_STEP 0.1
#define TEMPO_VAGUE 30.0    /* trace of the covariance at the beginning */

static inline void tempo_reset(Tempo *t, double seconds_per_token) {
    t->base = 0.02;
    t->load = t->stall = seconds_per_token * 1000.0;
    t->p[0] = t->p[3] = t->p[5] = TEMPO_VAGUE / 3.0;
    t->p[1] = t->p[2] = t->p[4] = 0.0;
    t->usual = t->batch = t->count = t->usage = t->slower = 0.0;
    t->factor = t->pace = 1.0;
    pace_reset(&t->calm, seconds_per_token * 1000.0);
}

/* So many tokens came in so many seconds (both above 0). batch: units; filled: tokens that were
 * prefilled there meanwhile. */
static inline void tempo_learn(
    Tempo *t, double steps, double seconds, double batch, double filled
) {
    double each = seconds / steps, stalls = filled / steps / 1000.0;
    batch /= 1000.0;
    double x0 = 1.0 / each, x1 = batch / each, x2 = stalls / each;
    double *p = t->p;
    double k0 = p[0] * x0 + p[1] * x1 + p[2] * x2;
    double k1 = p[1] * x0 + p[3] * x1 + p[4] * x2;
    double k2 = p[2] * x0 + p[4] * x1 + p[5] * x2;
    double under = TEMPO_KEPT + x0 * k0 + x1 * k1 + x2 * k2;
    double error = 1.0 - t->base * x0 - t->load * x1 - t->stall * x2, size = fabs(error);
    if (t->count >= 5.0) {
        double most = 3.0 * t->usual;
        if (size > most) {
            error = error < 0.0 ? -most : most;
            size = most; /* what is usual may grow by 4 % a sample: a tempo may change for good */
        }
    }
    double rate = size < t->usual ? 0.05 : 0.02, begin = 1.0 / (t->count + 1.0);
    t->usual += (rate > begin ? rate : begin) * (size - t->usual);
    t->batch += (0.005 > begin ? 0.005 : begin) * (batch - t->batch);
    t->count += 1.0;
    t->base += k0 / under * error;
    t->load += k1 / under * error;
    t->stall += k2 / under * error;
    p[0] -= k0 * k0 / under;
    p[1] -= k0 * k1 / under;
    p[2] -= k0 * k2 / under;
    p[3] -= k1 * k1 / under;
    p[4] -= k1 * k2 / under;
    p[5] -= k2 * k2 / under;
    /* What is not learned anew is forgotten no further than to the beginning. */
    if (p[0] + p[3] + p[5] < TEMPO_VAGUE * TEMPO_KEPT) {
        for (int i = 0; i < 6; i++) p[i] /= TEMPO_KEPT;
    }
}

/* The middle `beat` of those above 0 (the lower of two); 0: fewer than two are. */
static inline double tempo_middle(const Tempo *all, int64_t size) {
    int64_t many = 0;
    for (int64_t i = 0; i < size; i++) many += all[i].beat > 0.0;
    if (many < 2) return 0.0;
    for (int64_t i = 0; i < size; i++) {
        int64_t below = 0, equal = 0;
        if (!(all[i].beat > 0.0)) continue;
        for (int64_t j = 0; j < size; j++) {
            below += all[j].beat > 0.0 && all[j].beat < all[i].beat;
            equal += all[j].beat == all[i].beat;
        }
        if (below <= (many - 1) / 2 && (many - 1) / 2 < below + equal) return all[i].beat;
    }
    return 0.0;
}

/* What a pace (of prefill, over the middle one) does not say anyway, where both say slower or both
 * faster: both at once crowd the fast half of a fleet. */
static inline double tempo_beyond(double tempo, double pace) {
    double rest = tempo / pace;
    if (tempo > 1.0 && pace > 1.0) return rest > TEMPO_ALIKE ? rest : 1.0;
    if (tempo < 1.0 && pace < 1.0) return rest < 1.0 / TEMPO_ALIKE ? rest : 1.0;
    return tempo;
}

/* Who decodes how much slower than the middle one, at equal batches: 1 within TEMPO_ALIKE of it, at
 * most TEMPO_FAR times slower or faster; 1 where little was heard. */
static inline void tempo_compare(Tempo *all, int64_t size) {
    double batch = 0.0, count = 0.0, middle;
    for (int64_t i = 0; i < size; i++) {
        if (all[i].count < TEMPO_FIRST) continue;
        batch += all[i].batch;
        count += 1.0;
    }
    for (int64_t i = 0; i < size; i++) {
        all[i].beat = all[i].count < TEMPO_FIRST ? 0.0 : all[i].base + all[i].load * batch / count;
    }
    middle = tempo_middle(all, size);
    for (int64_t i = 0; i < size; i++) {
        double factor = middle > 0.0 && all[i].beat > 0.0 ? all[i].beat / middle : 1.0;
        if (factor > TEMPO_ALIKE) {
            all[i].factor = factor < TEMPO_FAR ? factor : TEMPO_FAR;
        } else if (factor < 1.0 / TEMPO_ALIKE) {
            all[i].factor = factor > 1.0 / TEMPO_FAR ? factor : 1.0 / TEMPO_FAR;
        } else {
            all[i].factor = 1.0;
        }
    }
}

/* `factor` and `slower` of all: seconds a token that an answer alone takes longer than where it is
 * quickest. A cache that fills up takes the advantage away: who finds it full waits longer. */
static inline void tempo_contrast(Tempo *all, int64_t size) {
    double base, least = 1.0, most = 1.0;
    tempo_compare(all, size);
    for (int64_t i = 0; i < size; i++) {
        all[i].beat = all[i].count < TEMPO_FIRST ? 0.0 : all[i].base;
    }
    base = tempo_middle(all, size);
    for (int64_t i = 0; i < size; i++) {
        all[i].beat = tempo_beyond(all[i].factor, all[i].pace);
        if (all[i].beat < least) least = all[i].beat;
        if (all[i].beat > most) most = all[i].beat;
    }
    for (int64_t i = 0; i < size; i++) {
        double full = (all[i].usage - TEMPO_FILLS) / (TEMPO_FULL - TEMPO_FILLS);
        full = full < 0.0 ? 0.0 : full > 1.0 ? 1.0 : full;
        all[i].slower = (all[i].beat + (most - all[i].beat) * full - least) * base;
    }
}

/* The middle of the seconds that a token of prefill takes where memory is no limit; 0: fewer than two
 * replicas are believed. A first token that waited for memory tells when others end, no pace. */
static inline double tempo_prefill(Tempo *all, int64_t size) {
    for (int64_t i = 0; i < size; i++) {
        all[i].beat = all[i].calm.count < PACE_FIRST ? 0.0 : all[i].calm.slope / 1000.0;
    }
    return tempo_middle(all, size);
}

/* Seconds a token of prefill after one more tick: a part of the way to what was heard, on a scale of
 * logarithms, because what was configured can be wrong by any factor. A small model on the fastest
 * of GPUs takes a few us a token, a large one on CPUs some ms: nothing beyond is believed. */
static inline double seconds_toward(double known, double heard) {
    heard = heard < SECONDS_LEAST ? SECONDS_LEAST : heard > SECONDS_MOST ? SECONDS_MOST : heard;
    return known * pow(heard / known, SECONDS_STEP);
}

#endif
