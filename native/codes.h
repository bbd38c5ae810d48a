// Products of 8-bit codes with VNNI, exact: a 4x1 matrix's signed codes times the activations' unsigned ones.
// Included by micro_kernel.h inside its namespace.
//
// One instruction multiplies four columns' codes and adds them up, token by token, so the bytes of four columns must lie
// together for each token. The columns that a block of rows keeps are its own, so they are brought together on the fly, by
// eight shuffles, and used by four rows: that is why this pays for 4x1 blocks and not for single rows.

#if LANES == 16
constexpr int kAtOnce = 4;  // vectors of tokens; four rows' sums of them are kept in registers
#define WIDE(name) _mm512_##name
#define WHOLE(name) WIDE(name##_si512)
inline ivec add_products(ivec sums, ivec tokens, ivec weights) {
  return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)tokens, (__m512i)weights);
}
#else
constexpr int kAtOnce = 2;
#define WIDE(name) _mm256_##name
#define WHOLE(name) WIDE(name##_si256)
inline ivec add_products(ivec sums, ivec tokens, ivec weights) {
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)tokens, (__m256i)weights);
}
#endif
typedef decltype(WHOLE(setzero)()) bytes;

inline ivec load_sums(const float* sums) {
  ivec v;
  __builtin_memcpy(&v, sums, sizeof v);
  return v;
}
inline bytes load_bytes(const uint8_t* p) { return WHOLE(loadu)(reinterpret_cast<const bytes*>(p)); }

// In each 16 bytes, tokens of the four vectors follow each other, four by four: the shuffles of `multiply_block` part them
// again.
void quantize(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  for (uint32_t k = 0; k < columns; ++k) {
    bytes steps[4];
    for (uint32_t r = 0; r < 4; ++r) {
      const vec x = r * LANES < width ? load(panel + size_t(k) * width + r * LANES) : vec{};
      // Rounds as nearest_step does; below 0, packing ends. Above, what an int32 cannot hold would not.
      steps[r] = WIDE(cvtps_epi32)(WIDE(min_ps)(in_steps(x, range), broadcast(255.f)));
    }
    const bytes low = WIDE(packs_epi32)(steps[0], steps[1]), high = WIDE(packs_epi32)(steps[2], steps[3]);
    WHOLE(storeu)(reinterpret_cast<bytes*>(codes + size_t(k) * 4 * LANES), WIDE(packus_epi16)(low, high));
  }
}

// The codes of a unit, four rows' of one column after another, become four columns' of one row: 32 bits for each
// instruction. What is missing of the last four columns is zero.
inline void by_fours(const uint8_t* values, uint32_t count, int32_t* fours) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#if LANES == 16
  for (uint32_t i = 0; i < 4 * count; i += 64) {
    const uint32_t left = 4 * count - i;
    const __mmask64 here = left < 64 ? (__mmask64(1) << left) - 1 : ~__mmask64(0);
    const __m512i codes = _mm512_maskz_loadu_epi8(here, values + i);
    _mm512_storeu_si512(fours + i / 4, _mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(order)));
  }
#else
  alignas(64) static const uint64_t kept[8] = {~0ull, ~0ull, ~0ull, ~0ull, 0, 0, 0, 0};
  for (uint32_t i = 0; i < 4 * count; i += 32) {
    const uint8_t* here = reinterpret_cast<const uint8_t*>(kept + 4) - smaller(4 * count - i, 32);
    const __m256i codes = _mm256_and_si256(load_bytes(values + i), load_bytes(here));
    _mm256_storeu_si256(reinterpret_cast<bytes*>(fours + i / 4), _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(order)));
  }
#endif
}

// Of the tokens' R vectors, P from the one numbered FROM.
template <int R, int FROM, int P>
inline void multiply_block(const int32_t* fours, const uint8_t* indices, uint32_t count, const uint8_t* block, bool first,
                           float* sums) {
  constexpr uint32_t width = R * LANES;
  sums += FROM * LANES;
  ivec s[4][P];
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) s[j][r] = first ? ivec{} : load_sums(sums + j * width + r * LANES);
  for (uint32_t i = 0; i < count; i += 4) {
    // Behind the last column come indices of others, whose weights are zero here.
    bytes column[4];
    for (int c = 0; c < 4; ++c) column[c] = load_bytes(block + size_t(indices[i + c]) * 4 * LANES);
    ivec tokens[P];
    for (int half = 0; half < (P + 1) / 2; ++half) {
      const bool high = FROM + 2 * half >= 2;
      const bytes ab = high ? WIDE(unpackhi_epi8)(column[0], column[1]) : WIDE(unpacklo_epi8)(column[0], column[1]);
      const bytes cd = high ? WIDE(unpackhi_epi8)(column[2], column[3]) : WIDE(unpacklo_epi8)(column[2], column[3]);
      tokens[2 * half] = (ivec)WIDE(unpacklo_epi16)(ab, cd);
      if (2 * half + 1 < P) tokens[2 * half + 1] = (ivec)WIDE(unpackhi_epi16)(ab, cd);
    }
    for (int j = 0; j < 4; ++j) {
      const ivec weights = (ivec)WIDE(set1_epi32)(fours[i + j]);
      for (int r = 0; r < P; ++r) s[j][r] = add_products(s[j][r], tokens[r], weights);
    }
  }
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < P; ++r) __builtin_memcpy(sums + j * width + r * LANES, &s[j][r], sizeof(ivec));
}

template <int R>
void multiply_blocks(const Matrix& m, uint32_t group, const uint8_t* codes, float* sums) {
  constexpr int P = R < kAtOnce ? R : kAtOnce;
  alignas(64) int32_t fours[kMaxBlock + 16];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.blocks_count(); ++block) {
    const uint8_t* activations = codes + size_t(block) * m.header.block_columns * 4 * LANES;
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      if (count == 0 && block > 0) continue;
      by_fours(m.values + entry * 4, count, fours);
      float* of_unit = sums + size_t(4 * u) * R * LANES;
      multiply_block<R, 0, P>(fours, m.indices + entry, count, activations, block == 0, of_unit);
      if constexpr (R > P) multiply_block<R, P, R - P>(fours, m.indices + entry, count, activations, block == 0, of_unit);
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
