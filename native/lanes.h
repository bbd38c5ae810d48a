// Vector operations that compilers do not generate from plain vector code. Included by micro_kernel.h inside its namespace.
//   transpose: LANES vectors of LANES floats, in place
//   int8_to_float: converts LANES signed 8-bit codes
//   shuffle: 16 bytes in another order; `to` may be `from`
//   square_root: of each lane
//   maximum, minimum: the second argument if either is NaN
//   truncated, element_of (16 lanes alone): integer part; the element of a table of 16 floats that each lane names
//   reciprocal: 1/x for 1 <= x < 2^126, relative error below 3e-7; a division costs ten multiplications

#if LANES >= 8
inline void shuffle(const uint8_t* from, const uint8_t* order, uint8_t* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i numbers = _mm_loadu_si128(reinterpret_cast<const __m128i*>(order));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_shuffle_epi8(bytes, numbers));
}
#else
inline void shuffle(const uint8_t* from, const uint8_t* order, uint8_t* to) {
  uint8_t bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = from[order[i]];
  for (int i = 0; i < 16; ++i) to[i] = bytes[i];
}
#endif

#if LANES == 16

// Transposes 4x4 within the 128-bit quarters, then the quarters themselves, in two rounds.
inline void transpose(vec* v) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(a[i + j]), high = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  // b[4g + c]: column c of each quarter of rows 4g .. 4g+3
  for (int c = 0; c < 4; ++c) {
    const __m512 t0 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88), t1 = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    const __m512 t2 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88), t3 = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    v[c] = _mm512_shuffle_f32x4(t0, t2, 0x88);
    v[4 + c] = _mm512_shuffle_f32x4(t1, t3, 0x88);
    v[8 + c] = _mm512_shuffle_f32x4(t0, t2, 0xdd);
    v[12 + c] = _mm512_shuffle_f32x4(t1, t3, 0xdd);
  }
}

inline vec int8_to_float(const uint8_t* codes) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))));
}

inline vec square_root(vec x) { return _mm512_sqrt_ps(x); }
inline vec maximum(vec a, vec b) { return _mm512_max_ps(a, b); }
inline vec minimum(vec a, vec b) { return _mm512_min_ps(a, b); }

inline ivec truncated(vec x) { return (ivec)_mm512_cvttps_epi32(x); }
inline vec element_of(const float* table, ivec numbers) {
  return _mm512_permutexvar_ps((__m512i)numbers, _mm512_load_ps(table));
}

inline vec reciprocal(vec x) {
  const vec estimate = _mm512_rcp14_ps(x);
  return estimate * (2.f - x * estimate);  // one Newton iteration
}

#elif LANES == 8

inline void transpose(vec* v) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
  for (int c = 0; c < 4; ++c) {
    v[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    v[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}

inline vec int8_to_float(const uint8_t* codes) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes))));
}

inline vec square_root(vec x) { return _mm256_sqrt_ps(x); }
inline vec maximum(vec a, vec b) { return _mm256_max_ps(a, b); }
inline vec minimum(vec a, vec b) { return _mm256_min_ps(a, b); }

inline vec reciprocal(vec x) {
  const vec estimate = _mm256_rcp_ps(x);
  return estimate * (2.f - x * estimate);  // one Newton iteration
}

#else

inline vec maximum(vec a, vec b) { return a > b ? a : b; }
inline vec minimum(vec a, vec b) { return a < b ? a : b; }
inline vec square_root(vec x) {
  for (int i = 0; i < LANES; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}

inline vec reciprocal(vec x) { return 1.f / x; }

inline vec int8_to_float(const uint8_t* codes) {
  vec v;
  for (int i = 0; i < LANES; ++i) v[i] = int8_t(codes[i]);
  return v;
}

inline void transpose(vec* v) {
  for (int i = 0; i < LANES; ++i)
    for (int j = i + 1; j < LANES; ++j) {
      const float upper = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = upper;
    }
}

#endif
