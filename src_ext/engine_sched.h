/* The scheduler of a modelled replica, in steps and in jumps over steps that only decode.
 *
 * A plan is what runs now: one step, or `steps` equal ones in which every sequence gets a token and
 * nobody comes, goes or needs a block that is not there. Nothing of a plan is done before its end
 * (`es_finish`), so an arrival in the middle just shortens it to the step under way. The times of a
 * jump are added up step by step, in the order and precision of the plain twin
 * (router/sim/engine.py), so that both agree to the last bit. */
#ifndef WARMLANE_ENGINE_SCHED_H
#define WARMLANE_ENGINE_SCHED_H

#include "engine_blocks.h"

typedef struct EsSeq {
    int64_t id;
    int32_t prompt, output, adapter; /* adapter 0: none */
    int32_t computed, produced, stored, cached, preemptions, count;
    int32_t keys_count, blocks_count;
    double arrived, scheduled, first_at;
    uint64_t *keys;
    uint32_t *blocks; /* room for prompt + output */
    struct EsSeq *before, *behind; /* in the queue */
} EsSeq;

typedef struct {
    double t0, weights, token, reduce, pair, kv, sequence, mixed, scale, adapter_step, adapter_load;
    double tier_token; /* seconds to load a token from the tier */
    int32_t block_size, max_seqs, max_tokens, max_adapters;
    uint32_t tier_blocks;
} EsConfig;

typedef struct {
    EsConfig config;
    EbPool pool;
    EsSeq **running;
    int32_t running_count;
    EsSeq *head, *tail; /* waiting, first come first */
    int32_t waiting_count, deferred;
    int32_t *resident; /* adapters, least recently used first */
    int32_t resident_count;
    /* the plan */
    int stepping;
    int64_t steps;
    double began, ends;
    int32_t batch;     /* sequences of the step: the first `batch` of `step` */
    EsSeq **step;
    double factor, loading, fetching;
    int64_t prefill_tokens, decodes, context;
    double pairs;
    /* what the last plan brought */
    int64_t *first, *done;
    double *cached_of; /* prompt tokens from cache of each in `done` */
    int32_t first_count, done_count;
    uint64_t *stored;  /* keys stored since the owner last looked; NULL: not recorded */
    int64_t stored_count, stored_room, lost;
    /* totals */
    int64_t queries, hits, tier_hits, prompts, generated, preempted, step_count;
    double busy;
} EsEngine;

static void es_drop(EsSeq *seq) {
    wl_free(seq->keys);
    wl_free(seq->blocks);
    wl_free(seq);
}

static void es_close(EsEngine *e) {
    for (int32_t i = 0; i < e->running_count; i++) es_drop(e->running[i]);
    for (EsSeq *seq = e->head, *behind; seq; seq = behind) {
        behind = seq->behind;
        es_drop(seq);
    }
    wl_free(e->running);
    wl_free(e->step);
    wl_free(e->first);
    wl_free(e->done);
    wl_free(e->cached_of);
    wl_free(e->resident);
    wl_free(e->stored);
    eb_close(&e->pool);
    memset(e, 0, sizeof *e);
}

static int es_open(EsEngine *e, const EsConfig *config, uint32_t blocks, int record) {
    memset(e, 0, sizeof *e);
    e->config = *config;
    size_t most = (size_t)config->max_seqs + 1;
    e->running = wl_calloc(most, sizeof *e->running);
    e->step = wl_calloc(most, sizeof *e->step);
    e->first = wl_calloc(most, sizeof *e->first);
    e->done = wl_calloc(most, sizeof *e->done);
    e->cached_of = wl_calloc(most, sizeof *e->cached_of);
    e->resident = wl_calloc((size_t)config->max_adapters + 1, sizeof *e->resident);
    e->stored_room = record ? (int64_t)blocks * 2 : 0;
    e->stored = record ? wl_calloc((size_t)e->stored_room, sizeof *e->stored) : NULL;
    if (!e->running || !e->step || !e->first || !e->done || !e->cached_of || !e->resident ||
        (record && !e->stored) || !eb_open(&e->pool, blocks, config->tier_blocks, record)) {
        es_close(e);
        return 0;
    }
    return 1;
}

static void es_enqueue(EsEngine *e, EsSeq *seq, int first) {
    seq->before = first ? NULL : e->tail;
    seq->behind = first ? e->head : NULL;
    if (seq->before) seq->before->behind = seq; else e->head = seq;
    if (seq->behind) seq->behind->before = seq; else e->tail = seq;
    e->waiting_count++;
}

static void es_dequeue(EsEngine *e, EsSeq *seq) {
    if (seq->before) seq->before->behind = seq->behind; else e->head = seq->behind;
    if (seq->behind) seq->behind->before = seq->before; else e->tail = seq->before;
    seq->before = seq->behind = NULL;
    e->waiting_count--;
}

static void es_release(EsEngine *e, EsSeq *seq) {
    for (int32_t i = seq->blocks_count; i-- > 0;) eb_unuse(&e->pool, seq->blocks[i]);
    seq->blocks_count = 0;
}

static void es_preempt(EsEngine *e) {
    EsSeq *victim = e->running[--e->running_count];
    es_release(e, victim);
    victim->computed = victim->stored = 0;
    victim->preemptions++;
    e->preempted++;
    es_enqueue(e, victim, 1);
}

/* Blocks up to `end` tokens, and the keys of those that will be full after this step. */
static void es_cover(EsEngine *e, EsSeq *seq, int64_t end) {
    int32_t size = e->config.block_size;
    int32_t need = (int32_t)((end + size - 1) / size), full = (int32_t)(end / size);
    while (seq->blocks_count < need) seq->blocks[seq->blocks_count++] = eb_allocate(&e->pool);
    if (full > seq->keys_count) full = seq->keys_count;
    for (; seq->stored < full; seq->stored++) {
        eb_store(&e->pool, seq->blocks[seq->stored], seq->keys[seq->stored]);
        if (!e->stored) continue;
        if (e->stored_count < e->stored_room) e->stored[e->stored_count++] = seq->keys[seq->stored];
        else e->lost++;
    }
}

static void es_join(EsEngine *e, EsSeq *seq, int32_t count) {
    seq->count = count;
    e->step[e->batch++] = seq;
}

/* Tokens for running sequences; 1 when somebody had to be preempted. */
static int es_schedule(EsEngine *e, int64_t *budget) {
    int32_t size = e->config.block_size;
    int preempted = 0;
    for (int32_t i = 0; i < e->running_count && *budget > 0; i++) {
        EsSeq *seq = e->running[i];
        int64_t count = (int64_t)seq->prompt + seq->produced - seq->computed;
        if (count > *budget) count = *budget;
        int64_t end = seq->computed + count, missing = (end + size - 1) / size - seq->blocks_count;
        while (missing > (int64_t)e->pool.free) {
            preempted = 1;
            int self = e->running[e->running_count - 1] == seq;
            es_preempt(e);
            if (self) return 1;
        }
        es_cover(e, seq, end);
        es_join(e, seq, (int32_t)count);
        *budget -= count;
    }
    return preempted;
}

/* Blocks for a waiting sequence, hits first, then what is fetched from the tier. Its tokens in this
 * step; 0: it does not fit. */
static int64_t es_enter(EsEngine *e, EsSeq *seq, int64_t budget, double now) {
    int32_t size = e->config.block_size, hits = 0;
    int64_t total = (int64_t)seq->prompt + seq->produced, limit = (total - 1) / size;
    uint32_t idle = 0;
    if (limit > seq->keys_count) limit = seq->keys_count;
    for (; hits < limit; hits++) {
        uint32_t block = eb_find(&e->pool, seq->keys[hits]);
        if (!block) break;
        seq->blocks[hits] = block;
        idle += e->pool.users[block] == 0;
    }
    if ((total + size - 1) / size - hits > (int64_t)e->pool.free - idle) return 0;
    int32_t fetched = 0;
    while (hits + fetched < limit && eb_find_tier(&e->pool, seq->keys[hits + fetched])) fetched++;
    for (int32_t i = 0; i < fetched; i++) eb_keep(&e->pool.tier, seq->keys[hits + i]);
    e->fetching += (double)fetched * size * e->config.tier_token;
    int64_t cached = (int64_t)(hits + fetched) * size;
    if (seq->preemptions == 0) {
        e->queries += total;
        e->hits += (int64_t)hits * size;
        e->tier_hits += (int64_t)fetched * size;
        seq->cached = (int32_t)cached;
        seq->scheduled = now;
    }
    for (int32_t i = 0; i < hits; i++) eb_use(&e->pool, seq->blocks[i]);
    seq->blocks_count = seq->stored = hits;
    seq->computed = (int32_t)cached;
    int64_t count = total - cached < budget ? total - cached : budget;
    es_cover(e, seq, cached + count);
    return count;
}

static int es_in_batch(const EsEngine *e, int32_t adapter, int32_t *distinct) {
    int found = 0;
    *distinct = 0;
    for (int32_t i = 0; i < e->batch; i++) {
        int32_t other = e->step[i]->adapter, seen = 0;
        if (!other) continue;
        found |= other == adapter;
        for (int32_t j = 0; j < i && !seen; j++) seen = e->step[j]->adapter == other;
        *distinct += other && !seen;
    }
    return found;
}

/* 1 when the adapter had to be loaded into a slot. */
static int es_use_adapter(EsEngine *e, int32_t adapter) {
    int32_t at = 0;
    while (at < e->resident_count && e->resident[at] != adapter) at++;
    int missing = at == e->resident_count;
    if (missing) e->resident_count++;
    for (; at + 1 < e->resident_count; at++) e->resident[at] = e->resident[at + 1];
    e->resident[e->resident_count - 1] = adapter;
    if (e->resident_count > e->config.max_adapters) {
        e->resident_count--;
        memmove(e->resident, e->resident + 1, (size_t)e->resident_count * sizeof *e->resident);
    }
    return missing;
}

/* Lets waiting sequences in while everything fits; adapters loaded. *full: the first does not. */
static int32_t es_admit(EsEngine *e, int64_t budget, double now, int *full) {
    int32_t loading = 0, distinct;
    EsSeq *seq = e->head;
    e->deferred = 0;
    while (seq && budget > 0 && e->running_count < e->config.max_seqs) {
        EsSeq *behind = seq->behind;
        if (seq->adapter && !es_in_batch(e, seq->adapter, &distinct) &&
            distinct >= e->config.max_adapters) {
            e->deferred++;
            seq = behind;
            continue;
        }
        int64_t count = es_enter(e, seq, budget, now);
        if (count == 0) {
            *full = 1;
            break;
        }
        es_dequeue(e, seq);
        e->running[e->running_count++] = seq;
        es_join(e, seq, (int32_t)count);
        budget -= count;
        if (seq->adapter) loading += es_use_adapter(e, seq->adapter);
        seq = behind;
    }
    return loading;
}

static double es_step_s(const EsEngine *e, int64_t context) {
    const EsConfig *c = &e->config;
    double tokens = (double)e->prefill_tokens * c->scale + (double)e->decodes;
    double compute = c->token * tokens;
    double kv = c->kv * (e->prefill_tokens && e->decodes ? c->mixed : 1.0);
    double seconds = c->t0 + (compute > c->weights ? compute : c->weights) + c->reduce * tokens +
                     c->pair * c->scale * c->scale * e->pairs + kv * c->scale * (double)context +
                     c->sequence * (double)e->batch;
    return seconds * e->factor;
}

static void es_measure(EsEngine *e) {
    int32_t distinct;
    e->prefill_tokens = e->decodes = e->context = 0;
    e->pairs = 0.0;
    for (int32_t i = 0; i < e->batch; i++) {
        EsSeq *seq = e->step[i];
        if (seq->count == 1 && seq->computed >= seq->prompt) {
            e->decodes++;
            e->context += seq->computed;
        } else {
            e->prefill_tokens += seq->count;
            e->pairs += seq->count * (seq->computed + seq->count / 2.0);
        }
    }
    es_in_batch(e, -1, &distinct);
    e->factor = 1.0 + e->config.adapter_step * distinct;
}

/* How many equal steps from here: until somebody ends, or blocks may run out. */
static int64_t es_equal_steps(const EsEngine *e) {
    int32_t size = e->config.block_size;
    int64_t steps = INT64_MAX, left = e->pool.free;
    for (int32_t i = 0; i < e->batch; i++) {
        const EsSeq *seq = e->step[i];
        int64_t remaining = seq->output - seq->produced;
        if (remaining < steps) steps = remaining;
        if (seq->stored < seq->keys_count && e->head) return 1; /* others might hit what it adds */
    }
    for (;;) {
        int64_t need = 0;
        for (int32_t i = 0; i < e->batch; i++) {
            const EsSeq *seq = e->step[i];
            need += (seq->computed + steps + size - 1) / size - seq->blocks_count;
        }
        if (need <= left || steps <= 1) return steps;
        steps /= 2;
    }
}

static void es_time(EsEngine *e, double until) {
    double at = e->began;
    int64_t context = e->context, step = 0;
    do {
        at += es_step_s(e, context) + (step ? 0.0 : e->loading);
        context += e->decodes;
        step++;
    } while (step < e->steps && at < until);
    e->steps = step;
    e->ends = at;
}

/* Plans what runs from `now` on; 0: nothing can. */
static int es_begin(EsEngine *e, double now) {
    int64_t budget = e->config.max_tokens;
    int full = 0;
    e->batch = 0;
    e->stepping = 0;
    if (!e->running_count && !e->waiting_count) return 0;
    int preempted = es_schedule(e, &budget);
    int32_t loading = 0, before = e->batch;
    e->deferred = 0;
    e->fetching = 0.0;
    if (e->head && !preempted) loading = es_admit(e, budget, now, &full);
    if (!e->batch) return 0;
    es_measure(e);
    e->stepping = 1;
    e->began = now;
    e->loading = loading * e->config.adapter_load + e->fetching * e->config.scale;
    int closed = !e->head || full || e->running_count >= e->config.max_seqs;
    int same = !preempted && before == e->batch && e->batch == e->running_count;
    e->steps = 1;
    if (same && closed && !e->prefill_tokens && !e->deferred) e->steps = es_equal_steps(e);
    es_time(e, 1e300);
    return 1;
}

/* Somebody arrived at `now`: only the step under way still runs as planned. */
static void es_interrupt(EsEngine *e, double now) {
    if (e->stepping && e->steps > 1) es_time(e, now);
}

static int es_advance(EsEngine *e, EsSeq *seq, double now) {
    seq->computed += seq->count;
    if (seq->computed < seq->prompt + seq->produced) return 0;
    if (seq->first_at < 0) {
        seq->first_at = now;
        e->prompts += seq->prompt;
        e->first[e->first_count++] = seq->id;
    }
    if (seq->output) {
        seq->produced++;
        e->generated++;
    }
    return seq->produced >= seq->output;
}

/* The plan has ended; 1 when it brought a first token or an end. */
static int es_finish(EsEngine *e) {
    int ended = 0;
    e->first_count = e->done_count = 0;
    e->busy += e->ends - e->began;
    e->step_count += e->steps;
    if (e->steps > 1) { /* all but the last step; each allocates when it begins, in batch order */
        int64_t skip = e->steps - 1;
        for (int64_t step = 1; step <= skip; step++)
            for (int32_t i = 0; i < e->batch; i++) {
                EsSeq *seq = e->step[i];
                int64_t end = (int64_t)seq->computed + step + 1;
                if (end > (int64_t)seq->blocks_count * e->config.block_size ||
                    (seq->stored < seq->keys_count && end / e->config.block_size > seq->stored))
                    es_cover(e, seq, end);
            }
        for (int32_t i = 0; i < e->batch; i++) {
            e->step[i]->computed += (int32_t)skip;
            e->step[i]->produced += (int32_t)skip;
        }
        e->generated += skip * e->batch;
    }
    for (int32_t i = 0; i < e->batch; i++) {
        EsSeq *seq = e->step[i];
        if (!es_advance(e, seq, e->ends)) continue;
        ended = 1;
        e->cached_of[e->done_count] = seq->cached;
        e->done[e->done_count++] = seq->id;
        es_release(e, seq);
        seq->count = -1;
    }
    if (ended) {
        int32_t kept = 0;
        for (int32_t i = 0; i < e->running_count; i++) {
            EsSeq *seq = e->running[i];
            if (seq->count == -1) es_drop(seq);
            else e->running[kept++] = seq;
        }
        e->running_count = kept;
    }
    e->stepping = 0;
    return e->first_count || e->done_count;
}

#endif
