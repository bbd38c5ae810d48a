// What one instruction set offers: the same steps, compiled for each from micro_kernel.h.
#pragma once
#include "format.h"

namespace pofa {

enum Activation : int { kIdentity = 0, kGeluErf = 1, kGeluTanh = 2 };

// Where activations are rounded to 8 bits, as FakeQuantize with 256 levels does: from low to high in 255 equal steps.
struct Range {
  float low, high;
  POFA_INLINE float step() const { return (high - low) / 255; }
  POFA_INLINE float per_step() const { return 255 / (high - low); }
};

// Sums of codes x codes as they should be: sum * scale + bias, both [rows]. Null: the matrix's own, of floats.
struct Affine {
  const float *scales, *biases;
};

// A panel is `vectors` vectors of tokens; its activations lie transposed, [columns][tokens], 64-byte aligned.
struct Kernel {
  const char* name;
  uint32_t lanes;        // tokens in a vector
  uint32_t max_vectors;  // in a panel
  uint32_t code_bytes;   // of a column in a panel of codes, however few the tokens

  // x [tokens][columns] -> panel [columns][width]; width is a multiple of lanes, missing tokens are zero.
  // odd [width]: not zero for a token with a NaN or an infinity.
  void (*load_panel)(const float* x, uint32_t tokens, uint32_t columns, uint32_t width, float* panel, float* odd);

  // sums [rows of the group, rounded up to 4][width] = codes of one group of rows x panel.
  void (*multiply)(const Matrix& matrix, uint32_t group, const float* panel, uint32_t width, float* sums);

  // In place: sums * scale + bias, then the activation. odd: as above, or null. codes: see multiply_codes, or null.
  void (*finish)(const Matrix& matrix, uint32_t group, Activation activation, const Affine* codes, uint32_t width,
                 float* sums, float* odd);

  // sums [rows][width] -> y [tokens][stride], transposed.
  void (*store)(const float* sums, uint32_t rows, uint32_t width, uint32_t tokens, float* y, size_t stride);

  // rounded [n]: of each value the nearest that `range` has; n is a multiple of lanes. May be done in place.
  void (*fake_quantize)(const float* values, size_t n, Range range, float* rounded);

  // Products of 8-bit codes, exact, for 4x1 matrices of codes; both null where the processor has none.
  // panel [columns][width] -> codes [columns][code_bytes], in an order of tokens that multiply_codes undoes; it may read
  // 256 columns behind the last.
  void (*quantize)(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes);
  // As multiply; the sums are int32, which finish makes floats.
  void (*multiply_codes)(const Matrix& matrix, uint32_t group, const uint8_t* codes, uint32_t width, float* sums);
};

extern const Kernel kScalar;
#if defined(__x86_64__)
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kVnni;
#ifdef POFA_AVXVNNI  // compilers since GCC 11 know it
extern const Kernel kAvxVnni;
#endif
#endif

// The fastest that this processor runs. PRUNEOFA_ISA=scalar|avx2|avxvnni|avx512|vnni takes a slower one; what cannot run is ignored.
const Kernel& best_kernel();
// Null if there is none of that name or this processor cannot run it.
const Kernel* kernel_named(const char* name);

}  // namespace pofa
