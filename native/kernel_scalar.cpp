// Kernels for any CPU: portable code that the compiler may vectorise for its baseline.
#define LANES 4
#define NAME "scalar"
#define KERNEL kScalar
#define VECTORS_4X1 2
#include "micro_kernel.h"
