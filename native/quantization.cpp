// Conversion of sums of 8-bit codes to outputs.
#include <cmath>

#include "layer.h"

namespace pofa {

// An activation is low + step * code, so a product is step * (sum of weight * code) + low * (sum of weights): `step` goes into
// the scales and `low` into the biases.
InputQuantization make_input_quantization(const Matrix& m, Range range) {
  InputQuantization result{range, std::vector<float>(m.rows()), std::vector<float>(m.rows())};
  std::vector<double> weight_sums(m.rows(), 0);
  for_each_value(m, [&](uint32_t row, uint32_t, uint64_t at) { weight_sums[row] += stored_value(m, at); });
  for (uint32_t i = 0; i < m.rows(); ++i) {
    const float scale = read_at<float>(m.scales, i);
    result.scales[i] = scale * range.step();
    result.biases[i] = float(read_at<float>(m.biases, i) + weight_sums[i] * scale * range.low);
  }
  return result;
}

bool is_valid_range(Range range) {
  return range.step() > 0 && range.step() < INFINITY && range.inverse_step() < INFINITY;
}

bool fits_integer_products(const Matrix& m) {
  return m.header.value_type == kI8 && m.header.block_rows == 4 && m.columns() <= (1u << 31) / (255 * 128);
}

}  // namespace pofa
