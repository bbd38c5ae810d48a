// Products of 8-bit codes, exact: a 4x1 matrix's signed codes times the activations' unsigned ones, summed up in 32 bits.
// Included by micro_kernel.h inside its namespace.
//
// One instruction multiplies the codes of several columns and adds them up, token by token, so these columns' codes must
// lie together for each token. The columns that a block of rows keeps are its own, so they are brought together on the
// fly, by shuffles, and used by four rows: that is why this pays for 4x1 blocks and not for single rows.

typedef decltype(WHOLE(setzero)()) bytes;

inline ivec load_sums(const float* sums) {
  ivec v;
  __builtin_memcpy(&v, sums, sizeof v);
  return v;
}
inline bytes load_bytes(const uint8_t* p) { return WHOLE(loadu)(reinterpret_cast<const bytes*>(p)); }
inline void store_bytes(uint8_t* p, bytes v) { WHOLE(storeu)(reinterpret_cast<bytes*>(p), v); }

// What an instruction set has for it:
//   kTogether: columns that one instruction adds up; kAtOnce: vectors of tokens, four rows' sums of which are registers
//   kCodeBytes: of a column of a panel
//   quantize: see kernel.h
//   arrange: a unit's codes, four rows' of one column after another, become `kTogether` columns' of one row: 32 bits for
//     each instruction. What is missing of the last columns is zero.
//   bring_together: of P vectors of tokens from the one numbered FROM, the codes of `kTogether` columns
//   add_products: sums + tokens * weights
#ifdef VNNI
#include "codes_vnni.h"
#else
#include "codes_pairs.h"
#endif

// Of the tokens' R vectors, P from the one numbered FROM.
template <int R, int FROM, int P>
inline void multiply_block(const int32_t* arranged, const uint8_t* indices, uint32_t count, const uint8_t* block, bool first,
                           float* sums) {
  constexpr uint32_t width = R * LANES;
  sums += FROM * LANES;
  ivec s[4][P];
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) s[j][r] = first ? ivec{} : load_sums(sums + j * width + r * LANES);
  for (uint32_t i = 0; i < count; i += kTogether, arranged += 4) {
    ivec tokens[P];
    // Behind the last column come indices of others, whose weights are zero here.
    bring_together<FROM, P>(block, indices + i, tokens);
    for (int j = 0; j < 4; ++j) {
      const ivec weights = (ivec)WIDE(set1_epi32)(arranged[j]);
      for (int r = 0; r < P; ++r) s[j][r] = add_products(s[j][r], tokens[r], weights);
    }
  }
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) store_vec(sums + j * width + r * LANES, (vec)s[j][r]);
}

template <int R>
void multiply_blocks(const Matrix& m, uint32_t group, const uint8_t* codes, float* sums) {
  constexpr int P = R < kAtOnce ? R : kAtOnce;
  alignas(64) int32_t arranged[4 * kMaxBlock / kTogether + 16];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.blocks_count(); ++block) {
    const uint8_t* activations = codes + size_t(block) * m.header.block_columns * kCodeBytes;
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      if (count == 0 && block > 0) continue;
      arrange(m.values + entry * 4, count, arranged);
      float* of_unit = sums + size_t(m.row(unit, 0)) * R * LANES;
      const uint8_t* indices = m.indices + entry;
      multiply_block<R, 0, P>(arranged, indices, count, activations, block == 0, of_unit);
      if constexpr (R > P) multiply_block<R, P, R - P>(arranged, indices, count, activations, block == 0, of_unit);
      entry += count;
    }
  }
}

void multiply_codes(const Matrix& m, uint32_t group, const uint8_t* codes, uint32_t width, float* sums) {
  switch (width / LANES) {
    case 1: return multiply_blocks<1>(m, group, codes, sums);
    case 2: return multiply_blocks<2>(m, group, codes, sums);
    case 3: return multiply_blocks<3>(m, group, codes, sums);
    default: return multiply_blocks<4>(m, group, codes, sums);
  }
}
