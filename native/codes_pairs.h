// 8-bit products with AVX2 alone: one instruction multiplies the codes of two columns, widened to 16 bits, because AVX2's
// byte product would saturate. That is still twice as many products as with floats. Included by codes.h.

constexpr int kColumnsPerDot = 2;
constexpr int kVectorsPerPass = 2;
constexpr uint32_t kCodeBytes = 8 * LANES;

inline ivec dot_accumulate(ivec sums, ivec tokens, ivec weights) {
  return sums + (ivec)_mm256_madd_epi16((__m256i)tokens, (__m256i)weights);
}

// Every 16 bytes hold four tokens of one vector, then four of the next; gather_columns separates them again.
template <typename F>
inline void quantize_values(F value, uint32_t columns, uint32_t width, Range range, uint8_t* codes) {
  for (uint32_t k = 0; k < columns; ++k)
    for (uint32_t v = 0; v * LANES < width; v += 2) {
      __m256i steps[2];
      for (uint32_t i = 0; i < 2; ++i) {
        const vec x = (v + i) * LANES < width ? value(k, v + i) : vec{};
        // Same rounding as nearest_level.
        steps[i] = _mm256_cvtps_epi32(minimum(maximum(to_steps(x, range), vec{}), broadcast(255.f)));
      }
      store_bytes(codes + size_t(k) * kCodeBytes + v * LANES * 2, _mm256_packs_epi32(steps[0], steps[1]));
    }
}

// Reorders the bytes of each 16 of n bytes, adds zeros to the last, and widens them to 16 bits.
inline void reorder(const uint8_t* values, uint32_t n, __m128i order, int32_t* reordered) {
  alignas(32) static const uint64_t mask_bytes[4] = {~0ull, ~0ull, 0, 0};
  for (uint32_t i = 0; i < n; i += 16) {
    const uint8_t* mask = reinterpret_cast<const uint8_t*>(mask_bytes + 2) - smaller(n - i, 16);
    const __m128i codes = _mm_and_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i)),
                                        _mm_loadu_si128(reinterpret_cast<const __m128i*>(mask)));
    const __m256i widened = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(codes, order));
    _mm256_storeu_si256(reinterpret_cast<byte_vec*>(reordered + i / 2), widened);
  }
}

inline void interleave_pairs(const uint8_t* values, uint32_t n, int32_t* interleaved) {
  reorder(values, n, _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15), interleaved);
}

inline const uint8_t* quads(const uint8_t* values, uint32_t count, bool stored, int32_t* buffer) {
  const __m128i entries = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m128i unchanged = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  reorder(values, 4 * count, stored ? unchanged : entries, buffer);
  return reinterpret_cast<const uint8_t*>(buffer);
}

template <int FROM, int P>
inline void combine(const uint8_t* first, const uint8_t* second, ivec* tokens) {
  const byte_vec a = load_bytes(first + FROM * LANES * 2), b = load_bytes(second + FROM * LANES * 2);
  tokens[0] = (ivec)_mm256_unpacklo_epi16(a, b);
  if (P > 1) tokens[1] = (ivec)_mm256_unpackhi_epi16(a, b);
}

template <int FROM, int P>
inline void gather_columns(const uint8_t* block, const uint8_t* indices, ivec* tokens) {
  combine<FROM, P>(block + size_t(indices[0]) * kCodeBytes, block + size_t(indices[2]) * kCodeBytes, tokens);
}

template <int FROM, int P>
inline const uint8_t* gather_steps(const uint8_t* at, const uint8_t* steps, ivec* tokens) {
  const uint8_t* first = at + size_t(steps[0]) * kCodeBytes;
  const uint8_t* second = first + size_t(steps[1]) * kCodeBytes;
  combine<FROM, P>(first, second, tokens);
  return second;
}
