/* Panels hold both factors of a matrix product as the tiles of tile.h need them: ROWS rows of x or
   COLUMNS columns of w side by side, one step of depth after the other. A step is a 4-byte cell
   from each row or column, holding DEEP numbers: one float or, since processors multiply two at a
   time, two bf16; a missing second number is 0. */

#pragma once

#include "real.h"

#define FUNCTION static __attribute__((unused)) /* not every file uses each one */

/* 12 sums, 3 cells of w and one of x fill the 16 registers of AVX2; AVX-512 has 32, twice as wide.
   The overhead of a step matters when two threads share a core: unrolled by 4 it is 1.5 times as
   fast as not unrolled. 4 x 24 is as fast as 6 x 16, and 8 x 48 as 6 x 64. */
#ifdef __AVX512F__
#define LANES 16
#define ROWS 8
#define EACH_ROW(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)
/* Lines of a panel of w to prefetch: it exceeds the L1 cache. */
#define EACH_LINE(do) do(0) do(1) do(2)
#else
#define LANES 8
#define ROWS 4
#define EACH_ROW(do) do(0) do(1) do(2) do(3)
#define EACH_LINE(do) /* it fits in the L1 cache */
#endif
#define COLUMNS (3 * LANES)
#define LINE ((size)(64 / sizeof(number))) /* numbers per cache line */

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef float quad __attribute__((vector_size(16), aligned(2), may_alias));
typedef int32_t places __attribute__((vector_size(16)));

/* ---- rows become columns ---------------------------------------------------------------------- */

/* `square`: ROWS rows of ROWS cells become columns, `step` numbers apart. */
#ifdef __AVX512F__
typedef float octet __attribute__((vector_size(32), aligned(2), may_alias));
typedef int32_t octet_places __attribute__((vector_size(32)));
#define MIXED(a, b, ...) __builtin_shuffle(a, b, (octet_places){__VA_ARGS__})
#define READ(i) octet a##i = *(const octet *)(from + i * row);
#define TWO(i, j)                                             \
    octet b##i = MIXED(a##i, a##j, 0, 8, 1, 9, 4, 12, 5, 13); \
    octet b##j = MIXED(a##i, a##j, 2, 10, 3, 11, 6, 14, 7, 15);
#define FOUR(i, j)                                            \
    octet c##i = MIXED(b##i, b##j, 0, 1, 8, 9, 4, 5, 12, 13); \
    octet c##j = MIXED(b##i, b##j, 2, 3, 10, 11, 6, 7, 14, 15);
#define EIGHT(i, j, at)                                                              \
    *(octet *)(to + at * step) = MIXED(c##i, c##j, 0, 1, 2, 3, 8, 9, 10, 11);        \
    *(octet *)(to + (at + 4) * step) = MIXED(c##i, c##j, 4, 5, 6, 7, 12, 13, 14, 15);

INLINE void square(const number *from, size row, number *to, size step) {
    EACH_ROW(READ)
    TWO(0, 1) TWO(2, 3) TWO(4, 5) TWO(6, 7)
    FOUR(0, 2) FOUR(1, 3) FOUR(4, 6) FOUR(5, 7)
    EIGHT(0, 4, 0) EIGHT(2, 6, 1) EIGHT(1, 5, 2) EIGHT(3, 7, 3)
}
#else
INLINE void square(const number *from, size row, number *to, size step) {
    quad a = *(const quad *)from, b = *(const quad *)(from + row);
    quad c = *(const quad *)(from + 2 * row), d = *(const quad *)(from + 3 * row);
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

/* `rows` rows of `count` numbers become steps of ROWS cells, `step` numbers apart; missing rows are
   0. The following rows, which are probably needed next, are prefetched: for a weight that fits in
   no cache, packing takes a fifth less time. */
FUNCTION void transpose(const number *from, size row, size rows, size count, number *to,
                        size step) {
    size p = 0;
    if (rows >= ROWS)
        for (; p + ROWS * DEEP <= count; p += ROWS * DEEP) {
            if (p % LINE == 0)
                for (size r = ROWS; r < 2 * ROWS; r++)
                    __builtin_prefetch(from + r * row + p);
            square(from + p, row, to + p / DEEP * step, step);
        }
    for (; p < count; p += DEEP)
        for (size r = 0; r < ROWS; r++)
            for (size k = 0; k < DEEP; k++)
                to[p / DEEP * step + r * DEEP + k] =
                    r < rows && p + k < count ? from[r * row + p + k] : 0;
}

/* ---- rows already in the needed order --------------------------------------------------------- */

/* LANES cells of a row of w and, if cells hold two numbers, of the row below; NULL: 0. */
INLINE lanes cells(const number *from, const number *below) {
#ifdef BF16
    words low = __builtin_convertvector(*(const halves *)from, words), high = {0};
    if (below)
        high = __builtin_convertvector(*(const halves *)below, words);
    return (lanes)(low | high << 16);
#else
    (void)below;
    return *(const lanes *)from;
#endif
}

/* The same for `count` numbers, fewer than COLUMNS, padded with zeros. */
INLINE void put_some(const number *from, const number *below, size count, number *to) {
    for (size i = 0; i < COLUMNS; i += LANES) {
        size there = most(least(count - i, LANES), 0);
        number one[LANES] = {0}, other[LANES] = {0};
        lanes some;
        if (there == LANES)
            some = cells(from + i, below ? below + i : NULL);
        else {
            for (size j = 0; j < there; j++)
                one[j] = from[i + j], other[j] = below ? below[i + j] : 0;
            some = cells(one, other);
        }
        *(lanes *)(to + i * DEEP) = some;
    }
}

/* Panels of w (count, columns), which start `panel` apart; missing columns are 0. Rows may be so
   far apart that the hardware would not prefetch the next ones. */
FUNCTION void copy_rows(const number *from, size row, size columns, size count, number *to,
                        size panel) {
    size whole = columns / COLUMNS, left = columns % COLUMNS;
    for (size p = 0; p < count; p += DEEP, from += DEEP * row, to += DEEP * COLUMNS) {
        for (size k = 0; k < DEEP; k++)
            for (size j = 0; j < columns; j += LINE)
                __builtin_prefetch(from + (6 + k) * row + j);
        const number *below = p + 1 < count ? from + row : NULL;
        for (size j = 0; j < whole; j++)
            for (size i = 0; i < COLUMNS; i += LANES)
                *(lanes *)(to + j * panel + i * DEEP) =
                    cells(from + j * COLUMNS + i, below ? below + j * COLUMNS + i : NULL);
        if (left)
            put_some(from + whole * COLUMNS, below ? below + whole * COLUMNS : NULL, left,
                     to + whole * panel);
    }
}

/* One panel of w (columns, count). */
FUNCTION void copy_across(const number *from, size row, size columns, size count, number *to) {
    for (size j = 0; j < COLUMNS; j += ROWS) {
        size left = most(columns - j, 0); /* nothing is read if none is left */
        transpose(from + least(j, columns - 1) * row, row, left, count, to + j * DEEP,
                  COLUMNS * DEEP);
    }
}

/* ---- whole matrices, panel by panel ------------------------------------------------------------ */

/* Panels of w (depth, n). */
FUNCTION void panels(const number *w, size row, size n, size depth, number *to) {
    copy_rows(w, row, n, depth, to, up_to(depth, DEEP) * COLUMNS);
}

/* Panels of w' for w (n, depth). */
FUNCTION void panels_across(const number *w, size row, size n, size depth, number *to) {
    for (size j = 0; j < n; j += COLUMNS)
        copy_across(w + j * row, row, n - j, depth, to + j * up_to(depth, DEEP));
}

/* Panels of x (rows, depth). */
FUNCTION void panels_of_rows(const number *x, size row, size rows, size depth, number *to) {
    for (size i = 0; i < rows; i += ROWS)
        transpose(x + i * row, row, rows - i, depth, to + i * up_to(depth, DEEP), ROWS * DEEP);
}

/* Panels of x' for x (depth, rows), whose rows may be read up to a multiple of ROWS. */
FUNCTION void panels_of_columns(const number *x, size row, size rows, size depth, number *to) {
    const number none[ROWS] = {0};
    for (size i = 0; i < rows; i += ROWS)
        for (size p = 0; p < depth; p += DEEP, to += ROWS * DEEP) {
            const number *one = x + p * row + i, *below = p + 1 < depth ? one + row : none;
            SIMD for (size r = 0; r < ROWS; r++) {
                to[r * DEEP] = one[r];
                if (DEEP > 1)
                    to[r * DEEP + 1] = below[r];
            }
        }
}
