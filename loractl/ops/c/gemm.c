/* Sums of matrix products, y = start + x_1 w_1 + x_2 w_2 + ..., for processors that torch's BLAS is
   not tuned for; gemm.py says where it is used.

   Blocks and panels follow Goto and van de Geijn (2008, "Anatomy of high-performance matrix
   multiplication"): w is copied into panels of COLUMNS columns and x into panels of ROWS rows, with
   the numbers in the order in which they are needed. The products are concatenated along one depth
   axis, so an adapter of rank 8 makes the base's product 8 numbers deeper and y is not read again
   for it. With AVX-512, x is read in place where possible. A row of y is computed in the same order
   whatever the other rows and the number of threads. */

#include "calls.h"
#include "packed.h"
#include "tile.h"

#include <omp.h>

/* A block is DEPTH cells deep: on AVX2 a panel of w has to stay in the L1 cache. The GROUP panels
   of w that a thread multiplies stay in its own L2 cache: panels shared by all threads, in L3, took
   three times as long to write. */
#ifdef __AVX512F__
#define DEPTH 800
#define GROUP 4
#define SHARE 32 /* rows that a thread takes at a time */
#else
#define DEPTH 384
#define GROUP 8
#define SHARE 64
#endif
#define TALL 1024 /* rows of x in panels at a time, and of sums not yet rounded */

/* ---- panels ----------------------------------------------------------------------------------- */

/* The depth of a term rounded up to whole cells: the next term begins in a new cell. */
INLINE size whole_depth(const Term *term) { return up_to(term->depth, DEEP); }

/* Rows `row` to `row + rows` (at most ROWS) of every x, from depth `from` to `to`. */
static void pack_x(const Term *term, size from, size to, size row, size rows, number *panel) {
    for (size before = 0; before < to; before += whole_depth(term), term++) {
        size first = most(from - before, 0), last = least(to - before, term->depth);
        if (first >= last)
            continue;
        transpose(term->x + row * term->x_row + first, term->x_row, rows, last - first, panel,
                  ROWS * DEEP);
        panel += up_to(last - first, DEEP) * ROWS;
    }
}

static void multiply_by(float scale, number *panel, size count) {
    SIMD for (size i = 0; i < count; i++) put(panel, i, get(panel, i) * scale);
}

#define SPARE (ROWS * DEPTH * DEEP) /* numbers that a thread has apart */

/* Panels of `columns` columns of a packed w, from `column` on, and of depth `first` to
   `first + count`. A few rows at a time are unpacked into `spare`, which the first cache holds. */
static void unpack_w(const Term *term, size first, size count, size column, size columns,
                     number *panel, size deep, number *spare) {
    size row = term->packed->row;
    if (!term->across) {
        size some = most(least(SPARE, 8192 / (size)sizeof(number)) / columns / DEEP, 1) * DEEP;
        for (size p = 0; p < count; p += some) {
            size rows = least(some, count - p);
            for (size k = 0; k < rows; k++)
                unpacked(term->packed, (first + p + k) * row + column, columns,
                         spare + k * columns);
            copy_rows(spare, columns, columns, rows, panel + p * COLUMNS, deep * COLUMNS);
        }
        return;
    }
    size some = least(SPARE / ROWS, 512);
    for (size j = 0; j < up_to(columns, COLUMNS); j += ROWS)
        for (size p = 0; p < count; p += some) {
            size rows = most(least(ROWS, columns - j), 0), numbers = least(some, count - p);
            for (size r = 0; r < rows; r++)
                unpacked(term->packed, (column + j + r) * row + first + p, numbers,
                         spare + r * some);
            transpose(spare, some, rows, numbers,
                      panel + j / COLUMNS * COLUMNS * deep + j % COLUMNS * DEEP + p * COLUMNS,
                      COLUMNS * DEEP);
        }
}

/* The same for every w, times its scale, for `columns` columns from `column` on, in panels of depth
   `deep`. */
static void pack_w(const Term *term, size from, size to, size column, size columns, number *panel,
                   number *spare) {
    size deep = to - from;
    for (size before = 0; before < to; before += whole_depth(term), term++) {
        size first = most(from - before, 0), count = least(to - before, term->depth) - first;
        if (count <= 0)
            continue;
        const number *w = term->w + (term->across ? column * term->w_row + first
                                                  : first * term->w_row + column);
        if (term->packed)
            unpack_w(term, first, count, column, columns, panel, deep, spare);
        else if (term->across)
            for (size j = 0; j < columns; j += COLUMNS)
                copy_across(w + j * term->w_row, term->w_row, columns - j, count, panel + j * deep);
        else
            copy_rows(w, term->w_row, columns, count, panel, deep * COLUMNS);
        count = up_to(count, DEEP);
        for (size j = 0; term->scale != 1.0f && j < columns; j += COLUMNS)
            multiply_by(term->scale, panel + j * deep, count * COLUMNS);
        panel += count * COLUMNS;
    }
}

/* ---- the sum ---------------------------------------------------------------------------------- */

/* What a thread computes: rows of x times columns of w, from depth `from` to `to`. */
typedef struct {
    const Term *terms;
    size count, from, to;
    const number *x;   /* panels of rows from `top` on; NULL if x is read in place */
    size top;
    const number *w;   /* panels of columns `left` to `right` */
    size left, right;
    Into into; /* from row `top` on */
    number *spare; /* space for a panel of x */
} Block;

/* Whether tiles read rows of x in place: 4 % faster than panels with AVX-512, no faster with AVX2.
   Rows whose stride is a multiple of 4,096 bytes would all map to the same few cache sets, and a
   cell must not reach beyond its row. */
static int as_they_lie(const Term *terms, size count) {
#ifdef __AVX512F__
    for (size t = 0; t < count; t++)
        if (terms[t].x_row * sizeof(number) % 4096 == 0 || terms[t].depth % DEEP)
            return 0;
    return 1;
#else
    return 0;
#endif
}

/* `rows` rows of x from `row` on (at most ROWS) times `columns` columns of a panel of w. */
static void tile_as_it_lies(const Block *b, size row, size rows, const number *w, Into to,
                            size columns) {
    if (rows < ROWS || columns % LANES) {
        pack_x(b->terms, b->from, b->to, row, rows, b->spare);
        part_of_tile(b->to - b->from, b->spare, w, to, rows, columns);
        return;
    }
    Rows of_x[b->count];
    size count = 0, before = 0;
    for (const Term *term = b->terms; before < b->to; before += whole_depth(term), term++) {
        size first = most(b->from - before, 0), last = least(b->to - before, term->depth);
        if (first < last)
            of_x[count++] = (Rows){term->x + row * term->x_row + first, term->x_row, last - first};
    }
    if (columns == COLUMNS)
        tile_of_rows(of_x, count, w, to);
    else if (columns == 2 * LANES)
        tile_of_two_of_rows(of_x, count, w, to);
    else
        tile_of_one_of_rows(of_x, count, w, to);
}

/* Rows `up` to `down` of y. */
static void multiply(const Block *b, size up, size down) {
    size deep = b->to - b->from;
    for (size column = b->left; column < b->right; column += COLUMNS) {
        const number *w = b->w + (column - b->left) * deep;
        size columns = least(COLUMNS, b->right - column);
        Into to = later(b->into, up - b->top, column);
        if (b->x)
            strip(deep, b->x + (up - b->top) * deep, w, to, down - up, columns);
        else
            for (size i = 0; i < down - up; i += ROWS)
                tile_as_it_lies(b, up + i, least(ROWS, down - up - i), w, later(to, i, 0), columns);
    }
}

/* The pieces of work left to a thread, `first` to `last`. It takes from the front; threads that
   have none left take from the back, so that all finish together even if one core is slower. */
typedef struct {
    uint64_t left; /* first in the upper half, last in the lower */
    char apart[120]; /* no cache line shared with another thread */
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

/* The depth of a block, in whole cells: as few blocks as possible. */
static size block_of(size depth) {
    size blocks = most((depth / DEEP + DEPTH - 1) / DEPTH, 1);
    return up_to((depth + blocks - 1) / blocks, DEEP);
}

/* Contents of `space` below: panels of x and, per thread, panels of w and one of x, in numbers; and
   the sums of rows that are not yet rounded, if there are several blocks. */
#define OF_X (TALL * DEPTH * DEEP)
#define OF_THREAD ((GROUP * COLUMNS + ROWS) * DEPTH * DEEP)

static size of_sums(size depth, size m, size n) {
    return DEEP > 1 && block_of(depth) < depth ? least(TALL, m) * n : 0;
}

/* How many floats it must hold if the terms, in whole cells, have a total depth of `depth`. */
size workspace(size depth, size m, size n, size threads) {
    return (OF_X + threads * OF_THREAD) / DEEP + of_sums(depth, m, n);
}

/* Panels of w in a group: at most GROUP, and so that all threads have about as many groups. */
static size wide_group(size panels, size threads) {
    size each = most(panels / threads, 1), groups = (each + GROUP - 1) / GROUP;
    return (each + groups - 1) / groups;
}

/* This thread's pieces of a block, then those that others have left. Each group of `width` columns
   of n has `pieces` pieces of rows. */
static void work(Block *b, Share *shares, int threads, int me, size pieces, size bottom, size width,
                 size n, number *w) {
    size packed = -1, piece;
    for (int other = 0; other < threads; other++)
        while (take(&shares[(me + other) % threads], other > 0, &piece)) {
            size group = piece / pieces, up = b->top + piece % pieces * SHARE;
            b->left = group * width, b->right = least(b->left + width, n);
            if (group != packed)
                pack_w(b->terms, b->from, b->to, b->left, b->right - b->left, w, b->spare);
            packed = group;
            multiply(b, up, least(up + SHARE, bottom));
        }
}

/* Rows of y from `top` on in a block that is the first, the last, both or neither: between blocks,
   sums stay floats. */
static Into into_of(Into whole, size top, float *sums, size n, int first, int last) {
    Into to = later(whole, top, 0);
    if (DEEP > 1 && !last)
        to.y = sums, to.y_row = n, to.y_is = SUMS;
    if (!first && DEEP > 1)
        to.start = sums, to.start_row = n, to.start_is = SUMS;
    else if (!first)
        to.start = to.y, to.start_row = to.y_row;
    return to;
}

/* y (m, n); with start_row 0 one row is used for all. */
void products(number *y, size y_row, const number *start, size start_row, size m, size n,
              const Term *terms, size count, float *space, int threads) {
    size depth = 0;
    for (size t = 0; t < count; t++)
        depth += whole_depth(terms + t);
    size block = block_of(depth);
    int lie = as_they_lie(terms, count);
    size tall = lie && !of_sums(depth, m, n) ? most(m, 1) : TALL;
    float *sums = space;
    number *x = (number *)(sums + of_sums(depth, m, n));
    Into whole = {y, y_row, NUMBERS, start, start_row, NUMBERS};
    Share shares[threads];
#pragma omp parallel num_threads(threads)
    {
        /* OpenMP may provide fewer threads than requested. */
        int all = omp_get_num_threads(), me = omp_get_thread_num();
        number *w = x + OF_X + me * OF_THREAD, *spare = w + GROUP * COLUMNS * DEPTH * DEEP;
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
                           x + (i - top) * (to - from));
                Block b = {.terms = terms, .count = count, .from = from, .to = to,
                           .x = lie ? NULL : x, .top = top, .w = w, .spare = spare,
                           .into = into_of(whole, top, sums, n, !from, to == depth)};
                work(&b, shares, all, me, pieces, bottom, width, n, w);
#pragma omp barrier
            }
        }
    }
}
