// 8-bit products without VNNI: one instruction multiplies the codes of two columns, widened to 16 bits, because the product of
// bytes would saturate. That is still twice as many products as with floats. Included by codes.h.

constexpr int kColumnsPerDot = 2;
constexpr int kVectorsPerPass = LANES == 16 ? 4 : 2;
constexpr uint32_t kCodeBytes = 8 * LANES;

inline ivec dot_accumulate(ivec sums, ivec tokens, ivec weights) {
  return sums + (ivec)MM(madd_epi16)((byte_vec)tokens, (byte_vec)weights);
}

// Every 16 bytes hold four tokens of one vector, then four of the next; gather separates them again.
template <typename F>
inline void quantize_values(F value, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  for (uint32_t k = 0; k < columns; ++k)
    for (uint32_t v = 0; v * LANES < width; v += 2) {
      byte_vec steps[2];
      for (uint32_t i = 0; i < 2; ++i) {
        const vec x = (v + i) * LANES < width ? value(k, v + i) : vec{};
        // Same rounding as nearest_level.
        steps[i] = MM(cvtps_epi32)(minimum(maximum(to_steps(x, range), vec{}), broadcast(255.f)));
      }
      store_bytes(codes + size_t(k) * kCodeBytes + v * LANES * 2, MM(packs_epi32)(steps[0], steps[1]));
    }
}

// Widens the bytes to 16 bits, too.
inline const uint8_t* in_order(const uint8_t* values, const uint8_t* order, uint32_t n, bool stored, int32_t* buffer) {
  alignas(32) static const uint64_t mask_bytes[4] = {~0ull, ~0ull, 0, 0};
  const __m128i unchanged = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m128i numbers = stored ? unchanged : _mm_loadu_si128(reinterpret_cast<const __m128i*>(order));
  for (uint32_t i = 0; i < n; i += 16) {
    const uint8_t* mask = reinterpret_cast<const uint8_t*>(mask_bytes + 2) - smaller(n - i, 16);
    const __m128i codes = _mm_and_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i)),
                                        _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask)));
    const __m256i widened = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(codes, numbers));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(buffer + i / 2), widened);
  }
  return reinterpret_cast<const uint8_t*>(buffer);
}

template <int FROM, int P>
inline const uint8_t* gather(const uint8_t* at, const uint8_t* steps, ivec* tokens) {
  const uint8_t* first = at + size_t(steps[0]) * kCodeBytes;
  const uint8_t* second = first + size_t(steps[1]) * kCodeBytes;
  for (int v = 0; v < P; v += 2) {
    const byte_vec a = load_bytes(first + (FROM + v) * LANES * 2), b = load_bytes(second + (FROM + v) * LANES * 2);
    tokens[v] = (ivec)MM(unpacklo_epi16)(a, b);
    if (v + 1 < P) tokens[v + 1] = (ivec)MM(unpackhi_epi16)(a, b);
  }
  return second;
}
