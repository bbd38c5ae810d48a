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
inline byte_vec to_levels(vec x, Range range) { return MM(cvtps_epi32)(minimum(to_steps(x, range), broadcast(255.f))); }

// Every 16 bytes hold four tokens of each of the four vectors in turn; gather_columns separates them again.
template <typename F>
inline void quantize_values(F value, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  for (uint32_t k = 0; k < columns; ++k) {
    byte_vec steps[4];
    for (uint32_t v = 0; v < 4; ++v) steps[v] = v * LANES < width ? to_levels(value(k, v), range) : byte_vec{};
    // Packing saturates values below 0.
    const byte_vec low = MM(packs_epi32)(steps[0], steps[1]), high = MM(packs_epi32)(steps[2], steps[3]);
    store_bytes(codes + size_t(k) * kCodeBytes, MM(packus_epi16)(low, high));
  }
}

inline const uint8_t* in_order(const uint8_t* values, const uint8_t* order, uint32_t n, bool stored, int32_t* buffer) {
  for (uint32_t i = 0; i < n; i += 64) __builtin_prefetch(values + i + 1024);
  if (stored) return values;
  const __m128i numbers = _mm_loadu_si128(reinterpret_cast<const __m128i*>(order));
#if LANES == 16
  for (uint32_t i = 0; i < n; i += 64) {
    const uint32_t remaining = n - i;
    const __mmask64 mask = remaining < 64 ? (__mmask64(1) << remaining) - 1 : ~__mmask64(0);
    const __m512i codes = _mm512_maskz_loadu_epi8(mask, values + i);
    _mm512_storeu_si512(buffer + i / 4, _mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(numbers)));
  }
#else
  alignas(64) static const uint64_t mask_bytes[8] = {~0ull, ~0ull, ~0ull, ~0ull, 0, 0, 0, 0};
  for (uint32_t i = 0; i < n; i += 32) {
    const uint8_t* mask = reinterpret_cast<const uint8_t*>(mask_bytes + 4) - smaller(n - i, 32);
    const __m256i codes = _mm256_and_si256(load_bytes(values + i), load_bytes(mask));
    const __m256i ordered = _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(numbers));
    _mm256_storeu_si256(reinterpret_cast<byte_vec*>(buffer + i / 4), ordered);
  }
#endif
  return reinterpret_cast<const uint8_t*>(buffer);
}

// Codes of four columns -> P vectors of tokens, four codes each, starting at vector FROM.
template <int FROM, int P>
inline void combine(const byte_vec* column, ivec* tokens) {
  for (int half = 0; half < (P + 1) / 2; ++half) {
    const bool high = FROM + 2 * half >= 2;
    const byte_vec ab = high ? MM(unpackhi_epi8)(column[0], column[1]) : MM(unpacklo_epi8)(column[0], column[1]);
    const byte_vec cd = high ? MM(unpackhi_epi8)(column[2], column[3]) : MM(unpacklo_epi8)(column[2], column[3]);
    tokens[2 * half] = (ivec)MM(unpacklo_epi16)(ab, cd);
    if (2 * half + 1 < P) tokens[2 * half + 1] = (ivec)MM(unpackhi_epi16)(ab, cd);
  }
}

template <int FROM, int P>
inline const uint8_t* gather(const uint8_t* at, const uint8_t* steps, ivec* tokens) {
  byte_vec column[4];
  // One load for four steps: the load ports are what limits narrow panels.
  const uint32_t four = read_at<uint32_t>(steps, 0);
  for (int c = 0; c < 4; ++c) column[c] = load_bytes(at += (four >> (8 * c) & 255) * kCodeBytes);
  combine<FROM, P>(column, tokens);
  return at;
}
