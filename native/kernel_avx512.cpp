// AVX-512F: thirty-two registers.
#ifndef __clang__
// GCC complains of its own _mm512_undefined_ps (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#define LANES 16
#define NAME "avx512"
#define KERNEL kAvx512
#define VECTORS_4X1 4
#include "micro_kernel.h"
