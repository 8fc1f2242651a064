// Values for initial states. See values.c.
#pragma once
#include "tests/diff/random.h"
#include "tests/diff/side.h"

void values_fill(struct rng *r, uint8_t *p, unsigned n); // one kind of value throughout; n up to a register
void values_fpu(struct rng *r, struct diff_fpu *f);
void values_fpu_control(struct rng *r, struct diff_fpu *f); // MXCSR, FCW, FSW, FTW only
void values_memory(struct rng *r, uint8_t *p, unsigned n);
