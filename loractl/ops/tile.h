/* What gemm.c, thin.c and attention.c make matrix products of: panels, in which both factors lie as
   they are needed, and tiles of ROWS x COLUMNS sums, for processors with AVX2 or AVX-512. */

#include "real.h"

#define FUNCTION static __attribute__((unused)) /* not every file needs each */

/* 12 sums, 3 numbers of w and one of x are the 16 registers of AVX2, of which AVX-512 has 32, twice
   as wide. What a step costs beside its multiplications counts where two threads share a core:
   unrolled by 4 it is 1.5 times as fast as not unrolled. 4 x 24 is as fast as 6 x 16, and 8 x 48 as
   6 x 64. */
#ifdef __AVX512F__
#define LANES 16
#define ROWS 8
#define EACH_ROW(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)
/* Of a panel of w, which is more than the first level of the cache holds. */
#define EACH_LINE(do) do(0) do(1) do(2)
#else
#define LANES 8
#define ROWS 4
#define EACH_ROW(do) do(0) do(1) do(2) do(3)
#define EACH_LINE(do) /* it holds one */
#endif
#define COLUMNS (3 * LANES)
#define LINE 16 /* numbers that memory gives at a time */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(16)));

/* ---- panels ----------------------------------------------------------------------------------- */

/* `square`: ROWS rows of ROWS numbers become columns. */
#ifdef __AVX512F__
typedef float octet __attribute__((vector_size(32), aligned(4), may_alias));

typedef int32_t octet_places __attribute__((vector_size(32)));
#define MIXED(a, b, ...) __builtin_shuffle(a, b, (octet_places){__VA_ARGS__})
#define READ(i) octet a##i = *(const octet *)(from + i * row) * scale;
#define TWO(i, j)                                             \
    octet b##i = MIXED(a##i, a##j, 0, 8, 1, 9, 4, 12, 5, 13); \
    octet b##j = MIXED(a##i, a##j, 2, 10, 3, 11, 6, 14, 7, 15);
#define FOUR(i, j)                                            \
    octet c##i = MIXED(b##i, b##j, 0, 1, 8, 9, 4, 5, 12, 13); \
    octet c##j = MIXED(b##i, b##j, 2, 3, 10, 11, 6, 7, 14, 15);
#define EIGHT(i, j, at)                                                              \
    *(octet *)(to + at * step) = MIXED(c##i, c##j, 0, 1, 2, 3, 8, 9, 10, 11);        \
    *(octet *)(to + (at + 4) * step) = MIXED(c##i, c##j, 4, 5, 6, 7, 12, 13, 14, 15);

INLINE void square(const float *from, size row, float scale, float *to, size step) {
    EACH_ROW(READ)
    TWO(0, 1) TWO(2, 3) TWO(4, 5) TWO(6, 7)
    FOUR(0, 2) FOUR(1, 3) FOUR(4, 6) FOUR(5, 7)
    EIGHT(0, 4, 0) EIGHT(2, 6, 1) EIGHT(1, 5, 2) EIGHT(3, 7, 3)
}
#else
INLINE void square(const float *from, size row, float scale, float *to, size step) {
    quad a = *(const quad *)from * scale, b = *(const quad *)(from + row) * scale;
    quad c = *(const quad *)(from + 2 * row) * scale, d = *(const quad *)(from + 3 * row) * scale;
    quad ac = __builtin_shuffle(a, c, (places){0, 4, 1, 5});
    quad bd = __builtin_shuffle(b, d, (places){0, 4, 1, 5});
    quad ac_high = __builtin_shuffle(a, c, (places){2, 6, 3, 7});
    quad bd_high = __builtin_shuffle(b, d, (places){2, 6, 3, 7});
    *(quad *)to = __builtin_shuffle(ac, bd, (places){0, 4, 1, 5});
    *(quad *)(to + step) = __builtin_shuffle(ac, bd, (places){2, 6, 3, 7});
    *(quad *)(to + 2 * step) = __builtin_shuffle(ac_high, bd_high, (places){0, 4, 1, 5});
    *(quad *)(to + 3 * step) = __builtin_shuffle(ac_high, bd_high, (places){2, 6, 3, 7});
}
#endif

/* `rows` rows of `count` numbers become count groups of ROWS, `step` apart; rows that are not there
   are 0. The next rows, which are probably wanted next, are fetched meanwhile: of a weight that no
   cache holds, panels take a fifth less time so. */
FUNCTION void transpose(const float *from, size row, size rows, size count, float scale, float *to,
                        size step) {
    size p = 0;
    if (rows >= ROWS)
        for (; p + ROWS <= count; p += ROWS) {
            if (p % LINE == 0)
                for (size r = ROWS; r < 2 * ROWS; r++)
                    __builtin_prefetch(from + r * row + p);
            square(from + p, row, scale, to + p * step, step);
        }
    for (; p < count; p++)
        for (size r = 0; r < ROWS; r++)
            to[p * step + r] = r < rows ? from[r * row + p] * scale : 0.0f;
}

/* `count` numbers, fewer than COLUMNS, and zeros. */
INLINE void put_some(const float *from, size count, float *to) {
    for (size i = 0; i < COLUMNS; i += LANES) {
        lanes some = {0};
        if (count - i >= LANES)
            some = *(const lanes *)(from + i);
        else
            for (size j = i; j < count; j++)
                some[j - i] = from[j];
        *(lanes *)(to + i) = some;
    }
}

/* Panels of w (count, columns), which begin `panel` apart; columns beyond those that are there are 0.
   Rows may lie so far apart that nobody but we would fetch the next ones. */
FUNCTION void copy_rows(const float *from, size row, size columns, size count, float *to,
                        size panel) {
    size whole = columns / COLUMNS, left = columns % COLUMNS;
    for (size p = 0; p < count; p++, from += row, to += COLUMNS) {
        for (size j = 0; j < columns; j += LINE)
            __builtin_prefetch(from + 6 * row + j);
        for (size j = 0; j < whole; j++)
            for (size i = 0; i < COLUMNS; i += LANES)
                *(lanes *)(to + j * panel + i) = *(const lanes *)(from + j * COLUMNS + i);
        if (left)
            put_some(from + whole * COLUMNS, left, to + whole * panel);
    }
}

/* One panel of w (columns, count). */
FUNCTION void copy_across(const float *from, size row, size columns, size count, float *to) {
    for (size j = 0; j < COLUMNS; j += ROWS) {
        size left = most(columns - j, 0); /* nothing is read where none is left */
        transpose(from + least(j, columns - 1) * row, row, left, count, 1.0f, to + j, COLUMNS);
    }
}

/* ---- a tile ----------------------------------------------------------------------------------- */

#define CLEAR(i) lanes a##i = {0}, b##i = {0}, c##i = {0};
#define AHEAD(i)  \
    if (i < wide) \
        __builtin_prefetch(w + 8 * w_row + i * LINE);
/* x - 0 is x, also for -0: it only makes a vector of the number. */
#define MULTIPLY(i)                  \
    {                                \
        lanes s = x[i * x_row] - (lanes){0}; \
        a##i += s * w0;              \
        b##i += s * w1;              \
        c##i += s * w2;              \
    }
#define STEPS(until)                                                                              \
    _Pragma("GCC unroll 4") for (const float *stop = until; x != stop; x += x_step, w += w_row) { \
        lanes w0 = ((const lanes *)w)[0], w1 = ((const lanes *)w)[1], w2 = ((const lanes *)w)[2]; \
        EACH_LINE(AHEAD)                                                                          \
        EACH_ROW(MULTIPLY)                                                                        \
    }
#define STORE(i)                                   \
    {                                              \
        const float *old = start + i * start_row;  \
        float *to = y + i * y_row;                 \
        put_lanes(to, a##i, old, start != NULL);   \
        if (wide > 1)                              \
            put_lanes(to + LANES, b##i, old + LANES, start != NULL); \
        if (wide > 2)                              \
            put_lanes(to + 2 * LANES, c##i, old + 2 * LANES, start != NULL); \
    }

INLINE void put_lanes(float *to, lanes sum, const float *old, int add) {
    if (add)
        sum += *(const lanes *)old;
    *(lanes *)to = sum;
}

/* Rows of x for a tile: panels of ROWS, or as they lie, `row` apart. */
typedef struct {
    const float *x;
    size row, depth;
} Rows;

/* ROWS x (wide * LANES) of y from some x, one behind the other, and from w, whose rows lie `w_row`
   apart and whose other columns nobody asks for; start may be y, or NULL for zeros. y is fetched,
   line by line, while the first x is multiplied: all lines at once would keep those of w waiting. */
INLINE void tile_of(int wide, int lie, const Rows *rows, size count, const float *w, size w_row,
                    float *y, size y_row, const float *start, size start_row) {
    size part = rows->depth / (ROWS * wide + 4) / 4 * 4;
    EACH_ROW(CLEAR)
    for (const Rows *after = rows + count; rows != after; rows++, part = 0) {
        const float *x = rows->x;
        size x_row = lie ? rows->row : 1, x_step = lie ? 1 : ROWS;
        const float *end = x + rows->depth * x_step;
        for (size i = 0; part && i < ROWS; i++)
            for (size line = 0; line < wide * LANES; line += LINE) {
                __builtin_prefetch(y + i * y_row + line, 1);
                STEPS(x + part * x_step)
            }
        STEPS(end)
    }
    EACH_ROW(STORE)
}

/* From two panels, and from rows as they lie. */
#define TILE(name, wide)                                                                           \
    static __attribute__((noinline, unused)) void name(size depth, const float *x, const float *w, \
                                                       float *y, size y_row, const float *start,   \
                                                       size start_row) {                           \
        tile_of(wide, 0, &(Rows){x, 1, depth}, 1, w, COLUMNS, y, y_row, start, start_row);         \
    }                                                                                              \
    static __attribute__((noinline, unused)) void name##_of_rows(                                  \
        const Rows *rows, size count, const float *w, float *y, size y_row, const float *start,    \
        size start_row) {                                                                          \
        tile_of(wide, 1, rows, count, w, COLUMNS, y, y_row, start, start_row);                     \
    }
TILE(tile, 3)
TILE(tile_of_two, 2)
TILE(tile_of_one, 1)

/* A tile of which only some rows and columns are there. */
FUNCTION void part_of_tile(size depth, const float *x, const float *w, float *y, size y_row,
                         const float *start, size start_row, size rows, size columns) {
    float whole[ROWS * COLUMNS];
    if (columns <= LANES)
        tile_of_one(depth, x, w, whole, COLUMNS, NULL, 0);
    else if (columns <= 2 * LANES)
        tile_of_two(depth, x, w, whole, COLUMNS, NULL, 0);
    else
        tile(depth, x, w, whole, COLUMNS, NULL, 0);
    for (size i = 0; i < rows; i++)
        for (size j = 0; j < columns; j++)
            y[i * y_row + j] =
                start ? start[i * start_row + j] + whole[i * COLUMNS + j] : whole[i * COLUMNS + j];
}

/* The tiles of some rows, of at most COLUMNS columns. */
FUNCTION void strip(size depth, const float *x, const float *w, float *y, size y_row,
                    const float *start, size start_row, size rows, size columns) {
    for (size i = 0; i < rows; i += ROWS) {
        float *to = y + i * y_row;
        const float *old = start ? start + i * start_row : NULL;
        if (rows - i >= ROWS && columns == COLUMNS)
            tile(depth, x + i * depth, w, to, y_row, old, start_row);
        else if (rows - i >= ROWS && columns == 2 * LANES)
            tile_of_two(depth, x + i * depth, w, to, y_row, old, start_row);
        else if (rows - i >= ROWS && columns == LANES)
            tile_of_one(depth, x + i * depth, w, to, y_row, old, start_row);
        else
            part_of_tile(depth, x + i * depth, w, to, y_row, old, start_row, least(ROWS, rows - i),
                         columns);
    }
}
