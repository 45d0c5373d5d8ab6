/* One layer of a Llama-like decoder, with one call each for forward and backward: the steps of
   layer/parts.py with the same functions in the same order. layer/one_call.py says for which
   layers. */

#include "layer.h"

/* ---- memory that a call needs ----------------------------------------------------------------- */

/* Floats that `kept` must hold. */
size layer_kept(const Layer *layer, const Place *place) {
    Arena arena = {NULL, 0};
    kept_of(layer, place->tokens, &arena);
    return arena.used;
}

/* Floats that `all` must hold. */
size layer_space(const Layer *layer, const Place *place) {
    Arena arena = {NULL, 0};
    scratch_of(layer, place, &arena);
    return arena.used;
}

/* Floats that the products of linears sharing an input need. */
static size of_products(const Linear *linears, size count, size tokens, size threads) {
    size rank = 0, depth = 0, found = 0;
    for (const Linear *one = linears; one != linears + count; one++) {
        size forward = up_to(one->d_in, DEEP) + up_to(one->rank, DEEP);
        found = most(found, workspace(forward, tokens, one->d_out, threads));
        rank += one->rank, depth += up_to(one->d_out, DEEP);
    }
    depth += up_to(rank, DEEP);
    return most(found, workspace(depth, tokens, linears->d_in, threads));
}

/* Floats that `step` must hold. */
size layer_step(const Layer *layer, const Place *place, size threads) {
    size found = threads * attention_space(place->longest, layer->head_dim, layer->head_dim);
    found = most(found, of_products(layer->linears + Q, 3, place->tokens, threads));
    found = most(found, of_products(layer->linears + O, 1, place->tokens, threads));
    found = most(found, of_products(layer->linears + GATE, 2, place->tokens, threads));
    return most(found, of_products(layer->linears + DOWN, 1, place->tokens, threads));
}

/* ---- linears ---------------------------------------------------------------------------------- */

/* y = a + b, or y = a without b. */
static void sum(number *y, const number *a, const number *b, size count, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (size i = 0; i < count; i++)
        put(y, i, b ? get(a, i) + get(b, i) : get(a, i));
}

/* Stack A of all linears, and transpose B of each. */
static void lay_out_factors(const Group *group) {
    number *A = group->A;
    for (size i = 0; i < group->count; i++) {
        const Linear *one = group->linears + i;
        if (!one->rank)
            continue;
        SIMD for (size j = 0; j < one->rank * one->d_in; j++) put(A, j, one->A[j]);
        A += one->rank * one->d_in;
        for (size row = 0; row < one->d_out; row++)
            for (size j = 0; j < one->rank; j++)
                put(group->Bs[i], j * one->d_out + row, one->B[row * one->rank + j]);
    }
}

/* y_i = start + x W_i' + b_i + s_i t_i B_i', and t = x A'; start (n, d_out) may be NULL. */
static void project(const Group *group, const number *x, const number *start, number *const ys[],
                    size n, Space space, float *of_thin) {
    size d = group->d_in, first = 0;
    if (group->rank)
        thin(x, d, n, d, group->rank, group->A, d, 1.0f, group->t, group->rank, NULL, 0, NULL,
             of_thin, space.threads);
    for (size i = 0; i < group->count; i++) {
        const Linear *one = group->linears + i;
        Term terms[2] = {{x, d, one->w, one->w_row, d, 1.0f, !one->turned, one->packed},
                         {group->t + first, group->rank, group->Bs[i], one->d_out, one->rank,
                          one->scale, 0, NULL}};
        products(ys[i], one->d_out, one->bias ? one->bias : start, one->bias ? 0 : one->d_out, n,
                 one->d_out, terms, one->rank ? 2 : 1, space.step, space.threads);
        if (one->bias && start)
            sum(ys[i], start, ys[i], n * one->d_out, space.threads);
        first += one->rank;
    }
}

/* u (n, rank) = s_i dy_i B_i, the gradient of t; and dB_i = s_i dy_i' t_i. */
static void output_gradients(const Group *group, const number *const dys[], const Scratch *s,
                             size n, Space space) {
    size first = 0;
    for (size i = 0; i < group->count; i++) {
        const Linear *one = group->linears + i;
        if (!one->rank)
            continue;
        thin(dys[i], one->d_out, n, one->d_out, one->rank, group->Bs[i], one->d_out, one->scale,
             s->u + first, group->rank, group->t + first, group->rank, s->dB, s->of_thin,
             space.threads);
        for (size row = 0; row < one->d_out; row++)
            for (size j = 0; j < one->rank; j++)
                one->dB[row * one->rank + j] = s->dB[j * one->d_out + row] * one->scale;
        first += one->rank;
    }
}

/* dA of all linears = u' x. */
static void factor_gradients(const Group *group, const number *x, const Scratch *s, size n,
                             Space space) {
    const Linear *first = group->linears;
    if (!group->rank)
        return;
    while (!first->rank)
        first++;
    thin(x, group->d_in, n, group->d_in, group->rank, NULL, 0, 1.0f, NULL, 0, s->u, group->rank,
         first->dA, s->of_thin, space.threads);
}

/* dx = dy_1 W_1 + dy_2 W_2 + ... + u A. */
static void input_gradient(const Group *group, const number *const dys[], const Scratch *s,
                           number *dx, size n, Space space) {
    Term terms[4];
    size d = group->d_in;
    for (size i = 0; i < group->count; i++) {
        const Linear *one = group->linears + i;
        terms[i] = (Term){dys[i],     one->d_out, one->w,      one->w_row,
                          one->d_out, 1.0f,       one->turned, one->packed};
    }
    terms[group->count] = (Term){s->u, group->rank, group->A, d, group->rank, 1.0f, 0, NULL};
    products(dx, d, NULL, 0, n, d, terms, group->count + (group->rank > 0), space.step,
             space.threads);
}

/* ---- other steps ------------------------------------------------------------------------------ */

/* rstd is written, or read if `again`. */
static void norm(const number *x, Norm norm, number *y, float *rstd, size n, size h, int again,
                 int threads) {
    rms_norm(x, h, 0, norm.weight, y, h, 0, rstd, n, 1, h, norm.eps, norm.offset, again, threads);
}

static void norm_backward(number *dx, const number *dy, const number *x, const float *rstd,
                          Norm norm, size n, size h, int threads) {
    rms_norm_backward(dx, h, 0, dy, h, 0, x, h, 0, rstd, norm.weight, n, 1, h, norm.offset,
                      threads);
}

static void turn(number *x, const Place *place, size heads, size d, int inverse, int threads) {
    if (place->half)
        rotary(x, heads * d, d, place->cos, place->cos_row, place->sin, place->sin_row,
               place->tokens, heads, place->half, inverse, threads);
}

static Job job_of(const Layer *layer, const Place *place, const Kept *kept) {
    size d = layer->head_dim, row = layer->heads * d, kv_row = layer->kv_heads * d;
    Job job = {.q = {kept->q, row, d}, .k = {kept->k, kv_row, d}, .v = {kept->v, kv_row, d}};
    job.out = (View){kept->attended, row, d};
    job.logsumexp = kept->logsumexp, job.spans = place->spans, job.count = place->count;
    job.tokens = place->tokens, job.heads = layer->heads, job.kv_heads = layer->kv_heads;
    job.d = job.e = d, job.shared = place->shared, job.scale = layer->scaling;
    return job;
}

static void attend(const Job *job, const Place *place, int is_backward, Space space) {
    size row = attention_space(place->longest, job->d, job->e);
    attention(job, is_backward, space.step, row, space.threads);
}

/* Add the gradients that spans have for shared keys or values to those of the first span. */
static void add_shared(number *dx, const float *of_shared, const Job *job, int threads) {
    size width = job->kv_heads * job->d, block = job->shared * job->d;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size token = 0; token < job->shared; token++)
        for (size i = 0; i < width; i++) {
            const float *from = of_shared + i / job->d * block + token * job->d + i % job->d;
            float sum = get(dx, token * width + i);
            for (size span = 0; span < job->count; span++)
                sum += from[span * job->kv_heads * block];
            put(dx, token * width + i, sum);
        }
}

/* ---- the layer -------------------------------------------------------------------------------- */

/* y (tokens, hidden) of x. */
void layer_forward(const Layer *layer, const Place *place, const number *x, number *y, float *kept,
                   float *all, float *step, int threads) {
    Arena of_kept = {kept, 0}, of_all = {all, 0};
    Kept k = kept_of(layer, place->tokens, &of_kept);
    Scratch s = scratch_of(layer, place, &of_all);
    Space space = {step, threads};
    size n = place->tokens, hidden = k.qkv.d_in, d = layer->head_dim;
    const Group *groups[] = {&k.qkv, &k.o, &k.gate_up, &k.down};
    for (size i = 0; i < 4; i++)
        lay_out_factors(groups[i]);
    norm(x, layer->before_attention, s.h, k.rstd_in, n, hidden, 0, threads);
    number *q = layer->q_norm.weight ? k.q_raw : k.q, *keys = layer->k_norm.weight ? k.k_raw : k.k;
    project(&k.qkv, s.h, NULL, (number *[]){q, keys, k.v}, n, space, s.of_thin);
    if (layer->q_norm.weight)
        norm(q, layer->q_norm, k.q, k.q_rstd, n * layer->heads, d, 0, threads);
    if (layer->k_norm.weight)
        norm(keys, layer->k_norm, k.k, k.k_rstd, n * layer->kv_heads, d, 0, threads);
    turn(k.q, place, layer->heads, d, 0, threads);
    turn(k.k, place, layer->kv_heads, d, 0, threads);
    Job job = job_of(layer, place, &k);
    attend(&job, place, 0, space);
    project(&k.o, k.attended, x, (number *[]){k.middle}, n, space, s.of_thin);
    norm(k.middle, layer->before_mlp, s.h, k.rstd_mlp, n, hidden, 0, threads);
    project(&k.gate_up, s.h, NULL, (number *[]){k.gate, k.up}, n, space, s.of_thin);
    size m = k.down.d_in;
    gated(k.gate, m, k.up, m, s.inner, m, n, m, layer->activation, threads);
    project(&k.down, s.inner, k.middle, (number *[]){y}, n, space, s.of_thin);
}

/* dx becomes the gradient of `middle`. */
static void mlp_backward(const Layer *layer, const Kept *k, const Scratch *s, const number *dy,
                         number *dx, size n, Space space) {
    size m = k->down.d_in, hidden = k->qkv.d_in;
    const number *outer[] = {dy}, *both[] = {k->gate, k->up};
    output_gradients(&k->down, outer, s, n, space);
    input_gradient(&k->down, outer, s, s->inner, n, space);
    gated_backward(s->inner, m, k->gate, m, k->up, m, n, m, layer->activation, space.threads);
    factor_gradients(&k->down, s->inner, s, n, space);
    output_gradients(&k->gate_up, both, s, n, space);
    norm(k->middle, layer->before_mlp, s->h, k->rstd_mlp, n, hidden, 1, space.threads);
    factor_gradients(&k->gate_up, s->h, s, n, space);
    input_gradient(&k->gate_up, both, s, s->dh, n, space);
    sum(dx, dy, NULL, n * hidden, space.threads);
    norm_backward(dx, s->dh, k->middle, k->rstd_mlp, layer->before_mlp, n, hidden, space.threads);
}

/* In place, the gradient of x from that of its norm over each head. */
static void heads_backward(number *dx, const number *x, const float *rstd, Norm norm, size rows,
                           size d, const Scratch *s, int threads) {
    if (!norm.weight)
        return;
    sum(s->of_norm, dx, NULL, rows * d, threads);
    memset(dx, 0, rows * d * sizeof *dx);
    norm_backward(dx, s->of_norm, x, rstd, norm, rows, d, threads);
}

/* From dx, the gradient of `middle`, the gradients of q, k and v. */
static void attention_backward(const Layer *layer, const Place *place, const Kept *k,
                               const Scratch *s, const number *dx, Space space) {
    size n = place->tokens, d = layer->head_dim, row = layer->heads * d;
    size kv_row = layer->kv_heads * d, of_shared = place->count * place->shared * kv_row;
    const number *outer[] = {dx};
    output_gradients(&k->o, outer, s, n, space);
    factor_gradients(&k->o, k->attended, s, n, space);
    input_gradient(&k->o, outer, s, s->dattended, n, space);
    Job job = job_of(layer, place, k);
    job.dout = (View){s->dattended, row, d}, job.dq = (View){s->dq, row, d};
    job.dk = (View){s->dk, kv_row, d}, job.dv = (View){s->dv, kv_row, d};
    job.dk_shared = s->of_shared, job.dv_shared = s->of_shared + of_shared;
    memset(s->of_shared, 0, 2 * of_shared * sizeof *s->of_shared);
    attend(&job, place, 1, space);
    add_shared(s->dk, job.dk_shared, &job, space.threads);
    add_shared(s->dv, job.dv_shared, &job, space.threads);
    turn(s->dq, place, layer->heads, d, 1, space.threads);
    turn(s->dk, place, layer->kv_heads, d, 1, space.threads);
    heads_backward(s->dq, k->q_raw, k->q_rstd, layer->q_norm, n * layer->heads, d, s,
                   space.threads);
    heads_backward(s->dk, k->k_raw, k->k_rstd, layer->k_norm, n * layer->kv_heads, d, s,
                   space.threads);
}

/* The gradients of all factors and, if `to_input`, dx (tokens, hidden), which is overwritten in any
   case. Afterwards `kept` is no longer valid. */
void layer_backward(const Layer *layer, const Place *place, const number *x, const number *dy,
                    number *dx, int to_input, float *kept, float *all, float *step, int threads) {
    Arena of_kept = {kept, 0}, of_all = {all, 0};
    Kept k = kept_of(layer, place->tokens, &of_kept);
    Scratch s = scratch_of(layer, place, &of_all);
    Space space = {step, threads};
    size n = place->tokens, hidden = k.qkv.d_in;
    mlp_backward(layer, &k, &s, dy, dx, n, space);
    attention_backward(layer, place, &k, &s, dx, space);
    const number *dqkv[] = {s.dq, s.dk, s.dv};
    output_gradients(&k.qkv, dqkv, &s, n, space);
    norm(x, layer->before_attention, s.h, k.rstd_in, n, hidden, 1, threads);
    factor_gradients(&k.qkv, s.h, &s, n, space);
    if (!to_input)
        return;
    input_gradient(&k.qkv, dqkv, &s, s.dh, n, space);
    norm_backward(dx, s.dh, x, k.rstd_in, layer->before_attention, n, hidden, threads);
}
