// The C interface of the sum of embeddings.
#include "embeddings.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernel.h"
#include "work.h"

using namespace pofa;

namespace {

constexpr size_t kTokensPerTask = 16;

// Row of the table for an index; null outside of it.
const int8_t* row_of(const pofa_table& table, int64_t index, uint32_t hidden, float* scale) {
  if (index < 0) index += int64_t(table.rows);
  if (index < 0 || uint64_t(index) >= table.rows) return nullptr;
  *scale = table.scales[index];
  return table.codes + size_t(index) * hidden;
}

}  // namespace

int pofa_embed(const pofa_table* tables, uint32_t count, uint32_t hidden, const float* norm_scales, const float* norm_offsets,
               float epsilon, const uint8_t* mask, size_t batch, size_t length, float* y, pofa_parallel_for parallel,
               uint32_t threads, const char* isa) {
  const Kernel* kernel = isa ? kernel_named(isa) : &best_kernel();
  if (!kernel || count < 1 || count > kMaxTables || hidden < 1 || !(epsilon >= 0) || !(epsilon < INFINITY))
    return kBadArgument;
  for (uint32_t k = 0; k < count; ++k)
    if (tables[k].rows > uint64_t(INT32_MAX) || (tables[k].index_stride && tables[k].index_stride != length))
      return kBadArgument;
  const size_t tokens = batch * length;
  auto embed = [&](size_t task) {
    const size_t end = std::min(tokens, (task + 1) * kTokensPerTask);
    for (size_t at = task * kTokensPerTask; at < end; ++at) {
      float* const out = y + at * hidden;
      if (mask && !mask[at]) {
        std::memset(out, 0, hidden * sizeof(float));
        continue;
      }
      const int8_t* rows[kMaxTables];
      float scales[kMaxTables];
      uint32_t found = 0;
      for (uint32_t k = 0; k < count; ++k) {
        const size_t place = tables[k].index_stride ? at : at % length;
        rows[found] = row_of(tables[k], tables[k].indices[place], hidden, &scales[found]);
        found += rows[found] != nullptr;
      }
      kernel->embed(rows, scales, found, hidden, {norm_scales, norm_offsets, epsilon}, out);
    }
  };
  run_parallel(threads > 1 ? parallel : nullptr, (tokens + kTokensPerTask - 1) / kTokensPerTask, embed);
  return kOk;
}
