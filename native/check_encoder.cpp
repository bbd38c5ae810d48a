// Checks of encoder stacks and of the embeddings before them, with sanitizers: random sizes, masks, indices and damaged weights.
// tests/unit/ir/test_encoder.py and test_embedding_sum.py compare results with a reference; here, several threads must give the
// results of one.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "embeddings.h"
#include "encoder.h"
#include "format.h"

void run_on_four_threads(size_t n, pofa_task task, void* context);
void fail(const char* what);

namespace {

struct Blob {
  std::unique_ptr<uint8_t[]> data;  // allocated with exactly `size` bytes, so that sanitizers detect reads past the end
  size_t size;
};

Blob random_blob(std::mt19937& random, uint32_t rows, uint32_t columns) {
  const uint32_t block_rows = random() % 2 ? 1 : 4, group = random() % 2 ? 0 : 4 * (1 + random() % 63);
  std::vector<int8_t> codes(size_t(rows) * columns);
  for (int8_t& code : codes) code = random() % 4 ? 0 : int8_t(int(random() % 255) - 127);
  std::vector<float> scales(rows, 0.01f), values(codes.begin(), codes.end());
  const bool floats = random() % 4 == 0;
  const void* source = floats ? static_cast<const void*>(values.data()) : codes.data();
  const uint32_t type = floats ? pofa::kF32 : pofa::kI8;
  auto pack = [&](void* to, size_t room) {
    return pofa_pack(source, type, scales.data(), nullptr, rows, columns, block_rows, 0, group, to, room);
  };
  Blob blob{nullptr, size_t(pack(nullptr, 0))};
  blob.data.reset(new uint8_t[blob.size]);
  if (pack(blob.data.get(), blob.size) != int64_t(blob.size)) fail("pofa_pack");
  return blob;
}

void damage(std::mt19937& random, Blob* blob) {
  const size_t range = random() % 2 ? sizeof(pofa::Header) : blob->size;
  for (int i = 0; i < 3; ++i) blob->data[random() % range] ^= uint8_t(1u << random() % 8);
  const uint64_t sum = pofa::checksum(blob->data.get(), blob->size);
  std::memcpy(blob->data.get() + offsetof(pofa::Header, checksum), &sum, 8);
}

}  // namespace

void check_encoder(const char* isa, uint32_t seed, bool damaged) {
  std::mt19937 random(seed);
  const uint32_t heads = 1 + random() % 4, hidden = heads * (1 + random() % 20), inner = 1 + random() % 150;
  const uint32_t count = 1 + random() % 3;
  const bool exact = random() % 2;  // rounding to levels would enlarge the differences that the order of sums makes
  std::vector<Blob> blobs;
  std::vector<pofa_encoder_layer> layers(count);
  std::vector<float> ones(hidden, 1.f), zeros(hidden, 0.f);
  for (pofa_encoder_layer& layer : layers) {
    for (int i = 0; i < 6; ++i) {
      blobs.push_back(random_blob(random, i == 4 ? inner : hidden, i == 5 ? inner : hidden));
      const bool quantized = !exact && random() % 3;
      layer.ranges[i][0] = quantized ? -3.f : NAN;
      layer.ranges[i][1] = quantized ? 2.f : NAN;
    }
    const bool quantized_attention = !exact && random() % 2;
    for (int i = 0; i < 4; ++i) layer.attention_ranges[i / 2][i % 2] = quantized_attention ? (i % 2 ? 1.5f : -2.f) : NAN;
    for (int i = 0; i < 2; ++i) {
      layer.norm_scales[i] = ones.data();
      layer.norm_offsets[i] = zeros.data();
      layer.epsilons[i] = 1e-2f;
    }
  }
  if (damaged) damage(random, &blobs[random() % blobs.size()]);
  for (size_t i = 0; i < blobs.size(); ++i)
    layers[i / 6].blobs[i % 6] = blobs[i].data.get(), layers[i / 6].sizes[i % 6] = blobs[i].size;
  pofa_encoder* encoder = nullptr;
  const int error = pofa_encoder_open(layers.data(), count, hidden, heads, 0.2f, int(random() % 4), isa, &encoder);
  if (error > 0 || (error && !damaged)) fail("pofa_encoder_open");
  if (error) return;

  const size_t batch = random() % 6, length = random() % 101;
  std::vector<float> x(batch * length * hidden), one(x.size()), four(x.size());
  for (float& v : x) v = float(random() % 2000) / 1000 - 1;
  std::unique_ptr<uint8_t[]> mask(new uint8_t[batch * length]);
  const unsigned kept = random() % 4;  // of three tokens; 0: all are masked
  for (size_t i = 0; i < batch * length; ++i) mask[i] = random() % 3 < kept;
  const uint8_t* valid = random() % 3 ? mask.get() : nullptr;
  const uint32_t threads = 1 + random() % 20;  // work is divided for as many; four run
  // In a new thread, whose scratch buffers are new: those of an earlier, larger stack would hide an overflow.
  std::thread([&] {
    if (pofa_encoder_run(encoder, x.data(), valid, batch, length, one.data(), nullptr, 1)) fail("pofa_encoder_run");
  }).join();
  std::thread([&] {
    if (pofa_encoder_run(encoder, x.data(), valid, batch, length, four.data(), run_on_four_threads, threads))
      fail("pofa_encoder_run");
  }).join();
  for (size_t i = 0; i < x.size() && exact && !damaged; ++i)
    if (!(std::fabs(one[i] - four[i]) <= 1e-3f)) fail("four threads differ from one");
  pofa_encoder_close(encoder);
}

// Arrays have exactly the sizes that are read, and a part of the indices is outside of the tables.
void check_embeddings(const char* isa, uint32_t seed) {
  std::mt19937 random(seed);
  const uint32_t count = 1 + random() % 4, hidden = 1 + random() % 70;
  const size_t batch = random() % 5, length = random() % 41, tokens = batch * length;
  std::vector<std::unique_ptr<int8_t[]>> codes(count);
  std::vector<std::unique_ptr<float[]>> scales(count);
  std::vector<std::unique_ptr<int32_t[]>> indices(count);
  std::vector<pofa_table> tables(count);
  for (uint32_t k = 0; k < count; ++k) {
    const size_t rows = 1 + random() % 20, stride = random() % 2 ? length : 0, places = stride ? tokens : length;
    codes[k].reset(new int8_t[rows * hidden]);
    scales[k].reset(new float[rows]);
    indices[k].reset(new int32_t[places]);
    for (size_t i = 0; i < rows * hidden; ++i) codes[k][i] = int8_t(random());
    for (size_t i = 0; i < rows; ++i) scales[k][i] = float(random() % 100) / 5000;
    for (size_t i = 0; i < places; ++i)
      indices[k][i] = random() % 9 ? int32_t(random() % (2 * rows)) - int32_t(rows) : int32_t(random());
    tables[k] = {codes[k].get(), scales[k].get(), indices[k].get(), rows, stride};
  }
  const std::vector<float> norm(hidden, 0.5f);
  std::unique_ptr<uint8_t[]> mask(new uint8_t[tokens]);
  for (size_t i = 0; i < tokens; ++i) mask[i] = random() % 3 > 0;
  std::unique_ptr<float[]> one(new float[tokens * hidden]), four(new float[tokens * hidden]);
  auto run = [&](float* y, pofa_parallel_for parallel, uint32_t threads) {
    if (pofa_embed(tables.data(), count, hidden, norm.data(), norm.data(), 1e-6f, mask.get(), batch, length, y, parallel, threads,
                   isa))
      fail("pofa_embed");
  };
  run(one.get(), nullptr, 1);
  run(four.get(), run_on_four_threads, 4);
  if (tokens && std::memcmp(one.get(), four.get(), tokens * hidden * sizeof(float))) fail("four threads differ from one");
}
