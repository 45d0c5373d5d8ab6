/* The inputs of layer.c, and where it puts its results. */

#pragma once

#include "calls.h"
#include "arena.h"

enum { Q, K, V, O, GATE, UP, DOWN, LINEARS };

typedef struct {
    const number *w; /* (d_out, d_in), or (d_in, d_out) if `turned` */
    size w_row;
    const number *bias; /* (d_out), or NULL */
    const float *A, *B; /* (rank, d_in) and (d_out, rank) */
    float *dA, *dB;     /* their gradients, contiguous for linears that share an input */
    size d_in, d_out, rank; /* rank 0: no adapter */
    float scale;
    int turned;
    const Packed *packed; /* (d_out, d_in), in place of w, if not NULL */
} Linear;

typedef struct {
    const number *weight; /* NULL: no norm */
    float eps, offset;
} Norm;

typedef struct {
    Linear linears[LINEARS];
    Norm before_attention, before_mlp, q_norm, k_norm;
    size heads, kv_heads, head_dim;
    float scaling; /* of the scores */
    int activation;
} Layer;

typedef struct {
    const float *cos, *sin;
    size cos_row, sin_row, half; /* half 0: no rotary */
    const size *spans;           /* as in attention.c */
    size count, longest, shared, tokens;
} Place;

typedef struct {
    float *step; /* memory for any of the other functions */
    int threads;
} Space;

/* ---- memory ----------------------------------------------------------------------------------- */

/* Linears that share an input, with their factors laid out for the thin products. */
typedef struct {
    const Linear *linears;
    size count, d_in, rank; /* rank: the total */
    number *A;              /* (rank, d_in) */
    number *Bs[3];          /* (rank of each, d_out) */
    number *t;              /* (tokens, rank), the thin product */
} Group;

/* What the forward pass keeps for the backward pass. */
typedef struct {
    Group qkv, o, gate_up, down;
    number *q, *k, *v;      /* (tokens, heads, head_dim), rotated */
    number *q_raw, *k_raw;  /* before their norms */
    number *attended, *middle, *gate, *up;
    float *logsumexp, *rstd_in, *rstd_mlp, *q_rstd, *k_rstd;
} Kept;

static Group group_of(const Linear *linears, size count, size tokens, Arena *arena) {
    Group group = {linears, count, linears->d_in, 0, NULL, {NULL}, NULL};
    for (size i = 0; i < count; i++) {
        group.rank += linears[i].rank;
        group.Bs[i] = numbers(arena, linears[i].rank * linears[i].d_out);
    }
    group.A = numbers(arena, group.rank * group.d_in);
    group.t = numbers(arena, tokens * group.rank);
    return group;
}

static Kept kept_of(const Layer *layer, size n, Arena *arena) {
    size q = n * layer->heads * layer->head_dim, k = n * layer->kv_heads * layer->head_dim;
    size q_raw = layer->q_norm.weight ? q : 0, k_raw = layer->k_norm.weight ? k : 0;
    size inner = n * layer->linears[GATE].d_out;
    Kept kept;
    kept.qkv = group_of(layer->linears + Q, 3, n, arena);
    kept.o = group_of(layer->linears + O, 1, n, arena);
    kept.gate_up = group_of(layer->linears + GATE, 2, n, arena);
    kept.down = group_of(layer->linears + DOWN, 1, n, arena);
    kept.q = numbers(arena, q), kept.k = numbers(arena, k), kept.v = numbers(arena, k);
    kept.q_raw = numbers(arena, q_raw), kept.k_raw = numbers(arena, k_raw);
    kept.q_rstd = floats(arena, q_raw / layer->head_dim);
    kept.k_rstd = floats(arena, k_raw / layer->head_dim);
    kept.attended = numbers(arena, q), kept.logsumexp = floats(arena, n * layer->heads);
    kept.middle = numbers(arena, n * layer->linears[Q].d_in);
    kept.gate = numbers(arena, inner), kept.up = numbers(arena, inner);
    kept.rstd_in = floats(arena, n), kept.rstd_mlp = floats(arena, n);
    return kept;
}

/* Other working memory of a call. Where two names share memory, the first is no longer needed. */
typedef struct {
    number *u;         /* (tokens, rank) */
    float *dB;         /* (rank, d_out) */
    number *inner;     /* (tokens, intermediate) */
    number *h, *dh;    /* (tokens, hidden), sharing memory with `inner` and `dattended` */
    number *dattended; /* (tokens, heads, head_dim) */
    number *dq, *dk, *dv, *of_norm;
    float *of_thin, *of_shared;
} Scratch;

static Scratch scratch_of(const Layer *layer, const Place *place, Arena *arena) {
    size n = place->tokens, hidden = n * layer->linears[Q].d_in, rank = 0, widest = 0, thins = 0;
    size q = n * layer->heads * layer->head_dim, k = n * layer->kv_heads * layer->head_dim;
    size of_group = 0;
    for (size i = 0; i < LINEARS; i++) {
        const Linear *one = layer->linears + i;
        of_group = (i == K || i == V || i == UP ? of_group : 0) + one->rank; /* cumulative */
        rank = most(rank, of_group);
        widest = most(widest, one->rank * one->d_out);
        /* Check every shape: a larger one may need less. */
        thins = most(thins, thin_workspace(n, of_group, one->d_in));
        thins = most(thins, thin_workspace(n, one->rank, one->d_out));
    }
    Scratch s;
    s.u = numbers(arena, n * rank), s.dB = floats(arena, widest), s.of_thin = floats(arena, thins);
    s.dq = numbers(arena, q), s.dk = numbers(arena, k), s.dv = numbers(arena, k);
    s.of_norm = numbers(arena, layer->q_norm.weight || layer->k_norm.weight ? most(q, k) : 0);
    s.of_shared = floats(arena, place->shared ? 2 * place->count * place->shared * (k / n) : 0);
    Arena again = *arena, once_more = *arena;
    s.inner = numbers(arena, n * layer->linears[GATE].d_out);
    s.dattended = numbers(&again, q);
    s.h = numbers(&once_more, hidden), s.dh = numbers(&once_more, hidden);
    arena->used = most(arena->used, most(again.used, once_more.used));
    return s;
}
