// Exact products of 8-bit codes: signed weights of a 4x1 matrix times unsigned activations, accumulated in 32 bits.
// Included by micro_kernel.h inside its namespace.
//
// One instruction computes a dot product over several columns for each token, so the codes of these columns must be
// adjacent for each token. Every block of four rows keeps different columns, so shuffles gather them on the fly. Four rows
// share the cost of the shuffles: that is why this is faster for 4x1 blocks, but not for single rows.

typedef decltype(MM_INT(setzero)()) byte_vec;

inline ivec load_sums(const float* sums) {
  ivec v;
  __builtin_memcpy(&v, sums, sizeof v);
  return v;
}
inline byte_vec load_bytes(const uint8_t* p) { return MM_INT(loadu)(reinterpret_cast<const byte_vec*>(p)); }
inline void store_bytes(uint8_t* p, byte_vec v) { MM_INT(storeu)(reinterpret_cast<byte_vec*>(p), v); }

// Each instruction set defines:
//   kColumnsPerDot: columns that one instruction sums up
//   kVectorsPerPass: vectors of tokens for which the sums of four rows fit in registers
//   kCodeBytes: bytes per column of a panel of codes
//   quantize_values: quantizes value(column, vector of tokens) to a panel of codes
//   interleave_columns: reorders a unit's codes from four rows of one column to kColumnsPerDot columns of one row, 32 bits
//     per instruction. Columns missing at the end are filled with zeros.
//   gather_columns: codes of kColumnsPerDot columns for P vectors of tokens, starting at vector FROM
//   dot_accumulate: sums + tokens * weights
#ifdef VNNI
#include "codes_vnni.h"
#else
#include "codes_pairs.h"
#endif

// Processes P of the R vectors of tokens, starting at vector FROM.
template <int R, int FROM, int P>
inline void multiply_block(const int32_t* interleaved, const uint8_t* indices, uint32_t count, const uint8_t* block, bool first,
                           float* sums) {
  constexpr uint32_t width = R * LANES;
  sums += FROM * LANES;
  ivec s[4][P];
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) s[j][r] = first ? ivec{} : load_sums(sums + j * width + r * LANES);
  for (uint32_t i = 0; i < count; i += kColumnsPerDot, interleaved += 4) {
    ivec tokens[P];
    // After the last column, indices of other units are read; their weights are zero here.
    gather_columns<FROM, P>(block, indices + i, tokens);
    for (int j = 0; j < 4; ++j) {
      const ivec weights = (ivec)MM(set1_epi32)(interleaved[j]);
      for (int r = 0; r < P; ++r) s[j][r] = dot_accumulate(s[j][r], tokens[r], weights);
    }
  }
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) store_vec(sums + j * width + r * LANES, (vec)s[j][r]);
}

template <int R>
void multiply_blocks(const Matrix& m, uint32_t group, const uint8_t* codes, float* sums) {
  constexpr int P = R < kVectorsPerPass ? R : kVectorsPerPass;
  alignas(64) int32_t interleaved[4 * kMaxBlock / kColumnsPerDot + 16];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.block_count(); ++block) {
    const uint8_t* activations = codes + size_t(block) * m.header.block_columns * kCodeBytes;
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      if (count == 0 && block > 0) continue;
      interleave_columns(m.values + entry * 4, count, interleaved);
      float* unit_sums = sums + size_t(m.row(unit, 0)) * R * LANES;
      const uint8_t* indices = m.indices + entry;
      multiply_block<R, 0, P>(interleaved, indices, count, activations, block == 0, unit_sums);
      if constexpr (R > P) multiply_block<R, P, R - P>(interleaved, indices, count, activations, block == 0, unit_sums);
      entry += count;
    }
  }
}

void multiply_codes(const Matrix& m, const Quads&, uint32_t group, const uint8_t* codes, uint32_t width, float* sums) {
  switch (width / LANES) {
    case 1: return multiply_blocks<1>(m, group, codes, sums);
    case 2: return multiply_blocks<2>(m, group, codes, sums);
    case 3: return multiply_blocks<3>(m, group, codes, sums);
    default: return multiply_blocks<4>(m, group, codes, sums);
  }
}

// The functions of a CodeKernel for a layout, which is a class with quantize_values.
template <typename Layout>
void quantize(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  Layout::quantize_values([&](uint32_t k, uint32_t v) { return load(panel + size_t(k) * width + v * LANES); }, columns, width,
                          range, codes);
}

template <typename Layout>
void quantizing_epilogue(const Matrix& m, uint32_t group, Activation activation, const Affine* affine, uint32_t width,
                         const float* sums, Range range, uint8_t* codes, float* non_finite) {
  const GroupAffine to_output(m, group, affine);
  with_activation(activation, [&](auto activate) {
    vec non_finite_lanes[4] = {};
    const auto value = [&](uint32_t r, uint32_t v) {
      const vec x = activate(to_output.apply(sums + size_t(r) * width + v * LANES, r));
      non_finite_lanes[v] += x * 0.f;
      return x;
    };
    Layout::quantize_values(value, m.rows_in_group(group), width, range, codes);
    for (uint32_t v = 0; non_finite && v * LANES < width; ++v)
      store_vec(non_finite + v * LANES, load(non_finite + v * LANES) + non_finite_lanes[v]);
  });
}

constexpr CodeKernel kFours = {kCodeBytes, quantize<Bytes>, multiply_codes, quantizing_epilogue<Bytes>};
constexpr const CodeKernel* kCodesOfFours = &kFours;
#ifdef VNNI
constexpr CodeKernel kSingles = {kCodeBytes, quantize<QuadBytes>, multiply_quads, quantizing_epilogue<QuadBytes>};
constexpr const CodeKernel* kCodesOfSingles = &kSingles;
#else
constexpr const CodeKernel* kCodesOfSingles = nullptr;
#endif
