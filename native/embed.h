// Sum of embeddings and LayerNorm of one token. Included by micro_kernel.h inside its namespace.

// Sum over the tables at the features i .. i + LANES - 1; the order is that of the tables.
inline vec table_sum(const int8_t* const* rows, const float* scales, uint32_t count, uint32_t i) {
  vec sum = {};
  for (uint32_t k = 0; k < count; ++k) sum += int8_to_float(reinterpret_cast<const uint8_t*>(rows[k] + i)) * scales[k];
  return sum;
}

void embed(const int8_t* const* rows, const float* scales, uint32_t count, uint32_t hidden, Norm norm, float* out) {
  const uint32_t whole = hidden / LANES * LANES;
  vec part = {};
  for (uint32_t i = 0; i < whole; i += LANES) {
    const vec sum = table_sum(rows, scales, count, i);
    store_vec(out + i, sum);
    part += sum;
  }
  float total = 0;
  for (int lane = 0; lane < LANES; ++lane) total += part[lane];
  for (uint32_t i = whole; i < hidden; ++i) {
    out[i] = 0;
    for (uint32_t k = 0; k < count; ++k) out[i] += rows[k][i] * scales[k];
    total += out[i];
  }
  const float mean = total / float(hidden);
  vec squares = {};
  for (uint32_t i = 0; i < whole; i += LANES) {
    const vec distance = load(out + i) - mean;
    squares += distance * distance;
  }
  float variance = 0;
  for (int lane = 0; lane < LANES; ++lane) variance += squares[lane];
  for (uint32_t i = whole; i < hidden; ++i) variance += (out[i] - mean) * (out[i] - mean);
  const float factor = 1.f / __builtin_sqrtf(variance / float(hidden) + norm.epsilon);
  for (uint32_t i = 0; i < whole; i += LANES)
    store_vec(out + i, (load(out + i) - mean) * factor * load(norm.scales + i) + load(norm.offsets + i));
  for (uint32_t i = whole; i < hidden; ++i) out[i] = (out[i] - mean) * factor * norm.scales[i] + norm.offsets[i];
}
