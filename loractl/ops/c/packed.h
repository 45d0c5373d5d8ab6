/* Numbers of a packed matrix: code times scale in float32, rounded once, as ops/packed.py says. */

#pragma once

#include "calls.h"
#include "ggml.h"
#include "panels.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

/* bitsandbytes' NF4, in the order of the codes. */
static const float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};

INLINE float scale_of(const Packed *packed, size block) {
    if (!packed->nested)
        return packed->scales[block];
    float product = packed->table[packed->nested[block]] * packed->scales[block / 256];
    __asm__("" : "+g"(product)); /* rounded by itself, not fused with the sum */
    return product + packed->offset;
}

/* LOOKED_UP numbers at a time from the LOOKED_UP / 2 bytes at `pairs`. An index is a byte or half of
   one: higher bits than the four of a code are not looked at, so no mask is needed. */
#if defined(BF16) && defined(__AVX512BW__)
#define LOOKED_UP 32
typedef __m512i Values; /* twice the 16: an index counts modulo 32 */
INLINE Values values_at(const number *values) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)values));
}
INLINE void look_up(const uint8_t *pairs, Values values, number *to) {
    __m512i pair = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)pairs));
    __m512i index = _mm512_or_si512(_mm512_srli_epi32(pair, 4), _mm512_slli_epi32(pair, 16));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(index, values));
}
#elif defined(__AVX512F__)
#define LOOKED_UP 16
typedef __m512 Values;
INLINE Values values_at(const float *values) { return _mm512_loadu_ps(values); }
INLINE void look_up(const uint8_t *pairs, Values values, float *to) {
    __m512i pair = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i *)pairs));
    __m512i index = _mm512_or_si512(_mm512_srli_epi64(pair, 4), _mm512_slli_epi64(pair, 32));
    _mm512_storeu_ps(to, _mm512_permutexvar_ps(index, values));
}
#elif defined(__AVX2__) && defined(BF16)
#define LOOKED_UP 16
typedef struct {
    __m128i low, high; /* bytes */
} Values;
INLINE Values values_at(const number *values) {
    uint8_t low[16], high[16];
    for (size i = 0; i < 16; i++)
        low[i] = values[i] & 255, high[i] = values[i] >> 8;
    return (Values){_mm_loadu_si128((void *)low), _mm_loadu_si128((void *)high)};
}
INLINE void look_up(const uint8_t *pairs, Values values, number *to) {
    __m128i pair = _mm_loadl_epi64((const __m128i *)pairs), mask = _mm_set1_epi8(15);
    __m128i upper = _mm_and_si128(_mm_srli_epi16(pair, 4), mask);
    __m128i index = _mm_unpacklo_epi8(upper, _mm_and_si128(pair, mask));
    __m128i low = _mm_shuffle_epi8(values.low, index), high = _mm_shuffle_epi8(values.high, index);
    _mm_storeu_si128((__m128i *)to, _mm_unpacklo_epi8(low, high));
    _mm_storeu_si128((__m128i *)to + 1, _mm_unpackhi_epi8(low, high));
}
#elif defined(__AVX2__)
#define LOOKED_UP 8
typedef struct {
    __m256 low, high; /* the first and the last eight */
} Values;
INLINE Values values_at(const float *values) {
    return (Values){_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
}
INLINE void look_up(const uint8_t *pairs, Values values, float *to) {
    int32_t four;
    memcpy(&four, pairs, sizeof four);
    __m256i pair = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    __m256i index = _mm256_or_si256(_mm256_srli_epi64(pair, 4), _mm256_slli_epi64(pair, 32));
    __m256 low = _mm256_permutevar8x32_ps(values.low, index);
    __m256 high = _mm256_permutevar8x32_ps(values.high, index);
    __m256 is_high = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    _mm256_storeu_ps(to, _mm256_blendv_ps(low, high, is_high));
}
#endif

/* Numbers `at` to `at + count` of one block of NF4. */
INLINE void unpacked_nf4(const uint8_t *codes, size at, size count, float scale, number *to) {
    number values[16];
    SIMD for (size i = 0; i < 16; i++) put(values, i, NF4[i] * scale);
    if (at % 2 && count > 0)
        *to++ = values[codes[at++ / 2] & 15], count--;
    const uint8_t *pairs = codes + at / 2;
    size i = 0;
#ifdef LOOKED_UP
    Values all = values_at(values);
    for (; i + LOOKED_UP <= count; i += LOOKED_UP)
        look_up(pairs + i / 2, all, to + i);
#endif
    for (; i < count; i++)
        to[i] = values[i % 2 ? pairs[i / 2] & 15 : pairs[i / 2] >> 4];
}

/* Numbers `at` to `at + count` of the matrix, counted row after row. */
FUNCTION void unpacked(const Packed *packed, size at, size count, number *to) {
    if (packed->ggml) {
        unpacked_blocks(packed, at, count, to);
        return;
    }
    for (size stop = at + count; at < stop;) {
        size block = at / packed->block, here = least(stop, (block + 1) * packed->block) - at;
        float scale = scale_of(packed, block);
        if (packed->bits == 4)
            unpacked_nf4(packed->codes, at, here, scale, to);
        else {
            const int8_t *codes = (const int8_t *)packed->codes + at;
            SIMD for (size i = 0; i < here; i++)
                put(to, i, (float)codes[i] * scale * 7.874015718698502e-3f);
        }
        at += here, to += here;
    }
}
