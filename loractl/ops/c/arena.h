/* Working memory of a call, allocated contiguously; without a base, sizes are only counted. */

#pragma once

#include "real.h"

typedef struct {
    float *base;
    size used; /* floats */
} Arena;

static float *floats(Arena *arena, size count) {
    float *at = arena->base ? arena->base + arena->used : NULL;
    arena->used += up_to(count, 16);
    return at;
}

static number *numbers(Arena *arena, size count) {
    return (number *)floats(arena, up_to(count, DEEP) / DEEP);
}
