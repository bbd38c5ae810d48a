// Implementation of the kernels over vectors of LANES floats, compiled once for each instruction set.
//
// Everything here is in an unnamed namespace and calls no inline function of the standard library: otherwise the linker might
// keep a copy compiled for AVX-512 for all other files.
//
// Performance: a panel of activations is transposed, so that one weight multiplies a vector of tokens; a block of the panel's
// columns stays in the L1 cache; two rows of equal length (or four of a 4x1 pattern) keep enough accumulators in flight.
#include <cstddef>
#include <cstdint>

#include "kernel.h"

namespace {

using namespace pofa;

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4)));

inline vec load(const float* p) {
  vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store_vec(float* p, vec v) { __builtin_memcpy(p, &v, sizeof v); }
inline vec broadcast(float x) { return x - vec{}; }  // x - 0 is x, even for minus zero: compiles to no instruction
inline uint32_t smaller(uint32_t a, uint32_t b) { return a < b ? a : b; }

#include "lanes.h"

void load_panel(const float* const* x, uint32_t tokens, uint32_t columns, uint32_t width, float* panel, float* non_finite) {
  for (uint32_t t = 0; t < width; t += LANES) {
    const uint32_t valid = t < tokens ? smaller(LANES, tokens - t) : 0;
    vec non_finite_lanes{};
    uint32_t k = 0;
    if (valid == LANES)
      for (; k + LANES <= columns; k += LANES) {
        vec tile[LANES];
        for (uint32_t i = 0; i < LANES; ++i) tile[i] = load(x[t + i] + k);
        transpose(tile);
        for (uint32_t i = 0; i < LANES; ++i) {
          store_vec(panel + size_t(k + i) * width + t, tile[i]);
          non_finite_lanes += tile[i] * 0.f;  // NaN if the value is not finite
        }
      }
    for (; k < columns; ++k) {
      float* to = panel + size_t(k) * width + t;
      for (uint32_t i = 0; i < LANES; ++i) to[i] = i < valid ? x[t + i][k] : 0.f;
      non_finite_lanes += load(to) * 0.f;
    }
    store_vec(non_finite + t, non_finite_lanes);
  }
}

// ---- weights: decoding of one unit's values to floats

inline void decode_int8(const uint8_t* codes, uint32_t n, float* values) {
  for (uint32_t i = 0; i < n; i += LANES) store_vec(values + i, int8_to_float(codes + i));
}

inline void decode_float16(const uint8_t* halves, uint32_t n, float* values) {
  for (uint32_t i = 0; i < n; ++i) values[i] = half_to_float(read_at<uint16_t>(halves, i));
}

// Bytes of quads, which are ordered by row, in the order of entries, of four rows or of two, and back.
constexpr uint8_t kEntriesOfFour[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
constexpr uint8_t kEntriesOfTwo[16] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
constexpr const uint8_t* kRowsOfFour = kEntriesOfFour;  // a transposition of 4x4 bytes
constexpr uint8_t kRowsOfTwo[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};

inline void decode_quads(const uint8_t* codes, const uint8_t* order, uint32_t n, float* values) {
  for (uint32_t i = 0; i < n; i += 16) {
    alignas(16) uint8_t entries[16];
    shuffle(codes + i, order, entries);
    for (uint32_t k = 0; k < 16; k += LANES) store_vec(values + i + k, int8_to_float(entries + k));
  }
}

constexpr uint32_t kMaxSteps = 2 * kMaxBlock + 16;  // of a unit, and what is written past them

// Steps of a unit in formats that have columns: those of `rows` rows alternate. Zeros follow up to the next quads.
inline void columns_to_steps(const uint8_t* columns, uint32_t rows, uint32_t count, uint8_t* steps) {
  for (uint32_t i = 0; i < rows; ++i) steps[i] = columns[i];
  for (uint32_t i = rows; i < rows * count; ++i) steps[i] = uint8_t(columns[i] - columns[i - rows]);
  for (uint32_t i = rows * count; i % (4 * rows); ++i) steps[i] = 0;
}

// Steps of four rows, or of a pair: in the order of entries or, if `in_quads`, of quads. Those that are stored, if possible.
inline const uint8_t* steps_of_four(const Matrix& m, uint64_t entry, uint32_t count, uint8_t* buffer) {
  if (m.in_steps()) return m.indices + entry;
  columns_to_steps(m.indices + entry, 1, count, buffer);
  return buffer;
}
inline const uint8_t* steps_of_pair(const Matrix& m, uint64_t entry, uint32_t count, bool in_quads, uint8_t* buffer) {
  const uint8_t* steps = m.indices + entry;
  if (!m.in_steps()) {
    columns_to_steps(steps, 2, count, buffer);
    steps = buffer;
  }
  if (m.in_quads() == in_quads) return steps;
  for (uint32_t i = 0; i < 2 * count; i += 16) shuffle(steps + i, in_quads ? kRowsOfTwo : kEntriesOfTwo, buffer + i);
  return buffer;
}

// Decodes the n values of a unit into `buffer`. Floats are copied too, because a packed matrix may be unaligned.
inline void decode_values(const Matrix& m, uint64_t first, uint32_t n, float* buffer) {
  if (m.in_quads()) decode_quads(m.values + first, m.header.block_rows == 4 ? kEntriesOfFour : kEntriesOfTwo, n, buffer);
  else if (m.header.value_type == kI8) decode_int8(m.values + first, n, buffer);
  else if (m.header.value_type == kF16) decode_float16(m.values + first * 2, n, buffer);
  else __builtin_memcpy(buffer, m.values + first * 4, size_t(n) * 4);
}

// ---- sums

template <int R>
inline void multiply_pair(const float* values, const uint8_t* steps, uint32_t count, const char* block, bool first,
                          float* sums_a, float* sums_b) {
  vec a[R], b[R];
  for (int r = 0; r < R; ++r) {
    a[r] = first ? vec{} : load(sums_a + r * LANES);
    b[r] = first ? vec{} : load(sums_b + r * LANES);
  }
  const char *at_a = block, *at_b = block;
#pragma GCC unroll 2
  for (uint32_t i = 0; i < count; ++i) {
    at_a += size_t(steps[2 * i]) * (R * LANES * 4);
    at_b += size_t(steps[2 * i + 1]) * (R * LANES * 4);
    const float *xa = reinterpret_cast<const float*>(at_a), *xb = reinterpret_cast<const float*>(at_b);
    const vec wa = broadcast(values[2 * i]), wb = broadcast(values[2 * i + 1]);
    for (int r = 0; r < R; ++r) a[r] += wa * load(xa + r * LANES);
    for (int r = 0; r < R; ++r) b[r] += wb * load(xb + r * LANES);
  }
  for (int r = 0; r < R; ++r) {
    store_vec(sums_a + r * LANES, a[r]);
    store_vec(sums_b + r * LANES, b[r]);
  }
}

template <int R>
void multiply_pairs(const Matrix& m, uint32_t group, const float* panel, float* sums) {
  constexpr uint32_t width = R * LANES;
  alignas(64) float values[2 * kMaxBlock + 16];
  uint8_t step_buffer[kMaxSteps];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.block_count(); ++block) {
    const char* activations = reinterpret_cast<const char*>(panel + size_t(block) * m.header.block_columns * width);
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      float* a = sums + size_t(m.row(unit, 0)) * width;
      float* b = sums + size_t(m.row(unit, 1)) * width;
      if (count == 0 && block > 0) continue;
      decode_values(m, entry, 2 * count, values);
      const uint8_t* steps = steps_of_pair(m, entry, count, false, step_buffer);
      multiply_pair<R>(values, steps, count, activations, block == 0, a, b);
      entry += 2 * uint64_t(count);
    }
  }
}

// Four rows share each load of activations, but their sums need many registers: P vectors of tokens per pass.
template <int R, int P>
inline void multiply_four(const float* values, const uint8_t* steps, uint32_t count, const char* block, bool first,
                          float* sums) {
  constexpr uint32_t width = R * LANES;
  for (int p = 0; p < R; p += P, block += P * LANES * 4, sums += P * LANES) {
    vec s[4][P];
    for (int j = 0; j < 4; ++j)
      for (int r = 0; r < P; ++r) s[j][r] = first ? vec{} : load(sums + j * width + r * LANES);
    const char* at = block;
    for (uint32_t i = 0; i < count; ++i) {
      at += size_t(steps[i]) * (width * 4);
      const float* x = reinterpret_cast<const float*>(at);
      vec tokens[P];
      for (int r = 0; r < P; ++r) tokens[r] = load(x + r * LANES);
      for (int j = 0; j < 4; ++j) {
        const vec w = broadcast(values[4 * i + j]);
        for (int r = 0; r < P; ++r) s[j][r] += w * tokens[r];
      }
    }
    for (int j = 0; j < 4; ++j)
      for (int r = 0; r < P; ++r) store_vec(sums + j * width + r * LANES, s[j][r]);
  }
}

template <int R>
void multiply_fours(const Matrix& m, uint32_t group, const float* panel, float* sums) {
  constexpr uint32_t width = R * LANES;
  constexpr int P = R % VECTORS_4X1 == 0 ? VECTORS_4X1 : R;
  alignas(64) float values[4 * kMaxBlock + LANES];
  uint8_t step_buffer[kMaxSteps];
  uint64_t entry = read_at<uint64_t>(m.groups, group), unit = m.first_unit(group);
  const uint32_t units = m.units_in_group(group);
  for (uint32_t block = 0; block < m.block_count(); ++block) {
    const char* activations = reinterpret_cast<const char*>(panel + size_t(block) * m.header.block_columns * width);
    for (uint32_t u = 0; u < units; ++u, ++unit) {
      const uint32_t count = read_at<uint16_t>(m.counts, unit);
      if (count == 0 && block > 0) continue;
      decode_values(m, entry * 4, 4 * count, values);
      const uint8_t* steps = steps_of_four(m, entry, count, step_buffer);
      multiply_four<R, P>(values, steps, count, activations, block == 0, sums + size_t(m.row(unit, 0)) * width);
      entry += count;
    }
  }
}

void multiply(const Matrix& m, uint32_t group, const float* panel, uint32_t width, float* sums) {
  const bool fours = m.header.block_rows == 4;
  switch (width / LANES) {
    case 1: return fours ? multiply_fours<1>(m, group, panel, sums) : multiply_pairs<1>(m, group, panel, sums);
    case 2: return fours ? multiply_fours<2>(m, group, panel, sums) : multiply_pairs<2>(m, group, panel, sums);
    case 3: return fours ? multiply_fours<3>(m, group, panel, sums) : multiply_pairs<3>(m, group, panel, sums);
    default: return fours ? multiply_fours<4>(m, group, panel, sums) : multiply_pairs<4>(m, group, panel, sums);
  }
}

// ---- activation

#include "activation.h"

// Scales, biases and activation of a group's rows.
struct Epilogue {
  const uint8_t *scales, *biases;
  bool integer_sums;
  Activation activation;

  Epilogue(const Matrix& m, uint32_t group, Activation activation, const Affine* affine)
      : integer_sums(affine), activation(activation) {
    const size_t offset = size_t(group) * m.header.group_rows * sizeof(float);
    scales = (affine ? reinterpret_cast<const uint8_t*>(affine->scales) : m.scales) + offset;
    biases = (affine ? reinterpret_cast<const uint8_t*>(affine->biases) : m.biases) + offset;
  }

  // ROWS rows from `row` on, of R vectors of tokens each.
  template <int ROWS, int R>
  void apply(uint32_t row, float* sums, vec* marks) const {
    vec x[ROWS * R];
    for (int i = 0; i < ROWS; ++i) {
      const float scale = read_at<float>(scales, row + i), bias = read_at<float>(biases, row + i);
      for (int r = 0; r < R; ++r) {
        vec v = load(sums + (size_t(row + i) * R + r) * LANES);
        if (integer_sums) v = __builtin_convertvector((ivec)v, vec);
        x[i * R + r] = v * scale + bias;
      }
    }
    activate<ROWS * R>(activation, x);
    for (int i = 0; i < ROWS; ++i)
      for (int r = 0; r < R; ++r) {
        store_vec(sums + (size_t(row + i) * R + r) * LANES, x[i * R + r]);
        marks[r] += x[i * R + r] * 0.f;
      }
  }
};

template <int R>
void finish_rows(const Epilogue& to_output, uint32_t rows, float* sums, float* non_finite) {
  constexpr int kRows = R < 3 ? 4 / R : 1;  // at a time: three or four vectors hide the latency of the activation
  vec marks[R] = {};
  uint32_t row = 0;
  for (; row + kRows <= rows; row += kRows) to_output.apply<kRows, R>(row, sums, marks);
  for (; row < rows; ++row) to_output.apply<1, R>(row, sums, marks);
  for (int r = 0; non_finite && r < R; ++r) store_vec(non_finite + r * LANES, load(non_finite + r * LANES) + marks[r]);
}

void epilogue(const Matrix& m, uint32_t group, Activation activation, const Affine* affine, uint32_t width, float* sums,
              float* non_finite) {
  const Epilogue to_output(m, group, activation, affine);
  const uint32_t rows = m.rows_in_group(group);
  switch (width / LANES) {
    case 1: return finish_rows<1>(to_output, rows, sums, non_finite);
    case 2: return finish_rows<2>(to_output, rows, sums, non_finite);
    case 3: return finish_rows<3>(to_output, rows, sums, non_finite);
    default: return finish_rows<4>(to_output, rows, sums, non_finite);
  }
}

void store(const float* sums, uint32_t rows, uint32_t width, uint32_t tokens, float* const* y, size_t offset) {
  for (uint32_t t = 0; t < tokens; t += LANES) {
    const uint32_t valid = smaller(LANES, tokens - t);
    uint32_t r = 0;
    for (; r + LANES <= rows; r += LANES) {
      vec tile[LANES];
      for (uint32_t i = 0; i < LANES; ++i) tile[i] = load(sums + size_t(r + i) * width + t);
      transpose(tile);
      if (valid == LANES)
        for (uint32_t i = 0; i < LANES; ++i) store_vec(y[t + i] + offset + r, tile[i]);
      else
        for (uint32_t i = 0; i < valid; ++i) store_vec(y[t + i] + offset + r, tile[i]);
    }
    for (; r < rows; ++r)
      for (uint32_t i = 0; i < valid; ++i) y[t + i][offset + r] = sums[size_t(r) * width + t + i];
  }
}

// ---- 8-bit activations

// Distance from the range's low end, in steps. Same arithmetic as in OpenVINO, so that ties round to the same level.
inline vec to_steps(vec x, Range range) {
  const float inverse_step = range.inverse_step();
  return x * inverse_step + -range.low * inverse_step;
}

// Number of the nearest level, as a float. NaN becomes 0; recompute_non_finite corrects the results of such tokens.
inline vec nearest_level(vec x, Range range) {
  const vec steps = maximum(to_steps(x, range), vec{});
  return minimum(steps, broadcast(255.f)) + 12582912.f - 12582912.f;  // see exp2_negative; ties to even
}

void fake_quantize(const float* values, size_t n, Range range, float* quantized) {
  const float step = range.step();
  for (size_t i = 0; i < n; i += LANES) store_vec(quantized + i, nearest_level(load(values + i), range) * step + range.low);
}

// Intrinsics of this vector width, and those on whole integer registers.
#if LANES == 8
#define MM(name) _mm256_##name
#define MM_INT(name) MM(name##_si256)
#else
#define MM(name) _mm512_##name
#define MM_INT(name) MM(name##_si512)
#endif
#if LANES >= 8
#include "codes.h"
#else
constexpr const CodeKernel* kCodeKernel = nullptr;
#endif

#include "attention.h"
#include "embed.h"
#include "layer_norm.h"

}  // namespace

namespace pofa {
const Kernel KERNEL = {NAME,        LANES,            4,             load_panel, multiply,     epilogue,          store,
                       fake_quantize, kCodeKernel,    queries_to_codes, keys_to_codes, attend, attend_codes, add_and_normalize,
                       embed,       mark_non_finite};
}
