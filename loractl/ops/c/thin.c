/* Thin products, in which one factor or the result has only r columns, r being an adapter's rank: x
   A' and t' x. They take as long as reading x; thin.py says what they are for.

   x is read once for both products, row by row in place: a block of rows stays in the L2 cache
   while the sums over its rows are computed. These are kept per piece of rows, each the work of one
   thread, and added in the order of the pieces, so neither product depends on the number of
   threads. */

#include "calls.h"
#include "tile.h"

#define MOST_RANKS 64      /* the highest r that thin.py uses */
#define PIECE 144          /* rows, if that gives at most PIECES pieces and SPACE numbers */
#define PIECES 64
#define SPACE (4 << 20)
#define TALL 48            /* rows of a block, if that gives at most BLOCK numbers */
#define BLOCK (36 * 1024)
#define ENOUGH (64 * 1024) /* fewer numbers of x are not worth waking another thread for */

/* As many sums as fit in registers next to 3 cells of x and one of A: 12, or 24 with AVX-512. */
#define XS 3
#ifdef __AVX512F__
#define RANKS 8
#define EACH_RANK(do, i) \
    do(i, 0) do(i, 1) do(i, 2) do(i, 3) do(i, 4) do(i, 5) do(i, 6) do(i, 7)
#define OF_EACH_RANK(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7)
#else
#define RANKS 4
#define EACH_RANK(do, i) do(i, 0) do(i, 1) do(i, 2) do(i, 3)
#define OF_EACH_RANK(do) do(0) do(1) do(2) do(3)
#endif

static size pieces_of(size n, size r, size d) {
    size most_pieces = least(PIECES, most(SPACE / most(r * d, 1), 1));
    return least((n + PIECE - 1) / PIECE, most_pieces);
}

/* How many floats `space` below must hold. */
size thin_workspace(size n, size r, size d) { return (pieces_of(n, r, d) - 1) * r * d; }

/* ---- x A' ------------------------------------------------------------------------------------- */

/* Sums of those of LANES numbers that are 4 apart. */
INLINE quad folded(const float *a) {
    quad sum = *(const quad *)a + *(const quad *)(a + 4);
    for (size i = 8; i < LANES; i += 8)
        sum += *(const quad *)(a + i) + *(const quad *)(a + i + 4);
    return sum;
}

INLINE quad pairs(quad a, quad b) {
    return __builtin_shuffle(a, b, (places){0, 4, 2, 6}) +
           __builtin_shuffle(a, b, (places){1, 5, 3, 7});
}

/* The sum over the numbers of each of four vectors. */
INLINE quad totals(const float *a) {
    quad odd = pairs(folded(a), folded(a + LANES));
    quad even = pairs(folded(a + 2 * LANES), folded(a + 3 * LANES));
    return __builtin_shuffle(odd, even, (places){0, 1, 4, 5}) +
           __builtin_shuffle(odd, even, (places){2, 3, 6, 7});
}

#define EACH_SUM(do) EACH_RANK(do, 0) EACH_RANK(do, 1) EACH_RANK(do, 2)
#define SUM(i, j) lanes sum##i##j = {0};
#define ADD(i, j) sum##i##j = with_product(sum##i##j, x##i, a##j);
#define PUT(i, j) *(lanes *)(whole + (i * RANKS + j) * LANES) = sum##i##j;
#define NAMED(j) const number *A##j = A[j];
#define RENAMED(j) A##j = rest[XS + j];
/* Otherwise the compiler reads x again for each sum: 0.6 times as fast. */
#ifdef __AVX512F__
#define HELD(a) __asm__("" : "+v"(a));
#elif defined(__AVX2__)
#define HELD(a) __asm__("" : "+x"(a));
#else
#define HELD(a)
#endif
#define ADD_RANK(j)                              \
    {                                            \
        lanes a##j = *(const lanes *)(A##j + p); \
        HELD(a##j)                               \
        ADD(0, j) ADD(1, j) ADD(2, j)            \
    }

/* Dot products of XS rows of x with RANKS rows of A. */
static void dots(size d, const number *const *x, const number *const *A, float sums[XS * RANKS]) {
    const number *from0 = x[0], *from1 = x[1], *from2 = x[2];
    float whole[XS * RANKS * LANES];
    number rest[XS + RANKS][LANES * DEEP];
    size left = d % (LANES * DEEP);
    OF_EACH_RANK(NAMED)
    EACH_SUM(SUM)
    for (size end = d - left;; end = LANES * DEEP) {
        for (size p = 0; p < end; p += LANES * DEEP) {
            lanes x0 = *(const lanes *)(from0 + p), x1 = *(const lanes *)(from1 + p);
            lanes x2 = *(const lanes *)(from2 + p);
            HELD(x0) HELD(x1) HELD(x2)
            OF_EACH_RANK(ADD_RANK)
        }
        if (!left)
            break;
        memset(rest, 0, sizeof rest); /* what does not fill a vector, padded with zeros */
        for (size i = 0; i < XS + RANKS; i++)
            memcpy(rest[i], (i < XS ? x[i] : A[i - XS]) + d - left, left * sizeof **rest);
        from0 = rest[0], from1 = rest[1], from2 = rest[2];
        OF_EACH_RANK(RENAMED)
        left = 0;
    }
    EACH_SUM(PUT)
    for (size i = 0; i < XS * RANKS; i += 4)
        *(quad *)(sums + i) = totals(whole + i * LANES);
}

/* The last row or rank is repeated to fill up. */
static void across(const number *x, size x_row, size rows, size d, const number *A, size A_row,
                   size r, float scale, number *u, size u_row) {
    for (size i = 0; i < rows; i += XS)
        for (size j = 0; j < r; j += RANKS) {
            const number *some_x[XS], *some_A[RANKS];
            float sums[XS * RANKS];
            for (size k = 0; k < XS; k++)
                some_x[k] = x + least(i + k, rows - 1) * x_row;
            for (size k = 0; k < RANKS; k++)
                some_A[k] = A + least(j + k, r - 1) * A_row;
            dots(d, some_x, some_A, sums);
            for (size k = 0; k < least(XS, rows - i); k++)
                for (size l = 0; l < least(RANKS, r - j); l++)
                    put(u, (i + k) * u_row + j + l, sums[k * RANKS + l] * scale);
        }
}

/* ---- t' x ------------------------------------------------------------------------------------- */

/* The first `count` columns of t (at most ROWS) as a panel. */
static void pack_t(const number *t, size t_row, size rows, size count, number *panel) {
    for (size i = 0; i < rows; i += DEEP, t += DEEP * t_row, panel += ROWS * DEEP)
        for (size k = 0; k < ROWS; k++)
            for (size l = 0; l < DEEP; l++)
                panel[k * DEEP + l] = k < count && i + l < rows ? t[l * t_row + k] : 0;
}

/* y (r, d), plus `start` unless NULL. Floats of x that fill whole tiles are read in place. */
static void down(const number *x, size x_row, size rows, size d, const number *t, size t_row,
                 size r, float *y, const float *start) {
    number panels[MOST_RANKS * (TALL + DEEP)], strip[(TALL + DEEP) * COLUMNS];
    size deep = up_to(rows, DEEP);
    for (size i = 0; i < r; i += ROWS)
        pack_t(t + i, t_row, rows, least(ROWS, r - i), panels + i * deep);
    for (size j = 0; j < d; j += COLUMNS) {
        size columns = least(COLUMNS, d - j);
        if (columns < COLUMNS || r % ROWS || DEEP > 1)
            copy_rows(x + j, x_row, columns, rows, strip, 0);
        for (size i = 0; i < r; i += ROWS) {
            Into to = {y + i * d + j, d, SUMS, start ? start + i * d + j : NULL, d, SUMS};
            const number *panel = panels + i * deep;
            if (columns < COLUMNS || r - i < ROWS)
                part_of_tile(deep, panel, strip, to, least(ROWS, r - i), columns);
            else if (DEEP > 1)
                tile(deep, panel, strip, to);
            else
                tile_of(3, 0, &(Rows){panel, 1, rows}, 1, x + j, x_row, to);
        }
    }
}

/* ---- both ------------------------------------------------------------------------------------- */

/* u (n, r) = scale x A' if A (r, d) is given, and y (r, d) = t' x if t (n, r) is given. */
void thin(const number *x, size x_row, size n, size d, size r, const number *A, size A_row,
          float scale, number *u, size u_row, const number *t, size t_row, float *y, float *space,
          int threads) {
    size pieces = pieces_of(n, r, d);
    size tall = up_to(most(XS, least(TALL, BLOCK * DEEP / most(d, 1) / XS * XS)), DEEP);
#pragma omp parallel num_threads(threads) if (n * d >= ENOUGH)
    {
#pragma omp for schedule(dynamic, 1)
        for (size piece = 0; piece < pieces; piece++) {
            size top = n * piece / pieces, bottom = n * (piece + 1) / pieces;
            float *sums = piece ? space + (piece - 1) * r * d : y;
            for (size i = top; i < bottom; i += tall) {
                size rows = least(tall, bottom - i);
                const number *block = x + i * x_row;
                if (A)
                    across(block, x_row, rows, d, A, A_row, r, scale, u + i * u_row, u_row);
                if (t)
                    down(block, x_row, rows, d, t + i * t_row, t_row, r, sums,
                         i > top ? sums : NULL);
            }
        }
        if (t)
#pragma omp for schedule(static)
            for (size i = 0; i < r; i++)
                for (size piece = 1; piece < pieces; piece++) {
                    const float *more = space + ((piece - 1) * r + i) * d;
                    for (size j = 0; j < d; j++)
                        y[i * d + j] += more[j];
                }
    }
}
