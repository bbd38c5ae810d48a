// A layer: packed matrices, read in place, and how they are combined (side by side or chained).
#pragma once
#include <vector>

#include "format.h"
#include "kernel.h"
#include "projection.h"

namespace pofa {

// Value number i, not multiplied by its row's scale.
float stored_value(const Matrix& m, uint64_t i);

// Calls f(row, column, at) for each stored value, padding (zeros) included; `at` is the value's number.
template <typename F>
void for_each_value(const Matrix& m, F&& f) {
  const bool pairs = m.header.block_rows == 1;
  uint64_t entry = 0, unit = 0;
  for (uint32_t group = 0; group < m.group_count(); ++group)
    for (uint32_t block = 0; block < m.block_count(); ++block)
      for (uint32_t u = 0; u < m.units_in_group(group); ++u, ++unit) {
        const uint32_t count = read_at<uint16_t>(m.counts, unit), rows_per_unit = m.rows_per_unit();
        uint32_t column[2] = {0, 0};  // in the block, of each row of a pair; the first: of four rows
        for (uint32_t e = 0; e < count; ++e)
          for (uint32_t j = 0; j < rows_per_unit; ++j) {
            const uint64_t at = pairs          ? entry + m.place_in_pair(e, j)
                              : m.in_quads() ? entry * 4 + e / 4 * 16 + 4 * j + e % 4
                                              : (entry + e) * 4 + j;
            uint32_t& in_block = column[pairs ? j : 0];
            if (pairs || j == 0) in_block = m.indices[pairs ? at : entry + e] + (m.in_steps() ? in_block : 0);
            const uint32_t row = group * m.header.group_rows + m.row(unit, j);
            if (row < m.rows()) f(row, block * m.header.block_columns + in_block, at);
          }
        entry += uint64_t(count) * (pairs ? 2 : 1);
      }
}

}  // namespace pofa

struct pofa_layer {
  std::vector<pofa::Projection> projections;
  bool chain = false;
  pofa::Activation activation = pofa::kIdentity;
  const pofa::Kernel* kernel = nullptr;
};

namespace pofa {

// Computes one token as dense MatMuls do. Used for tokens with a NaN or an infinity, which are rare, so it is not optimised.
void reference_product(const pofa_layer& layer, const float* x, size_t token, float* const* y);

}  // namespace pofa
