// What the operations of the OpenVINO extension share.
#pragma once
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include <cmath>
#include <locale>
#include <openvino/op/op.hpp>
#include <sstream>
#include <string>

#include "format.h"
#include "sparse_linear.h"

namespace pofa {

// Work is distributed in the TBB arena from which the plugin calls, so that the plugin's thread settings apply. Isolated,
// because a waiting thread that took tasks of another call would overwrite its own scratch buffers.
inline void parallel_in_caller_arena(size_t n, pofa_task task, void* context) {
  tbb::this_task_arena::isolate([&] {
    tbb::parallel_for(size_t(0), n, [&](size_t i) { task(context, i); }, tbb::simple_partitioner());
  });
}

inline uint32_t threads_of_caller_arena() {
  const int threads = tbb::this_task_arena::max_concurrency();
  return threads > 0 ? uint32_t(threads) : 1;
}

// Floats are stored as strings, because OpenVINO writes float attributes with six digits, which would change the codes of some
// activations. NaN for anything but a number.
inline float to_float(const std::string& text) {
  std::istringstream in(text);
  in.imbue(std::locale::classic());
  float value = NAN;
  return in >> value && (in >> std::ws).eof() ? value : NAN;
}

// Checks that this library reads the packed weights of an operation.
inline void check_format_version(const ov::Node* node, int64_t found) {
  NODE_VALIDATION_CHECK(node, found >= kOldestVersion && found <= kVersion, "packed weights: format version ", found,
                        ", this library reads versions ", kOldestVersion, " to ", kVersion,
                        found > kVersion ? ", rebuild it (pruneofa kernels build)" : ", export the model again");
}

// Number of an activation in the C interface; -1 if unknown.
inline int activation_number(const std::string& name) {
  const char* const names[] = {"none", "gelu_erf", "gelu_tanh", "relu"};
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) return i;
  return -1;
}

}  // namespace pofa
