/* Sums of matrix products in float32, y = start + x_1 w_1 + x_2 w_2 + ..., for processors whose
   BLAS in torch does not know them well; gemm.py says where it serves.

   Blocks and panels as Goto and van de Geijn (2008, "Anatomy of high-performance matrix
   multiplication") have them: w is copied in panels of COLUMNS columns, x in panels of ROWS rows,
   each number of both beside the one that is needed next. The products lie one behind the other
   along one axis of depth, so that an adapter of rank 8 makes a base's product 8 numbers deeper and
   y is not read again for it from memory. With AVX-512 x is read as it lies where it can be, and a
   tile of y once more for each term, while the first level of the cache has it. A row of y is
   calculated in the same order whatever the other rows, and the number of threads, are. */

#include "calls.h"
#include "tile.h"

#include <omp.h>

/* A block is DEPTH deep: on AVX2 a panel of w has to stay in the first level of the cache. HEIGHT
   rows of x stay in the second, and WIDTH columns of w, which the threads share, in the third. */
#ifdef __AVX512F__
#define DEPTH 576
#define HEIGHT (24 * ROWS)
#define WIDTH 768
#else
#define DEPTH 384
#define HEIGHT (36 * ROWS)
#define WIDTH 1536
#endif
#define FEWEST 8 /* rows that a thread takes at a time */

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

/* Rows of w, which lie far apart, are read where they are as wide as this many panels; a thread
   takes a part of so many at a time. */
#define SIDE_BY_SIDE 4
#define PARTS 2

static void copy_side_by_side(const float *from, size row, size count, float *to, size panel) {
    for (size p = 0; p < count; p++, from += row, to += COLUMNS) {
        for (size j = 0; j < SIDE_BY_SIDE * COLUMNS; j += LINE)
            __builtin_prefetch(from + 6 * row + j);
        for (size j = 0; j < SIDE_BY_SIDE; j++)
            for (size i = 0; i < COLUMNS; i += LANES)
                *(lanes *)(to + j * panel + i) = *(const lanes *)(from + j * COLUMNS + i);
    }
}

static void multiply_by(float scale, float *panel, size count) {
    SIMD for (size i = 0; i < count; i++) panel[i] *= scale;
}

/* The same of all w, times their scales, for `columns` columns from `column` on, at most
   SIDE_BY_SIDE panels, which are `deep` deep. */
static void pack_w(const Term *term, size from, size to, size column, size columns, float *panel,
                   size deep) {
    for (size before = 0; before < to; before += term->depth, term++) {
        size first = most(from - before, 0), count = least(to - before, term->depth) - first;
        if (count <= 0)
            continue;
        const float *w = term->w + (term->across ? column * term->w_row + first
                                                 : first * term->w_row + column);
        if (!term->across && columns >= SIDE_BY_SIDE * COLUMNS)
            copy_side_by_side(w, term->w_row, count, panel, deep * COLUMNS);
        else
            for (size j = 0; j < columns; j += COLUMNS)
                if (term->across)
                    copy_across(w + j * term->w_row, term->w_row, columns - j, count,
                                panel + j * deep);
                else
                    copy_rows(w + j, term->w_row, columns - j, count, panel + j * deep);
        for (size j = 0; term->scale != 1.0f && j < columns; j += COLUMNS)
            multiply_by(term->scale, panel + j * deep, count * COLUMNS);
        panel += count * COLUMNS;
    }
}

/* ---- the sum ---------------------------------------------------------------------------------- */

/* A block of w in panels, and where its products go. */
typedef struct {
    const Term *terms;
    size from, to;   /* of the depth */
    size left;       /* its first column */
    const float *w;
    float *y;
    size y_row, n;   /* n columns in all */
    const float *old; /* what is added: rows of start, or of y itself; or NULL */
    size old_row;
    int lie; /* whether x is read as it lies */
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

/* `rows` rows of x from `row` on, at most ROWS, and `columns` columns of a panel of w: term by term,
   also where a part of a tile is made, so that a row's sum is made in the same order. */
static void tile_as_it_lies(const Block *b, size row, size rows, const float *w, float *y,
                            const float *old, size columns, float *of_x) {
    size old_row = b->old_row, before = 0;
    for (const Term *term = b->terms; before < b->to; before += term->depth, term++) {
        size first = most(b->from - before, 0), count = least(b->to - before, term->depth) - first;
        if (count <= 0)
            continue;
        const float *x = term->x + row * term->x_row + first;
        if (rows < ROWS || columns % LANES) {
            transpose(x, term->x_row, rows, count, 1.0f, of_x, ROWS);
            part_of_tile(count, of_x, w, y, b->y_row, old, old_row, rows, columns);
        } else if (columns == COLUMNS) {
            tile_of_rows(count, x, term->x_row, w, y, b->y_row, old, old_row);
        } else if (columns == 2 * LANES) {
            tile_of_two_of_rows(count, x, term->x_row, w, y, b->y_row, old, old_row);
        } else {
            tile_of_one_of_rows(count, x, term->x_row, w, y, b->y_row, old, old_row);
        }
        w += count * COLUMNS, old = y, old_row = b->y_row;
    }
}

static void strip_as_it_lies(const Block *b, size up, size down, size j, float *of_x) {
    size column = b->left + j * COLUMNS;
    for (size i = up; i < down; i += ROWS)
        tile_as_it_lies(b, i, least(ROWS, down - i), b->w + j * COLUMNS * (b->to - b->from),
                        b->y + i * b->y_row + column,
                        b->old ? b->old + i * b->old_row + column : NULL,
                        least(COLUMNS, b->n - column), of_x);
}

/* Multiply rows `top` to `bottom` of x with the panels `first` to `last`. */
static void multiply(const Block *b, size top, size bottom, size first, size last, float *of_x) {
    size deep = b->to - b->from;
    for (size up = top; up < bottom; up += HEIGHT) {
        size down = least(up + HEIGHT, bottom);
        for (size i = up; i < down && !b->lie; i += ROWS)
            pack_x(b->terms, b->from, b->to, i, least(ROWS, down - i), of_x + (i - up) * deep);
        for (size j = first; j < last; j++)
            if (b->lie)
                strip_as_it_lies(b, up, down, j, of_x);
            else
                strip(deep, of_x, b->w + j * COLUMNS * deep, b->y + up * b->y_row, b->y_row,
                      b->old ? b->old + up * b->old_row : NULL, b->old_row, down - up,
                      b->left + j * COLUMNS, b->n);
    }
}

/* Take rows that no thread has taken, fewer the fewer are left, so that all end together although
   one's core may be slower. Returns 0 where none are left. */
static int take(size *next, size m, size threads, size *top, size *bottom) {
    size at = __atomic_load_n(next, __ATOMIC_RELAXED), to;
    do {
        if (at >= m)
            return 0;
        size share = (m - at) / (2 * threads) / ROWS * ROWS;
        to = least(at + most(share, FEWEST), m);
    } while (!__atomic_compare_exchange_n(next, &at, to, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    *top = at, *bottom = to;
    return 1;
}

/* How many numbers `space` below has to hold: panels of w for all threads, twice, and a block of x
   each. */
size workspace(size threads) { return DEPTH * (2 * WIDTH + threads * HEIGHT); }

/* y (m, n); start_row 0 makes one row serve for all. */
void products(float *y, size y_row, const float *start, size start_row, size m, size n,
              const Term *terms, size count, float *space, int threads) {
    size depth = 0;
    for (size t = 0; t < count; t++)
        depth += terms[t].depth;
    size blocks = most((depth + DEPTH - 1) / DEPTH, 1), panels = (m + ROWS - 1) / ROWS;
    size block = (depth + blocks - 1) / blocks;
    /* Where rows are few, threads share the columns too. */
    int across = 1;
    while (across < threads && (threads % across || panels * across < 8 * threads))
        across++;
    int lie = as_they_lie(terms, count);
    size next[2]; /* row that no thread has taken yet */
#pragma omp parallel num_threads(threads)
    {
        /* OpenMP may give fewer threads than were asked for. */
        int all = omp_get_num_threads(), me = omp_get_thread_num();
        int wide = all == threads ? across : 1, high = all / wide;
        float *of_x = space + DEPTH * (2 * WIDTH + me * HEIGHT);
        /* Blocks of w have two places by turns: a thread that is done begins the next one. */
        size turn = 0;
        for (size left = 0; left < n; left += WIDTH) {
            size width = least(WIDTH, n - left), strips = (width + COLUMNS - 1) / COLUMNS;
            size groups = (strips + SIDE_BY_SIDE - 1) / SIDE_BY_SIDE;
            for (size from = 0; from < depth; from += block, turn ^= 1) {
                float *w = space + turn * DEPTH * WIDTH;
                size to = least(from + block, depth);
                if (me == 0)
                    next[turn] = 0;
#pragma omp for schedule(dynamic, 1)
                for (size part = 0; part < PARTS * groups; part++) {
                    size j = part / PARTS * SIDE_BY_SIDE * COLUMNS, deep = to - from;
                    size above = deep * (part % PARTS) / PARTS;
                    size below = deep * (part % PARTS + 1) / PARTS;
                    pack_w(terms, from + above, from + below, left + j,
                           least(SIDE_BY_SIDE * COLUMNS, width - j), w + j * deep + above * COLUMNS,
                           deep);
                }
                Block b = {terms, from, to, left, w, y, y_row, n,
                           from ? y : start, from ? y_row : start_row, lie};
                size top = panels * (me / wide) / high * ROWS;
                size bottom = least(panels * (me / wide + 1) / high * ROWS, m);
                if (wide > 1)
                    multiply(&b, top, bottom, strips * (me % wide) / wide,
                             strips * (me % wide + 1) / wide, of_x);
                else
                    while (take(&next[turn], m, all, &top, &bottom))
                        multiply(&b, top, bottom, 0, strips, of_x);
            }
        }
    }
}
