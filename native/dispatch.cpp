// Choice of the kernels by CPU features and PRUNEOFA_ISA.
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "kernel.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pofa {

#ifdef POFA_AVXVNNI
// Queried by CPUID bit, because some compilers support the instructions but not the feature's name.
static bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4;
}
#endif

const Kernel* kernel_named(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
  if (!std::strcmp(name, "vnni")) return avx512 && __builtin_cpu_supports("avx512vnni") ? &kVnni : nullptr;
  if (!std::strcmp(name, "avx512")) return avx512 ? &kAvx512 : nullptr;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#ifdef POFA_AVXVNNI
  if (!std::strcmp(name, "avxvnni")) return avx2 && has_avx_vnni() ? &kAvxVnni : nullptr;
#endif
  if (!std::strcmp(name, "avx2")) return avx2 ? &kAvx2 : nullptr;
#endif
  return std::strcmp(name, "scalar") ? nullptr : &kScalar;
}

const Kernel& best_kernel() {
  static const Kernel* const best = [] {
    const char* requested = std::getenv("PRUNEOFA_ISA");
    if (const Kernel* kernel = requested ? kernel_named(requested) : nullptr) return kernel;
    for (const char* name : {"vnni", "avx512", "avxvnni", "avx2"})
      if (const Kernel* kernel = kernel_named(name)) return kernel;
    return &kScalar;
  }();
  return *best;
}

}  // namespace pofa
