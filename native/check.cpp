// Test program of the kernels, built with sanitizers: products against a double-precision reference, and reading of damaged
// packed matrices.
//   cmake -S native -B build -DPOFA_SANITIZE=ON && cmake --build build && build/check [seed] [rounds]
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "format.h"
#include "kernel.h"
#include "sparse_linear.h"

void check_encoder(const char* isa, uint32_t seed, bool damaged);
void check_embeddings(const char* isa, uint32_t seed);

void fail(const char* what) {
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

void run_on_four_threads(size_t n, pofa_task task, void* context) {
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t)
    threads.emplace_back([=] {
      for (size_t i = t; i < n; i += 4) task(context, i);
    });
  for (std::thread& thread : threads) thread.join();
}

namespace {

std::mt19937 g_random;

uint32_t random_below(uint32_t n) { return uint32_t(g_random() % n); }
float random_real() { return std::uniform_real_distribution<float>(-1.f, 1.f)(g_random); }

// Converts an integer from -127 to 127, which float16 represents exactly.
uint16_t to_half(int value) {
  const uint32_t sign = value < 0 ? 0x8000 : 0;
  uint32_t size = uint32_t(std::abs(value)), exponent = 25;
  if (!size) return 0;
  for (; size < 1024; size *= 2) --exponent;
  return uint16_t(sign | exponent << 10 | (size & 1023));
}

struct Weights {
  uint32_t rows, columns, block_rows, type;
  std::vector<float> dense, scales, biases;
  std::unique_ptr<uint8_t[]> blob;  // allocated with exactly `size` bytes, so that sanitizers detect reads past the end
  size_t size;
};

Weights random_weights(uint32_t rows, uint32_t columns) {
  Weights w{rows, columns, random_below(2) ? 1u : 4u, random_below(3), {}, {}, {}, nullptr, 0};
  // Percent of non-zeros, with all-zero and fully dense matrices included on purpose.
  const uint32_t density = random_below(4) == 0 ? 100 * random_below(2) : random_below(101);
  w.dense.resize(size_t(rows) * columns);
  std::vector<int8_t> codes(w.dense.size());
  std::vector<uint16_t> halves(w.dense.size());
  for (size_t i = 0; i < w.dense.size(); ++i)
    if (random_below(100) < density) {
      w.dense[i] = float(codes[i] = int8_t(int(random_below(255)) - 127));
      halves[i] = to_half(codes[i]);
    }
  for (uint32_t r = 0; r < rows; ++r) w.scales.push_back(random_real() / 50), w.biases.push_back(random_real());
  const uint32_t block = random_below(3) ? 0 : 1 + random_below(256), group = random_below(3) ? 0 : 4 * (1 + random_below(63));
  const void* by_type[] = {w.dense.data(), halves.data(), codes.data()};
  static_assert(pofa::kF32 == 0 && pofa::kF16 == 1 && pofa::kI8 == 2, "by_type is indexed by ValueType");
  const void* values = by_type[w.type];
  auto pack = [&](void* to, size_t capacity) {
    return pofa_pack(values, w.type, w.scales.data(), w.biases.data(), rows, columns, w.block_rows, block, group, to, capacity);
  };
  const int64_t size = pack(nullptr, 0);
  if (size < 0) fail("pofa_pack: size");
  w.size = size_t(size);
  w.blob.reset(new uint8_t[w.size]);
  if (pack(w.blob.get(), w.size) != size) fail("pofa_pack: size with a buffer");
  return w;
}

std::vector<double> product(const Weights& w, const std::vector<double>& x, size_t tokens) {
  std::vector<double> y(tokens * w.rows);
  for (size_t t = 0; t < tokens; ++t)
    for (uint32_t r = 0; r < w.rows; ++r) {
      double sum = 0;
      for (uint32_t c = 0; c < w.columns; ++c) sum += double(w.dense[size_t(r) * w.columns + c]) * x[t * w.columns + c];
      y[t * w.rows + r] = sum * w.scales[r] + w.biases[r];
    }
  return y;
}

void gelu(std::vector<double>* values, int activation) {
  for (double& v : *values) {
    if (activation == 1) v = v / 2 * (1 + std::erf(v / std::sqrt(2.)));
    if (activation == 2) v = v / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  }
}

double largest_magnitude(const std::vector<double>& values) {
  double maximum = 1e-6;
  for (double v : values)
    if (std::isfinite(v)) maximum = std::fmax(maximum, std::fabs(v));
  return maximum;
}

// Reference quantization to 256 levels. Near a tie, float and double may round to different levels, so inputs near ties are
// replaced.
struct QuantizationRange {
  float low, high;
  double step() const { return double(high - low) / 255; }
  double nearest(double v) const {
    return std::isnan(v) ? v : low + step() * std::nearbyint(std::fmin(std::fmax((v - low) / step(), 0), 255));
  }
  bool is_near_tie(double v) const { return std::fabs((v - low) / step() - std::floor((v - low) / step()) - 0.5) < 0.01; }
};

void compare(const std::vector<float>& actual, const std::vector<double>& expected, double tolerance = 0) {
  const double limit = 2e-5 * largest_magnitude(expected) + tolerance;
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(expected[i]) ? !std::isnan(actual[i])
        : std::isinf(expected[i]) ? double(actual[i]) != expected[i]
                                : !(std::fabs(actual[i] - expected[i]) <= limit)) {
      std::printf("at %zu: %g, expected %g\n", i, double(actual[i]), expected[i]);
      fail("product differs from the reference");
    }
  }
}

void check_product(const char* isa, size_t tokens, uint32_t side) {
  const bool chain = random_below(2);
  const int activation = int(random_below(3));
  const uint32_t columns = 1 + random_below(side);
  std::vector<Weights> all;
  all.push_back(random_weights(1 + random_below(side), columns));
  if (chain) all.push_back(random_weights(1 + random_below(side), all[0].rows));
  else if (random_below(2)) all.push_back(random_weights(1 + random_below(side), columns));

  const QuantizationRange range{-0.4f - 0.3f * random_real(), 0.5f + 0.4f * random_real()};
  const QuantizationRange hidden_range{-20.f - 9 * random_real(), 50.f + 20 * random_real()};
  const QuantizationRange& second_range = chain ? hidden_range : range;
  const bool quantized = random_below(2);
  const float ranges[4] = {range.low, range.high, second_range.low, second_range.high};

  std::vector<float> x(tokens * columns);
  for (float& v : x) do v = random_real();
    while (quantized && range.is_near_tie(v));
  const bool has_non_finite = random_below(3) == 0;
  if (has_non_finite)
    for (int i = 0; i < 3; ++i)
      x[random_below(uint32_t(x.size()))] = random_below(2) ? std::numeric_limits<float>::infinity() : std::nanf("");

  std::vector<const void*> blobs;
  std::vector<size_t> sizes;
  for (const Weights& w : all) blobs.push_back(w.blob.get()), sizes.push_back(w.size);
  pofa_layer* layer = nullptr;
  if (pofa_open(blobs.data(), sizes.data(), uint32_t(all.size()), chain, activation, quantized ? ranges : nullptr, isa, &layer))
    fail("pofa_open");
  std::vector<std::vector<float>> out;
  std::vector<float*> y;
  for (size_t i = chain ? 1 : 0; i < all.size(); ++i) out.emplace_back(tokens * all[i].rows);
  for (auto& o : out) y.push_back(o.data());
  if (pofa_run(layer, x.data(), tokens, y.data(), random_below(2) ? run_on_four_threads : nullptr, 4)) fail("pofa_run");
  pofa_close(layer);

  std::vector<double> input(x.begin(), x.end());
  if (quantized)
    for (double& v : input) v = range.nearest(v);
  if (chain) {
    std::vector<double> hidden = product(all[0], input, tokens);
    gelu(&hidden, activation);
    double tolerance = 0;
    if (quantized) {
      // Hidden values near ties cannot be replaced, so a few per token may be one step off.
      for (double& v : hidden) v = hidden_range.nearest(v);
      for (float scale : all[1].scales) tolerance = std::fmax(tolerance, 4 * hidden_range.step() * 127 * std::fabs(scale));
    }
    compare(out[0], product(all[1], hidden, tokens), tolerance);
  } else {
    for (size_t i = 0; i < all.size(); ++i) {
      std::vector<double> expected = product(all[i], input, tokens);
      gelu(&expected, activation);
      compare(out[i], expected);
    }
  }
}

// Sizes of a call's parallel loops. If there are fewer panels than threads, the first loop is over the panels.
std::vector<size_t> g_loop_sizes;
void record_loop(size_t n, pofa_task task, void* context) {
  g_loop_sizes.push_back(n);
  for (size_t i = 0; i < n; ++i) task(context, i);
}

// Each panel decodes all weights. Many threads must therefore share a panel's rows instead of processing one vector of tokens
// each.
void check_panel_count(const char* isa) {
  const uint32_t lanes = pofa::kernel_named(isa)->lanes;
  const Weights w = random_weights(300, 20);
  const void* blob = w.blob.get();
  pofa_layer* layer = nullptr;
  if (pofa_open(&blob, &w.size, 1, 0, 0, nullptr, isa, &layer)) fail("pofa_open");
  std::vector<float> x(20 * 8 * lanes, 1.f), y(300 * 8 * lanes);
  float* to = y.data();
  const size_t expected[][2] = {{1, 2}, {2, 2}, {4, 4}, {16, 4}, {64, 4}};  // threads, expected panels for 8 vectors of tokens
  for (const auto& [threads, panels] : expected) {
    g_loop_sizes.clear();
    if (pofa_run(layer, x.data(), 8 * lanes, &to, record_loop, uint32_t(threads))) fail("pofa_run");
    if (g_loop_sizes[0] != panels) fail("number of panels");
    if (panels < threads && g_loop_sizes.size() < 2) fail("rows are not distributed among threads");
  }
  pofa_close(layer);
}

// Flips bits of a packed matrix or truncates it. With an updated checksum the damage reaches all later checks; a matrix that
// still opens must run without memory errors. The damaged matrix is used alone, beside a valid one, or before or after it in a
// chain.
void check_damage(const char* isa) {
  Weights w = random_weights(1 + random_below(40), 1 + random_below(300));
  const bool single = random_below(2), chain = !single && random_below(2);
  const size_t position = single ? 0 : random_below(2);
  const Weights valid = !chain     ? random_weights(1 + random_below(40), w.columns)
                        : position ? random_weights(w.columns, 1 + random_below(40))
                                   : random_weights(1 + random_below(40), w.rows);
  const size_t damaged_size = random_below(4) == 0 ? random_below(uint32_t(w.size)) : w.size;
  std::unique_ptr<uint8_t[]> damaged(new uint8_t[damaged_size]);
  std::memcpy(damaged.get(), w.blob.get(), damaged_size);
  const size_t flip_range = random_below(2) ? std::min<size_t>(damaged_size, sizeof(pofa::Header)) : damaged_size;
  const int changes = 1 + int(random_below(4));
  if (flip_range)
    for (int i = 0; i < changes; ++i) damaged[random_below(uint32_t(flip_range))] ^= uint8_t(1u << random_below(8));
  const bool checksum_updated = random_below(4) && damaged_size >= sizeof(pofa::Header);
  if (checksum_updated) {
    const uint64_t sum = pofa::checksum(damaged.get(), damaged_size);
    std::memcpy(damaged.get() + offsetof(pofa::Header, checksum), &sum, 8);
  }
  const void* blobs[2] = {valid.blob.get(), valid.blob.get()};
  size_t sizes[2] = {valid.size, valid.size};
  blobs[position] = damaged.get();
  sizes[position] = damaged_size;
  const float ranges[4] = {-1.f, 1.f, -2.f, 3.f};
  pofa_layer* layer = nullptr;
  const int error = pofa_open(blobs, sizes, single ? 1 : 2, chain, 1, random_below(2) ? ranges : nullptr, isa, &layer);
  if (error > 0) fail("pofa_open: positive error code");
  if (error) return;
  if (!checksum_updated && std::memcmp(damaged.get(), w.blob.get(), damaged_size)) fail("damage was not detected");
  uint64_t facts[2][6] = {};
  for (uint32_t i = 0; i < (single ? 1 : 2); ++i)
    if (pofa_layer_facts(layer, i, facts[i])) fail("pofa_layer_facts");
  if (facts[position][0] * facts[position][1] < 1u << 22) {
    std::vector<float> x(5 * facts[0][1], 0.5f);
    std::vector<float> y[2] = {std::vector<float>(5 * facts[0][0]), std::vector<float>(5 * facts[1][0])};
    x[0] = std::nanf("");
    float* to[2] = {chain ? y[1].data() : y[0].data(), y[1].data()};
    if (pofa_run(layer, x.data(), 5, to, random_below(8) ? nullptr : run_on_four_threads, 4)) fail("pofa_run");
    std::vector<uint8_t> values(facts[position][0] * facts[position][1] * 4);
    std::vector<float> scales(facts[position][0]), biases(facts[position][0]);
    if (pofa_unpack(damaged.get(), damaged_size, values.data(), scales.data(), biases.data())) fail("pofa_unpack");
  }
  pofa_close(layer);
}

}  // namespace

int main(int count, char** arguments) {
  g_random.seed(count > 1 ? uint32_t(std::atoi(arguments[1])) : 1);
  const int rounds = count > 2 ? std::atoi(arguments[2]) : 100;
  std::vector<const char*> supported;
  for (const char* isa : {"scalar", "avx2", "avxvnni", "avx512", "vnni"}) {
    const Weights w = random_weights(1, 1);
    const void* blob = w.blob.get();
    pofa_layer* layer = nullptr;
    if (pofa_open(&blob, &w.size, 1, 0, 0, nullptr, isa, &layer)) {
      std::printf("%s: not supported by this CPU\n", isa);
      continue;
    }
    pofa_close(layer);
    supported.push_back(isa);
    for (int i = 0; i < rounds; ++i) check_product(isa, random_below(8) ? 1 + random_below(150) : 1, 300);
    for (int i = 0; i < 4; ++i) check_product(isa, 4096, 24);
    check_panel_count(isa);
    std::printf("%s: %d products match the reference\n", isa, rounds);
    for (int i = 0; i < 10 * rounds; ++i) check_encoder(isa, g_random(), i % 2);
    for (int i = 0; i < 10 * rounds; ++i) check_embeddings(isa, g_random());
    std::printf("%s: %d encoders, half of them damaged: no memory errors\n", isa, 10 * rounds);
  }
  for (int i = 0; i < 100 * rounds; ++i) check_damage(supported[random_below(uint32_t(supported.size()))]);
  std::printf("%d damaged packed matrices: no memory errors\n", 100 * rounds);
}
