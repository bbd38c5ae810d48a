// Attention of one head, with vectors of queries. Included by micro_kernel.h inside its namespace.
//
// Scores of a block of keys stay in the L1 cache; blocks are combined by the online softmax, so that no matrix of all scores
// exists: https://arxiv.org/abs/1805.02867

constexpr uint32_t kRowsPerTile = 4;                      // keys, or features of values, whose sums are in registers
constexpr uint32_t kQueryVectors = LANES == 16 ? 4 : 2;  // vectors of queries per tile

// scores [count][V * LANES]: products of queries and keys.
template <int V>
inline void multiply_keys(const float* queries, uint32_t width, const KeyBlock& block, uint32_t head_size, float* scores) {
  for (uint32_t k = 0; k < block.count; k += kRowsPerTile) {
    vec s[kRowsPerTile][V] = {};
    for (uint32_t d = 0; d < head_size; ++d) {
      const float* keys = block.keys + size_t(d) * block.stride + k;
      vec q[V];
      for (int v = 0; v < V; ++v) q[v] = load(queries + size_t(d) * width + v * LANES);
      for (uint32_t j = 0; j < kRowsPerTile; ++j) {
        const vec key = broadcast(keys[j]);
        for (int v = 0; v < V; ++v) s[j][v] += key * q[v];
      }
    }
    for (uint32_t j = 0; j < kRowsPerTile; ++j)
      for (int v = 0; v < V; ++v) store_vec(scores + size_t((k + j) * V + v) * LANES, s[j][v]);
  }
}

#ifdef VNNI
// Codes of one head: four adjacent features of a token are four bytes, [head_size / 4, rounded up][width][4]. Queries are
// unsigned; keys are signed, 128 less. The head's last row holds what the queries' lowest level adds to each key's scores:
// a query is low + step * code and a key is c + step' * code', so their product is step * step' * (code * code' + low / step *
// code') plus terms that are equal for all keys, on which softmax does not depend.

void queries_to_codes(float* queries, uint32_t head_size, uint32_t width, Range range) {
  for (uint32_t v = 0; v < width; v += LANES)
    for (uint32_t d = 0; d < head_size; d += 4) {
      ivec quad{};
      for (uint32_t i = 0; i < 4 && d + i < head_size; ++i)
        quad |= __builtin_convertvector(nearest_level(load(queries + size_t(d + i) * width + v), range), ivec) << int(8 * i);
      store_vec(queries + size_t(d / 4) * width + v, (vec)quad);
    }
}

void keys_to_codes(float* keys, uint32_t head_size, uint32_t width, Range query_range, Range key_range) {
  const float lowest = query_range.low * query_range.inverse_step();
  for (uint32_t v = 0; v < width; v += LANES) {
    vec sum{};
    for (uint32_t d = 0; d < head_size; d += 4) {
      ivec quad{};
      for (uint32_t i = 0; i < 4 && d + i < head_size; ++i) {
        const vec code = nearest_level(load(keys + size_t(d + i) * width + v), key_range) - 128.f;
        sum += code;
        quad |= (__builtin_convertvector(code, ivec) & 255) << int(8 * i);
      }
      store_vec(keys + size_t(d / 4) * width + v, (vec)quad);
    }
    store_vec(keys + size_t(head_size - 1) * width + v, sum * lowest);
  }
}

template <int V>
inline void multiply_key_codes(const float* queries, uint32_t width, const KeyBlock& block, uint32_t head_size, float* scores) {
  const float* offsets = block.keys + size_t(head_size - 1) * block.stride;
  for (uint32_t k = 0; k < block.count; k += kRowsPerTile) {
    ivec s[kRowsPerTile][V] = {};
    for (uint32_t d = 0; d < (head_size + 3) / 4; ++d) {
      const float* keys = block.keys + size_t(d) * block.stride + k;
      ivec q[V];
      for (int v = 0; v < V; ++v) q[v] = (ivec)load(queries + size_t(d) * width + v * LANES);
      for (uint32_t j = 0; j < kRowsPerTile; ++j) {
        int32_t key;
        __builtin_memcpy(&key, keys + j, sizeof key);
        for (int v = 0; v < V; ++v) s[j][v] = dot_accumulate(s[j][v], q[v], (ivec)MM(set1_epi32)(key));
      }
    }
    for (uint32_t j = 0; j < kRowsPerTile; ++j)
      for (int v = 0; v < V; ++v)
        store_vec(scores + size_t((k + j) * V + v) * LANES, __builtin_convertvector(s[j][v], vec) + offsets[k + j]);
  }
}
#else
constexpr auto queries_to_codes = nullptr;
constexpr auto keys_to_codes = nullptr;
#endif

// sums [head_size][V * LANES] = correction * sums + values times weights [count][V * LANES].
template <int V>
inline void multiply_values(const float* weights, const KeyBlock& block, uint32_t head_size, bool first, const vec* correction,
                            float* sums) {
  for (uint32_t d = 0; d < head_size; d += kRowsPerTile, sums += kRowsPerTile * V * LANES) {
    const float* values = block.values + size_t(d) * block.stride;
    vec s[kRowsPerTile][V];
    for (uint32_t j = 0; j < kRowsPerTile; ++j)
      for (int v = 0; v < V; ++v) s[j][v] = first ? vec{} : load(sums + (j * V + v) * LANES) * correction[v];
    for (uint32_t k = 0; k < block.count; ++k) {
      vec w[V];
      for (int v = 0; v < V; ++v) w[v] = load(weights + size_t(k * V + v) * LANES);
      for (uint32_t j = 0; j < kRowsPerTile; ++j) {
        const vec value = broadcast(values[j * block.stride + k]);
        for (int v = 0; v < V; ++v) s[j][v] += value * w[v];
      }
    }
    for (uint32_t j = 0; j < kRowsPerTile; ++j)
      for (int v = 0; v < V; ++v) store_vec(sums + (j * V + v) * LANES, s[j][v]);
  }
}

// Attention of V vectors of queries; only lanes from `first` to `last` - 1 are written.
template <int V, bool CODES>
void attend_tile(const float* queries, uint32_t width, uint32_t first, uint32_t last, uint32_t head_size, float scale,
                 const KeyBlock* blocks, size_t block_count, float* scratch, float* context) {
  float* scores = scratch;
  float* sums = scratch + kMaxWidth * V * LANES;
  const float log2_scale = scale * 1.44269504f;  // log2(e)
  vec top[V] = {}, total[V] = {}, correction[V] = {};
  for (size_t b = 0; b < block_count; ++b) {
    const KeyBlock& block = blocks[b];
#ifdef VNNI
    if (CODES) multiply_key_codes<V>(queries, width, block, head_size, scores);
    else
#endif
    multiply_keys<V>(queries, width, block, head_size, scores);
    vec greatest[V], sum[V] = {};
    for (int v = 0; v < V; ++v) greatest[v] = load(scores + v * LANES);
    for (uint32_t k = 1; k < block.count; ++k)
      for (int v = 0; v < V; ++v) greatest[v] = maximum(greatest[v], load(scores + size_t(k * V + v) * LANES));
    for (int v = 0; v < V; ++v) {
      greatest[v] *= log2_scale;
      if (b > 0) {
        greatest[v] = maximum(greatest[v], top[v]);
        correction[v] = exp2_negative(top[v] - greatest[v]);
      }
      top[v] = greatest[v];
    }
    for (uint32_t k = 0; k < block.count; ++k)
      for (int v = 0; v < V; ++v) {
        float* at = scores + size_t(k * V + v) * LANES;
        const vec weight = exp2_negative(load(at) * log2_scale - greatest[v]);
        store_vec(at, weight);
        sum[v] += weight;
      }
    for (int v = 0; v < V; ++v) total[v] = b > 0 ? total[v] * correction[v] + sum[v] : sum[v];
    multiply_values<V>(scores, block, head_size, b == 0, correction, sums);
  }
  ivec lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
  for (int v = 0; v < V; ++v) {
    const ivec token = lane + int32_t(v * LANES);
    const ivec written = (token >= int32_t(first)) & (token < int32_t(last));
    const vec inverse = 1.f / total[v];
    for (uint32_t d = 0; d < head_size; ++d) {
      float* at = context + size_t(d) * width + v * LANES;
      store_vec(at, written ? load(sums + (size_t(d) * V + v) * LANES) * inverse : load(at));
    }
  }
}

template <bool CODES>
void attend_vectors(const float* queries, uint32_t width, uint32_t first, uint32_t last, uint32_t head_size, float scale,
            const KeyBlock* blocks, size_t block_count, float* scratch, float* context) {
  for (uint32_t from = first / LANES * LANES; from < last; from += kQueryVectors * LANES) {
    const uint32_t begin = first > from ? first - from : 0, vectors = (last - from + LANES - 1) / LANES;
    const auto tile = vectors == 1 ? attend_tile<1, CODES> : vectors == 2 || kQueryVectors == 2 ? attend_tile<2, CODES>
                      : vectors == 3 ? attend_tile<kQueryVectors - 1, CODES> : attend_tile<kQueryVectors, CODES>;
    tile(queries + from, width, begin, last - from, head_size, scale, blocks, block_count, scratch, context + from);
  }
}

constexpr auto attend = attend_vectors<false>;
#ifdef VNNI
constexpr auto attend_codes = attend_vectors<true>;
#else
constexpr auto attend_codes = nullptr;
#endif
