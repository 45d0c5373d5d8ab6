/* The functions that the C files offer to each other and to Python; documented where defined. */

#pragma once

#include "real.h"

/* In kernels.c. */
void rms_norm(const number *x, size x_row, size x_head, const number *w, number *y, size y_row,
              size y_head, float *rstd, size n, size heads, size h, float eps, float offset,
              int again, int threads);
void rms_norm_backward(number *dx, size dx_row, size dx_head, const number *dy, size dy_row,
                       size dy_head, const number *x, size x_row, size x_head, const float *rstd,
                       const number *w, size n, size heads, size h, float offset, int threads);
void rotary(number *x, size x_row, size x_head, const float *cos, size cos_row, const float *sin,
            size sin_row, size n, size heads, size half, int inverse, int threads);
void gated(const number *gate, size gate_row, const number *up, size up_row, number *y, size y_row,
           size n, size m, int activation, int threads);
void gated_backward(number *dact, size dact_row, number *gate, size gate_row, number *up,
                    size up_row, size n, size m, int activation, int threads);

/* In packed.c: a matrix in 4 (NF4) or 8 bits a number, or in the blocks of a GGUF file; rows of `row`
   numbers one after the other. */
typedef struct {
    const uint8_t *codes; /* of NF4 two a byte, the first in the upper half; or the blocks */
    const float *scales;  /* one for each block of numbers or, if `nested`, of 256 scales */
    const uint8_t *nested; /* the scales of the blocks in 8 bits, or NULL */
    const float *table;    /* what the 8 bits stand for */
    float offset;          /* added to each nested scale */
    size bits, block, row;
    size ggml; /* the blocks' ggml_type (ggml.h), which have neither scales nor bits here; or 0 */
} Packed;

/* In gemm.c. */
typedef struct {
    const number *x; /* (m, depth) */
    size x_row;
    const number *w; /* (depth, n), or (n, depth) if `across` */
    size w_row;
    size depth;
    float scale; /* of x */
    int across;
    const Packed *packed; /* in place of w, if not NULL */
} Term;

size workspace(size depth, size m, size n, size threads);
void products(number *y, size y_row, const number *start, size start_row, size m, size n,
              const Term *terms, size count, float *space, int threads);

/* In thin.c. */
size thin_workspace(size n, size r, size d);
void thin(const number *x, size x_row, size n, size d, size r, const number *A, size A_row,
          float scale, number *u, size u_row, const number *t, size t_row, float *y, float *space,
          int threads);

/* In attention.c. */
typedef struct {
    number *at; /* (tokens, heads, width) */
    size row, head;
} View;

typedef struct {
    View q, k, v, out, dout, dq, dk, dv;
    float *logsumexp;               /* (heads, tokens) */
    float *dk_shared, *dv_shared;   /* (spans, kv_heads, shared, width) */
    const size *spans;              /* start and stop of each span */
    size count, tokens, heads, kv_heads, d, e; /* e is the width of v */
    size shared; /* tokens from 0 on that every span but the first sees before its own */
    float scale; /* of the scores, above 0 */
} Job;

size attention_space(size keys, size d, size e);
void attention(const Job *job, int is_backward, float *space, size space_row, int threads);
