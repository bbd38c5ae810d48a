// Kernels for AVX-512F and AVX-512BW, with thirty-two registers.
#ifndef __clang__
// GCC warns about its own _mm512_undefined_ps (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#define LANES 16
#define NAME "avx512"
#define KERNEL kAvx512
#define VECTORS_4X1 4
#include "micro_kernel.h"
