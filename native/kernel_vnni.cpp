// AVX-512 with VNNI: that of AVX-512F, and products of 8-bit codes.
#ifndef __clang__
// GCC complains of its own _mm512_undefined_ps (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#define LANES 16
#define NAME "vnni"
#define KERNEL kVnni
#define VECTORS_4X1 4
#define VNNI
#include "micro_kernel.h"
