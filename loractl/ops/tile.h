/* What gemm.c, thin.c and attention.c make matrix products of: panels, in which both factors lie as
   they are needed, and tiles of ROWS x COLUMNS sums, for processors with AVX2. */

#include <stddef.h>
#include <stdint.h>

#define INLINE static inline __attribute__((always_inline))

/* 12 sums, 3 numbers of w and one of x are the 16 registers of AVX2. What a step costs beside its
   12 multiplications counts where two threads share a core: unrolled by 4 it is 1.5 times as fast
   as not unrolled, and 4 x 24 is as fast as 6 x 16. */
#define LANES 8
#define ROWS 4
#define COLUMNS (3 * LANES)

typedef int64_t size;
typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(16)));

INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size most(size a, size b) { return a > b ? a : b; }

/* ---- panels ----------------------------------------------------------------------------------- */

INLINE void four_by_four(const float *from, size row, float scale, float *to, size step) {
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

/* `rows` rows of `count` numbers become count groups of four, `step` apart; rows that are not there
   are 0. */
static __attribute__((unused)) void transpose(const float *from, size row, size rows, size count,
                                              float scale, float *to, size step) {
    size p = 0;
    if (rows >= 4)
        for (; p + 4 <= count; p += 4)
            four_by_four(from + p, row, scale, to + p * step, step);
    for (; p < count; p++)
        for (size r = 0; r < 4; r++)
            to[p * step + r] = r < rows ? from[r * row + p] * scale : 0.0f;
}

static void copy_rows(const float *from, size row, size columns, size count, float *to) {
    for (size p = 0; p < count; p++, from += row, to += COLUMNS)
        if (columns >= COLUMNS) {
            ((lanes *)to)[0] = ((const lanes *)from)[0];
            ((lanes *)to)[1] = ((const lanes *)from)[1];
            ((lanes *)to)[2] = ((const lanes *)from)[2];
        } else {
            for (size j = 0; j < COLUMNS; j++)
                to[j] = j < columns ? from[j] : 0.0f;
        }
}

/* ---- a tile ----------------------------------------------------------------------------------- */

#define EACH_ROW(do) do(0) do(1) do(2) do(3)
#define CLEAR(i) lanes a##i = {0}, b##i = {0}, c##i = {0};
#define FETCH(i)                               \
    __builtin_prefetch(y + i * y_row, 1);      \
    __builtin_prefetch(y + i * y_row + 16, 1);
/* x - 0 is x, also for -0: it only makes a vector of the number. */
#define MULTIPLY(i)                 \
    {                               \
        lanes s = x[i] - (lanes){0}; \
        a##i += s * w0;             \
        b##i += s * w1;             \
        c##i += s * w2;             \
    }
#define STORE(i)                                                   \
    {                                                              \
        lanes *to = (lanes *)(y + i * y_row);                      \
        if (start) {                                               \
            const lanes *old = (const lanes *)(start + i * start_row); \
            a##i += old[0];                                        \
            b##i += old[1];                                        \
            c##i += old[2];                                        \
        }                                                          \
        to[0] = a##i;                                              \
        to[1] = b##i;                                              \
        to[2] = c##i;                                              \
    }

/* ROWS x COLUMNS of y from a panel of x, and of w rows that lie `w_row` apart; start may be y, or
   NULL for zeros. */
INLINE void tile_of_rows(size depth, const float *x, const float *w, size w_row, float *y,
                         size y_row, const float *start, size start_row) {
    EACH_ROW(CLEAR)
    EACH_ROW(FETCH)
#pragma GCC unroll 4
    for (const float *end = x + depth * ROWS; x != end; x += ROWS, w += w_row) {
        lanes w0 = ((const lanes *)w)[0], w1 = ((const lanes *)w)[1], w2 = ((const lanes *)w)[2];
        EACH_ROW(MULTIPLY)
    }
    EACH_ROW(STORE)
}

/* The same from two panels. */
static __attribute__((noinline)) void tile(size depth, const float *x, const float *w, float *y,
                                           size y_row, const float *start, size start_row) {
    tile_of_rows(depth, x, w, COLUMNS, y, y_row, start, start_row);
}

/* A tile of which only some rows and columns are there. */
static void part_of_tile(size depth, const float *x, const float *w, float *y, size y_row,
                         const float *start, size start_row, size rows, size columns) {
    float whole[ROWS * COLUMNS];
    tile(depth, x, w, whole, COLUMNS, NULL, 0);
    for (size i = 0; i < rows; i++)
        for (size j = 0; j < columns; j++)
            y[i * y_row + j] =
                start ? start[i * start_row + j] + whole[i * COLUMNS + j] : whole[i * COLUMNS + j];
}
