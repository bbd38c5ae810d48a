// AVX2 with VNNI, which processors have that lack AVX-512: that of AVX2, and products of 8-bit codes.
#include <immintrin.h>
#define LANES 8
#define NAME "avxvnni"
#define KERNEL kAvxVnni
#define VECTORS_4X1 2
#define VNNI
#include "micro_kernel.h"
