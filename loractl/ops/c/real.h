/* Common definitions included by every C file here. */

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
INLINE size up_to(size n, size step) { return (n + step - 1) / step * step; }

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

/* ---- numbers of rows: float, or bf16 where BF16 is defined ------------------------------------ */

/* bf16 is the upper half of a float: round to nearest, ties to even. Every NaN becomes torch's NaN
   (rounded like a number, some would become infinite); selecting it before rounding instead of
   after takes a fifth less time in the gated activations. */
INLINE uint16_t to_bf16(float value) {
    uint32_t bits = value != value ? 0x7fc00000 : to_bits(value);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

INLINE float from_bf16(uint16_t half) { return from_bits((uint32_t)half << 16); }

#ifdef BF16
typedef uint16_t number;
INLINE float get(const number *row, size i) { return from_bf16(row[i]); }
INLINE void put(number *row, size i, float value) { row[i] = to_bf16(value); }
INLINE float rounded(float value) { return from_bf16(to_bf16(value)); }
#else
typedef float number;
INLINE float get(const number *row, size i) { return row[i]; }
INLINE void put(number *row, size i, float value) { row[i] = value; }
INLINE float rounded(float value) { return value; }
#endif
#define DEEP ((size)(sizeof(float) / sizeof(number))) /* numbers in a cell of 4 bytes */

/* e^x = 2^n e^r with n = round(x / ln 2), so that |r| <= ln(2)/2; ln 2 is subtracted in two parts,
   the first of few bits, so that n times it is exact (Cody and Waite 1980). e^r is 1 + r + r^2 q(r)
   with q of degree 4, fitted for minimal maximum relative error (Lawson's weighted least squares
   on 2001 Chebyshev points): 3e-9, and 9e-8 including rounding. Adding 1.5 * 2^23 rounds to an
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
