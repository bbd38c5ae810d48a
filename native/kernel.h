// Interface of the kernels: the same functions for each instruction set, all compiled from micro_kernel.h.
#pragma once
#include "format.h"

namespace pofa {

enum Activation : int { kIdentity = 0, kGeluErf = 1, kGeluTanh = 2 };

// Range of 8-bit activations: 256 levels from low to high, in 255 equal steps, as in FakeQuantize.
struct Range {
  float low, high;
  POFA_INLINE float step() const { return (high - low) / 255; }
  POFA_INLINE float inverse_step() const { return 255 / (high - low); }
};

// Converts sums of code products to outputs: sum * scale + bias, both [rows]. Null: sums of float products, to which the
// matrix's own scales and biases apply.
struct Affine {
  const float *scales, *biases;
};

// Functions of one instruction set. A panel is a few vectors of tokens, stored transposed: [columns][tokens], 64-byte aligned.
struct Kernel {
  const char* name;
  uint32_t lanes;        // tokens per vector
  uint32_t max_vectors;  // vectors per panel, at most
  uint32_t code_bytes;   // bytes per column of a panel of codes, whatever the number of tokens

  // x [tokens][columns] -> panel [columns][width]; width is a multiple of lanes, missing tokens are zero.
  // non_finite [width]: not zero for a token with a NaN or an infinity.
  void (*load_panel)(const float* x, uint32_t tokens, uint32_t columns, uint32_t width, float* panel, float* non_finite);

  // sums [rows of the group, rounded up to 4][width] = stored values of one group of rows x panel.
  void (*multiply)(const Matrix& matrix, uint32_t group, const float* panel, uint32_t width, float* sums);

  // In place: sums * scale + bias, then the activation. non_finite: as above, or null. affine: for sums of multiply_codes, else
  // null.
  void (*epilogue)(const Matrix& matrix, uint32_t group, Activation activation, const Affine* affine, uint32_t width,
                   float* sums, float* non_finite);

  // sums [rows][width] -> y [tokens][stride], transposed.
  void (*store)(const float* sums, uint32_t rows, uint32_t width, uint32_t tokens, float* y, size_t stride);

  // quantized [n]: each value rounded to the nearest level of `range`; n is a multiple of lanes. In-place operation is allowed.
  void (*fake_quantize)(const float* values, size_t n, Range range, float* quantized);

  // Exact products of 8-bit codes, for 4x1 INT8 matrices; both functions are null for instruction sets without them.
  // panel [columns][width] -> codes [columns][code_bytes], with the tokens in an order that multiply_codes reverts.
  // multiply_codes may read 256 columns past the last.
  void (*quantize)(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes);
  // Same as multiply, but the sums are int32; epilogue converts them to float.
  void (*multiply_codes)(const Matrix& matrix, uint32_t group, const uint8_t* codes, uint32_t width, float* sums);
};

extern const Kernel kScalar;
#if defined(__x86_64__)
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kVnni;
#ifdef POFA_AVXVNNI  // supported since GCC 11
extern const Kernel kAvxVnni;
#endif
#endif

// Kernels of the fastest instruction set that this CPU supports. PRUNEOFA_ISA=scalar|avx2|avxvnni|avx512|vnni selects a slower
// one; unsupported values are ignored.
const Kernel& best_kernel();
// Null if the name is unknown or this CPU does not support the instruction set.
const Kernel* kernel_named(const char* name);

}  // namespace pofa
