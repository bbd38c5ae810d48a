// A packed matrix together with the arithmetic of its products: floats, floats rounded to 8-bit levels, or 8-bit codes.
#pragma once
#include <vector>

#include "format.h"
#include "kernel.h"

namespace pofa {

// Whether a range has a width, and steps that are floats.
bool is_valid(Range range);

// Products of codes whose sum fits in 32 bits.
constexpr uint32_t kMostCodes = (1u << 31) / (255 * 128);

class Projection {
 public:
  // Validates a packed matrix; it is read in place.
  Error open(const void* blob, size_t size, const Kernel& kernel);

  // Quantizes the input activations to the 256 levels of a range. INT8 matrices are then multiplied as codes, if the
  // instruction set has such products.
  Error quantize_input(Range range);

  const Matrix& matrix() const { return matrix_; }
  bool quantized() const { return quantized_; }
  Range range() const { return range_; }
  bool has_same_operand(const Projection& other) const;

  // Size of the operand, the input activations as the products read them, in floats.
  size_t operand_size(uint32_t width) const;
  // Converts a panel [columns][width] to the operand, which is the panel itself if nothing has to be converted.
  const float* operand(const float* panel, uint32_t width, float* buffer) const;

  size_t sums_size(uint32_t width) const { return size_t(matrix_.header.group_rows + 4) * width; }
  // sums [rows of the group, rounded up to 4][width] = activation(W x + bias). marks: see Kernel::epilogue.
  void multiply(uint32_t group, Activation activation, const float* operand, uint32_t width, float* sums, float* marks) const;
  // The same, but the result is written to its place in the operand of the matrix that follows. sums: sums_size(width) floats.
  void multiply_for(const Projection& next, uint32_t group, Activation activation, const float* operand,
                    uint32_t width, float* sums, float* next_operand, float* marks) const;

 private:
  Affine affine() const { return {scales_.data(), biases_.data()}; }
  void sum_group(uint32_t group, const float* operand, uint32_t width, float* sums) const;

  const Kernel* kernel_ = nullptr;
  const CodeKernel* codes_ = nullptr;  // null: products of floats
  Matrix matrix_ = {};
  bool quantized_ = false;
  Range range_ = {0, 0};
  std::vector<float> scales_, biases_;  // [rows], for sums of code products
};

}  // namespace pofa
