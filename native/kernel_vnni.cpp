// Kernels for AVX-512 with VNNI: those for AVX-512, with faster products of 8-bit codes.
#ifndef __clang__
// GCC warns about its own _mm512_undefined_ps (GCC bug 105593).
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
