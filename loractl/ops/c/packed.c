/* A packed matrix as plain numbers; gemm.c unpacks what it multiplies by itself. */

#include "packed.h"

/* Numbers `at` to `at + count`, counted row after row. */
void unpack(const Packed *packed, size at, size count, number *to, int threads) {
    size step = 64 * packed->block;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size first = 0; first < count; first += step)
        unpacked(packed, at + first, least(step, count - first), to + first);
}
