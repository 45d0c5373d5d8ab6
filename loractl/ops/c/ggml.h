/* Numbers of weights in the blocks of GGUF files, as ops/ggml_blocks.py says: 32 at a time, which is
   a block or one of eight pieces of it. No product here has more than 23 significant bits, so it
   does not matter whether the compiler fuses it with a sum. */

#pragma once

#include "calls.h"
#include "panels.h"

#define PIECE 32

/* float16 to float32, without arithmetic on numbers that a processor may have been told to flush. */
INLINE float half_at(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, sizeof half);
    uint32_t magnitude = half & 0x7fff, sign = (uint32_t)(half & 0x8000) << 16;
    if (magnitude < 0x0400) /* below the smallest normal one: in steps of 2^-24 */
        return from_bits(to_bits((float)magnitude * 5.9604644775390625e-8f) | sign);
    uint32_t exponent = magnitude < 0x7c00 ? 112u << 23 : 224u << 23; /* infinite or no number */
    return from_bits(((magnitude << 13) + exponent) | sign);
}

/* Codes of four bits, those of the lower halves first. */
#define EACH_OF_TWO(to, low, high)                                                                 \
    SIMD for (size i = 0; i < PIECE / 2; i++) to[i] = low, to[i + PIECE / 2] = high

FUNCTION void q4_0(const uint8_t *block, size piece, float *to) {
    (void)piece;
    const uint8_t *codes = block + 2;
    float scale = half_at(block);
    EACH_OF_TWO(to, (float)((codes[i] & 15) - 8) * scale, (float)((codes[i] >> 4) - 8) * scale);
}

FUNCTION void q4_1(const uint8_t *block, size piece, float *to) {
    (void)piece;
    const uint8_t *codes = block + 4;
    float scale = half_at(block), low = half_at(block + 2);
    EACH_OF_TWO(to, (float)(codes[i] & 15) * scale + low, (float)(codes[i] >> 4) * scale + low);
}

/* The fifth bits of codes of five. */
INLINE uint32_t fifth_bits(const uint8_t *at) {
    uint32_t bits;
    memcpy(&bits, at, sizeof bits);
    return bits;
}
#define LOW_OF_FIVE(i) (int32_t)((codes[i] & 15) | (bits >> (i) & 1) << 4)
#define HIGH_OF_FIVE(i) (int32_t)((codes[i] >> 4) | (bits >> ((i) + PIECE / 2) & 1) << 4)

FUNCTION void q5_0(const uint8_t *block, size piece, float *to) {
    (void)piece;
    const uint8_t *codes = block + 6;
    uint32_t bits = fifth_bits(block + 2);
    float scale = half_at(block);
    EACH_OF_TWO(to, (float)(LOW_OF_FIVE(i) - 16) * scale, (float)(HIGH_OF_FIVE(i) - 16) * scale);
}

FUNCTION void q5_1(const uint8_t *block, size piece, float *to) {
    (void)piece;
    const uint8_t *codes = block + 8;
    uint32_t bits = fifth_bits(block + 4);
    float scale = half_at(block), low = half_at(block + 2);
    EACH_OF_TWO(to, (float)LOW_OF_FIVE(i) * scale + low, (float)HIGH_OF_FIVE(i) * scale + low);
}

FUNCTION void q8_0(const uint8_t *block, size piece, float *to) {
    (void)piece;
    const int8_t *codes = (const int8_t *)block + 2;
    float scale = half_at(block);
    SIMD for (size i = 0; i < PIECE; i++) to[i] = (float)codes[i] * scale;
}

FUNCTION void iq4_nl(const uint8_t *block, size piece, float *to) {
    static const int8_t VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
    (void)piece;
    const uint8_t *codes = block + 2;
    float scale = half_at(block);
    EACH_OF_TWO(to, (float)VALUES[codes[i] & 15] * scale, (float)VALUES[codes[i] >> 4] * scale);
}

/* Blocks of 256: pieces 0 to 3 are in the first half of the codes, 4 to 7 in the second; of codes in
   two bits, piece p has bits 2 (p % 4) of each byte there. */

FUNCTION void q2_k(const uint8_t *block, size piece, float *to) {
    const uint8_t *codes = block + 16 + piece / 4 * PIECE;
    int shift = (int)(piece % 4 * 2);
    float scale = half_at(block + 80), low = half_at(block + 82);
    for (size part = 0; part < 2; part++, to += 16, codes += 16) {
        uint8_t both = block[2 * piece + part];
        float d = scale * (float)(both & 15), m = low * (float)(both >> 4);
        SIMD for (size i = 0; i < 16; i++) to[i] = d * (float)(codes[i] >> shift & 3) - m;
    }
}

FUNCTION void q3_k(const uint8_t *block, size piece, float *to) {
    const uint8_t *codes = block + 32 + piece / 4 * PIECE, *third = block;
    const uint8_t *low = block + 96, *high = block + 104;
    int shift = (int)(piece % 4 * 2);
    for (size part = 0; part < 2; part++, to += 16, codes += 16, third += 16) {
        size s = 2 * piece + part;
        int scale = (low[s % 8] >> s / 8 * 4 & 15) | (high[s % 4] >> s / 4 * 2 & 3) << 4;
        float d = half_at(block + 108) * (float)(scale - 32);
        SIMD for (size i = 0; i < 16; i++)
            to[i] = d * (float)((codes[i] >> shift & 3) + (third[i] >> piece & 1) * 4 - 4);
    }
}

/* The scale and the low of a piece of q4_k and q5_k, in six bits each. */
INLINE void six_bits(const uint8_t *block, size piece, float *scale, float *low) {
    const uint8_t *at = block + 4;
    int s = at[piece & 3], m = at[4 + (piece & 3)], rest = at[8 + (piece & 3)];
    int is_late = piece >= 4;
    *scale = half_at(block) * (float)(is_late ? (rest & 15) | s >> 6 << 4 : s & 63);
    *low = half_at(block + 2) * (float)(is_late ? rest >> 4 | m >> 6 << 4 : m & 63);
}

FUNCTION void q4_k(const uint8_t *block, size piece, float *to) {
    const uint8_t *codes = block + 16 + piece / 2 * PIECE;
    int shift = (int)(piece % 2 * 4);
    float scale, low;
    six_bits(block, piece, &scale, &low);
    SIMD for (size i = 0; i < PIECE; i++) to[i] = scale * (float)(codes[i] >> shift & 15) - low;
}

FUNCTION void q5_k(const uint8_t *block, size piece, float *to) {
    const uint8_t *codes = block + 48 + piece / 2 * PIECE, *fifth = block + 16;
    int shift = (int)(piece % 2 * 4);
    float scale, low;
    six_bits(block, piece, &scale, &low);
    SIMD for (size i = 0; i < PIECE; i++)
        to[i] = scale * (float)((codes[i] >> shift & 15) | (fifth[i] >> piece & 1) << 4) - low;
}

FUNCTION void q6_k(const uint8_t *block, size piece, float *to) {
    size half = piece / 4, quarter = piece % 4;
    const uint8_t *low = block + half * 64 + quarter % 2 * PIECE, *high = block + 128 + half * 32;
    const int8_t *scales = (const int8_t *)block + 192 + 2 * piece;
    int of_low = (int)(quarter / 2 * 4), of_high = (int)(quarter * 2);
    for (size part = 0; part < 2; part++, to += 16, low += 16, high += 16) {
        float d = half_at(block + 208) * (float)scales[part];
        SIMD for (size i = 0; i < 16; i++)
            to[i] = d * (float)(((low[i] >> of_low & 15) | (high[i] >> of_high & 3) << 4) - 32);
    }
}

/* By the number of their ggml_type. */
static const struct {
    void (*piece)(const uint8_t *block, size piece, float *to);
    size bytes, shift; /* of a block; log2 of its numbers */
} KINDS[] = {
    [2] = {q4_0, 18, 5},  [3] = {q4_1, 20, 5},   [6] = {q5_0, 22, 5},  [7] = {q5_1, 24, 5},
    [8] = {q8_0, 34, 5},  [10] = {q2_k, 84, 8},  [11] = {q3_k, 110, 8}, [12] = {q4_k, 144, 8},
    [13] = {q5_k, 176, 8}, [14] = {q6_k, 210, 8}, [20] = {iq4_nl, 18, 5},
};

/* Numbers `at` to `at + count` of a matrix in blocks, counted row after row. */
FUNCTION void unpacked_blocks(const Packed *packed, size at, size count, number *to) {
    size shift = KINDS[packed->ggml].shift, bytes = KINDS[packed->ggml].bytes;
    for (size stop = at + count; at < stop;) {
        size first = at % PIECE, here = least(PIECE - first, stop - at);
        size piece = (at & ((1 << shift) - 1)) / PIECE;
        float numbers[PIECE];
        KINDS[packed->ggml].piece(packed->codes + (at >> shift) * bytes, piece, numbers);
        SIMD for (size i = 0; i < here; i++) put(to, i, numbers[first + i]);
        at += here, to += here;
    }
}
