// Kernels for AVX2 with FMA: sixteen registers hold sums of four vectors of two rows, or of two vectors of four rows.
#include <immintrin.h>
#define LANES 8
#define NAME "avx2"
#define KERNEL kAvx2
#define VECTORS_4X1 2
#include "micro_kernel.h"
