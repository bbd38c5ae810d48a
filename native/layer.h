// A layer: matrices that are read where they lie, and how they follow each other.
#pragma once
#include <vector>

#include "format.h"
#include "kernel.h"

namespace pofa {

// A matrix's activations in 8 bits.
struct Rounding {
  Range range;
  std::vector<float> scales, biases;  // [rows], for sums of codes
  Affine affine() const { return {scales.data(), biases.data()}; }
};

// Without its row's scale.
float value_of(const Matrix& m, uint64_t i);

// Calls f(row, column, at) for each value stored, padding (zeros) included; `at` is its number among them.
template <typename F>
void each_value(const Matrix& m, F&& f) {
  const bool pairs = m.header.block_rows == 1;
  uint64_t entry = 0, unit = 0;
  for (uint32_t group = 0; group < m.groups_count(); ++group)
    for (uint32_t block = 0; block < m.blocks_count(); ++block)
      for (uint32_t u = 0; u < m.units_in_group(group); ++u, ++unit) {
        const uint32_t count = read_at<uint16_t>(m.counts, unit), wide = m.rows_of_unit();
        for (uint32_t e = 0; e < count; ++e)
          for (uint32_t j = 0; j < wide; ++j) {
            const uint64_t at = pairs ? entry + 2 * e + j : (entry + e) * 4 + j;
            const uint32_t row = group * m.header.group_rows + m.row(unit, j);
            const uint32_t column = block * m.header.block_columns + m.indices[pairs ? at : entry + e];
            if (row < m.rows()) f(row, column, at);
          }
        entry += uint64_t(count) * (pairs ? 2 : 1);
      }
}

}  // namespace pofa

struct pofa_layer {
  std::vector<pofa::Matrix> matrices;
  bool chain = false;
  pofa::Activation activation = pofa::kIdentity;
  const pofa::Kernel* kernel = nullptr;
  std::vector<pofa::Rounding> roundings;  // none, or one for each matrix
  bool codes = false;                     // products of codes, not of floats

  bool same_input(size_t i, size_t j) const {
    if (roundings.empty()) return true;
    const pofa::Range &a = roundings[i].range, &b = roundings[j].range;
    return a.low == b.low && a.high == b.high;
  }
};

namespace pofa {

// What the dense products give for one token: for those with a NaN or an infinity, which are rare and must not be fast.
void exactly(const pofa_layer& layer, const float* x, size_t token, float* const* y);

}  // namespace pofa
