/* Causal attention in float32, softmax(scale q k') v and its gradients; attention.py says where it
   serves.

   A task is one example and one kv head, and belongs to one thread: no number depends on how many
   there are. Keys and values become panels once, and the queries of all heads that read them are
   multiplied with those, BLOCK tokens at a time, so that scores stay in the cache. The backward
   pass calculates the probabilities again from the logsumexp that the forward pass leaves
   (Dao 2023, FlashAttention-2). */

#include "calls.h"
#include "tile.h"

#include <omp.h>

#define BLOCK 32 /* tokens whose scores exist at a time; 16 to 64 differ by no more than noise */

typedef struct {
    size start, own, before, keys; /* keys = before + own */
    size kv_head;
    const Job *job;
} Task;

INLINE size up_to(size n, size step) { return (n + step - 1) / step * step; }

static Task task_of(const Job *job, size number) {
    size span = number / job->kv_heads;
    size start = job->spans[2 * span], own = job->spans[2 * span + 1] - start;
    size before = start ? job->shared : 0;
    return (Task){start, own, before, before + own, number % job->kv_heads, job};
}

INLINE float *token_of(View view, size token, size head) {
    return view.at + token * view.row + head * view.head;
}

/* The keys or values that a task sees, (keys, width), one behind the other. */
static void gather(View view, Task task, size width, float *to) {
    for (size i = 0; i < task.keys; i++) {
        size token = i < task.before ? i : task.start + i - task.before;
        memcpy(to + i * width, token_of(view, token, task.kv_head), width * sizeof *to);
    }
}

/* Panels of w (depth, n). */
static void panels(const float *w, size row, size n, size depth, float *to) {
    copy_rows(w, row, n, depth, to, depth * COLUMNS);
}

/* Panels of w' for w (n, depth). */
static void panels_across(const float *w, size row, size n, size depth, float *to) {
    for (size j = 0; j < n; j += COLUMNS)
        copy_across(w + j * row, row, n - j, depth, to + j * depth);
}

static void panels_of_rows(const float *x, size row, size rows, size depth, float scale,
                           float *to) {
    for (size i = 0; i < rows; i += ROWS)
        transpose(x + i * row, row, rows - i, depth, scale, to + i * depth, ROWS);
}

/* Panels of x' for x (depth, rows), whose rows may be read up to a multiple of ROWS. */
static void panels_of_columns(const float *x, size row, size rows, size depth, float *to) {
    for (size i = 0; i < rows; i += ROWS)
        for (size p = 0; p < depth; p++, to += ROWS)
            memcpy(to, x + p * row + i, ROWS * sizeof *to);
}

/* y (rows, n), or what is added to it, from panels; those of w are `stride` deep. */
static void multiply(const float *x, size rows, const float *w, size stride, size n, size depth,
                     float *y, size y_row, int add) {
    for (size j = 0; j < n; j += COLUMNS)
        strip(depth, x, w + j * stride, y + j, y_row, add ? y + j : NULL, y_row, rows,
              least(COLUMNS, n - j));
}

/* ---- forward ---------------------------------------------------------------------------------- */

/* Of four rows at a time: one alone, of few vectors, would wait for itself. */
#define TOGETHER 4
#define EACH(do) do(0) do(1) do(2) do(3)

/* Scores of TOGETHER queries, `row` apart, become probabilities where a query sees its first
   `seen[i]` keys, which are no more than those of the last, and 0 up to `width`. Writes the
   logsumexps. Loops run to a multiple of LANES, since what is left over of a vector goes number by
   number: up to 15, each as long as a vector. */
static void softmax(float *x, size row, const size seen[], size width, float logsumexp[]) {
    size whole = up_to(seen[TOGETHER - 1], LANES);
#define BEGIN(i)                                 \
    float *x##i = x + i * row;                   \
    float greatest##i = -INFINITY, sum##i = 0.0f; \
    for (size j = seen[i]; j < whole; j++)       \
        x##i[j] = -INFINITY;
#define GREATEST(i) greatest##i = x##i[j] > greatest##i ? x##i[j] : greatest##i;
#define POWER(i)                          \
    x##i[j] = exp_(x##i[j] - greatest##i); \
    sum##i += x##i[j];
#define SHARE(i) x##i[j] *= 1.0f / sum##i;
#define END(i)                                    \
    for (size j = whole; j < width; j++)          \
        x##i[j] = 0.0f;                           \
    logsumexp[i] = greatest##i + logf(sum##i);
    EACH(BEGIN)
#pragma omp simd reduction(max : greatest0, greatest1, greatest2, greatest3)
    for (size j = 0; j < whole; j++) {
        EACH(GREATEST)
    }
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
    for (size j = 0; j < whole; j++) {
        EACH(POWER)
    }
    SIMD for (size j = 0; j < whole; j++) {
        EACH(SHARE)
    }
    EACH(END)
}

static size forward_space(size keys, size d, size e) {
    size wide = up_to(keys, COLUMNS);
    return keys * most(d, e) + wide * d + keys * up_to(e, COLUMNS) + BLOCK * d + 2 * BLOCK * wide;
}

static void forward(Task task, float *space) {
    const Job *job = task.job;
    size keys = task.keys, wide = up_to(keys, COLUMNS), d = job->d, e = job->e;
    float *rows = space, *of_k = rows + keys * most(d, e), *of_v = of_k + wide * d;
    float *of_q = of_v + keys * up_to(e, COLUMNS), *scores = of_q + BLOCK * d;
    float *of_p = scores + BLOCK * wide;
    gather(job->k, task, d, rows);
    panels_across(rows, d, keys, d, of_k);
    gather(job->v, task, e, rows);
    panels(rows, e, e, keys, of_v);
    size group = job->heads / job->kv_heads;
    for (size head = task.kv_head * group; head < (task.kv_head + 1) * group; head++)
        for (size first = 0; first < task.own; first += BLOCK) {
            size queries = least(BLOCK, task.own - first), token = task.start + first;
            size seen = task.before + first + queries, width = up_to(seen, LANES);
            panels_of_rows(token_of(job->q, token, head), job->q.row, queries, d, job->scale, of_q);
            multiply(of_q, up_to(queries, ROWS), of_k, d, width, d, scores, wide, 0);
            for (size i = 0; i < queries; i += TOGETHER) {
                size sees[TOGETHER];
                float logsumexp[TOGETHER];
                for (size k = 0; k < TOGETHER; k++)
                    sees[k] = least(seen - queries + i + k + 1, seen);
                softmax(scores + i * wide, wide, sees, seen, logsumexp);
                for (size k = 0; k < least(TOGETHER, queries - i); k++)
                    job->logsumexp[head * job->tokens + token + i + k] = logsumexp[k];
            }
            panels_of_rows(scores, wide, queries, seen, 1.0f, of_p);
            multiply(of_p, queries, of_v, keys, e, seen, token_of(job->out, token, head),
                     job->out.row, 0);
        }
}

/* ---- backward --------------------------------------------------------------------------------- */

/* s and dp of TOGETHER queries, `row` apart, become p = e^(s - logsumexp) and
   ds = scale p (dp - delta), 0 beyond what each sees; delta is the sum over keys of p dp, which is
   that of out dout. */
static void probabilities(float *s, float *dp, size row, const size seen[], size width,
                          const float logsumexp[], const float delta[], float scale) {
    size whole = up_to(seen[TOGETHER - 1], LANES);
#define PLACE(i)                                         \
    float *s##i = s + i * row, *dp##i = dp + i * row;    \
    float logsumexp##i = logsumexp[i], delta##i = delta[i];
#define PROBABILITY(i)                                   \
    s##i[j] = exp_(s##i[j] - logsumexp##i);              \
    dp##i[j] = scale * s##i[j] * (dp##i[j] - delta##i);
#define UNSEEN(i)                                        \
    for (size j = seen[i]; j < most(width, whole); j++)  \
        s##i[j] = dp##i[j] = 0.0f;
    EACH(PLACE)
    SIMD for (size j = 0; j < whole; j++) {
        EACH(PROBABILITY)
    }
    EACH(UNSEEN)
}

static float dot(const float *a, const float *b, size n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* Rows of a sum over queries: those of shared tokens to a place of the span, the others to theirs. */
static void scatter(const float *sum, View view, float *of_shared, Task task, size width) {
    for (size i = 0; i < task.keys; i++) {
        float *to = i < task.before
                        ? of_shared + i * width
                        : token_of(view, task.start + i - task.before, task.kv_head);
        memcpy(to, sum + i * width, width * sizeof *to);
    }
}

static size backward_space(size keys, size d, size e) {
    size wide = up_to(keys, COLUMNS), widest = up_to(most(d, e), COLUMNS);
    return keys * most(d, e) + wide * (d + e) + keys * up_to(d, COLUMNS) +
           up_to(keys, ROWS) * (d + e) + BLOCK * (d + e) + 2 * BLOCK * widest + 3 * BLOCK * wide;
}

static void backward(Task task, size number, float *space) {
    const Job *job = task.job;
    size keys = task.keys, wide = up_to(keys, COLUMNS), d = job->d, e = job->e;
    size widest = up_to(most(d, e), COLUMNS);
    float *rows = space, *k_across = rows + keys * most(d, e), *v_across = k_across + wide * d;
    float *of_k = v_across + wide * e, *dk = of_k + keys * up_to(d, COLUMNS);
    float *dv = dk + up_to(keys, ROWS) * d, *q_rows = dv + up_to(keys, ROWS) * e;
    float *dout_rows = q_rows + BLOCK * d, *of_q = dout_rows + BLOCK * e;
    float *of_dout = of_q + BLOCK * widest, *p = of_dout + BLOCK * widest, *ds = p + BLOCK * wide;
    float *x = ds + BLOCK * wide; /* whichever of the two is multiplied */
    gather(job->v, task, e, rows);
    panels_across(rows, e, keys, e, v_across);
    gather(job->k, task, d, rows);
    panels_across(rows, d, keys, d, k_across);
    panels(rows, d, d, keys, of_k);
    memset(dk, 0, up_to(keys, ROWS) * d * sizeof *dk);
    memset(dv, 0, up_to(keys, ROWS) * e * sizeof *dv);
    size group = job->heads / job->kv_heads;
    for (size head = task.kv_head * group; head < (task.kv_head + 1) * group; head++)
        for (size first = 0; first < task.own; first += BLOCK) {
            size queries = least(BLOCK, task.own - first), token = task.start + first;
            size seen = task.before + first + queries, width = up_to(seen, LANES);
            const float *q = token_of(job->q, token, head), *dout = token_of(job->dout, token, head);
            const float *out = token_of(job->out, token, head);
            panels_of_rows(q, job->q.row, queries, d, job->scale, q_rows);
            panels_of_rows(dout, job->dout.row, queries, e, 1.0f, dout_rows);
            multiply(q_rows, up_to(queries, ROWS), k_across, d, width, d, p, wide, 0);
            multiply(dout_rows, up_to(queries, ROWS), v_across, e, width, e, ds, wide, 0);
            for (size i = 0; i < queries; i += TOGETHER) {
                size sees[TOGETHER];
                float logsumexp[TOGETHER], delta[TOGETHER];
                for (size k = 0; k < TOGETHER; k++) {
                    size query = least(i + k, queries - 1);
                    sees[k] = seen - queries + query + 1;
                    logsumexp[k] = job->logsumexp[head * job->tokens + token + query];
                    delta[k] = dot(out + query * job->out.row, dout + query * job->dout.row, e);
                }
                probabilities(p + i * wide, ds + i * wide, wide, sees, up_to(seen, ROWS), logsumexp,
                              delta, job->scale);
            }
            panels(dout, job->dout.row, e, queries, of_dout);
            panels_of_columns(p, wide, seen, queries, x);
            multiply(x, up_to(seen, ROWS), of_dout, queries, e, queries, dv, e, 1);
            panels(q, job->q.row, d, queries, of_q);
            panels_of_columns(ds, wide, seen, queries, x);
            multiply(x, up_to(seen, ROWS), of_q, queries, d, queries, dk, d, 1);
            panels_of_rows(ds, wide, queries, seen, 1.0f, x);
            multiply(x, queries, of_k, keys, d, seen, token_of(job->dq, token, head), job->dq.row,
                     0);
        }
    size place = number * job->shared;
    scatter(dk, job->dk, job->dk_shared + place * d, task, d);
    scatter(dv, job->dv, job->dv_shared + place * e, task, e);
}

/* ---- all tasks -------------------------------------------------------------------------------- */

/* Numbers of space a thread for examples that see at most `keys` keys. */
size attention_space(size keys, size d, size e) {
    return up_to(most(forward_space(keys, d, e), backward_space(keys, d, e)), 16);
}

void attention(const Job *job, int is_backward, float *space, size space_row, int threads) {
#pragma omp parallel num_threads(threads)
    {
        float *own = space + omp_get_thread_num() * space_row;
#pragma omp for schedule(dynamic, 1)
        for (size number = 0; number < job->count * job->kv_heads; number++) {
            if (is_backward)
                backward(task_of(job, number), number, own);
            else
                forward(task_of(job, number), own);
        }
    }
}
