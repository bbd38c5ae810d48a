#include "projection.h"

#include <cmath>

#include "layer.h"

namespace pofa {

bool is_valid(Range range) { return range.step() > 0 && range.step() < INFINITY && range.inverse_step() < INFINITY; }

Error Projection::open(const void* blob, size_t size, const Kernel& kernel) {
  kernel_ = &kernel;
  return open_matrix(blob, size, &matrix_);
}

// An activation is low + step * code, so a product is step * (sum of weight * code) + low * (sum of weights): `step` goes into
// the scales and `low` into the biases.
Error Projection::quantize_input(Range range) {
  if (!is_valid(range)) return kBadArgument;
  quantized_ = true;
  range_ = range;
  const Header& h = matrix_.header;
  if (h.value_type != kI8 || h.columns > kMostCodes) return kOk;
  codes_ = kernel_->codes;
  if (!codes_) return kOk;
  std::vector<double> weight_sums(h.rows, 0);
  for_each_value(matrix_, [&](uint32_t row, uint32_t, uint64_t at) { weight_sums[row] += stored_value(matrix_, at); });
  for (uint32_t i = 0; i < h.rows; ++i) {
    const float scale = read_at<float>(matrix_.scales, i);
    scales_.push_back(scale * range.step());
    biases_.push_back(float(read_at<float>(matrix_.biases, i) + weight_sums[i] * scale * range.low));
  }
  return kOk;
}

bool Projection::has_same_operand(const Projection& other) const {
  return quantized_ == other.quantized_ && codes_ == other.codes_ &&
         (!quantized_ || (range_.low == other.range_.low && range_.high == other.range_.high));
}

size_t Projection::operand_size(uint32_t width) const {
  if (codes_) return size_t(matrix_.columns()) * codes_->bytes_per_column / sizeof(float);
  return quantized_ ? size_t(matrix_.columns() + 4) * width : 0;
}

const float* Projection::operand(const float* panel, uint32_t width, float* buffer) const {
  if (codes_) codes_->quantize(panel, matrix_.columns(), width, range_, reinterpret_cast<uint8_t*>(buffer));
  else if (quantized_) kernel_->fake_quantize(panel, size_t(matrix_.columns()) * width, range_, buffer);
  else return panel;
  return buffer;
}

void Projection::sum_group(uint32_t group, const float* operand, uint32_t width, float* sums) const {
  if (codes_) codes_->multiply(matrix_, group, reinterpret_cast<const uint8_t*>(operand), width, sums);
  else kernel_->multiply(matrix_, group, operand, width, sums);
}

void Projection::multiply(uint32_t group, Activation activation, const float* operand, uint32_t width, float* sums,
                          float* marks) const {
  sum_group(group, operand, width, sums);
  const Affine to_output = affine();
  kernel_->epilogue(matrix_, group, activation, codes_ ? &to_output : nullptr, width, sums, marks);
}

void Projection::multiply_for(const Projection& next, uint32_t group, Activation activation, const float* operand,
                    uint32_t width, float* sums, float* next_operand, float* marks) const {
  const size_t row = size_t(group) * matrix_.header.group_rows;
  const uint32_t rows = matrix_.rows_in_group(group);
  if (next.codes_) {
    multiply(group, activation, operand, width, sums, marks);
    uint8_t* codes = reinterpret_cast<uint8_t*>(next_operand) + row * next.codes_->bytes_per_column;
    next.codes_->quantize(sums, rows, width, next.range_, codes);
    return;
  }
  float* to = next_operand + row * width;
  multiply(group, activation, operand, width, to, marks);
  if (next.quantized_) kernel_->fake_quantize(to, size_t(rows) * width, next.range_, to);
}

}  // namespace pofa
