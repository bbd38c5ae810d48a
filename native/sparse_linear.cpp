#include "sparse_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "format.h"
#include "kernel.h"
#include "pack.h"

using namespace pofa;

struct pofa_layer {
  std::vector<Matrix> matrices;
  bool chain = false;
  Activation activation = kIdentity;
  const Kernel* kernel = nullptr;
};

namespace {

// Scratch of one thread, kept from call to call: a model asks for the same sizes again and again.
class Scratch {
 public:
  float* get(size_t floats) {
    if (floats > size_) {
      void* fresh = std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
      if (!fresh) throw std::bad_alloc();
      data_.reset(static_cast<float*>(fresh));
      size_ = floats;
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

thread_local Scratch t_input, t_hidden, t_sums, t_odd;
thread_local Scratch t_shared;  // of the thread that calls, read by the others

struct Call {
  const pofa_layer& layer;
  const float* x;
  size_t tokens;
  float* const* y;
  uint32_t width;  // tokens of a panel, rounded up to whole vectors

  const Matrix& in() const { return layer.matrices.front(); }
  const Kernel& kernel() const { return *layer.kernel; }
  size_t panels() const { return (tokens + width - 1) / width; }
  uint32_t tokens_in(size_t panel) const { return uint32_t(std::min<size_t>(width, tokens - panel * width)); }
  const float* rows_of(size_t panel) const { return x + panel * width * in().columns(); }
};

// ---- exactly, one token at a time: for tokens with a NaN or an infinity, which are rare and must not be fast

float activate(float v, Activation activation) {
  if (activation == kGeluErf) return v * 0.5f * (1.f + std::erf(v * 0.70710678f));
  if (activation == kGeluTanh) return v * 0.5f * (1.f + std::tanh(0.79788456f * (v + 0.044715f * v * v * v)));
  return v;
}

float half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float v = exponent == 31 ? (fraction ? NAN : INFINITY)
                           : std::ldexp(float(exponent ? fraction + 1024 : fraction), (exponent ? exponent : 1) - 25);
  return bits & 0x8000 ? -v : v;
}

float value_of(const Matrix& m, uint64_t i) {
  if (m.header.value_type == kI8) return float(int8_t(m.values[i]));
  return m.header.value_type == kF16 ? half(read_at<uint16_t>(m.values, i)) : read_at<float>(m.values, i);
}

void dense_product(const Matrix& m, const float* x, float* y) {
  const uint32_t rows = m.rows();
  size_t strange = 0;
  for (uint32_t k = 0; k < m.columns(); ++k) strange += !std::isfinite(x[k]);
  std::vector<size_t> met(rows, 0);  // of a row's weights, those that are not zero and meet a NaN or an infinity
  std::fill(y, y + rows, 0.f);
  uint64_t entry = 0, unit = 0;
  for (uint32_t group = 0; group < m.groups_count(); ++group)
    for (uint32_t block = 0; block < m.blocks_count(); ++block)
      for (uint32_t u = 0; u < m.units_in_group(group); ++u, ++unit) {
        const uint32_t count = read_at<uint16_t>(m.counts, unit), wide = m.rows_of_unit();
        const bool pairs = m.header.block_rows == 1;
        for (uint32_t e = 0; e < count; ++e)
          for (uint32_t j = 0; j < wide; ++j) {
            const uint64_t at = pairs ? entry + 2 * e + j : (entry + e) * 4 + j;
            const uint32_t row = group * m.header.group_rows + (pairs ? m.row_pairs[2 * unit + j] : 4 * u + j);
            const float weight = value_of(m, at);
            if (weight == 0.f || row >= rows) continue;
            const float in = x[block * m.header.block_columns + m.indices[pairs ? at : entry + e]];
            y[row] += weight * in;
            met[row] += !std::isfinite(in);
          }
        entry += uint64_t(count) * (pairs ? 2 : 1);
      }
  for (uint32_t r = 0; r < rows; ++r) {
    y[r] = y[r] * read_at<float>(m.scales, r) + read_at<float>(m.biases, r);
    if (met[r] < strange) y[r] = NAN;  // somewhere a zero weight meets one
  }
}

void exactly(const Call& call, size_t token) {
  const pofa_layer& layer = call.layer;
  const float* x = call.x + token * call.in().columns();
  for (size_t i = 0; i < (layer.chain ? 1 : layer.matrices.size()); ++i) {
    const Matrix& m = layer.matrices[i];
    std::vector<float> out(m.rows());
    dense_product(m, x, out.data());
    for (float& v : out) v = activate(v, layer.activation);
    if (layer.chain) {
      const Matrix& second = layer.matrices[1];
      dense_product(second, out.data(), call.y[0] + token * second.rows());
    } else {
      std::copy(out.begin(), out.end(), call.y[i] + token * m.rows());
    }
  }
}

void mend(const Call& call, size_t panel, const float* odd) {
  for (uint32_t t = 0; t < call.tokens_in(panel); ++t)
    if (odd[t] != 0.f) exactly(call, panel * call.width + t);  // NaN is not equal to zero
}

// ---- one panel of tokens

size_t sums_size(const Matrix& m, uint32_t width) { return size_t(m.header.group_rows + 4) * width; }
size_t hidden_size(const Matrix& m, uint32_t width) { return (size_t(m.rows()) + 4) * width; }

// Groups from .. to of matrix m: sums, scale, bias, activation, and out to y.
void groups_to_output(const Call& call, const Matrix& m, Activation activation, uint32_t from, uint32_t to,
                      const float* panel, float* sums, size_t index, float* y) {
  for (uint32_t g = from; g < to; ++g) {
    call.kernel().multiply(m, g, panel, call.width, sums);
    call.kernel().finish(m, g, activation, call.width, sums, nullptr);
    float* at = y + index * call.width * m.rows() + size_t(g) * m.header.group_rows;
    call.kernel().store(sums, m.rows_in_group(g), call.width, call.tokens_in(index), at, m.rows());
  }
}

// The same, but what comes out stays transposed: the next matrix's panel.
void groups_to_hidden(const Call& call, const Matrix& m, Activation activation, uint32_t from, uint32_t to,
                      const float* panel, float* hidden, float* odd) {
  for (uint32_t g = from; g < to; ++g) {
    float* sums = hidden + size_t(g) * m.header.group_rows * call.width;
    call.kernel().multiply(m, g, panel, call.width, sums);
    call.kernel().finish(m, g, activation, call.width, sums, odd);
  }
}

// All of one panel on one thread: nothing is shared, everything stays near.
void whole_panel(const Call& call, size_t index) {
  const pofa_layer& layer = call.layer;
  float* panel = t_input.get(size_t(call.in().columns()) * call.width);
  float* odd = t_odd.get(call.width);
  call.kernel().load_panel(call.rows_of(index), call.tokens_in(index), call.in().columns(), call.width, panel, odd);
  if (layer.chain) {
    const Matrix &first = layer.matrices[0], &second = layer.matrices[1];
    float* hidden = t_hidden.get(hidden_size(first, call.width));
    groups_to_hidden(call, first, layer.activation, 0, first.groups_count(), panel, hidden, odd);
    float* sums = t_sums.get(sums_size(second, call.width));
    groups_to_output(call, second, kIdentity, 0, second.groups_count(), hidden, sums, index, call.y[0]);
  } else {
    for (size_t i = 0; i < layer.matrices.size(); ++i) {
      const Matrix& m = layer.matrices[i];
      float* sums = t_sums.get(sums_size(m, call.width));
      groups_to_output(call, m, layer.activation, 0, m.groups_count(), panel, sums, index, call.y[i]);
    }
  }
  mend(call, index, odd);
}

// ---- fewer panels than threads: a panel's rows are shared out, group by group

template <typename F>
void run_parallel(pofa_parallel_for parallel, size_t n, F&& body) {
  using Body = std::remove_reference_t<F>;
  if (!parallel || n < 2)
    for (size_t i = 0; i < n; ++i) body(i);
  else
    parallel(n, [](void* context, size_t i) { (*static_cast<Body*>(context))(i); }, &body);
}

void shared_panels(const Call& call, pofa_parallel_for parallel) {
  const pofa_layer& layer = call.layer;
  const size_t panels = call.panels(), width = call.width;
  const size_t input = size_t(call.in().columns()) * width, hidden = layer.chain ? hidden_size(call.in(), call.width) : 0;
  const size_t groups_in = call.in().groups_count();
  // Each task of the chain's first half keeps its own marks of odd tokens: they may not write the same ones.
  float* base = t_shared.get(panels * (input + hidden + width * (1 + (layer.chain ? groups_in : 0))));
  float* hiddens = base + panels * input;
  float* odds = hiddens + panels * hidden;
  float* marks = odds + panels * width;

  run_parallel(parallel, panels, [&](size_t p) {
    call.kernel().load_panel(call.rows_of(p), call.tokens_in(p), call.in().columns(), call.width, base + p * input,
                             odds + p * width);
  });
  if (layer.chain) {
    const Matrix &first = layer.matrices[0], &second = layer.matrices[1];
    run_parallel(parallel, panels * groups_in, [&](size_t task) {
      const size_t p = task / groups_in, g = task % groups_in;
      float* mark = marks + task * width;
      std::fill(mark, mark + width, 0.f);
      groups_to_hidden(call, first, layer.activation, uint32_t(g), uint32_t(g) + 1, base + p * input, hiddens + p * hidden, mark);
    });
    for (size_t task = 0; task < panels * groups_in; ++task)
      for (size_t t = 0; t < width; ++t) odds[task / groups_in * width + t] += marks[task * width + t];
    const size_t groups = second.groups_count();
    run_parallel(parallel, panels * groups, [&](size_t task) {
      const size_t p = task / groups, g = task % groups;
      float* sums = t_sums.get(sums_size(second, call.width));
      groups_to_output(call, second, kIdentity, uint32_t(g), uint32_t(g) + 1, hiddens + p * hidden, sums, p, call.y[0]);
    });
  } else {
    struct Task {
      size_t panel;
      size_t matrix;
      uint32_t group;
    };
    std::vector<Task> tasks;
    for (size_t p = 0; p < panels; ++p)
      for (size_t i = 0; i < layer.matrices.size(); ++i)
        for (uint32_t g = 0; g < layer.matrices[i].groups_count(); ++g) tasks.push_back({p, i, g});
    run_parallel(parallel, tasks.size(), [&](size_t i) {
      const Task& task = tasks[i];
      const Matrix& m = layer.matrices[task.matrix];
      float* sums = t_sums.get(sums_size(m, call.width));
      groups_to_output(call, m, layer.activation, task.group, task.group + 1, base + task.panel * input, sums, task.panel,
                       call.y[task.matrix]);
    });
  }
  for (size_t p = 0; p < panels; ++p) mend(call, p, odds + p * width);
}

// The widest panel that leaves no thread with more than its share, and no vector empty that need not be.
uint32_t panel_width(const pofa_layer& layer, size_t tokens, uint32_t threads) {
  const Kernel& k = *layer.kernel;
  const size_t most = k.max_vectors;
  const size_t vectors = (tokens + k.lanes - 1) / k.lanes;
  size_t panels = (vectors + most - 1) / most;
  if (panels > 1 && panels % threads) panels = std::min(vectors, (panels + threads - 1) / threads * threads);
  return uint32_t((vectors + panels - 1) / panels) * k.lanes;
}

void describe(const Matrix& m, uint64_t facts[6]) {
  const Header& h = m.header;
  const uint64_t found[6] = {h.rows, h.columns, h.block_rows, h.value_type, h.nonzeros, h.entries};
  std::copy(found, found + 6, facts);
}

}  // namespace

const char* pofa_error(int code) {
  switch (code) {
    case kOk: return "no error";
    case kTooShort: return "the packed weights are cut off: fewer or more bytes than their header says";
    case kNotABlob: return "these are not packed weights of PruneOFA";
    case kNewer: return "the packed weights were written by a newer PruneOFA than this library: rebuild it (pruneofa kernels build)";
    case kBadHeader: return "the packed weights have a header that cannot be right";
    case kBadChecksum: return "the packed weights are damaged: their checksum does not agree";
    case kBadEntries: return "the packed weights have entries outside their matrix";
    case kBadArgument: return "an argument is out of range";
    case kNoMemory: return "out of memory";
  }
  return "unknown error";
}

const char* pofa_isa(void) { return best_kernel().name; }

uint32_t pofa_format_version(void) { return kVersion; }

int64_t pofa_pack(const void* values, uint32_t value_type, const float* scales, const float* biases, uint32_t rows,
                  uint32_t columns, uint32_t block_rows, uint32_t block_columns, uint32_t group_rows, void* blob,
                  size_t capacity) try {
  std::vector<uint8_t> packed;
  const Dense dense{values, value_type, scales, biases, rows, columns};
  if (Error error = pack(dense, block_rows, block_columns, group_rows, &packed)) return error;
  if (blob && capacity >= packed.size()) std::memcpy(blob, packed.data(), packed.size());
  return int64_t(packed.size());
} catch (const std::bad_alloc&) {
  return kNoMemory;
}

int pofa_describe(const void* blob, size_t size, uint64_t facts[6]) {
  Matrix m;
  if (Error error = open_matrix(blob, size, &m)) return error;
  describe(m, facts);
  return kOk;
}

int pofa_layer_facts(const pofa_layer* layer, uint32_t i, uint64_t facts[6]) {
  if (!layer || i >= layer->matrices.size()) return kBadArgument;
  describe(layer->matrices[i], facts);
  return kOk;
}

int pofa_unpack(const void* blob, size_t size, void* values, float* scales, float* biases) {
  Matrix m;
  if (Error error = open_matrix(blob, size, &m)) return error;
  unpack(m, values, scales, biases);
  return kOk;
}

int pofa_open(const void* const* blobs, const size_t* sizes, uint32_t count, int chain, int activation, const char* isa,
              pofa_layer** layer) try {
  *layer = nullptr;
  auto opened = std::make_unique<pofa_layer>();
  opened->kernel = isa ? kernel_named(isa) : &best_kernel();
  if (!opened->kernel || count < 1 || (chain && count != 2) || activation < kIdentity || activation > kGeluTanh)
    return kBadArgument;
  opened->chain = chain != 0;
  opened->activation = Activation(activation);
  for (uint32_t i = 0; i < count; ++i) {
    Matrix m;
    if (Error error = open_matrix(blobs[i], sizes[i], &m)) return error;
    const uint32_t columns = i == 0 ? m.columns() : chain ? opened->matrices[0].rows() : opened->matrices[0].columns();
    if (m.columns() != columns) return kBadArgument;
    opened->matrices.push_back(m);
  }
  *layer = opened.release();
  return kOk;
} catch (const std::bad_alloc&) {
  return kNoMemory;
}

void pofa_close(pofa_layer* layer) { delete layer; }

int pofa_run(const pofa_layer* layer, const float* x, size_t tokens, float* const* y, pofa_parallel_for parallel,
             uint32_t threads) try {
  if (!layer || !tokens) return layer ? kOk : kBadArgument;
  threads = parallel ? std::max(threads, 1u) : 1;
  const Call call{*layer, x, tokens, y, panel_width(*layer, tokens, threads)};
  if (call.panels() >= threads)
    run_parallel(parallel, call.panels(), [&](size_t p) { whole_panel(call, p); });
  else
    shared_panels(call, parallel);
  return kOk;
} catch (const std::bad_alloc&) {
  return kNoMemory;
}
