// One run of a stack of encoder layers: how tokens, rows and heads are divided among threads. Valid tokens of all sequences are
// divided into panels, which stay transposed through all layers.
#pragma once
#include <algorithm>
#include <array>
#include <vector>

#include "encoder.h"
#include "layer.h"
#include "work.h"

namespace pofa {

enum MatrixIndex { kQuery, kKey, kValue, kOutput, kInner, kOuter, kMatrices };

struct Layer {
  std::array<Projection, kMatrices> projections;
  std::vector<float> norm_parameters[2];  // scales, then offsets
  Norm norms[2];
  bool quantized_attention = false;
  Range query_range = {0, 0}, key_range = {0, 0};
};

inline thread_local Scratch t_operand, t_hidden, t_sums, t_marks, t_attention, t_branch;
inline thread_local Scratch t_shared;  // the calling thread's buffer, used by all threads of the call

}  // namespace pofa

struct pofa_encoder {
  std::vector<pofa::Layer> layers;
  uint32_t hidden = 0, inner = 0, heads = 0;
  float scale = 1;
  pofa::Activation activation = pofa::kIdentity;
  const pofa::Kernel* kernel = nullptr;
};

namespace pofa {

struct Sequence {
  size_t first, last;  // numbers of its valid tokens, among those of all sequences
};

// Buffers of one panel while a layer is computed.
struct Work {
  std::array<const float*, 3> inputs;  // operands of queries, keys and values
  float* operands;                     // three buffers of operands
  float* hidden;                       // operand of the feed-forward's outer matrix
  float* branch;                       // [hidden][width]: what is added to the residual
  float *marks, *hidden_marks;         // [width] each: NaN for tokens that must become NaN
};

// One pofa_encoder_run. The layers consist of the same steps in both forms: each panel on one thread; or, if there are at
// least two threads for each panel, the rows of the products and the heads of the attention divided among them, so that short
// texts use all threads and no thread decodes weights for a narrow panel.
class Run {
 public:
  Run(const pofa_encoder& encoder, const uint8_t* mask, size_t batch, size_t length, uint32_t threads)
      : encoder_(encoder), kernel_(*encoder.kernel), head_size_(encoder.hidden / encoder.heads) {
    for (size_t b = 0; b < batch; ++b) {
      const size_t first = tokens_.size();
      for (size_t i = b * length; i < (b + 1) * length; ++i)
        if (!mask || mask[i]) tokens_.push_back(i);
      if (tokens_.size() > first) sequences_.push_back({first, tokens_.size()});
    }
    const size_t vectors = (tokens_.size() + kernel_.lanes - 1) / kernel_.lanes;
    panels_ = (vectors + kernel_.max_vectors - 1) / kernel_.max_vectors;
    shares_panels_ = panels_ > 0 && threads >= 2 * panels_;
    if (!shares_panels_ && panels_ % threads) panels_ = std::min(vectors, (panels_ + threads - 1) / threads * threads);
    width_ = panels_ ? uint32_t((vectors + panels_ - 1) / panels_) * kernel_.lanes : 0;
    if (width_) panels_ = (tokens_.size() + width_ - 1) / width_;
    panel_floats_ = size_t(encoder.hidden + 4) * width_;
    for (const Layer& layer : encoder.layers) {
      for (const Projection& p : layer.projections)
        if (&p != &layer.projections[kOuter]) operand_floats_ = std::max(operand_floats_, aligned(p.operand_size(width_)));
      const Projection &inner = layer.projections[kInner], &outer = layer.projections[kOuter];
      const size_t plain = size_t(inner.matrix().rows() + 4) * width_;
      hidden_floats_ = std::max(hidden_floats_, aligned(outer.quantized() ? outer.operand_size(width_) : plain));
      inner_groups_ = std::max<size_t>(inner_groups_, inner.matrix().group_count());
    }
    // Residual, queries, and keys and values twice: a panel may be one layer ahead of the others. Then marks.
    size_t floats = aligned(panels_ * (6 * panel_floats_ + 3 * width_));
    if (shares_panels_) floats += panels_ * work_floats();
    base_ = t_shared.get(floats);
  }

  void compute(const float* x, float* y, pofa_parallel_for parallel) const {
    if (shares_panels_) compute_shared(x, y, parallel);
    else compute_panels(x, y, parallel);
  }

  size_t token_count() const { return tokens_.size(); }

 private:
  // ---- each panel on one thread

  void compute_panels(const float* x, float* y, pofa_parallel_for parallel) const {
    run_parallel(parallel, panels_, [&](size_t panel) {
      load(x, panel);
      project(0, panel);
    });
    for (size_t index = 0; index < encoder_.layers.size(); ++index)
      run_parallel(parallel, panels_, [&](size_t panel) {
        const Layer& layer = encoder_.layers[index];
        Work work = own_work();
        mark_attention(index, panel, work);
        attend(index, panel, 0, encoder_.heads);
        output_operand(layer, panel, work);
        multiply_all(layer.projections[kOutput], work.inputs[0], width_of(panel), work.branch);
        normalize_attention(layer, panel, work);
        float* sums = t_sums.get(layer.projections[kInner].sums_size(width_of(panel)));
        for (uint32_t g = 0; g < layer.projections[kInner].matrix().group_count(); ++g)
          feed_forward(layer, g, panel, work, sums, work.hidden_marks);
        multiply_all(layer.projections[kOuter], work.hidden, width_of(panel), work.branch);
        normalize(layer.norms[1], panel, work.branch, work.hidden_marks);
        if (index + 1 < encoder_.layers.size()) project(index + 1, panel);
        else store(panel, y);
      });
  }

  // Queries, keys and values of a panel.
  void project(size_t index, size_t panel) const {
    const Layer& layer = encoder_.layers[index];
    Work work = own_work();
    project_operands(index, panel, work);
    for (int i = kQuery; i <= kValue; ++i)
      multiply_all(layer.projections[i], work.inputs[i], width_of(panel), projected(i, panel, index));
    quantize_attention(index, panel, 0, encoder_.heads);
  }

  Work own_work() const {
    float* marks = t_marks.get(2 * kMaxWidth);
    return {{}, t_operand.get(3 * operand_floats_), t_hidden.get(hidden_floats_), t_branch.get(panel_floats_), marks,
            marks + kMaxWidth};
  }

  void multiply_all(const Projection& p, const float* operand, uint32_t width, float* result) const {
    for (uint32_t g = 0; g < p.matrix().group_count(); ++g) multiply(p, g, operand, width, result);
  }

  // ---- several threads share a panel

  void compute_shared(const float* x, float* y, pofa_parallel_for parallel) const {
    std::vector<Work> works(panels_);
    for (size_t panel = 0; panel < panels_; ++panel) works[panel] = shared_work(panel);
    const auto each_panel = [&](auto&& body) {
      run_parallel(parallel, panels_, [&](size_t panel) { body(panel, works[panel]); });
    };
    const auto each_group = [&](size_t groups, auto&& body) {
      run_parallel(parallel, panels_ * groups, [&](size_t task) {
        const size_t panel = task / groups;
        body(uint32_t(task % groups), panel, works[panel]);
      });
    };
    each_panel([&](size_t panel, Work&) { load(x, panel); });
    for (size_t index = 0; index < encoder_.layers.size(); ++index) {
      const Layer& layer = encoder_.layers[index];
      const auto groups_of = [&](int i) { return size_t(layer.projections[i].matrix().group_count()); };
      const size_t to_keys = groups_of(kQuery), to_values = to_keys + groups_of(kKey);
      each_panel([&](size_t panel, Work& work) { project_operands(index, panel, work); });
      each_group(to_values + groups_of(kValue), [&](uint32_t task, size_t panel, Work& work) {
        const int i = task < to_keys ? kQuery : task < to_values ? kKey : kValue;
        const uint32_t group = task - uint32_t(i == kQuery ? 0 : i == kKey ? to_keys : to_values);
        multiply(layer.projections[i], group, work.inputs[i], width_of(panel), projected(i, panel, index));
      });
      // All heads before the attention, which also reads a few keys past a head's last, where the next head's begin.
      if (layer.quantized_attention)
        each_group(encoder_.heads, [&](uint32_t head, size_t panel, Work&) {
          quantize_attention(index, panel, head, head + 1);
        });
      each_group(encoder_.heads, [&](uint32_t head, size_t panel, Work&) { attend(index, panel, head, head + 1); });
      each_panel([&](size_t panel, Work& work) {
        mark_attention(index, panel, work);
        output_operand(layer, panel, work);
      });
      each_group(groups_of(kOutput), [&](uint32_t group, size_t panel, Work& work) {
        multiply(layer.projections[kOutput], group, work.inputs[0], width_of(panel), work.branch);
      });
      each_panel([&](size_t panel, Work& work) { normalize_attention(layer, panel, work); });
      each_group(groups_of(kInner), [&](uint32_t group, size_t panel, Work& work) {
        float* marks = group_marks(work, group);
        std::fill(marks, marks + width_, 0.f);
        feed_forward(layer, group, panel, work, t_sums.get(layer.projections[kInner].sums_size(width_)), marks);
      });
      each_group(groups_of(kOuter), [&](uint32_t group, size_t panel, Work& work) {
        multiply(layer.projections[kOuter], group, work.hidden, width_of(panel), work.branch);
      });
      each_panel([&](size_t panel, Work& work) {
        for (size_t group = 0; group < groups_of(kInner); ++group)
          for (uint32_t t = 0; t < width_of(panel); ++t) work.hidden_marks[t] += group_marks(work, group)[t];
        normalize(layer.norms[1], panel, work.branch, work.hidden_marks);
      });
    }
    each_panel([&](size_t panel, Work&) { store(panel, y); });
  }

  size_t work_floats() const {
    return 3 * operand_floats_ + hidden_floats_ + aligned(panel_floats_ + (2 + inner_groups_) * width_);
  }
  Work shared_work(size_t panel) const {
    float* operands = base_ + aligned(panels_ * (6 * panel_floats_ + 3 * width_)) + panel * work_floats();
    float* hidden = operands + 3 * operand_floats_;
    float* branch = hidden + hidden_floats_;
    return {{}, operands, hidden, branch, branch + panel_floats_, branch + panel_floats_ + width_};
  }
  // Each task of the feed-forward marks tokens in a buffer of its own: writes to a common one would race.
  float* group_marks(const Work& work, size_t group) const { return work.hidden_marks + (1 + group) * width_; }
  static size_t aligned(size_t floats) { return (floats + 15) / 16 * 16; }  // to 64 bytes

  // ---- steps

  void load(const float* x, size_t panel) const {
    std::array<const float*, kMaxWidth> rows = {};
    for (uint32_t t = 0; t < tokens_in(panel); ++t) rows[t] = x + tokens_[panel * width_ + t] * encoder_.hidden;
    kernel_.load_panel(rows.data(), tokens_in(panel), encoder_.hidden, width_of(panel), residual(panel),
                       t_marks.get(kMaxWidth));
  }

  void store(size_t panel, float* y) const {
    std::array<float*, kMaxWidth> rows = {};
    for (uint32_t t = 0; t < tokens_in(panel); ++t) rows[t] = y + tokens_[panel * width_ + t] * encoder_.hidden;
    kernel_.store(residual(panel), encoder_.hidden, width_of(panel), tokens_in(panel), rows.data(), 0);
  }

  void multiply(const Projection& p, uint32_t group, const float* operand, uint32_t width, float* result) const {
    p.multiply(group, kIdentity, operand, width, result + size_t(group) * p.matrix().header.group_rows * width, nullptr);
  }

  void project_operands(size_t index, size_t panel, Work& work) const {
    const Layer& layer = encoder_.layers[index];
    const uint32_t width = width_of(panel);
    for (int i = kQuery; i <= kValue; ++i) {
      const Projection& p = layer.projections[i];
      work.inputs[i] = i > kQuery && p.has_same_operand(layer.projections[i - 1])
                           ? work.inputs[i - 1]
                           : p.operand(residual(panel), width, work.operands + i * operand_floats_);
    }
    float *query_mark = query_marks(panel), *key_mark = key_marks(panel, index);
    std::fill(query_mark, query_mark + width, 0.f);
    std::fill(key_mark, key_mark + width, 0.f);
    const bool quantized = layer.projections[kQuery].quantized();
    const bool keys_quantized = layer.projections[kKey].quantized() && layer.projections[kValue].quantized();
    kernel_.mark_non_finite(residual(panel), encoder_.hidden, width, quantized, query_mark);
    if (quantized == keys_quantized) std::copy(query_mark, query_mark + width, key_mark);
    else kernel_.mark_non_finite(residual(panel), encoder_.hidden, width, keys_quantized, key_mark);
  }

  bool attends_to_codes(const Layer& layer) const {
    return layer.quantized_attention && kernel_.attend_codes && head_size_ >= 4 && head_size_ <= kMostCodes;
  }

  // Rounds queries and keys of some heads to 8 bits, if the layer does.
  void quantize_attention(size_t index, size_t panel, size_t first_head, size_t last_head) const {
    const Layer& layer = encoder_.layers[index];
    if (!layer.quantized_attention) return;
    const uint32_t width = width_of(panel);
    for (size_t head = first_head; head < last_head; ++head) {
      const size_t offset = head * head_size_ * width, size = size_t(head_size_) * width;
      float *head_queries = queries(panel) + offset, *head_keys = keys(panel, index) + offset;
      if (attends_to_codes(layer)) {
        kernel_.queries_to_codes(head_queries, head_size_, width, layer.query_range);
        kernel_.keys_to_codes(head_keys, head_size_, width, layer.query_range, layer.key_range);
      } else {
        kernel_.fake_quantize(head_queries, size, layer.query_range, head_queries);
        kernel_.fake_quantize(head_keys, size, layer.key_range, head_keys);
      }
    }
  }

  // Calls f(sequence, first, last) for the sequences that have tokens in a panel: those from first to last - 1.
  template <typename F>
  void for_sequences_of(size_t panel, F&& f) const {
    const size_t begin = panel * width_, end = begin + tokens_in(panel);
    auto sequence = std::upper_bound(sequences_.begin(), sequences_.end(), begin,
                                     [](size_t token, const Sequence& s) { return token < s.last; });
    for (; sequence != sequences_.end() && sequence->first < end; ++sequence)
      f(*sequence, uint32_t(std::max(sequence->first, begin) - begin), uint32_t(std::min(sequence->last, end) - begin));
  }

  // Calls f(panel, from, to) for the panels of a sequence, which has their tokens from .. to - 1.
  template <typename F>
  void for_panels_of(const Sequence& sequence, F&& f) const {
    for (size_t p = sequence.first / width_; p * width_ < sequence.last; ++p)
      f(p, std::max(sequence.first, p * width_) - p * width_, std::min(sequence.last, (p + 1) * width_) - p * width_);
  }

  // A token becomes NaN by its query, or by the key or value of any token of its sequence.
  void mark_attention(size_t index, size_t panel, Work& work) const {
    std::copy(query_marks(panel), query_marks(panel) + width_of(panel), work.marks);
    for_sequences_of(panel, [&](const Sequence& sequence, uint32_t first, uint32_t last) {
      float mark = 0;
      for_panels_of(sequence, [&](size_t p, size_t from, size_t to) {
        for (size_t t = from; t < to; ++t) mark += key_marks(p, index)[t];
      });
      for (uint32_t t = first; t < last; ++t) work.marks[t] += mark;
    });
  }

  // Replaces a panel's queries, of some heads, by the result of the attention.
  void attend(size_t index, size_t panel, size_t first_head, size_t last_head) const {
    const Layer& layer = encoder_.layers[index];
    const bool codes = attends_to_codes(layer);
    const auto attend_head = codes ? kernel_.attend_codes : kernel_.attend;
    const float scale = codes ? encoder_.scale * layer.query_range.step() * layer.key_range.step() : encoder_.scale;
    float* scratch = t_attention.get(attention_scratch(head_size_));
    std::vector<KeyBlock> blocks;
    for_sequences_of(panel, [&](const Sequence& sequence, uint32_t first, uint32_t last) {
      blocks.clear();
      for_panels_of(sequence, [&](size_t p, size_t from, size_t to) {
        const size_t at = first_head * head_size_ * width_of(p) + from;
        blocks.push_back({keys(p, index) + at, values(p, index) + at, width_of(p), uint32_t(to - from)});
      });
      for (size_t head = first_head; head < last_head; ++head) {
        float* at = queries(panel) + head * head_size_ * width_of(panel);
        attend_head(at, width_of(panel), first, last, head_size_, scale, blocks.data(), blocks.size(), scratch, at);
        for (KeyBlock& block : blocks) {
          block.keys += size_t(head_size_) * block.stride;
          block.values += size_t(head_size_) * block.stride;
        }
      }
    });
  }

  void output_operand(const Layer& layer, size_t panel, Work& work) const {
    const Projection& output = layer.projections[kOutput];
    kernel_.mark_non_finite(queries(panel), encoder_.hidden, width_of(panel), output.quantized(), work.marks);
    work.inputs[0] = output.operand(queries(panel), width_of(panel), work.operands);
  }

  // The first LayerNorm, and the operand of the feed-forward.
  void normalize_attention(const Layer& layer, size_t panel, Work& work) const {
    normalize(layer.norms[0], panel, work.branch, work.marks);
    work.inputs[0] = layer.projections[kInner].operand(residual(panel), width_of(panel), work.operands);
    std::fill(work.hidden_marks, work.hidden_marks + width_of(panel), 0.f);
  }

  void feed_forward(const Layer& layer, uint32_t group, size_t panel, const Work& work, float* sums, float* marks) const {
    layer.projections[kInner].multiply_for(layer.projections[kOuter], group, encoder_.activation, work.inputs[0],
                                           width_of(panel), sums, work.hidden, marks);
  }

  void normalize(const Norm& norm, size_t panel, float* branch, const float* marks) const {
    kernel_.add_and_normalize(branch, residual(panel), marks, encoder_.hidden, width_of(panel), norm, residual(panel));
  }

  // ---- panels

  uint32_t tokens_in(size_t panel) const { return uint32_t(std::min<size_t>(width_, tokens_.size() - panel * width_)); }
  // Whole vectors: the last panel may be narrower than the others.
  uint32_t width_of(size_t panel) const { return (tokens_in(panel) + kernel_.lanes - 1) / kernel_.lanes * kernel_.lanes; }
  float* buffer(size_t panel, size_t i) const { return base_ + (panel * 6 + i) * panel_floats_; }
  float* residual(size_t panel) const { return buffer(panel, 0); }
  float* queries(size_t panel) const { return buffer(panel, 1); }  // replaced by the attention's result
  float* keys(size_t panel, size_t layer) const { return buffer(panel, 2 + layer % 2); }
  float* values(size_t panel, size_t layer) const { return buffer(panel, 4 + layer % 2); }
  float* projected(int matrix, size_t panel, size_t layer) const {
    return matrix == kQuery ? queries(panel) : matrix == kKey ? keys(panel, layer) : values(panel, layer);
  }
  // NaN for tokens whose queries, and whose keys or values, a dense product would make NaN.
  float* query_marks(size_t panel) const { return base_ + panels_ * 6 * panel_floats_ + panel * 3 * width_; }
  float* key_marks(size_t panel, size_t layer) const { return query_marks(panel) + (1 + layer % 2) * width_; }

  const pofa_encoder& encoder_;
  const Kernel& kernel_;
  const uint32_t head_size_;
  std::vector<size_t> tokens_;  // of each valid token: its number in x, [batch][length]
  std::vector<Sequence> sequences_;
  bool shares_panels_ = false;  // whether several threads compute a panel
  size_t panels_ = 0, panel_floats_ = 0, operand_floats_ = 0, hidden_floats_ = 0, inner_groups_ = 0;
  uint32_t width_ = 0;  // tokens per panel
  float* base_ = nullptr;
};

}  // namespace pofa
