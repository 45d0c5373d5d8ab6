/* The memory-bound pieces of a transformer layer, each in one pass over its rows. pieces.py has the
   same formulas in plain torch and documents them; native.py compiles and loads this file.

   Every function works on rows of `number`, which is float, or bf16 if BF16 is defined, and
   computes in float. Strides count numbers; the numbers of a row are contiguous. Switches are
   passed down as constants to functions that are always inlined, so each loop is compiled once per
   case. Rows are divided among `threads` threads, and no sum runs over more than one row, so the
   results do not depend on the number of threads. Do not compile with -ffast-math: a NaN must
   propagate. */

#include "calls.h"

/* Fewer numbers than this are not worth waking another thread for (about 5 us). */
#define ENOUGH 16384

/* tanh x = x + x^3 p(x^2) up to 0.625, p of degree 4, relative error 4e-9, fitted like exp_;
   beyond that 1 - 2 / (e^2x + 1), which cancels little there (the two branches of Cephes' tanhf);
   1.4e-7 including rounding. */
INLINE float tanh_(float x) {
    float s = x * x;
    float p = -0.00570422271f;
    p = p * s + 0.0206384305f;
    p = p * s - 0.0537395217f;
    p = p * s + 0.133314401f;
    p = p * s - 0.333332807f;
    float small = (p * s) * x + x;
    float large = 1.0f - 2.0f / (exp_(2.0f * x) + 1.0f);
    return s < 0.625f * 0.625f ? small : large;
}

/* ---- norm: rows are addressed by two strides, for heads in a wider buffer --------------------- */

INLINE float sum_of_squares(const number *x, size h) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size i = 0; i < h; i++)
        sum += get(x, i) * get(x, i);
    return sum;
}

/* Llama rounds x / rms before multiplying by the weight; with an offset (Gemma) all is float. */
INLINE void norm_row(const number *x, const number *w, number *y, float rstd, float offset,
                     size h) {
    if (offset == 0.0f) {
        SIMD for (size i = 0; i < h; i++) put(y, i, rounded(get(x, i) * rstd) * get(w, i));
    } else {
        SIMD for (size i = 0; i < h; i++) put(y, i, get(x, i) * rstd * (offset + get(w, i)));
    }
}

/* rstd (n, heads) is read if `again`, else written. */
void rms_norm(const number *x, size x_row, size x_head, const number *w, number *y, size y_row,
              size y_head, float *rstd, size n, size heads, size h, float eps, float offset,
              int again, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * heads * h > ENOUGH)
    for (size i = 0; i < n * heads; i++) {
        const number *from = x + (i / heads) * x_row + (i % heads) * x_head;
        if (!again)
            rstd[i] = 1.0f / sqrtf(sum_of_squares(from, h) / (float)h + eps);
        norm_row(from, w, y + (i / heads) * y_row + (i % heads) * y_head, rstd[i], offset, h);
    }
}

/* With v = dy * w and s = 1 / rms: dx += s * (v - x * s^2 * mean(v * x)). */
INLINE void norm_backward_row(number *dx, const number *dy, const number *x, const number *w,
                              float s, float offset, size h) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size i = 0; i < h; i++)
        sum += get(dy, i) * (offset + get(w, i)) * get(x, i);
    float share = sum / (float)h * s * s;
    SIMD for (size i = 0; i < h; i++) {
        float v = get(dy, i) * (offset + get(w, i));
        put(dx, i, get(dx, i) + s * (v - get(x, i) * share));
    }
}

void rms_norm_backward(number *dx, size dx_row, size dx_head, const number *dy, size dy_row,
                       size dy_head, const number *x, size x_row, size x_head, const float *rstd,
                       const number *w, size n, size heads, size h, float offset, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * heads * h > ENOUGH)
    for (size i = 0; i < n * heads; i++) {
        size row = i / heads, head = i % heads;
        norm_backward_row(dx + row * dx_row + head * dx_head, dy + row * dy_row + head * dy_head,
                          x + row * x_row + head * x_head, w, rstd[i], offset, h);
    }
}

/* ---- rotary ---------------------------------------------------------------------------------- */

/* (a, b), the two halves of a row, become (a cos - b sin, b cos + a sin); each half has its own
   cos and sin. `inverse` applies the transpose of that matrix, for the gradient. */
INLINE void rotary_row(number *x, const float *cos, const float *sin, size half, int inverse) {
    SIMD for (size i = 0; i < half; i++) {
        float a = get(x, i), b = get(x, i + half);
        float sin_a = inverse ? -sin[i + half] : sin[i];
        float sin_b = inverse ? -sin[i] : sin[i + half];
        put(x, i, a * cos[i] - b * sin_a);
        put(x, i + half, b * cos[i + half] + a * sin_b);
    }
}

void rotary(number *x, size x_row, size x_head, const float *cos, size cos_row, const float *sin,
            size sin_row, size n, size heads, size half, int inverse, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * heads * half > ENOUGH)
    for (size row = 0; row < n; row++)
        for (size head = 0; head < heads; head++) {
            number *to = x + row * x_row + head * x_head;
            if (inverse)
                rotary_row(to, cos + row * cos_row, sin + row * sin_row, half, 1);
            else
                rotary_row(to, cos + row * cos_row, sin + row * sin_row, half, 0);
        }
}

/* ---- gated activation ------------------------------------------------------------------------ */

enum { SILU, GELU_TANH, GELU };

typedef struct {
    float value, slope;
} Curve;

INLINE Curve silu(float g) {
    float s = 1.0f / (1.0f + exp_(-g));
    return (Curve){g * s, s * (1.0f + g * (1.0f - s))};
}

/* g/2 (1 + tanh u) is g sigmoid(2u), without cancellation when u is far below 0. */
INLINE Curve gelu_tanh(float g) {
    const float k = 1.5957691216f; /* 2 sqrt(2 / pi) */
    float s = 1.0f / (1.0f + exp_(-k * (g + 0.044715f * (g * g) * g)));
    float twice_slope_of_u = k * (1.0f + 3.0f * 0.044715f * (g * g));
    return (Curve){g * s, s + g * s * (1.0f - s) * twice_slope_of_u};
}

/* Phi(-z sqrt 2) = erfc(z) / 2 = e^(-z^2) t P(t) with t = 1 / (1 + z/2): the substitution of
   Hastings (1955), with P of degree 8 fitted like exp_ for z from 0 to 10.5 (where e^(-z^2) is 0 in
   float), relative error 5e-8; rounding g^2 makes it 8e-7 at g = -5. The factor 1/2 is included in
   the coefficients. */
INLINE Curve gelu(float g) {
    float t = 1.0f / (1.0f + 0.35355339f * fabsf(g));
    float bell = exp_(-0.5f * (g * g));
    float p = -0.0295966361f;
    p = p * t + 0.142591283f;
    p = p * t - 0.244230211f;
    p = p * t + 0.139756069f;
    p = p * t - 0.0138115883f;
    p = p * t + 0.101554916f;
    p = p * t + 0.121498317f;
    p = p * t + 0.141195029f;
    p = p * t + 0.141042784f;
    float tail = bell * (t * p);
    float below = g > 0.0f ? 1.0f - tail : tail;
    return (Curve){g * below, below + g * (bell * 0.39894228f)};
}

INLINE Curve curve(float g, int activation) {
    return activation == SILU ? silu(g) : activation == GELU_TANH ? gelu_tanh(g) : gelu(g);
}

INLINE void gated_row(const number *gate, const number *up, number *out, size m, int activation) {
    SIMD for (size i = 0; i < m; i++)
        put(out, i, rounded(curve(get(gate, i), activation).value) * get(up, i));
}

INLINE void gated_backward_row(number *dact, number *gate, number *up, size m, int activation) {
    SIMD for (size i = 0; i < m; i++) {
        float d = get(dact, i), u = get(up, i);
        Curve c = curve(get(gate, i), activation);
        float act = rounded(c.value);
        put(gate, i, d * u * c.slope);
        put(up, i, d * act);
        put(dact, i, act * u);
    }
}

void gated(const number *gate, size gate_row, const number *up, size up_row, number *out,
           size out_row, size n, size m, int activation, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * m > ENOUGH)
    for (size i = 0; i < n; i++) {
        const number *g = gate + i * gate_row, *u = up + i * up_row;
        number *to = out + i * out_row;
        if (activation == SILU)
            gated_row(g, u, to, m, SILU);
        else if (activation == GELU_TANH)
            gated_row(g, u, to, m, GELU_TANH);
        else
            gated_row(g, u, to, m, GELU);
    }
}

void gated_backward(number *dact, size dact_row, number *gate, size gate_row, number *up,
                    size up_row, size n, size m, int activation, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * m > ENOUGH)
    for (size i = 0; i < n; i++) {
        number *d = dact + i * dact_row, *g = gate + i * gate_row, *u = up + i * up_row;
        if (activation == SILU)
            gated_backward_row(d, g, u, m, SILU);
        else if (activation == GELU_TANH)
            gated_backward_row(d, g, u, m, GELU_TANH);
        else
            gated_backward_row(d, g, u, m, GELU);
    }
}

/* ---- dropout --------------------------------------------------------------------------------- */

/* The hash "lowbias32" of Wellons (2018, "Prospecting for hash functions"), without its last step,
   which changes only the lower half and hardly affects the comparison. dropout.py has it too. */
INLINE uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352d;
    x ^= x >> 15;
    return x * 0x846ca68b;
}

/* Each row has a key, each column a multiple of 2^32 / golden ratio. Dropped values are masked out
   bitwise: with a conditional, the bf16 loop is not vectorized and takes ten times as long. */
INLINE void dropout_row(const number *x, number *y, uint32_t key, int32_t bound, float scale,
                        size d, int add) {
    SIMD for (size i = 0; i < d; i++) {
        int32_t hash = (int32_t)mixed(key ^ ((uint32_t)i * 0x9e3779b9));
        uint32_t bits = to_bits(get(x, i) * scale);
        float kept = from_bits(bits & -(uint32_t)(hash >= bound));
        put(y, i, add ? get(y, i) + kept : kept);
    }
}

/* y = dropout(x), or y += dropout(x). */
void dropout(const number *x, size x_row, number *y, size y_row, size n, size d, uint32_t low,
             uint32_t high, int32_t bound, float scale, int add, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * d > ENOUGH)
    for (size i = 0; i < n; i++) {
        uint32_t key = mixed(mixed((uint32_t)i + low) ^ high);
        if (add)
            dropout_row(x + i * x_row, y + i * y_row, key, bound, scale, d, 1);
        else
            dropout_row(x + i * x_row, y + i * y_row, key, bound, scale, d, 0);
    }
}

/* ---- activation alone ------------------------------------------------------------------------- */

INLINE void activated_row(const number *x, number *y, size m, int activation) {
    SIMD for (size i = 0; i < m; i++) put(y, i, curve(get(x, i), activation).value);
}

INLINE void activated_backward_row(const number *dy, const number *x, number *dx, size m,
                                   int activation) {
    SIMD for (size i = 0; i < m; i++) put(dx, i, get(dy, i) * curve(get(x, i), activation).slope);
}

void activated(const number *x, size x_row, number *y, size y_row, size n, size m, int activation,
               int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * m > ENOUGH)
    for (size i = 0; i < n; i++) {
        const number *from = x + i * x_row;
        number *to = y + i * y_row;
        if (activation == SILU)
            activated_row(from, to, m, SILU);
        else if (activation == GELU_TANH)
            activated_row(from, to, m, GELU_TANH);
        else
            activated_row(from, to, m, GELU);
    }
}

/* dx may be dy or x. */
void activated_backward(const number *dy, size dy_row, const number *x, size x_row, number *dx,
                        size dx_row, size n, size m, int activation, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (n * m > ENOUGH)
    for (size i = 0; i < n; i++) {
        const number *d = dy + i * dy_row, *from = x + i * x_row;
        number *to = dx + i * dx_row;
        if (activation == SILU)
            activated_backward_row(d, from, to, m, SILU);
        else if (activation == GELU_TANH)
            activated_backward_row(d, from, to, m, GELU_TANH);
        else
            activated_backward_row(d, from, to, m, GELU);
    }
}

/* ---- softmax and loss ------------------------------------------------------------------------ */

#define BLOCK 2048 /* numbers that stay in the L1 cache between two loops */

typedef struct {
    float scale, cap; /* logits are raw * scale, or cap * tanh(raw * scale / cap) */
} Head;

INLINE float bent(float x, Head head) { return tanh_(x * (1.0f / head.cap)); }

INLINE float logit(float raw, Head head, int capped) {
    float x = raw * head.scale;
    return capped ? head.cap * bent(x, head) : x;
}

/* The greatest logit of a row and the sum of e^(logit - greatest), in one pass over memory: block
   by block, rescaling the sum so far when a block raises the maximum (Milakov and Gimelshein 2018).
   The maximum ignores a NaN, the sum keeps it. A row that begins with a block of -inf has no
   maximum yet; 0 is used instead, so that -inf - -inf does not produce a NaN. */
INLINE float greatest_and_sum(const number *row, size v, Head head, double *total, int capped) {
    float most = -INFINITY; /* before the cap, which preserves order */
    float greatest = -INFINITY;
    double sum = 0.0;
    for (size start = 0; start < v; start += BLOCK) {
        size end = start + BLOCK < v ? start + BLOCK : v;
        float before = greatest;
#pragma omp simd reduction(max : most)
        for (size i = start; i < end; i++) {
            float x = get(row, i) * head.scale;
            most = x > most ? x : most;
        }
        greatest = capped ? head.cap * bent(most, head) : most;
        float base = greatest == -INFINITY ? 0.0f : greatest;
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (size i = start; i < end; i++)
            part += exp_(logit(get(row, i), head, capped) - base);
        sum = (before == greatest ? sum : sum * expf(before - greatest)) + part;
    }
    *total = sum;
    return greatest;
}

/* row <- times * (softmax - onehot) * slope; the slope of cap tanh(x / cap) is 1 - tanh^2. */
INLINE void gradient_row(number *row, size v, size target, Head head, float greatest, double sum,
                         float times, int capped) {
    float each = times / (float)sum;
    float raw = get(row, target);
    SIMD for (size i = 0; i < v; i++) {
        float x = get(row, i) * head.scale;
        float b = capped ? bent(x, head) : 0.0f;
        float z = capped ? head.cap * b : x;
        put(row, i, exp_(z - greatest) * each * (1.0f - b * b));
    }
    float b = capped ? bent(raw * head.scale, head) : 0.0f;
    float chance = exp_(logit(raw, head, capped) - greatest) * each;
    put(row, target, (chance - times) * (1.0f - b * b));
}

INLINE float loss_row(number *row, size v, size target, Head head, float times, int gradient,
                      int capped) {
    double sum;
    float greatest = greatest_and_sum(row, v, head, &sum, capped);
    /* The difference first: near 1e4 a float resolves only 1e-3 of the logarithm. */
    float loss = (greatest - logit(get(row, target), head, capped)) + (float)log(sum);
    if (gradient)
        gradient_row(row, v, target, head, greatest, sum, times, capped);
    return loss;
}

/* cap 0 means no cap. Every target must be in 0..v-1; the caller checks. */
void softmax_loss(number *logits, size row, const int64_t *targets, float *losses, size n, size v,
                  float scale, float cap, float factor, int gradient, int threads) {
    Head head = {scale, cap};
#pragma omp parallel for num_threads(threads) schedule(static) if (n * v > ENOUGH)
    for (size i = 0; i < n; i++) {
        number *to = logits + i * row;
        losses[i] = cap > 0.0f
                        ? loss_row(to, v, targets[i], head, factor * scale, gradient, 1)
                        : loss_row(to, v, targets[i], head, factor * scale, gradient, 0);
    }
}
