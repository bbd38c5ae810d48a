// Reference computation of one token, with the results of dense MatMuls: infinity times a zero weight is NaN.
#include <algorithm>
#include <cmath>

#include "layer.h"

namespace pofa {
namespace {

float activate(float v, Activation activation) {
  if (activation == kGeluErf) return v * 0.5f * (1.f + std::erf(v * 0.70710678f));
  if (activation == kGeluTanh) return v * 0.5f * (1.f + std::tanh(0.79788456f * (v + 0.044715f * v * v * v)));
  return v;
}

std::vector<float> matmul(const pofa_layer& layer, size_t i, std::vector<float> x) {
  const Matrix& m = layer.projections[i].matrix();
  if (layer.projections[i].quantized()) {
    const Range range = layer.projections[i].range();
    for (float& v : x)  // infinities have a nearest level, NaN has none
      if (!std::isnan(v)) {
        const float steps = v * range.inverse_step() - range.low * range.inverse_step();
        v = std::nearbyint(std::min(std::max(steps, 0.f), 255.f)) * range.step() + range.low;
      }
  }
  const size_t non_finite_inputs = size_t(std::count_if(x.begin(), x.end(), [](float v) { return !std::isfinite(v); }));
  std::vector<size_t> non_finite_terms(m.rows(), 0);  // per row: non-zero weights that are multiplied by a NaN or an infinity
  std::vector<float> y(m.rows(), 0.f);
  for_each_value(m, [&](uint32_t row, uint32_t column, uint64_t at) {
    const float weight = stored_value(m, at);
    if (weight == 0.f) return;
    y[row] += weight * x[column];
    non_finite_terms[row] += !std::isfinite(x[column]);
  });
  for (uint32_t r = 0; r < m.rows(); ++r) {
    y[r] = y[r] * read_at<float>(m.scales, r) + read_at<float>(m.biases, r);
    if (non_finite_terms[r] < non_finite_inputs) y[r] = NAN;  // a zero weight is multiplied by a NaN or an infinity
  }
  return y;
}

}  // namespace

float stored_value(const Matrix& m, uint64_t i) {
  if (m.header.value_type == kI8) return float(int8_t(m.values[i]));
  return m.header.value_type == kF16 ? half_to_float(read_at<uint16_t>(m.values, i)) : read_at<float>(m.values, i);
}

void reference_product(const pofa_layer& layer, const float* x, size_t token, float* const* y) {
  const size_t columns = layer.projections[0].matrix().columns();
  const std::vector<float> in(x + token * columns, x + (token + 1) * columns);
  for (size_t i = 0; i < (layer.chain ? 1 : layer.projections.size()); ++i) {
    std::vector<float> out = matmul(layer, i, in);
    for (float& v : out) v = activate(v, layer.activation);
    if (layer.chain) out = matmul(layer, 1, out);
    std::copy(out.begin(), out.end(), y[i] + token * out.size());
  }
}

}  // namespace pofa
