// A stack of encoder layers. Valid tokens of all sequences are divided into panels, which stay transposed through all layers.
#include "encoder.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "layer.h"
#include "work.h"

using namespace pofa;

namespace {

enum MatrixIndex { kQuery, kKey, kValue, kOutput, kInner, kOuter, kMatrices };

struct Layer {
  std::array<Projection, kMatrices> projections;
  std::vector<float> norm_parameters[2];  // scales, then offsets
  Norm norms[2];
  bool quantized_attention = false;
  Range query_range = {0, 0}, key_range = {0, 0};
};

thread_local Scratch t_operand, t_hidden, t_sums, t_marks, t_attention, t_branch;
thread_local Scratch t_shared;  // the calling thread's buffer, used by all threads of the call

}  // namespace

struct pofa_encoder {
  std::vector<Layer> layers;
  uint32_t hidden = 0, inner = 0, heads = 0;
  float scale = 1;
  Activation activation = kIdentity;
  const Kernel* kernel = nullptr;
};

namespace {

struct Sequence {
  size_t first, last;  // numbers of its valid tokens, among those of all sequences
};

// One pofa_encoder_run.
class Run {
 public:
  Run(const pofa_encoder& encoder, const uint8_t* mask, size_t batch, size_t length, uint32_t threads)
      : encoder_(encoder), kernel_(*encoder.kernel) {
    for (size_t b = 0; b < batch; ++b) {
      const size_t first = tokens_.size();
      for (size_t i = b * length; i < (b + 1) * length; ++i)
        if (!mask || mask[i]) tokens_.push_back(i);
      if (tokens_.size() > first) sequences_.push_back({first, tokens_.size()});
    }
    const size_t vectors = (tokens_.size() + kernel_.lanes - 1) / kernel_.lanes;
    panels_ = (vectors + kernel_.max_vectors - 1) / kernel_.max_vectors;
    if (panels_ % threads) panels_ = std::min(vectors, (panels_ + threads - 1) / threads * threads);
    width_ = panels_ ? uint32_t((vectors + panels_ - 1) / panels_) * kernel_.lanes : 0;
    if (width_) panels_ = (tokens_.size() + width_ - 1) / width_;
    panel_floats_ = size_t(encoder.hidden + 4) * width_;
    // Residual, queries, and keys and values twice: a panel may be one layer ahead of the others.
    base_ = t_shared.get(panels_ * (6 * panel_floats_ + 3 * width_));
  }

  void compute(const float* x, float* y, pofa_parallel_for parallel) {
    run_parallel(parallel, panels_, [&](size_t panel) {
      std::array<const float*, kMaxWidth> rows = {};
      for (uint32_t t = 0; t < tokens_in(panel); ++t) rows[t] = x + tokens_[panel * width_ + t] * encoder_.hidden;
      kernel_.load_panel(rows.data(), tokens_in(panel), encoder_.hidden, width_of(panel), residual(panel),
                         t_marks.get(kMaxWidth));
      project(0, panel);
    });
    for (size_t layer = 0; layer < encoder_.layers.size(); ++layer)
      run_parallel(parallel, panels_, [&](size_t panel) {
        float* marks = t_marks.get(2 * kMaxWidth);
        attend(layer, panel, marks);
        finish(encoder_.layers[layer], panel, marks, marks + kMaxWidth);
        if (layer + 1 < encoder_.layers.size()) return project(layer + 1, panel);
        std::array<float*, kMaxWidth> rows = {};
        for (uint32_t t = 0; t < tokens_in(panel); ++t) rows[t] = y + tokens_[panel * width_ + t] * encoder_.hidden;
        kernel_.store(residual(panel), encoder_.hidden, width_of(panel), tokens_in(panel), rows.data(), 0);
      });
  }

  size_t token_count() const { return tokens_.size(); }

 private:
  uint32_t tokens_in(size_t panel) const { return uint32_t(std::min<size_t>(width_, tokens_.size() - panel * width_)); }
  // Whole vectors: the last panel may be narrower than the others.
  uint32_t width_of(size_t panel) const { return (tokens_in(panel) + kernel_.lanes - 1) / kernel_.lanes * kernel_.lanes; }
  float* buffer(size_t panel, size_t i) const { return base_ + (panel * 6 + i) * panel_floats_; }
  float* residual(size_t panel) const { return buffer(panel, 0); }
  float* queries(size_t panel) const { return buffer(panel, 1); }  // replaced by the attention's result
  float* keys(size_t panel, size_t layer) const { return buffer(panel, 2 + layer % 2); }
  float* values(size_t panel, size_t layer) const { return buffer(panel, 4 + layer % 2); }
  // NaN for tokens whose queries, and whose keys or values, a dense product would make NaN.
  float* query_marks(size_t panel) const { return base_ + panels_ * 6 * panel_floats_ + panel * 3 * width_; }
  float* key_marks(size_t panel, size_t layer) const { return query_marks(panel) + (1 + layer % 2) * width_; }

  const float* operand(const Projection& p, const float* panel, uint32_t width) const {
    return p.operand(panel, width, t_operand.get(p.operand_size(width)));
  }

  void multiply(const Projection& p, const float* operand, uint32_t width, float* result) const {
    for (uint32_t g = 0; g < p.matrix().group_count(); ++g)
      p.multiply(g, kIdentity, operand, width, result + size_t(g) * p.matrix().header.group_rows * width, nullptr);
  }

  // Queries, keys and values of a panel.
  void project(size_t index, size_t panel) const {
    const Layer& layer = encoder_.layers[index];
    const uint32_t width = width_of(panel);
    float* results[] = {queries(panel), keys(panel, index), values(panel, index)};
    const float* input = nullptr;
    for (int i = kQuery; i <= kValue; ++i) {
      const Projection& p = layer.projections[i];
      if (i == kQuery || !p.has_same_operand(layer.projections[i - 1])) input = operand(p, residual(panel), width);
      multiply(p, input, width, results[i]);
    }
    if (layer.quantized_attention) quantize_attention(layer, width, results[0], results[1]);
    float* query_mark = query_marks(panel);
    float* key_mark = key_marks(panel, index);
    std::fill(query_mark, query_mark + width, 0.f);
    std::fill(key_mark, key_mark + width, 0.f);
    const bool quantized = layer.projections[kQuery].quantized();
    const bool keys_quantized = layer.projections[kKey].quantized() && layer.projections[kValue].quantized();
    kernel_.mark_non_finite(residual(panel), encoder_.hidden, width, quantized, query_mark);
    if (quantized == keys_quantized) std::copy(query_mark, query_mark + width, key_mark);
    else kernel_.mark_non_finite(residual(panel), encoder_.hidden, width, keys_quantized, key_mark);
  }

  bool attends_to_codes(const Layer& layer) const {
    const uint32_t head_size = encoder_.hidden / encoder_.heads;
    return layer.quantized_attention && kernel_.attend_codes && head_size >= 4 && head_size <= kMostCodes;
  }

  void quantize_attention(const Layer& layer, uint32_t width, float* queries, float* keys) const {
    const uint32_t head_size = encoder_.hidden / encoder_.heads;
    if (!attends_to_codes(layer)) {
      kernel_.fake_quantize(queries, size_t(encoder_.hidden) * width, layer.query_range, queries);
      kernel_.fake_quantize(keys, size_t(encoder_.hidden) * width, layer.key_range, keys);
      return;
    }
    for (size_t head = 0; head < encoder_.heads; ++head) {
      kernel_.queries_to_codes(queries + head * head_size * width, head_size, width, layer.query_range);
      kernel_.keys_to_codes(keys + head * head_size * width, head_size, width, layer.query_range, layer.key_range);
    }
  }

  // Replaces a panel's queries by the result of the attention; marks [width]: NaN for tokens that must become NaN.
  void attend(size_t index, size_t panel, float* marks) const {
    const uint32_t head_size = encoder_.hidden / encoder_.heads, width = width_of(panel);
    const size_t begin = panel * width_, end = begin + tokens_in(panel);
    float* scratch = t_attention.get(attention_scratch(head_size));
    const Layer& layer = encoder_.layers[index];
    const bool codes = attends_to_codes(layer);
    const auto attend_head = codes ? kernel_.attend_codes : kernel_.attend;
    const float scale = codes ? encoder_.scale * layer.query_range.step() * layer.key_range.step() : encoder_.scale;
    std::copy(query_marks(panel), query_marks(panel) + width, marks);
    auto sequence = std::upper_bound(sequences_.begin(), sequences_.end(), begin,
                                     [](size_t token, const Sequence& s) { return token < s.last; });
    std::vector<KeyBlock> blocks;
    for (; sequence != sequences_.end() && sequence->first < end; ++sequence) {
      const uint32_t first = uint32_t(std::max(sequence->first, begin) - begin);
      const uint32_t last = uint32_t(std::min(sequence->last, end) - begin);
      float sequence_mark = 0;
      blocks.clear();
      for (size_t p = sequence->first / width_; p * width_ < sequence->last; ++p) {
        const size_t from = std::max(sequence->first, p * width_) - p * width_;
        const size_t to = std::min(sequence->last, (p + 1) * width_) - p * width_;
        for (size_t t = from; t < to; ++t) sequence_mark += key_marks(p, index)[t];
        blocks.push_back({keys(p, index) + from, values(p, index) + from, width_of(p), uint32_t(to - from)});
      }
      for (uint32_t t = first; t < last; ++t) marks[t] += sequence_mark;
      for (uint32_t head = 0; head < encoder_.heads; ++head) {
        float* at = queries(panel) + size_t(head) * head_size * width;
        attend_head(at, width, first, last, head_size, scale, blocks.data(), blocks.size(), scratch, at);
        for (KeyBlock& block : blocks) {
          block.keys += size_t(head_size) * block.stride;
          block.values += size_t(head_size) * block.stride;
        }
      }
    }
  }

  // The rest of a layer, after the attention.
  void finish(const Layer& layer, size_t panel, float* marks, float* hidden_marks) const {
    const uint32_t width = width_of(panel), hidden = encoder_.hidden;
    float* branch = t_branch.get(panel_floats_);
    const Projection& output = layer.projections[kOutput];
    const Projection &inner = layer.projections[kInner], &outer = layer.projections[kOuter];

    kernel_.mark_non_finite(queries(panel), hidden, width, output.quantized(), marks);
    multiply(output, operand(output, queries(panel), width), width, branch);
    kernel_.add_and_normalize(branch, residual(panel), marks, hidden, width, layer.norms[0], residual(panel));

    const float* input = operand(inner, residual(panel), width);
    std::fill(hidden_marks, hidden_marks + width, 0.f);
    const float* activations = feed_forward_operand(layer, input, width, hidden_marks);
    multiply(outer, activations, width, branch);
    kernel_.add_and_normalize(branch, residual(panel), hidden_marks, hidden, width, layer.norms[1], residual(panel));
  }

  const float* feed_forward_operand(const Layer& layer, const float* input, uint32_t width, float* marks) const {
    const Projection &inner = layer.projections[kInner], &outer = layer.projections[kOuter];
    const size_t size = outer.quantized() ? outer.operand_size(width) : size_t(inner.matrix().rows() + 4) * width;
    float *result = t_hidden.get(size), *sums = t_sums.get(inner.sums_size(width));
    for (uint32_t g = 0; g < inner.matrix().group_count(); ++g)
      inner.multiply_for(outer, g, encoder_.activation, input, width, sums, result, marks);
    return result;
  }

  const pofa_encoder& encoder_;
  const Kernel& kernel_;
  std::vector<size_t> tokens_;  // of each valid token: its number in x, [batch][length]
  std::vector<Sequence> sequences_;
  size_t panels_ = 0, panel_floats_ = 0;
  uint32_t width_ = 0;  // tokens per panel
  float* base_ = nullptr;
};

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
