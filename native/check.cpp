// The kernel under the sanitizers: products against a double reference, and a reader that is fed damaged blobs.
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
#include "sparse_linear.h"

namespace {

std::mt19937 g_random;

uint32_t below(uint32_t n) { return uint32_t(g_random() % n); }
float real() { return std::uniform_real_distribution<float>(-1.f, 1.f)(g_random); }

void fail(const char* what) {
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

void four_threads(size_t n, pofa_task task, void* context) {
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 4; ++t)
    threads.emplace_back([=] {
      for (size_t i = t; i < n; i += 4) task(context, i);
    });
  for (std::thread& thread : threads) thread.join();
}

struct Weights {
  uint32_t rows, columns, block_rows, type;
  std::vector<float> plain, scales, biases;
  std::unique_ptr<uint8_t[]> blob;  // exactly as large as it says: a read behind it is seen
  size_t size;
};

Weights weights(uint32_t rows, uint32_t columns) {
  Weights w{rows, columns, below(2) ? 1u : 4u, below(2) ? uint32_t(pofa::kF32) : uint32_t(pofa::kI8), {}, {}, {}, nullptr, 0};
  const uint32_t density = below(4) == 0 ? 100 * below(2) : below(101);  // all zero and all dense too
  w.plain.resize(size_t(rows) * columns);
  std::vector<int8_t> codes(w.plain.size());
  for (size_t i = 0; i < w.plain.size(); ++i)
    if (below(100) < density) w.plain[i] = float(codes[i] = int8_t(int(below(255)) - 127));
  for (uint32_t r = 0; r < rows; ++r) w.scales.push_back(real() / 50), w.biases.push_back(real());
  const uint32_t block = below(3) ? 0 : 1 + below(256), group = below(3) ? 0 : 4 * (1 + below(63));
  const void* values = w.type == pofa::kI8 ? static_cast<const void*>(codes.data()) : w.plain.data();
  auto pack = [&](void* to, size_t capacity) {
    return pofa_pack(values, w.type, w.scales.data(), w.biases.data(), rows, columns, w.block_rows, block, group, to, capacity);
  };
  const int64_t size = pack(nullptr, 0);
  if (size < 0) fail("pack");
  w.size = size_t(size);
  w.blob.reset(new uint8_t[w.size]);
  if (pack(w.blob.get(), w.size) != size) fail("pack again");
  return w;
}

std::vector<double> product(const Weights& w, const std::vector<double>& x, size_t tokens) {
  std::vector<double> y(tokens * w.rows);
  for (size_t t = 0; t < tokens; ++t)
    for (uint32_t r = 0; r < w.rows; ++r) {
      double sum = 0;
      for (uint32_t c = 0; c < w.columns; ++c) sum += double(w.plain[size_t(r) * w.columns + c]) * x[t * w.columns + c];
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

// To the nearest of 256 values. Where two are as near, float and double may choose differently: such an input is moved.
struct Rounded {
  float low, high;
  double step() const { return double(high - low) / 255; }
  double nearest(double v) const { return std::isnan(v) ? v : low + step() * std::nearbyint(std::fmin(std::fmax((v - low) / step(), 0), 255)); }
  bool between(double v) const { return std::fabs((v - low) / step() - std::floor((v - low) / step()) - 0.5) < 0.01; }
};

void compare(const std::vector<float>& got, const std::vector<double>& wanted) {
  double scale = 1e-6;
  for (double v : wanted)
    if (std::isfinite(v)) scale = std::fmax(scale, std::fabs(v));
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(wanted[i]) ? !std::isnan(got[i])
        : std::isinf(wanted[i]) ? double(got[i]) != wanted[i]
                                : !(std::fabs(got[i] - wanted[i]) <= 2e-5 * scale)) {
      std::printf("at %zu: %g, not %g\n", i, double(got[i]), wanted[i]);
      fail("product");
    }
  }
}

void check_product(const char* isa) {
  const bool chain = below(2);
  const int activation = int(below(3));
  const uint32_t columns = 1 + below(300);
  const size_t tokens = below(8) ? 1 + below(150) : 1;
  std::vector<Weights> all;
  all.push_back(weights(1 + below(300), columns));
  if (chain) all.push_back(weights(1 + below(200), all[0].rows));
  else if (below(2)) all.push_back(weights(1 + below(200), columns));

  // A chain's hidden values cannot be moved away from ties, so its second range is tested elsewhere, on whole numbers.
  const Rounded range{-0.4f - 0.3f * real(), 0.5f + 0.4f * real()};
  const bool rounds = !chain && below(2);
  const float ranges[4] = {range.low, range.high, range.low, range.high};

  std::vector<float> x(tokens * columns);
  for (float& v : x) do v = real();
    while (rounds && range.between(v));
  const bool odd = below(3) == 0;
  if (odd)
    for (int i = 0; i < 3; ++i)
      x[below(uint32_t(x.size()))] = below(2) ? std::numeric_limits<float>::infinity() : std::nanf("");

  std::vector<const void*> blobs;
  std::vector<size_t> sizes;
  for (const Weights& w : all) blobs.push_back(w.blob.get()), sizes.push_back(w.size);
  pofa_layer* layer = nullptr;
  if (pofa_open(blobs.data(), sizes.data(), uint32_t(all.size()), chain, activation, rounds ? ranges : nullptr, isa, &layer)) fail("open");
  std::vector<std::vector<float>> out;
  std::vector<float*> y;
  for (size_t i = chain ? 1 : 0; i < all.size(); ++i) out.emplace_back(tokens * all[i].rows);
  for (auto& o : out) y.push_back(o.data());
  if (pofa_run(layer, x.data(), tokens, y.data(), below(2) ? four_threads : nullptr, 4)) fail("run");
  pofa_close(layer);

  std::vector<double> input(x.begin(), x.end());
  if (rounds)
    for (double& v : input) v = range.nearest(v);
  if (chain) {
    std::vector<double> hidden = product(all[0], input, tokens);
    gelu(&hidden, activation);
    compare(out[0], product(all[1], hidden, tokens));
  } else {
    for (size_t i = 0; i < all.size(); ++i) {
      std::vector<double> wanted = product(all[i], input, tokens);
      gelu(&wanted, activation);
      compare(out[i], wanted);
    }
  }
}

// Damage with a checksum that agrees again reaches every later check; what still opens must run without harm.
void check_damage() {
  Weights w = weights(1 + below(40), 1 + below(300));
  const size_t cut = below(4) == 0 ? below(uint32_t(w.size)) : w.size;
  std::unique_ptr<uint8_t[]> bad(new uint8_t[cut]);
  std::memcpy(bad.get(), w.blob.get(), cut);
  const size_t reach = below(2) ? std::min<size_t>(cut, sizeof(pofa::Header)) : cut;
  const int changes = 1 + int(below(4));
  if (reach)
    for (int i = 0; i < changes; ++i) bad[below(uint32_t(reach))] ^= uint8_t(1u << below(8));
  const bool mended = below(4) && cut >= sizeof(pofa::Header);
  if (mended) {
    const uint64_t sum = pofa::checksum(bad.get(), cut);
    std::memcpy(bad.get() + offsetof(pofa::Header, checksum), &sum, 8);
  }
  const void* blob = bad.get();
  const float ranges[2] = {-1.f, 1.f};
  pofa_layer* layer = nullptr;
  const int error = pofa_open(&blob, &cut, 1, 0, 1, below(2) ? ranges : nullptr, nullptr, &layer);
  if (error > 0) fail("error code");
  if (error) return;
  if (!mended && std::memcmp(blob, w.blob.get(), cut)) fail("damage was not noticed");
  uint64_t facts[6];
  if (pofa_layer_facts(layer, 0, facts)) fail("facts");
  if (facts[0] * facts[1] < 1u << 22) {
    std::vector<float> x(5 * facts[1], 0.5f), y(5 * facts[0]);
    x[0] = std::nanf("");
    float* to = y.data();
    if (pofa_run(layer, x.data(), 5, &to, nullptr, 1)) fail("run");
    std::vector<uint8_t> values(facts[0] * facts[1] * 4);
    std::vector<float> scales(facts[0]), biases(facts[0]);
    if (pofa_unpack(blob, cut, values.data(), scales.data(), biases.data())) fail("unpack");
  }
  pofa_close(layer);
}

}  // namespace

int main(int count, char** arguments) {
  g_random.seed(count > 1 ? uint32_t(std::atoi(arguments[1])) : 1);
  const int rounds = count > 2 ? std::atoi(arguments[2]) : 100;
  for (const char* isa : {"scalar", "avx2", "avxvnni", "avx512", "vnni"}) {
    const Weights w = weights(1, 1);
    const void* blob = w.blob.get();
    pofa_layer* layer = nullptr;
    if (pofa_open(&blob, &w.size, 1, 0, 0, nullptr, isa, &layer)) {
      std::printf("%s: this processor does not run it\n", isa);
      continue;
    }
    pofa_close(layer);
    for (int i = 0; i < rounds; ++i) check_product(isa);
    std::printf("%s: %d products agree\n", isa, rounds);
  }
  for (int i = 0; i < 100 * rounds; ++i) check_damage();
  std::printf("%d damaged blobs did no harm\n", 100 * rounds);
}
