// Exact products of 8-bit codes: signed weights times unsigned activations, accumulated in 32 bits.
// Included by micro_kernel.h inside its namespace.
//
// One instruction computes a dot product over several columns for each token, so the codes of these columns must be
// adjacent for each token. Every row, or block of four rows, keeps different columns, so shuffles gather them on the fly.
// Four rows share the cost of the shuffles. Single rows do not, but codes take a quarter of the L1 cache that floats take.

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
//   in_order: bytes of which each 16 are in another order, 32 bits per instruction; behind n bytes, zeros. They stay where they
//     are if `stored` says that they have this order already and instructions read them like this
//   gather: codes of kColumnsPerDot columns, given by steps, for P vectors of tokens, starting at vector FROM; returns the last
//   dot_accumulate: sums + tokens * weights
#ifdef VNNI
#include "codes_vnni.h"
#else
#include "codes_pairs.h"
#endif

// Processes P of the R vectors of tokens of two rows, each with columns of its own, starting at vector FROM. row_sums: sums of
// each row, [R * LANES].
template <int R, int FROM, int P>
inline void multiply_pair_of_codes(const uint8_t* weights, const uint8_t* steps, uint32_t count, const uint8_t* block,
                                   bool first, float* const* row_sums) {
  constexpr int kDots = 4 / kColumnsPerDot;  // per row and quad
  const uint8_t* at[2] = {block, block};
  ivec s[2][P];
  for (int j = 0; j < 2; ++j)
    for (int r = 0; r < P; ++r) s[j][r] = first ? ivec{} : load_sums(row_sums[j] + (FROM + r) * LANES);
  for (uint32_t i = 0; i < count; i += 4, steps += 8, weights += 2 * kDots * sizeof(int32_t))
    for (int j = 0; j < 2; ++j)
      for (int d = 0; d < kDots; ++d) {
        ivec tokens[P];
        at[j] = gather<FROM, P>(at[j], steps + 4 * j + d * kColumnsPerDot, tokens);
        const ivec row = (ivec)MM(set1_epi32)(read_at<int32_t>(weights, j * kDots + d));
        for (int r = 0; r < P; ++r) s[j][r] = dot_accumulate(s[j][r], tokens[r], row);
      }
  for (int j = 0; j < 2; ++j)
    for (int r = 0; r < P; ++r) store_vec(row_sums[j] + (FROM + r) * LANES, (vec)s[j][r]);
}

// The loop over the units of a group stands here, below and twice in micro_kernel.h: shared through a lambda, it made products of
// quads up to 25 % slower (GCC 12).
template <int R>
void multiply_pairs_of_codes(const Matrix& m, uint32_t group, const uint8_t* codes, float* sums) {
  constexpr int P = R < kVectorsPerPass ? R : kVectorsPerPass;
  alignas(64) int32_t buffer[2 * kMaxBlock / kColumnsPerDot + 16];
  uint8_t step_buffer[kMaxSteps];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.block_count(); ++block) {
    const uint8_t* activations = codes + size_t(block) * m.header.block_columns * kCodeBytes;
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      if (count == 0 && block > 0) continue;
      const uint8_t* weights = in_order(m.values + entry, kRowsOfTwo, 2 * count, m.in_quads(), buffer);
      const uint8_t* steps = steps_of_pair(m, entry, count, true, step_buffer);
      float* row_sums[2];
      for (int j = 0; j < 2; ++j) row_sums[j] = sums + size_t(m.row(unit, j)) * R * LANES;
      multiply_pair_of_codes<R, 0, P>(weights, steps, count, activations, block == 0, row_sums);
      if constexpr (R > P) multiply_pair_of_codes<R, P, R - P>(weights, steps, count, activations, block == 0, row_sums);
      entry += 2 * uint64_t(count);
    }
  }
}

// Processes P of the R vectors of tokens of four rows, which have common columns, starting at vector FROM.
template <int R, int FROM, int P>
inline void multiply_four_of_codes(const uint8_t* weights, const uint8_t* steps, uint32_t count, const uint8_t* block,
                                   bool first, float* sums) {
  constexpr int kDots = 4 / kColumnsPerDot;  // per row and quad
  ivec s[4][P];
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) s[j][r] = first ? ivec{} : load_sums(sums + (j * R + FROM + r) * LANES);
  for (uint32_t i = 0; i < count; i += 4, weights += 4 * kDots * sizeof(int32_t))
    for (int d = 0; d < kDots; ++d) {
      ivec tokens[P];
      block = gather<FROM, P>(block, steps + i + d * kColumnsPerDot, tokens);
      for (int j = 0; j < 4; ++j) {
        const ivec row = (ivec)MM(set1_epi32)(read_at<int32_t>(weights, j * kDots + d));
        for (int r = 0; r < P; ++r) s[j][r] = dot_accumulate(s[j][r], tokens[r], row);
      }
    }
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) store_vec(sums + (j * R + FROM + r) * LANES, (vec)s[j][r]);
}

template <int R>
void multiply_fours_of_codes(const Matrix& m, uint32_t group, const uint8_t* codes, float* sums) {
  constexpr int P = R < kVectorsPerPass ? R : kVectorsPerPass;
  alignas(64) int32_t buffer[4 * kMaxBlock / kColumnsPerDot + 16];
  uint8_t step_buffer[kMaxSteps];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.block_count(); ++block) {
    const uint8_t* activations = codes + size_t(block) * m.header.block_columns * kCodeBytes;
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      if (count == 0 && block > 0) continue;
      const uint8_t* weights = in_order(m.values + entry * 4, kRowsOfFour, 4 * count, m.in_quads(), buffer);
      const uint8_t* steps = steps_of_four(m, entry, count, step_buffer);
      float* row_sums = sums + size_t(m.row(unit, 0)) * R * LANES;
      multiply_four_of_codes<R, 0, P>(weights, steps, count, activations, block == 0, row_sums);
      if constexpr (R > P) multiply_four_of_codes<R, P, R - P>(weights, steps, count, activations, block == 0, row_sums);
      entry += count;
    }
  }
}

template <int R>
void multiply_any(const Matrix& m, uint32_t group, const uint8_t* codes, float* sums) {
  return m.header.block_rows == 4 ? multiply_fours_of_codes<R>(m, group, codes, sums)
                                  : multiply_pairs_of_codes<R>(m, group, codes, sums);
}

void multiply_codes(const Matrix& m, uint32_t group, const uint8_t* codes, uint32_t width, float* sums) {
  switch (width / LANES) {
    case 1: return multiply_any<1>(m, group, codes, sums);
    case 2: return multiply_any<2>(m, group, codes, sums);
    case 3: return multiply_any<3>(m, group, codes, sums);
    default: return multiply_any<4>(m, group, codes, sums);
  }
}

void quantize(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  quantize_values([&](uint32_t k, uint32_t v) { return load(panel + size_t(k) * width + v * LANES); }, columns, width, range,
                  codes);
}

constexpr CodeKernel kCodes = {kCodeBytes, quantize, multiply_codes};
constexpr const CodeKernel* kCodeKernel = &kCodes;
