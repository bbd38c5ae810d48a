// One token at a time, as the dense products do it, infinity times a zero weight included.
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

std::vector<float> product(const pofa_layer& layer, size_t i, std::vector<float> x) {
  const Matrix& m = layer.matrices[i];
  if (!layer.roundings.empty()) {
    const Range range = layer.roundings[i].range;
    for (float& v : x)  // infinities have a nearest step, NaN has none
      if (!std::isnan(v)) {
        const float steps = v * range.per_step() - range.low * range.per_step();
        v = std::nearbyint(std::min(std::max(steps, 0.f), 255.f)) * range.step() + range.low;
      }
  }
  const size_t strange = size_t(std::count_if(x.begin(), x.end(), [](float v) { return !std::isfinite(v); }));
  std::vector<size_t> met(m.rows(), 0);  // of a row's weights, those that are not zero and meet a NaN or an infinity
  std::vector<float> y(m.rows(), 0.f);
  each_value(m, [&](uint32_t row, uint32_t column, uint64_t at) {
    const float weight = value_of(m, at);
    if (weight == 0.f) return;
    y[row] += weight * x[column];
    met[row] += !std::isfinite(x[column]);
  });
  for (uint32_t r = 0; r < m.rows(); ++r) {
    y[r] = y[r] * read_at<float>(m.scales, r) + read_at<float>(m.biases, r);
    if (met[r] < strange) y[r] = NAN;  // somewhere a zero weight meets one
  }
  return y;
}

}  // namespace

float value_of(const Matrix& m, uint64_t i) {
  if (m.header.value_type == kI8) return float(int8_t(m.values[i]));
  return m.header.value_type == kF16 ? half_to_float(read_at<uint16_t>(m.values, i)) : read_at<float>(m.values, i);
}

void exactly(const pofa_layer& layer, const float* x, size_t token, float* const* y) {
  const size_t columns = layer.matrices[0].columns();
  const std::vector<float> in(x + token * columns, x + (token + 1) * columns);
  for (size_t i = 0; i < (layer.chain ? 1 : layer.matrices.size()); ++i) {
    std::vector<float> out = product(layer, i, in);
    for (float& v : out) v = activate(v, layer.activation);
    if (layer.chain) out = product(layer, 1, out);
    std::copy(out.begin(), out.end(), y[i] + token * out.size());
  }
}

}  // namespace pofa
