// Residual sum and LayerNorm of a panel. Included by micro_kernel.h inside its namespace.

template <int R>
void normalize_vectors(float* values, const float* residual, const float* poison, uint32_t rows, Norm norm, float* out) {
  constexpr uint32_t width = R * LANES;
  vec mean[R] = {}, factor[R] = {};
  for (uint32_t r = 0; r < rows; ++r)
    for (int v = 0; v < R; ++v) {
      const size_t at = size_t(r) * width + v * LANES;
      const vec sum = load(values + at) + load(residual + at);
      store_vec(values + at, sum);
      mean[v] += sum;
    }
  const float share = 1.f / float(rows);
  for (int v = 0; v < R; ++v) mean[v] = mean[v] * share + load(poison + v * LANES);
  for (uint32_t r = 0; r < rows; ++r)
    for (int v = 0; v < R; ++v) {
      const vec distance = load(values + size_t(r) * width + v * LANES) - mean[v];
      factor[v] += distance * distance;
    }
  for (int v = 0; v < R; ++v) factor[v] = 1.f / square_root(factor[v] * share + norm.epsilon);
  for (uint32_t r = 0; r < rows; ++r)
    for (int v = 0; v < R; ++v) {
      const size_t at = size_t(r) * width + v * LANES;
      store_vec(out + at, (load(values + at) - mean[v]) * factor[v] * norm.scales[r] + norm.offsets[r]);
    }
}

void add_and_normalize(float* values, const float* residual, const float* poison, uint32_t rows, uint32_t width, Norm norm,
                       float* out) {
  switch (width / LANES) {
    case 1: return normalize_vectors<1>(values, residual, poison, rows, norm, out);
    case 2: return normalize_vectors<2>(values, residual, poison, rows, norm, out);
    case 3: return normalize_vectors<3>(values, residual, poison, rows, norm, out);
    default: return normalize_vectors<4>(values, residual, poison, rows, norm, out);
  }
}

void mark_non_finite(const float* panel, uint32_t rows, uint32_t width, bool nan_only, float* marks) {
  for (uint32_t t = 0; t < width; t += LANES) {
    vec found = load(marks + t);
    for (uint32_t r = 0; r < rows; ++r) {
      const vec x = load(panel + size_t(r) * width + t);
      found += nan_only ? (x == x ? vec{} : x) : x * 0.f;
    }
    store_vec(marks + t, found);
  }
}
