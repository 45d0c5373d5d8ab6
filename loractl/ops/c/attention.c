/* Causal attention, softmax(scale q k') v, and its gradients; attention/tasks.py says where it is
   used.

   A task is one example and one kv head and runs on one thread, so no result depends on the number
   of threads. Keys and values are packed into panels once, and the queries of all heads that read
   them are multiplied with these, BLOCK tokens at a time, so that scores stay in the cache. The
   backward pass recomputes the probabilities from the logsumexp kept by the forward pass (Dao 2023,
   FlashAttention-2). Scores and sums over queries are floats; probabilities are converted to
   `number` only to be multiplied. */

#include "calls.h"
#include "arena.h"
#include "tile.h"

#include <omp.h>

#define BLOCK 32 /* tokens whose scores exist at a time; 16 to 64 differ only by noise */

typedef struct {
    size start, own, before, keys; /* keys = before + own */
    size kv_head;
    const Job *job;
} Task;

static Task task_of(const Job *job, size number) {
    size span = number / job->kv_heads;
    size start = job->spans[2 * span], own = job->spans[2 * span + 1] - start;
    size before = start ? job->shared : 0;
    return (Task){start, own, before, before + own, number % job->kv_heads, job};
}

INLINE number *token_of(View view, size token, size head) {
    return view.at + token * view.row + head * view.head;
}

/* Copy the keys or values that a task sees, (keys, width), contiguously. */
static void gather(View view, Task task, size width, number *to) {
    for (size i = 0; i < task.keys; i++) {
        size token = i < task.before ? i : task.start + i - task.before;
        memcpy(to + i * width, token_of(view, token, task.kv_head), width * sizeof *to);
    }
}

/* Compute y (rows, n), sums or numbers, or add to it, from panels; those of w are `stride` deep. */
static void multiply(const number *x, size rows, const number *w, size stride, size n, size depth,
                     void *y, int y_is, size y_row, int add) {
    Into to = {y, y_row, y_is, add ? y : NULL, y_row, y_is};
    depth = up_to(depth, DEEP), stride = up_to(stride, DEEP);
    for (size j = 0; j < n; j += COLUMNS)
        strip(depth, x, w + j * stride, later(to, 0, j), rows, least(COLUMNS, n - j));
}

/* ---- forward ---------------------------------------------------------------------------------- */

/* Four rows at a time: the few vectors of a single row would wait for each other. */
#define TOGETHER 4
#define EACH(do) do(0) do(1) do(2) do(3)

/* Turn the scores of TOGETHER queries, `row` apart, into probabilities over the first `seen[i]`
   keys of each, at most as many as the last query sees, and 0 up to `width`; p may be x if numbers
   are floats. Writes the logsumexps. Loops run to a multiple of LANES, since the tail of a vector
   would go number by number: up to 15, each taking as long as a vector. */
static void softmax(float *x, number *p, size row, const size seen[], size width, float scale,
                    float logsumexp[]) {
    size whole = up_to(seen[TOGETHER - 1], LANES);
#define BEGIN(i)                                  \
    float *x##i = x + i * row;                    \
    number *p##i = p + i * row;                   \
    float greatest##i = -INFINITY, sum##i = 0.0f; \
    for (size j = seen[i]; j < whole; j++)        \
        x##i[j] = -INFINITY;
#define GREATEST(i) greatest##i = x##i[j] > greatest##i ? x##i[j] : greatest##i;
#define POWER(i)                                     \
    x##i[j] = exp_(scale * (x##i[j] - greatest##i)); \
    sum##i += x##i[j];
#define SHARE(i) put(p##i, j, x##i[j] * (1.0f / sum##i));
#define END(i)                                           \
    for (size j = whole; j < width; j++)                 \
        p##i[j] = 0;                                     \
    logsumexp[i] = scale * greatest##i + logf(sum##i);
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

typedef struct {
    number *rows, *of_k, *of_v, *of_q, *of_p;
    float *scores;
    number *p;
} Forward;

static Forward forward_room(Arena *arena, size keys, size d, size e) {
    size wide = up_to(keys, COLUMNS), deep_d = up_to(d, DEEP);
    Forward f = {.rows = numbers(arena, keys * most(d, e)), .of_k = numbers(arena, wide * deep_d)};
    f.of_v = numbers(arena, up_to(keys, DEEP) * up_to(e, COLUMNS));
    f.of_q = numbers(arena, BLOCK * deep_d), f.of_p = numbers(arena, BLOCK * wide);
    f.scores = floats(arena, BLOCK * wide);
    f.p = DEEP > 1 ? numbers(arena, BLOCK * wide) : (number *)f.scores;
    return f;
}

static void forward(Task task, float *space) {
    const Job *job = task.job;
    size keys = task.keys, wide = up_to(keys, COLUMNS), d = job->d, e = job->e;
    Arena arena = {space, 0};
    Forward f = forward_room(&arena, keys, d, e);
    gather(job->k, task, d, f.rows);
    panels_across(f.rows, d, keys, d, f.of_k);
    gather(job->v, task, e, f.rows);
    panels(f.rows, e, e, keys, f.of_v);
    size group = job->heads / job->kv_heads;
    for (size head = task.kv_head * group; head < (task.kv_head + 1) * group; head++)
        for (size first = 0; first < task.own; first += BLOCK) {
            size queries = least(BLOCK, task.own - first), token = task.start + first;
            size seen = task.before + first + queries, width = up_to(seen, LANES);
            panels_of_rows(token_of(job->q, token, head), job->q.row, queries, d, f.of_q);
            multiply(f.of_q, up_to(queries, ROWS), f.of_k, d, width, d, f.scores, SUMS, wide, 0);
            for (size i = 0; i < queries; i += TOGETHER) {
                size sees[TOGETHER];
                float logsumexp[TOGETHER];
                for (size k = 0; k < TOGETHER; k++)
                    sees[k] = least(seen - queries + i + k + 1, seen);
                softmax(f.scores + i * wide, f.p + i * wide, wide, sees, seen, job->scale,
                        logsumexp);
                for (size k = 0; k < least(TOGETHER, queries - i); k++)
                    job->logsumexp[head * job->tokens + token + i + k] = logsumexp[k];
            }
            panels_of_rows(f.p, wide, queries, seen, f.of_p);
            multiply(f.of_p, queries, f.of_v, keys, e, seen, token_of(job->out, token, head),
                     NUMBERS, job->out.row, 0);
        }
}

/* ---- backward --------------------------------------------------------------------------------- */

/* From s and dp of TOGETHER queries, `row` apart: p = e^(scale s - logsumexp) and
   ds = scale p (dp - delta), 0 beyond what each sees; delta is the sum over keys of p dp, which
   equals the sum of out dout. */
static void probabilities(const float *s, const float *dp, number *p, number *ds, size row,
                          const size seen[], size width, const float logsumexp[],
                          const float delta[], float scale) {
    size whole = up_to(seen[TOGETHER - 1], LANES);
#define PLACE(i)                                             \
    const float *s##i = s + i * row, *dp##i = dp + i * row;  \
    number *p##i = p + i * row, *ds##i = ds + i * row;       \
    float logsumexp##i = logsumexp[i], delta##i = delta[i];
#define PROBABILITY(i)                                         \
    {                                                          \
        float one = exp_(scale * s##i[j] - logsumexp##i);      \
        put(ds##i, j, scale * one * (dp##i[j] - delta##i));    \
        put(p##i, j, one);                                     \
    }
#define UNSEEN(i)                                        \
    for (size j = seen[i]; j < most(width, whole); j++)  \
        p##i[j] = ds##i[j] = 0;
    EACH(PLACE)
    SIMD for (size j = 0; j < whole; j++) {
        EACH(PROBABILITY)
    }
    EACH(UNSEEN)
}

static float dot(const number *a, const number *b, size n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (size i = 0; i < n; i++)
        sum += get(a, i) * get(b, i);
    return sum;
}

/* Write rows of a sum over queries: shared tokens to the span's own buffer, others to their place.
   */
static void scatter(const float *sum, View view, float *of_shared, Task task, size width) {
    memcpy(of_shared, sum, task.before * width * sizeof *sum);
    for (size i = task.before; i < task.keys; i++) {
        number *to = token_of(view, task.start + i - task.before, task.kv_head);
        for (size j = 0; j < width; j++)
            put(to, j, sum[i * width + j]);
    }
}

typedef struct {
    number *rows, *k_across, *v_across, *of_k, *q_rows, *dout_rows, *of_q, *of_dout;
    float *dk, *dv, *s, *dp;
    number *p, *ds, *x; /* x: panels of p or ds, whichever is being multiplied */
} Backward;

static Backward backward_room(Arena *arena, size keys, size d, size e) {
    size wide = up_to(keys, COLUMNS), widest = up_to(most(d, e), COLUMNS);
    size deep_d = up_to(d, DEEP), deep_e = up_to(e, DEEP);
    Backward b = {.rows = numbers(arena, keys * most(d, e))};
    b.k_across = numbers(arena, wide * deep_d), b.v_across = numbers(arena, wide * deep_e);
    b.of_k = numbers(arena, up_to(keys, DEEP) * up_to(d, COLUMNS));
    b.dk = floats(arena, up_to(keys, ROWS) * d), b.dv = floats(arena, up_to(keys, ROWS) * e);
    b.q_rows = numbers(arena, BLOCK * deep_d), b.dout_rows = numbers(arena, BLOCK * deep_e);
    b.of_q = numbers(arena, BLOCK * widest), b.of_dout = numbers(arena, BLOCK * widest);
    b.s = floats(arena, BLOCK * wide), b.dp = floats(arena, BLOCK * wide);
    b.p = DEEP > 1 ? numbers(arena, BLOCK * wide) : (number *)b.s;
    b.ds = DEEP > 1 ? numbers(arena, BLOCK * wide) : (number *)b.dp;
    b.x = numbers(arena, BLOCK * wide);
    return b;
}

/* p and ds of the queries from `first` on, which see `seen` keys. */
static void block_backward(Task task, const Backward *b, size head, size first, size queries,
                           size seen) {
    const Job *job = task.job;
    size wide = up_to(task.keys, COLUMNS), width = up_to(seen, LANES), d = job->d, e = job->e;
    size token = task.start + first;
    const number *dout = token_of(job->dout, token, head), *out = token_of(job->out, token, head);
    panels_of_rows(token_of(job->q, token, head), job->q.row, queries, d, b->q_rows);
    panels_of_rows(dout, job->dout.row, queries, e, b->dout_rows);
    multiply(b->q_rows, up_to(queries, ROWS), b->k_across, d, width, d, b->s, SUMS, wide, 0);
    multiply(b->dout_rows, up_to(queries, ROWS), b->v_across, e, width, e, b->dp, SUMS, wide, 0);
    for (size i = 0; i < queries; i += TOGETHER) {
        size sees[TOGETHER];
        float logsumexp[TOGETHER], delta[TOGETHER];
        for (size k = 0; k < TOGETHER; k++) {
            size query = least(i + k, queries - 1);
            sees[k] = seen - queries + query + 1;
            logsumexp[k] = job->logsumexp[head * job->tokens + token + query];
            delta[k] = dot(out + query * job->out.row, dout + query * job->dout.row, e);
        }
        probabilities(b->s + i * wide, b->dp + i * wide, b->p + i * wide, b->ds + i * wide, wide,
                      sees, up_to(seen, ROWS), logsumexp, delta, job->scale);
    }
}

static void backward(Task task, size place, float *space) {
    const Job *job = task.job;
    size keys = task.keys, wide = up_to(keys, COLUMNS), d = job->d, e = job->e;
    Arena arena = {space, 0};
    Backward b = backward_room(&arena, keys, d, e);
    gather(job->v, task, e, b.rows);
    panels_across(b.rows, e, keys, e, b.v_across);
    gather(job->k, task, d, b.rows);
    panels_across(b.rows, d, keys, d, b.k_across);
    panels(b.rows, d, d, keys, b.of_k);
    memset(b.dk, 0, up_to(keys, ROWS) * d * sizeof *b.dk);
    memset(b.dv, 0, up_to(keys, ROWS) * e * sizeof *b.dv);
    size group = job->heads / job->kv_heads;
    for (size head = task.kv_head * group; head < (task.kv_head + 1) * group; head++)
        for (size first = 0; first < task.own; first += BLOCK) {
            size queries = least(BLOCK, task.own - first), token = task.start + first;
            size seen = task.before + first + queries, rows = up_to(seen, ROWS);
            block_backward(task, &b, head, first, queries, seen);
            panels(token_of(job->dout, token, head), job->dout.row, e, queries, b.of_dout);
            panels_of_columns(b.p, wide, seen, queries, b.x);
            multiply(b.x, rows, b.of_dout, queries, e, queries, b.dv, SUMS, e, 1);
            panels(token_of(job->q, token, head), job->q.row, d, queries, b.of_q);
            panels_of_columns(b.ds, wide, seen, queries, b.x);
            multiply(b.x, rows, b.of_q, queries, d, queries, b.dk, SUMS, d, 1);
            panels_of_rows(b.ds, wide, queries, seen, b.x);
            multiply(b.x, queries, b.of_k, keys, d, seen, token_of(job->dq, token, head), NUMBERS,
                     job->dq.row, 0);
        }
    scatter(b.dk, job->dk, job->dk_shared + place * job->shared * d, task, d);
    scatter(b.dv, job->dv, job->dv_shared + place * job->shared * e, task, e);
}

/* ---- all tasks -------------------------------------------------------------------------------- */

/* Floats of space per thread for examples that see at most `keys` keys. */
size attention_space(size keys, size d, size e) {
    Arena one = {NULL, 0}, other = {NULL, 0};
    forward_room(&one, keys, d, e);
    backward_room(&other, keys, d, e);
    return most(one.used, other.used);
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
