// 8-bit products with VNNI: one instruction multiplies the one-byte codes of four columns. Included by codes.h.

constexpr int kColumnsPerDot = 4;
constexpr uint32_t kCodeBytes = 4 * LANES;

#if LANES == 16
constexpr int kVectorsPerPass = 4;
inline ivec dot_accumulate(ivec sums, ivec tokens, ivec weights) {
  return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)tokens, (__m512i)weights);
}
#else
constexpr int kVectorsPerPass = 2;
inline ivec dot_accumulate(ivec sums, ivec tokens, ivec weights) {
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)tokens, (__m256i)weights);
}
#endif

// Same rounding as nearest_level. The results are in range except for those below 0: values above 255 need the minimum,
// because those that exceed int32 would not saturate correctly.
inline byte_vec to_levels(vec x, Range range) { return MM(cvtps_epi32)(MM(min_ps)(to_steps(x, range), broadcast(255.f))); }

// Every 16 bytes hold four tokens of each of the four vectors in turn; gather_columns separates them again.
struct Bytes {
  template <typename F>
  static inline void quantize_values(F value, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
    for (uint32_t k = 0; k < columns; ++k) {
      byte_vec steps[4];
      for (uint32_t v = 0; v < 4; ++v) steps[v] = v * LANES < width ? to_levels(value(k, v), range) : byte_vec{};
      // Packing saturates values below 0.
      const byte_vec low = MM(packs_epi32)(steps[0], steps[1]), high = MM(packs_epi32)(steps[2], steps[3]);
      store_bytes(codes + size_t(k) * kCodeBytes, MM(packus_epi16)(low, high));
    }
  }
};

// Four adjacent columns of each token are adjacent: no shuffles are needed to multiply quads.
struct QuadBytes {
  template <typename F>
  static inline void quantize_values(F value, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
    for (uint32_t k = 0; k < columns; k += 4)
      for (uint32_t v = 0; v * LANES < width; ++v) {
        ivec quad{};
        for (uint32_t c = 0; c < 4 && k + c < columns; ++c) {
          const ivec level = (ivec)MM(max_epi32)(to_levels(value(k + c, v), range), byte_vec{});
          quad |= level << int(8 * c);
        }
        store_bytes(codes + size_t(k) * kCodeBytes + v * 4 * LANES, (byte_vec)quad);
      }
  }
};

// Rows of single values. Two sets of sums hide the latency of the dot products.
template <int R>
void multiply_quad_rows(const Matrix& m, const Quads& quads, uint32_t group, const uint8_t* codes, float* sums) {
  const uint32_t rows = m.rows_in_group(group);
  for (uint32_t block = 0; block < quads.blocks; ++block) {
    const uint8_t* activations = codes + size_t(block) * kQuadsPerBlock * 4 * kCodeBytes;
    const uint32_t* starts = quads.starts + size_t(group) * m.header.group_rows * quads.blocks + block;
    for (uint32_t row = 0; row < rows; ++row, starts += quads.blocks) {
      ivec s[2][R] = {};
      float* to = sums + size_t(row) * R * LANES;
      if (block > 0)
        for (int v = 0; v < R; ++v) s[0][v] = load_sums(to + v * LANES);
      uint32_t i = starts[0];
      const uint32_t end = starts[1];
      for (; i + 2 <= end; i += 2)
        for (int j = 0; j < 2; ++j) {
          const uint8_t* quad = activations + size_t(quads.columns[i + j]) * (4 * kCodeBytes);
          const ivec weights = (ivec)MM(set1_epi32)(quads.weights[i + j]);
          for (int v = 0; v < R; ++v) s[j][v] = dot_accumulate(s[j][v], (ivec)load_bytes(quad + v * 4 * LANES), weights);
        }
      if (i < end) {
        const uint8_t* quad = activations + size_t(quads.columns[i]) * (4 * kCodeBytes);
        const ivec weights = (ivec)MM(set1_epi32)(quads.weights[i]);
        for (int v = 0; v < R; ++v) s[0][v] = dot_accumulate(s[0][v], (ivec)load_bytes(quad + v * 4 * LANES), weights);
      }
      for (int v = 0; v < R; ++v) store_vec(to + v * LANES, (vec)(s[0][v] + s[1][v]));
    }
  }
}

void multiply_quads(const Matrix& m, const Quads& quads, uint32_t group, const uint8_t* codes, uint32_t width, float* sums) {
  switch (width / LANES) {
    case 1: return multiply_quad_rows<1>(m, quads, group, codes, sums);
    case 2: return multiply_quad_rows<2>(m, quads, group, codes, sums);
    case 3: return multiply_quad_rows<3>(m, quads, group, codes, sums);
    default: return multiply_quad_rows<4>(m, quads, group, codes, sums);
  }
}

inline void interleave_columns(const uint8_t* values, uint32_t count, int32_t* interleaved) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#if LANES == 16
  for (uint32_t i = 0; i < 4 * count; i += 64) {
    const uint32_t remaining = 4 * count - i;
    const __mmask64 mask = remaining < 64 ? (__mmask64(1) << remaining) - 1 : ~__mmask64(0);
    const __m512i codes = _mm512_maskz_loadu_epi8(mask, values + i);
    _mm512_storeu_si512(interleaved + i / 4, _mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(order)));
  }
#else
  alignas(64) static const uint64_t mask_bytes[8] = {~0ull, ~0ull, ~0ull, ~0ull, 0, 0, 0, 0};
  for (uint32_t i = 0; i < 4 * count; i += 32) {
    const uint8_t* mask = reinterpret_cast<const uint8_t*>(mask_bytes + 4) - minimum(4 * count - i, 32);
    const __m256i codes = _mm256_and_si256(load_bytes(values + i), load_bytes(mask));
    const __m256i ordered = _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(order));
    _mm256_storeu_si256(reinterpret_cast<byte_vec*>(interleaved + i / 4), ordered);
  }
#endif
}

template <int FROM, int P>
inline void gather_columns(const uint8_t* block, const uint8_t* indices, ivec* tokens) {
  byte_vec column[4];
  for (int c = 0; c < 4; ++c) column[c] = load_bytes(block + size_t(indices[c]) * kCodeBytes);
  for (int half = 0; half < (P + 1) / 2; ++half) {
    const bool high = FROM + 2 * half >= 2;
    const byte_vec ab = high ? MM(unpackhi_epi8)(column[0], column[1]) : MM(unpacklo_epi8)(column[0], column[1]);
    const byte_vec cd = high ? MM(unpackhi_epi8)(column[2], column[3]) : MM(unpacklo_epi8)(column[2], column[3]);
    tokens[2 * half] = (ivec)MM(unpacklo_epi16)(ab, cd);
    if (2 * half + 1 < P) tokens[2 * half + 1] = (ivec)MM(unpackhi_epi16)(ab, cd);
  }
}
