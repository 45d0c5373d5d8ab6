/* A tile of ROWS x COLUMNS sums: the building block of the matrix products in gemm.c, thin.c and
   attention.c, for processors with AVX2 or AVX-512. Sums are floats, whatever the numbers are. */

#pragma once

#include "panels.h"

#if defined(BF16) && defined(__AVX512BF16__)
#include <immintrin.h>
#endif

enum { SUMS, NUMBERS }; /* floats, or the type of x and w */

/* Where a result goes and what is added to it, possibly the same memory; NULL: nothing. */
typedef struct {
    void *y;
    size y_row;
    int y_is;
    const void *start;
    size start_row;
    int start_is;
} Into;

typedef float any_cell __attribute__((aligned(2), may_alias));
#define UPPER 0xffff0000u

#define CLEAR(i) lanes a##i = {0}, b##i = {0}, c##i = {0};
#define AHEAD(i)  \
    if (i < wide) \
        __builtin_prefetch(w + 8 * w_row + i * LINE);
#define MULTIPLY(i)                                        \
    {                                                      \
        lanes s = in_round(spread(x + i * x_row), round);  \
        a##i = round_added(a##i, s, w0);                   \
        b##i = round_added(b##i, s, w1);                   \
        c##i = round_added(c##i, s, w2);                   \
    }
#define STEPS(until)                                                                               \
    _Pragma("GCC unroll 4") for (const number *stop = until; x != stop; x += x_step, w += w_row) { \
        const lanes *cell = (const lanes *)w;                                                      \
        EACH_LINE(AHEAD)                                                                           \
        for (int round = 0; round < ROUNDS; round++) {                                             \
            lanes w0 = in_round(cell[0], round), w1 = in_round(cell[1], round);                    \
            lanes w2 = in_round(cell[2], round);                                                   \
            EACH_ROW(MULTIPLY)                                                                     \
            END_OF_ROUND                                                                           \
        }                                                                                          \
    }
#define STORE(i)                        \
    put_lanes(to, i, 0, a##i);          \
    if (wide > 1)                       \
        put_lanes(to, i, LANES, b##i);  \
    if (wide > 2)                       \
        put_lanes(to, i, 2 * LANES, c##i);

/* Broadcast a cell to all lanes, as a float whatever it holds: x - 0 is x, even for -0, and costs
   no instruction. */
INLINE lanes spread(const number *x) { return *(const any_cell *)x - (lanes){0}; }

/* sum + the product of two cells in each lane: of both pairs of numbers if a cell holds two. */
INLINE lanes with_product(lanes sum, lanes x, lanes w) {
#ifndef BF16
    return sum + x * w;
#elif defined(__AVX512BF16__)
    __asm__ volatile("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
#else
    sum += (lanes)((words)x << 16) * (lanes)((words)w << 16);
    return sum + (lanes)((words)x & UPPER) * (lanes)((words)w & UPPER);
#endif
}

/* When cells of two numbers are widened, AVX2 has too few registers for both at a time: a tile
   takes the lower numbers of all its cells in a first round and the upper ones in a second (1.4
   times as fast). If GCC may reorder them, or keep values from round to round, it interleaves the
   rounds again: 0.5 and 0.75 of the speed. */
#if defined(BF16) && !defined(__AVX512F__)
#define ROUNDS 2
#define END_OF_ROUND __asm__ volatile("" ::: "memory");
INLINE lanes in_round(lanes cell, int round) {
    if (round)
        return (lanes)((words)cell & UPPER);
    return (lanes)((words)cell << 16);
}
INLINE lanes round_added(lanes sum, lanes x, lanes w) {
#ifdef __FMA__
    __asm__ volatile("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
    return sum;
#else
    return sum + x * w;
#endif
}
#else
#define ROUNDS 1
#define END_OF_ROUND
INLINE lanes in_round(lanes cell, int round) {
    (void)round;
    return cell;
}
INLINE lanes round_added(lanes sum, lanes x, lanes w) { return with_product(sum, x, w); }
#endif

INLINE void *place_of(const void *some, size i, int what) {
    return what == NUMBERS ? (void *)((const number *)some + i) : (void *)((const float *)some + i);
}

/* The same, starting `row` rows and `column` columns later. */
INLINE Into later(Into to, size row, size column) {
    to.y = place_of(to.y, row * to.y_row + column, to.y_is);
    if (to.start)
        to.start = place_of(to.start, row * to.start_row + column, to.start_is);
    return to;
}

INLINE lanes get_lanes(const void *from, int what) {
#ifdef BF16
    if (what == NUMBERS)
        return (lanes)(__builtin_convertvector(*(const halves *)from, words) << 16);
#endif
    (void)what;
    return *(const lanes *)from;
}

INLINE void put_lanes(Into to, size row, size column, lanes sum) {
    if (to.start)
        sum += get_lanes(place_of(to.start, row * to.start_row + column, to.start_is), to.start_is);
    void *y = place_of(to.y, row * to.y_row + column, to.y_is);
#ifdef BF16
    if (to.y_is == NUMBERS) {
#ifdef __AVX512BF16__
        *(halves *)y = (halves)_mm512_cvtneps_pbh((__m512)sum);
#else
        words nan = (words)(sum != sum), bits = ((words)sum & ~nan) | (nan & 0x7fc00000);
        *(halves *)y = __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, halves);
#endif
        return;
    }
#endif
    *(lanes *)y = sum;
}

/* Rows of x for a tile: panels of ROWS, whose depth is in whole cells, or rows in place, `row`
   apart, if their own depth is too. */
typedef struct {
    const number *x;
    size row, depth;
} Rows;

/* ROWS x (wide * LANES) of y from several x, one after the other, and from w, whose steps are
   `w_row` apart and whose other columns are ignored. y is prefetched line by line while the first x
   is multiplied: all lines at once would delay those of w. */
INLINE void tile_of(int wide, int lie, const Rows *rows, size count, const number *w, size w_row,
                    Into to) {
    size part = rows->depth / DEEP / (ROWS * wide + 4) / 4 * 4;
    EACH_ROW(CLEAR)
    for (const Rows *after = rows + count; rows != after; rows++, part = 0) {
        const number *x = rows->x;
        size x_row = lie ? rows->row : DEEP, x_step = lie ? DEEP : ROWS * DEEP;
        const number *end = x + rows->depth / DEEP * x_step;
        for (size i = 0; part && i < ROWS; i++)
            for (size j = 0; j < wide * LANES; j += LANES) {
                __builtin_prefetch(place_of(to.y, i * to.y_row + j, to.y_is), 1);
                STEPS(x + part * x_step)
            }
        STEPS(end)
    }
    EACH_ROW(STORE)
}

/* From two panels, or from rows in place. */
#define TILE(name, wide)                                                                         \
    static __attribute__((noinline, unused)) void name(size depth, const number *x,              \
                                                       const number *w, Into to) {               \
        tile_of(wide, 0, &(Rows){x, 1, depth}, 1, w, COLUMNS * DEEP, to);                        \
    }                                                                                            \
    static __attribute__((noinline, unused)) void name##_of_rows(const Rows *rows, size count,   \
                                                                 const number *w, Into to) {     \
        tile_of(wide, 1, rows, count, w, COLUMNS * DEEP, to);                                    \
    }
TILE(tile, 3)
TILE(tile_of_two, 2)
TILE(tile_of_one, 1)

/* A tile of which only some rows and columns exist. */
FUNCTION void part_of_tile(size depth, const number *x, const number *w, Into to, size rows,
                           size columns) {
    float whole[ROWS * COLUMNS];
    Into all = {whole, COLUMNS, SUMS, NULL, 0, SUMS};
    if (columns <= LANES)
        tile_of_one(depth, x, w, all);
    else if (columns <= 2 * LANES)
        tile_of_two(depth, x, w, all);
    else
        tile(depth, x, w, all);
    for (size i = 0; i < rows; i++)
        for (size j = 0; j < columns; j++) {
            float sum = whole[i * COLUMNS + j];
            Into one = later(to, i, j);
            if (one.start)
                sum += one.start_is == NUMBERS ? get(one.start, 0) : *(const float *)one.start;
            if (one.y_is == NUMBERS)
                put(one.y, 0, sum);
            else
                *(float *)one.y = sum;
        }
}

/* The tiles of some rows, with at most COLUMNS columns; x and w in panels. */
FUNCTION void strip(size depth, const number *x, const number *w, Into to, size rows,
                    size columns) {
    for (size i = 0; i < rows; i += ROWS) {
        Into here = later(to, i, 0);
        const number *panel = x + i * depth;
        if (rows - i >= ROWS && columns == COLUMNS)
            tile(depth, panel, w, here);
        else if (rows - i >= ROWS && columns == 2 * LANES)
            tile_of_two(depth, panel, w, here);
        else if (rows - i >= ROWS && columns == LANES)
            tile_of_one(depth, panel, w, here);
        else
            part_of_tile(depth, panel, w, here, least(ROWS, rows - i), columns);
    }
}
