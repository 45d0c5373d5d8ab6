/* Sums of matrix products in float32, y = start + x_1 w_1 + x_2 w_2 + ..., for processors whose
   BLAS in torch does not know them well; gemm.py says where it serves.

   Blocks and panels as Goto and van de Geijn (2008, "Anatomy of high-performance matrix
   multiplication") have them: w is copied in panels of COLUMNS columns, x in panels of ROWS rows,
   each number of both beside the one that is needed next. The products lie one behind the other
   along one axis of depth, so that an adapter of rank 8 makes a base's product 8 numbers deeper and
   y is not read again for it. With AVX-512 x is read as it lies where it can be. A row of y is
   calculated in the same order whatever the other rows, and the number of threads, are. */

#include "calls.h"
#include "tile.h"

#include <omp.h>

/* A block is DEPTH deep: on AVX2 a panel of w has to stay in the first level of the cache. The GROUP
   panels of w that a thread multiplies stay in the second, which is its own: panels for all threads,
   in the third, took three times as long to write. */
#ifdef __AVX512F__
#define DEPTH 768
#define GROUP 4
#define SHARE 32 /* rows that a thread takes at a time */
#else
#define DEPTH 384
#define GROUP 8
#define SHARE 64
#endif
#define TALL 1024 /* rows of x in panels at a time */

/* ---- panels ----------------------------------------------------------------------------------- */

/* Rows `row` to `row + rows`, at most ROWS, of all x from depth `from` to `to`. */
static void pack_x(const Term *term, size from, size to, size row, size rows, float *panel) {
    for (size before = 0; before < to; before += term->depth, term++) {
        size first = most(from - before, 0), last = least(to - before, term->depth);
        if (first >= last)
            continue;
        transpose(term->x + row * term->x_row + first, term->x_row, rows, last - first, 1.0f, panel,
                  ROWS);
        panel += (last - first) * ROWS;
    }
}

static void multiply_by(float scale, float *panel, size count) {
    SIMD for (size i = 0; i < count; i++) panel[i] *= scale;
}

/* The same of all w, times their scales, for `columns` columns from `column` on, in panels that are
   `deep` deep. */
static void pack_w(const Term *term, size from, size to, size column, size columns, float *panel) {
    size deep = to - from;
    for (size before = 0; before < to; before += term->depth, term++) {
        size first = most(from - before, 0), count = least(to - before, term->depth) - first;
        if (count <= 0)
            continue;
        const float *w = term->w + (term->across ? column * term->w_row + first
                                                 : first * term->w_row + column);
        if (term->across)
            for (size j = 0; j < columns; j += COLUMNS)
                copy_across(w + j * term->w_row, term->w_row, columns - j, count, panel + j * deep);
        else
            copy_rows(w, term->w_row, columns, count, panel, deep * COLUMNS);
        for (size j = 0; term->scale != 1.0f && j < columns; j += COLUMNS)
            multiply_by(term->scale, panel + j * deep, count * COLUMNS);
        panel += count * COLUMNS;
    }
}

/* ---- the sum ---------------------------------------------------------------------------------- */

/* What a thread makes: the product of rows of x, from depth `from` to `to`, and of columns of w. */
typedef struct {
    const Term *terms;
    size count, from, to;
    const float *x;   /* panels of rows from `top` on; NULL where x is read as it lies */
    size top;
    const float *w;   /* panels of columns `left` to `right` */
    size left, right;
    float *y;
    size y_row;
    const float *old; /* what is added: rows of start, or of y itself; or NULL */
    size old_row;
    float *spare;     /* room for a panel of x */
} Block;

/* Whether tiles read rows of x as they lie: with AVX-512 faster than panels of them by 4 %, with
   AVX2 no faster. Rows of a multiple of 4,096 bytes would all want the same few places of the
   cache. */
static int as_they_lie(const Term *terms, size count) {
#ifdef __AVX512F__
    for (size t = 0; t < count; t++)
        if (terms[t].x_row % 1024 == 0)
            return 0;
    return 1;
#else
    return 0;
#endif
}

/* `rows` rows of x from `row` on, at most ROWS, and `columns` columns of a panel of w. */
static void tile_as_it_lies(const Block *b, size row, size rows, const float *w, float *y,
                            const float *old, size columns) {
    if (rows < ROWS || columns % LANES) {
        pack_x(b->terms, b->from, b->to, row, rows, b->spare);
        part_of_tile(b->to - b->from, b->spare, w, y, b->y_row, old, b->old_row, rows, columns);
        return;
    }
    Rows of_x[b->count];
    size count = 0, before = 0;
    for (const Term *term = b->terms; before < b->to; before += term->depth, term++) {
        size first = most(b->from - before, 0), last = least(b->to - before, term->depth);
        if (first < last)
            of_x[count++] = (Rows){term->x + row * term->x_row + first, term->x_row, last - first};
    }
    if (columns == COLUMNS)
        tile_of_rows(of_x, count, w, y, b->y_row, old, b->old_row);
    else if (columns == 2 * LANES)
        tile_of_two_of_rows(of_x, count, w, y, b->y_row, old, b->old_row);
    else
        tile_of_one_of_rows(of_x, count, w, y, b->y_row, old, b->old_row);
}

/* Rows `up` to `down` of y. */
static void multiply(const Block *b, size up, size down) {
    size deep = b->to - b->from;
    for (size column = b->left; column < b->right; column += COLUMNS) {
        const float *w = b->w + (column - b->left) * deep;
        size columns = least(COLUMNS, b->right - column);
        float *y = b->y + up * b->y_row + column;
        const float *old = b->old ? b->old + up * b->old_row + column : NULL;
        if (b->x)
            strip(deep, b->x + (up - b->top) * deep, w, y, b->y_row, old, b->old_row, down - up,
                  columns);
        else
            for (size i = 0; i < down - up; i += ROWS)
                tile_as_it_lies(b, up + i, least(ROWS, down - up - i), w, y + i * b->y_row,
                                old ? old + i * b->old_row : NULL, columns);
    }
}

/* Pieces of work that are left to a thread, `first` to `last`: it takes from the front itself, others
   that have none left, so that all end together although one's core may be slower, from the back. */
typedef struct {
    uint64_t left; /* first in the higher half, last in the lower */
    char apart[120]; /* from the other threads' in the cache */
} Share;

static uint64_t share_of(size first, size last) { return (uint64_t)first << 32 | (uint64_t)last; }

static int take(Share *share, int from_the_back, size *piece) {
    uint64_t was = __atomic_load_n(&share->left, __ATOMIC_RELAXED), then;
    do {
        size first = (size)(was >> 32), last = (size)(was & 0xffffffff);
        if (first >= last)
            return 0;
        *piece = from_the_back ? last - 1 : first;
        then = from_the_back ? share_of(first, last - 1) : share_of(first + 1, last);
    } while (!__atomic_compare_exchange_n(&share->left, &was, then, 0, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED));
    return 1;
}

/* How many numbers `space` below has to hold: panels of x, and for each thread of w. */
size workspace(size threads) { return DEPTH * (TALL + threads * (GROUP * COLUMNS + ROWS)); }

/* Panels of w in a group: GROUP at most, and such that threads have about as many groups each. */
static size wide_group(size panels, size threads) {
    size each = most(panels / threads, 1), groups = (each + GROUP - 1) / GROUP;
    return (each + groups - 1) / groups;
}

/* All pieces of a block that are this thread's, and what others leave. `pieces` of rows there are for
   each group of `width` columns of n. */
static void work(Block *b, Share *shares, int threads, int me, size pieces, size bottom, size width,
                 size n, float *w) {
    size packed = -1, piece;
    for (int other = 0; other < threads; other++)
        while (take(&shares[(me + other) % threads], other > 0, &piece)) {
            size group = piece / pieces, up = b->top + piece % pieces * SHARE;
            b->left = group * width, b->right = least(b->left + width, n);
            if (group != packed)
                pack_w(b->terms, b->from, b->to, b->left, b->right - b->left, w);
            packed = group;
            multiply(b, up, least(up + SHARE, bottom));
        }
}

/* y (m, n); start_row 0 makes one row serve for all. */
void products(float *y, size y_row, const float *start, size start_row, size m, size n,
              const Term *terms, size count, float *space, int threads) {
    size depth = 0;
    for (size t = 0; t < count; t++)
        depth += terms[t].depth;
    size blocks = most((depth + DEPTH - 1) / DEPTH, 1), block = (depth + blocks - 1) / blocks;
    int lie = as_they_lie(terms, count);
    size tall = lie ? most(m, 1) : TALL;
    Share shares[threads];
#pragma omp parallel num_threads(threads)
    {
        /* OpenMP may give fewer threads than were asked for. */
        int all = omp_get_num_threads(), me = omp_get_thread_num();
        float *w = space + DEPTH * (TALL + me * (GROUP * COLUMNS + ROWS));
        float *spare = w + DEPTH * GROUP * COLUMNS;
        size width = COLUMNS * wide_group((n + COLUMNS - 1) / COLUMNS, all);
        for (size top = 0; top < m; top += tall) {
            size bottom = least(top + tall, m), pieces = (bottom - top + SHARE - 1) / SHARE;
            size total = (n + width - 1) / width * pieces;
            for (size from = 0; from < depth; from += block) {
                size to = least(from + block, depth);
                shares[me].left = share_of(total * me / all, total * (me + 1) / all);
#pragma omp for schedule(static)
                for (size i = lie ? bottom : top; i < bottom; i += ROWS)
                    pack_x(terms, from, to, i, least(ROWS, bottom - i),
                           space + (i - top) * (to - from));
                Block b = {.terms = terms, .count = count, .from = from, .to = to,
                           .x = lie ? NULL : space, .top = top, .w = w, .y = y, .y_row = y_row,
                           .old = from ? y : start, .old_row = from ? y_row : start_row,
                           .spare = spare};
                work(&b, shares, all, me, pieces, bottom, width, n, w);
#pragma omp barrier
            }
        }
    }
}
