/* What every file in C here begins with. */

#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __clang__
#error "needs GCC: torch brings GCC's OpenMP library, and clang would load a second one"
#endif

#define INLINE static inline __attribute__((always_inline))
#define SIMD _Pragma("omp simd")

typedef int64_t size;

INLINE size least(size a, size b) { return a < b ? a : b; }
INLINE size most(size a, size b) { return a > b ? a : b; }

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* e^x = 2^n e^r with n = round(x / ln 2), so that |r| <= ln(2)/2; ln 2 is subtracted in two parts,
   the first of few bits, so that n times it is exact (Cody and Waite 1980). e^r is 1 + r + r^2 q(r)
   with q of degree 4, fitted to the least greatest relative error (Lawson's weighted least squares
   on 2001 Chebyshev points): 3e-9, and 9e-8 with the roundings. Adding 1.5 * 2^23 rounds to an
   integer and leaves it in the low bits, without a conversion that is undefined for a NaN.
   Results below 2^-126 are 0 and above 2^127 infinite; NaN gives NaN. */
INLINE float exp_(float x) {
    const float magic = 12582912.0f;
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float q = 0.00138144335f;
    q = q * r + 0.00836879667f;
    q = q * r + 0.0416683964f;
    q = q * r + 0.166665196f;
    q = q * r + 0.49999994f;
    float y = ((q * r) * r + r) + 1.0f;
    y *= from_bits((to_bits(shifted) + 127) << 23);
    y = x < -87.33f ? 0.0f : y;
    return x > 88.02f ? INFINITY : y;
}
