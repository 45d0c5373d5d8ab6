/* Numbers of a matrix as NF4: what quant/nf4.py computes with torch, without temporary copies. */

#include "packed.h"

#define BLOCK 64

/* The largest absolute value of a block; not finite if one of its numbers is not. */
static float largest_of(const float *block, size count) {
    int32_t most_bits = 0; /* of numbers without their sign, which are ordered as integers are */
    for (size i = 0; i < count; i++) {
        int32_t bits;
        memcpy(&bits, block + i, sizeof bits);
        bits &= 0x7fffffff;
        most_bits = bits > most_bits ? bits : most_bits;
    }
    float found;
    memcpy(&found, &most_bits, sizeof found);
    return found;
}

/* A number between two values gets the nearer one, and the lower one if it is in the middle. */
static void pack_block(const number *from, size count, float *scale, uint8_t *codes) {
    float block[BLOCK] = {0};
    int32_t found[BLOCK] = {0};
    for (size i = 0; i < count; i++)
        block[i] = get(from, i);
    float largest = largest_of(block, count), floor = largest < 1e-38f ? 1e-38f : largest;
    *scale = count == BLOCK ? largest : floor;
    if (count == BLOCK)
        SIMD for (size i = 0; i < BLOCK; i++) block[i] *= 1.0f / floor;
    else /* as bitsandbytes does with the last block */
        for (size i = 0; i < count; i++)
            block[i] /= floor;
    for (size k = 0; k < 15; k++) {
        float middle = (NF4[k] + NF4[k + 1]) / 2;
        SIMD for (size i = 0; i < BLOCK; i++) found[i] += block[i] > middle;
    }
    for (size i = 0; i < count; i += 2)
        codes[i / 2] = found[i] << 4 | found[i + 1];
}

/* Numbers 0 to count, counted row after row: a scale for each 64 of them, two codes a byte. */
void pack_nf4(const number *from, size count, float *scales, uint8_t *codes, int threads) {
    size blocks = (count + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size b = 0; b < blocks; b++)
        pack_block(from + b * BLOCK, least(BLOCK, count - b * BLOCK), scales + b,
                   codes + b * BLOCK / 2);
}
