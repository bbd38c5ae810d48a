// Products of 8-bit codes on AVX-512 VNNI, exact: a 4x1 matrix's signed codes times the activations' unsigned ones.
// Included by micro_kernel.h inside its namespace.
//
// One instruction multiplies four columns' codes and adds them up, token by token, so the bytes of four columns must lie
// together for each token. The columns that a block of rows keeps are its own, so they are brought together on the fly, by
// eight shuffles, and used by four rows: that is why this pays for 4x1 blocks and not for single rows.

// Tokens 16r + 4q + i of a column, r and q < 4, go to byte 16q + 4r + i: then the shuffles of `multiply_block` leave tokens
// 16r .. 16r+15 in vector r.
void quantize(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  const float per_step = 1 / range.step();
  for (uint32_t k = 0; k < columns; ++k) {
    __m512i steps[4];
    for (uint32_t r = 0; r < 4; ++r) {
      const vec x = r * LANES < width ? load(panel + size_t(k) * width + r * LANES) : vec{};
      // Rounds as nearest_step does; below 0, packing ends. Above, what an int32 cannot hold would not.
      steps[r] = _mm512_cvtps_epi32(_mm512_min_ps((x - range.low) * per_step, broadcast(255.f)));
    }
    const __m512i low = _mm512_packs_epi32(steps[0], steps[1]), high = _mm512_packs_epi32(steps[2], steps[3]);
    _mm512_storeu_si512(codes + size_t(k) * kCodes, _mm512_packus_epi16(low, high));
  }
}

// The codes of a unit, four rows' of one column after another, become four columns' of one row: 32 bits for each
// instruction. What is missing of the last four columns is zero.
inline void by_fours(const uint8_t* values, uint32_t count, int32_t* fours) {
  const __m512i order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (uint32_t i = 0; i < 4 * count; i += 64) {
    const uint32_t left = 4 * count - i;
    const __mmask64 here = left < 64 ? (__mmask64(1) << left) - 1 : ~__mmask64(0);
    _mm512_storeu_si512(fours + i / 4, _mm512_shuffle_epi8(_mm512_maskz_loadu_epi8(here, values + i), order));
  }
}

template <int R>
inline void multiply_block(const int32_t* fours, const uint8_t* indices, uint32_t count, const uint8_t* block, bool first,
                           float* sums) {
  constexpr uint32_t width = R * LANES;
  __m512i s[4][R];
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < R; ++r) s[j][r] = first ? _mm512_setzero_si512() : _mm512_loadu_si512(sums + j * width + r * LANES);
  for (uint32_t i = 0; i < count; i += 4) {
    // Behind the last column come indices of others, whose weights are zero here.
    __m512i column[4], tokens[4];
    for (int c = 0; c < 4; ++c) column[c] = _mm512_loadu_si512(block + size_t(indices[i + c]) * kCodes);
    const __m512i low_ab = _mm512_unpacklo_epi8(column[0], column[1]), low_cd = _mm512_unpacklo_epi8(column[2], column[3]);
    const __m512i high_ab = _mm512_unpackhi_epi8(column[0], column[1]), high_cd = _mm512_unpackhi_epi8(column[2], column[3]);
    tokens[0] = _mm512_unpacklo_epi16(low_ab, low_cd);
    tokens[1] = _mm512_unpackhi_epi16(low_ab, low_cd);
    tokens[2] = _mm512_unpacklo_epi16(high_ab, high_cd);
    tokens[3] = _mm512_unpackhi_epi16(high_ab, high_cd);
    for (int j = 0; j < 4; ++j) {
      const __m512i weights = _mm512_set1_epi32(fours[i + j]);
      for (int r = 0; r < R; ++r) s[j][r] = _mm512_dpbusd_epi32(s[j][r], tokens[r], weights);
    }
  }
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < R; ++r) _mm512_storeu_si512(sums + j * width + r * LANES, s[j][r]);
}

template <int R>
void multiply_blocks(const Matrix& m, uint32_t group, const uint8_t* codes, float* sums) {
  alignas(64) int32_t fours[kMaxBlock + LANES];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.blocks_count(); ++block) {
    const uint8_t* activations = codes + size_t(block) * m.header.block_columns * kCodes;
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      if (count == 0 && block > 0) continue;
      by_fours(m.values + entry * 4, count, fours);
      multiply_block<R>(fours, m.indices + entry, count, activations, block == 0, sums + size_t(4 * u) * R * LANES);
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
