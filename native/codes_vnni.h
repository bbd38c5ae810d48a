// VNNI: one instruction multiplies four columns' codes of one byte. Included by codes.h.

constexpr int kTogether = 4;
constexpr uint32_t kCodeBytes = 4 * LANES;

#if LANES == 16
constexpr int kAtOnce = 4;
inline ivec add_products(ivec sums, ivec tokens, ivec weights) {
  return (ivec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)tokens, (__m512i)weights);
}
#else
constexpr int kAtOnce = 2;
inline ivec add_products(ivec sums, ivec tokens, ivec weights) {
  return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)tokens, (__m256i)weights);
}
#endif

// In each 16 bytes, tokens of the four vectors follow each other, four by four: `bring_together` parts them again.
void quantize(const float* panel, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  for (uint32_t k = 0; k < columns; ++k) {
    bytes steps[4];
    for (uint32_t r = 0; r < 4; ++r) {
      const vec x = r * LANES < width ? load(panel + size_t(k) * width + r * LANES) : vec{};
      // Rounds as nearest_step does; below 0, packing ends. Above, what an int32 cannot hold would not.
      steps[r] = WIDE(cvtps_epi32)(WIDE(min_ps)(in_steps(x, range), broadcast(255.f)));
    }
    const bytes low = WIDE(packs_epi32)(steps[0], steps[1]), high = WIDE(packs_epi32)(steps[2], steps[3]);
    store_bytes(codes + size_t(k) * kCodeBytes, WIDE(packus_epi16)(low, high));
  }
}

inline void arrange(const uint8_t* values, uint32_t count, int32_t* arranged) {
  const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#if LANES == 16
  for (uint32_t i = 0; i < 4 * count; i += 64) {
    const uint32_t left = 4 * count - i;
    const __mmask64 here = left < 64 ? (__mmask64(1) << left) - 1 : ~__mmask64(0);
    const __m512i codes = _mm512_maskz_loadu_epi8(here, values + i);
    _mm512_storeu_si512(arranged + i / 4, _mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(order)));
  }
#else
  alignas(64) static const uint64_t kept[8] = {~0ull, ~0ull, ~0ull, ~0ull, 0, 0, 0, 0};
  for (uint32_t i = 0; i < 4 * count; i += 32) {
    const uint8_t* here = reinterpret_cast<const uint8_t*>(kept + 4) - smaller(4 * count - i, 32);
    const __m256i codes = _mm256_and_si256(load_bytes(values + i), load_bytes(here));
    const __m256i ordered = _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(order));
    _mm256_storeu_si256(reinterpret_cast<bytes*>(arranged + i / 4), ordered);
  }
#endif
}

template <int FROM, int P>
inline void bring_together(const uint8_t* block, const uint8_t* indices, ivec* tokens) {
  bytes column[4];
  for (int c = 0; c < 4; ++c) column[c] = load_bytes(block + size_t(indices[c]) * kCodeBytes);
  for (int half = 0; half < (P + 1) / 2; ++half) {
    const bool high = FROM + 2 * half >= 2;
    const bytes ab = high ? WIDE(unpackhi_epi8)(column[0], column[1]) : WIDE(unpacklo_epi8)(column[0], column[1]);
    const bytes cd = high ? WIDE(unpackhi_epi8)(column[2], column[3]) : WIDE(unpacklo_epi8)(column[2], column[3]);
    tokens[2 * half] = (ivec)WIDE(unpacklo_epi16)(ab, cd);
    if (2 * half + 1 < P) tokens[2 * half + 1] = (ivec)WIDE(unpackhi_epi16)(ab, cd);
  }
}
