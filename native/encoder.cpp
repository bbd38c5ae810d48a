// The C interface of a stack of encoder layers: validation, and one run of it.
#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "encoder_run.h"

using namespace pofa;

namespace {

// Sets what a layer needs besides its matrices, which are open and have the right sizes.
Error set_up(const pofa_encoder_layer& from, uint32_t hidden, Layer* layer) {
  for (int i = 0; i < kMatrices; ++i)
    if (!std::isnan(from.ranges[i][0]))
      if (Error error = layer->projections[i].quantize_input({from.ranges[i][0], from.ranges[i][1]})) return error;
  layer->quantized_attention = !std::isnan(from.attention_ranges[0][0]);
  layer->query_range = {from.attention_ranges[0][0], from.attention_ranges[0][1]};
  layer->key_range = {from.attention_ranges[1][0], from.attention_ranges[1][1]};
  if (layer->quantized_attention && !(is_valid(layer->query_range) && is_valid(layer->key_range))) return kBadArgument;
  for (int i = 0; i < 2; ++i) {
    if (!(from.epsilons[i] >= 0) || !(from.epsilons[i] < INFINITY)) return kBadArgument;
    std::vector<float>& parameters = layer->norm_parameters[i];
    parameters.resize(2 * size_t(hidden));
    std::memcpy(parameters.data(), from.norm_scales[i], hidden * sizeof(float));
    std::memcpy(parameters.data() + hidden, from.norm_offsets[i], hidden * sizeof(float));
    layer->norms[i] = {parameters.data(), parameters.data() + hidden, from.epsilons[i]};
  }
  return kOk;
}

}  // namespace

int pofa_encoder_open(const pofa_encoder_layer* layers, uint32_t count, uint32_t hidden, uint32_t heads, float scale,
                      int activation, const char* isa, pofa_encoder** encoder) try {
  *encoder = nullptr;
  auto opened = std::make_unique<pofa_encoder>();
  opened->kernel = isa ? kernel_named(isa) : &best_kernel();
  const bool is_valid = count >= 1 && hidden >= 1 && heads >= 1 && hidden % heads == 0 && activation >= kIdentity &&
                        activation <= kRelu && scale > 0 && scale < INFINITY;
  if (!opened->kernel || !is_valid) return kBadArgument;
  opened->hidden = hidden;
  opened->heads = heads;
  opened->scale = scale;
  opened->activation = Activation(activation);
  opened->layers.resize(count);
  for (uint32_t l = 0; l < count; ++l) {
    std::array<Projection, kMatrices>& all = opened->layers[l].projections;
    for (int i = 0; i < kMatrices; ++i)
      if (Error error = all[i].open(layers[l].blobs[i], layers[l].sizes[i], *opened->kernel)) return error;
    if (l == 0) opened->inner = all[kInner].matrix().rows();
    for (int i = 0; i < kMatrices; ++i) {
      const uint32_t rows = i == kInner ? opened->inner : hidden, columns = i == kOuter ? opened->inner : hidden;
      if (all[i].matrix().rows() != rows || all[i].matrix().columns() != columns) return kBadArgument;
    }
    if (Error error = set_up(layers[l], opened->hidden, &opened->layers[l])) return error;
    const Layer& layer = opened->layers[l];  // the factor of scores that are products of codes
    if (layer.quantized_attention && !(scale * layer.query_range.step() * layer.key_range.step() < INFINITY))
      return kBadArgument;
  }
  *encoder = opened.release();
  return kOk;
} catch (const std::bad_alloc&) {
  return kOutOfMemory;
}

void pofa_encoder_close(pofa_encoder* encoder) { delete encoder; }

int pofa_encoder_run(const pofa_encoder* encoder, const float* x, const uint8_t* mask, size_t batch, size_t length, float* y,
                     pofa_parallel_for parallel, uint32_t threads) try {
  if (!encoder) return kBadArgument;
  Run run(*encoder, mask, batch, length, parallel ? std::max(threads, 1u) : 1);
  if (run.token_count() < batch * length) std::memset(y, 0, batch * length * encoder->hidden * sizeof(float));
  if (run.token_count()) run.compute(x, y, parallel);
  return kOk;
} catch (const std::bad_alloc&) {
  return kOutOfMemory;
}
