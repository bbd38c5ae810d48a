// Kernels for AVX2 with VNNI, found in CPUs without AVX-512: those for AVX2, with faster products of 8-bit codes.
#include <immintrin.h>
#define LANES 8
#define NAME "avxvnni"
#define KERNEL kAvxVnni
#define VECTORS_4X1 2
#define VNNI
#include "micro_kernel.h"
