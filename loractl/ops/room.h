/* Where what a call works with is put, one behind the other; without a base it is only counted. */

#pragma once

#include "real.h"

typedef struct {
    float *base;
    size used; /* floats */
} Room;

static float *floats(Room *room, size count) {
    float *at = room->base ? room->base + room->used : NULL;
    room->used += up_to(count, 16);
    return at;
}

static number *numbers(Room *room, size count) {
    return (number *)floats(room, up_to(count, DEEP) / DEEP);
}
