// Interface of the kernels: the same functions for each instruction set, all compiled from micro_kernel.h.
#pragma once
#include "format.h"

namespace pofa {

enum Activation : int { kIdentity = 0, kGeluErf = 1, kGeluTanh = 2, kRelu = 3 };

constexpr uint32_t kMaxWidth = 64;  // tokens per panel, at most, with any instruction set
constexpr uint32_t kMaxTables = 8;  // of a sum of embeddings

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

// Keys and values of one head for `count` adjacent tokens of a panel: element (feature d, token t) is at [d * stride + t].
// Up to three features past the last and three tokens past `count` may be read.
struct KeyBlock {
  const float *keys, *values;
  uint32_t stride, count;
};

// Scale and offset of a LayerNorm, both [rows].
struct Norm {
  const float *scales, *offsets;
  float epsilon;
};

// Exact products of 8-bit codes with one instruction set, for INT8 matrices. A panel of codes takes bytes_per_column for each
// column, whatever the number of tokens; its layout is the kernel's own.
struct CodeKernel {
  uint32_t bytes_per_column;
  // panel [columns][width] -> codes
  void (*quantize)(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes);
  // Same as Kernel::multiply, but the sums are int32.
  void (*multiply)(const Matrix& matrix, uint32_t group, const uint8_t* codes, uint32_t width, float* sums);
};

// Functions of one instruction set. A panel is a few vectors of tokens, stored transposed: [columns][tokens], 64-byte aligned.
struct Kernel {
  const char* name;
  uint32_t lanes;        // tokens per vector
  uint32_t max_vectors;  // vectors per panel, at most

  // x: pointers to the activations [columns] of each token -> panel [columns][width]; width is a multiple of lanes, missing
  // tokens are zero. non_finite [width]: not zero for a token with a NaN or an infinity.
  void (*load_panel)(const float* const* x, uint32_t tokens, uint32_t columns, uint32_t width, float* panel,
                     float* non_finite);

  // sums [rows of the group, rounded up to 4][width] = stored values of one group of rows x panel.
  void (*multiply)(const Matrix& matrix, uint32_t group, const float* panel, uint32_t width, float* sums);

  // In place: sums * scale + bias, then the activation. non_finite: NaN is added for a token with a NaN or an infinity; may be
  // null. affine: for sums of codes, else null.
  void (*epilogue)(const Matrix& matrix, uint32_t group, Activation activation, const Affine* affine, uint32_t width,
                   float* sums, float* non_finite);

  // sums [rows][width] -> y[token] + offset [rows], transposed.
  void (*store)(const float* sums, uint32_t rows, uint32_t width, uint32_t tokens, float* const* y, size_t offset);

  // quantized [n]: each value rounded to the nearest level of `range`; n is a multiple of lanes. In-place operation is allowed.
  void (*fake_quantize)(const float* values, size_t n, Range range, float* quantized);

  const CodeKernel* codes;  // null for instruction sets without products of codes

  // In-place conversion of one head's queries and keys, [head_size][width] floats, head_size >= 4, to codes for attend_codes.
  // All three are null for instruction sets without dot products of four codes.
  void (*queries_to_codes)(float* queries, uint32_t head_size, uint32_t width, Range range);
  void (*keys_to_codes)(float* keys, uint32_t head_size, uint32_t width, Range query_range, Range key_range);

  // One head's attention: context = softmax(scale * queries keys^T) values for tokens first .. last - 1 of a panel. queries and
  // context: [head_size][width], may be the same. scratch: attention_scratch(head_size) floats.
  void (*attend)(const float* queries, uint32_t width, uint32_t first, uint32_t last, uint32_t head_size, float scale,
                 const KeyBlock* blocks, size_t block_count, float* scratch, float* context);
  // The same for queries and keys in codes; scale is multiplied by the steps of both ranges.
  void (*attend_codes)(const float* queries, uint32_t width, uint32_t first, uint32_t last, uint32_t head_size, float scale,
                       const KeyBlock* blocks, size_t block_count, float* scratch, float* context);

  // out [rows][width] = LayerNorm over the rows of values + residual; `poison` [width] is added to every row. `values` is
  // overwritten; out may be the residual.
  void (*add_and_normalize)(float* values, const float* residual, const float* poison, uint32_t rows, uint32_t width, Norm norm,
                            float* out);

  // out [hidden] = LayerNorm over the sum of rows[k] [hidden] * scales[k].
  void (*embed)(const int8_t* const* rows, const float* scales, uint32_t count, uint32_t hidden, Norm norm, float* out);

  // Adds NaN to marks [width] of tokens that have a NaN, or an infinity unless nan_only.
  void (*mark_non_finite)(const float* panel, uint32_t rows, uint32_t width, bool nan_only, float* marks);
};

constexpr uint32_t attention_scratch(uint32_t head_size) { return (head_size + 4 + kMaxWidth) * kMaxWidth; }

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
