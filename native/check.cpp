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
#include "kernel.h"
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

// A whole number of -127 to 127, which a half holds exactly.
uint16_t half_of(int whole) {
  const uint32_t sign = whole < 0 ? 0x8000 : 0;
  uint32_t size = uint32_t(std::abs(whole)), exponent = 25;
  if (!size) return 0;
  for (; size < 1024; size *= 2) --exponent;
  return uint16_t(sign | exponent << 10 | (size & 1023));
}

struct Weights {
  uint32_t rows, columns, block_rows, type;
  std::vector<float> plain, scales, biases;
  std::unique_ptr<uint8_t[]> blob;  // exactly as large as it says: a read behind it is seen
  size_t size;
};

Weights weights(uint32_t rows, uint32_t columns) {
  Weights w{rows, columns, below(2) ? 1u : 4u, below(3), {}, {}, {}, nullptr, 0};
  const uint32_t density = below(4) == 0 ? 100 * below(2) : below(101);  // all zero and all dense too
  w.plain.resize(size_t(rows) * columns);
  std::vector<int8_t> codes(w.plain.size());
  std::vector<uint16_t> halves(w.plain.size());
  for (size_t i = 0; i < w.plain.size(); ++i)
    if (below(100) < density) {
      w.plain[i] = float(codes[i] = int8_t(int(below(255)) - 127));
      halves[i] = half_of(codes[i]);
    }
  for (uint32_t r = 0; r < rows; ++r) w.scales.push_back(real() / 50), w.biases.push_back(real());
  const uint32_t block = below(3) ? 0 : 1 + below(256), group = below(3) ? 0 : 4 * (1 + below(63));
  const void* of_type[] = {w.plain.data(), halves.data(), codes.data()};
  static_assert(pofa::kF32 == 0 && pofa::kF16 == 1 && pofa::kI8 == 2, "the order above");
  const void* values = of_type[w.type];
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

double largest(const std::vector<double>& values) {
  double found = 1e-6;
  for (double v : values)
    if (std::isfinite(v)) found = std::fmax(found, std::fabs(v));
  return found;
}

// To the nearest of 256 values. Where two are as near, float and double may choose differently: such an input is moved.
struct Rounded {
  float low, high;
  double step() const { return double(high - low) / 255; }
  double nearest(double v) const { return std::isnan(v) ? v : low + step() * std::nearbyint(std::fmin(std::fmax((v - low) / step(), 0), 255)); }
  bool between(double v) const { return std::fabs((v - low) / step() - std::floor((v - low) / step()) - 0.5) < 0.01; }
};

void compare(const std::vector<float>& got, const std::vector<double>& wanted, double room = 0) {
  const double limit = 2e-5 * largest(wanted) + room;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(wanted[i]) ? !std::isnan(got[i])
        : std::isinf(wanted[i]) ? double(got[i]) != wanted[i]
                                : !(std::fabs(got[i] - wanted[i]) <= limit)) {
      std::printf("at %zu: %g, not %g\n", i, double(got[i]), wanted[i]);
      fail("product");
    }
  }
}

void check_product(const char* isa, size_t tokens, uint32_t side) {
  const bool chain = below(2);
  const int activation = int(below(3));
  const uint32_t columns = 1 + below(side);
  std::vector<Weights> all;
  all.push_back(weights(1 + below(side), columns));
  if (chain) all.push_back(weights(1 + below(side), all[0].rows));
  else if (below(2)) all.push_back(weights(1 + below(side), columns));

  const Rounded range{-0.4f - 0.3f * real(), 0.5f + 0.4f * real()}, hidden_range{-20.f - 9 * real(), 50.f + 20 * real()};
  const Rounded& second = chain ? hidden_range : range;
  const bool rounds = below(2);
  const float ranges[4] = {range.low, range.high, second.low, second.high};

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
  if (pofa_open(blobs.data(), sizes.data(), uint32_t(all.size()), chain, activation, rounds ? ranges : nullptr, isa, &layer))
    fail("open");
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
    double room = 0;
    if (rounds) {
      // Hidden values cannot be moved away from ties: a few of a token's may be one step off.
      for (double& v : hidden) v = hidden_range.nearest(v);
      for (float scale : all[1].scales) room = std::fmax(room, 4 * hidden_range.step() * 127 * std::fabs(scale));
    }
    compare(out[0], product(all[1], hidden, tokens), room);
  } else {
    for (size_t i = 0; i < all.size(); ++i) {
      std::vector<double> wanted = product(all[i], input, tokens);
      gelu(&wanted, activation);
      compare(out[i], wanted);
    }
  }
}

// The first parallel step of an operation is over panels, if there are fewer of them than threads.
std::vector<size_t> g_steps;
void counted(size_t n, pofa_task task, void* context) {
  g_steps.push_back(n);
  for (size_t i = 0; i < n; ++i) task(context, i);
}

// A panel decodes all the weights: many threads must not get one vector of tokens each, but share the rows.
void check_panels(const char* isa) {
  const uint32_t lanes = pofa::kernel_named(isa)->lanes;
  const Weights w = weights(300, 20);
  const void* blob = w.blob.get();
  pofa_layer* layer = nullptr;
  if (pofa_open(&blob, &w.size, 1, 0, 0, nullptr, isa, &layer)) fail("open");
  std::vector<float> x(20 * 8 * lanes, 1.f), y(300 * 8 * lanes);
  float* to = y.data();
  const size_t wanted[][2] = {{1, 2}, {2, 2}, {4, 4}, {16, 4}, {64, 4}};  // threads, panels of 8 vectors of tokens
  for (const auto& [threads, panels] : wanted) {
    g_steps.clear();
    if (pofa_run(layer, x.data(), 8 * lanes, &to, counted, uint32_t(threads))) fail("run");
    if (g_steps[0] != panels) fail("number of panels");
    if (panels < threads && g_steps.size() < 2) fail("rows are not shared out");
  }
  pofa_close(layer);
}

// Damage with a checksum that agrees again reaches every later check; what still opens must run without harm. The blob is
// alone, beside a sound one, or before or behind it in a chain.
void check_damage(const char* isa) {
  Weights w = weights(1 + below(40), 1 + below(300));
  const bool alone = below(2), chain = !alone && below(2);
  const size_t place = alone ? 0 : below(2);
  const Weights sound = chain ? place ? weights(w.columns, 1 + below(40)) : weights(1 + below(40), w.rows)
                              : weights(1 + below(40), w.columns);
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
  const void* blobs[2] = {sound.blob.get(), sound.blob.get()};
  size_t sizes[2] = {sound.size, sound.size};
  blobs[place] = bad.get();
  sizes[place] = cut;
  const float ranges[4] = {-1.f, 1.f, -2.f, 3.f};
  pofa_layer* layer = nullptr;
  const int error = pofa_open(blobs, sizes, alone ? 1 : 2, chain, 1, below(2) ? ranges : nullptr, isa, &layer);
  if (error > 0) fail("error code");
  if (error) return;
  if (!mended && std::memcmp(bad.get(), w.blob.get(), cut)) fail("damage was not noticed");
  uint64_t facts[2][6] = {};
  for (uint32_t i = 0; i < (alone ? 1 : 2); ++i)
    if (pofa_layer_facts(layer, i, facts[i])) fail("facts");
  if (facts[place][0] * facts[place][1] < 1u << 22) {
    std::vector<float> x(5 * facts[0][1], 0.5f), y[2] = {std::vector<float>(5 * facts[0][0]), std::vector<float>(5 * facts[1][0])};
    x[0] = std::nanf("");
    float* to[2] = {chain ? y[1].data() : y[0].data(), y[1].data()};
    if (pofa_run(layer, x.data(), 5, to, below(8) ? nullptr : four_threads, 4)) fail("run");
    std::vector<uint8_t> values(facts[place][0] * facts[place][1] * 4);
    std::vector<float> scales(facts[place][0]), biases(facts[place][0]);
    if (pofa_unpack(bad.get(), cut, values.data(), scales.data(), biases.data())) fail("unpack");
  }
  pofa_close(layer);
}

}  // namespace

int main(int count, char** arguments) {
  g_random.seed(count > 1 ? uint32_t(std::atoi(arguments[1])) : 1);
  const int rounds = count > 2 ? std::atoi(arguments[2]) : 100;
  std::vector<const char*> runs;
  for (const char* isa : {"scalar", "avx2", "avxvnni", "avx512", "vnni"}) {
    const Weights w = weights(1, 1);
    const void* blob = w.blob.get();
    pofa_layer* layer = nullptr;
    if (pofa_open(&blob, &w.size, 1, 0, 0, nullptr, isa, &layer)) {
      std::printf("%s: this processor does not run it\n", isa);
      continue;
    }
    pofa_close(layer);
    runs.push_back(isa);
    for (int i = 0; i < rounds; ++i) check_product(isa, below(8) ? 1 + below(150) : 1, 300);
    for (int i = 0; i < 4; ++i) check_product(isa, 4096, 24);
    check_panels(isa);
    std::printf("%s: %d products agree\n", isa, rounds);
  }
  for (int i = 0; i < 100 * rounds; ++i) check_damage(runs[below(uint32_t(runs.size()))]);
  std::printf("%d damaged blobs did no harm\n", 100 * rounds);
}
