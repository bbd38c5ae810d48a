#include "sparse_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "layer.h"
#include "pack.h"

using namespace pofa;

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

thread_local Scratch t_input, t_ready, t_hidden, t_sums, t_odd;
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

void mend(const Call& call, size_t panel, const float* odd) {
  for (uint32_t t = 0; t < call.tokens_in(panel); ++t)
    if (odd[t] != 0.f) exactly(call.layer, call.x, panel * call.width + t, call.y);  // NaN is not equal to zero
}

// ---- activations as matrix i reads them: as they are, as codes of 8 bits, or as floats rounded to what codes stand for

size_t floats_of_codes(const Call& call, uint32_t columns) {
  return size_t(columns + kMaxBlock) * call.kernel().code_bytes / sizeof(float);
}

size_t ready_size(const Call& call, size_t i) {
  const uint32_t columns = call.layer.matrices[i].columns();
  if (call.layer.roundings.empty()) return 0;
  return call.layer.codes ? floats_of_codes(call, columns) : size_t(columns) * call.width;
}

const float* make_ready(const Call& call, size_t i, const float* panel, float* room) {
  const pofa_layer& layer = call.layer;
  if (layer.roundings.empty()) return panel;
  const uint32_t columns = layer.matrices[i].columns();
  if (layer.codes) {
    call.kernel().quantize(panel, columns, call.width, layer.roundings[i].range, reinterpret_cast<uint8_t*>(room));
  } else {
    call.kernel().fake_quantize(panel, size_t(columns) * call.width, layer.roundings[i].range, room);
  }
  return room;
}

void group_of(const Call& call, size_t i, uint32_t group, Activation activation, const float* ready, float* sums, float* odd) {
  const Matrix& m = call.layer.matrices[i];
  if (call.layer.codes) {
    call.kernel().multiply_codes(m, group, reinterpret_cast<const uint8_t*>(ready), call.width, sums);
    const Affine affine = call.layer.roundings[i].affine();
    call.kernel().finish(m, group, activation, &affine, call.width, sums, odd);
  } else {
    call.kernel().multiply(m, group, ready, call.width, sums);
    call.kernel().finish(m, group, activation, nullptr, call.width, sums, odd);
  }
}

// ---- one panel of tokens

size_t sums_size(const Matrix& m, uint32_t width) { return size_t(m.header.group_rows + 4) * width; }

size_t hidden_size(const Call& call) {
  const uint32_t rows = call.in().rows();
  return call.layer.codes ? floats_of_codes(call, rows) : size_t(rows + 4) * call.width;
}

// Groups from .. to of matrix i: sums, scale, bias, activation, and out to y.
void groups_to_output(const Call& call, size_t i, Activation activation, uint32_t from, uint32_t to, const float* ready,
                      size_t panel, float* y) {
  const Matrix& m = call.layer.matrices[i];
  float* sums = t_sums.get(sums_size(m, call.width));
  for (uint32_t g = from; g < to; ++g) {
    group_of(call, i, g, activation, ready, sums, nullptr);
    float* at = y + panel * call.width * m.rows() + size_t(g) * m.header.group_rows;
    call.kernel().store(sums, m.rows_in_group(g), call.width, call.tokens_in(panel), at, m.rows());
  }
}

// Groups of a chain's first matrix: what comes out stays transposed, and ready for the second.
void groups_to_hidden(const Call& call, uint32_t from, uint32_t to, const float* ready, float* hidden, float* odd) {
  const pofa_layer& layer = call.layer;
  const Matrix& m = layer.matrices[0];
  for (uint32_t g = from; g < to; ++g) {
    const size_t row = size_t(g) * m.header.group_rows;
    float* sums = layer.codes ? t_sums.get(sums_size(m, call.width)) : hidden + row * call.width;
    group_of(call, 0, g, layer.activation, ready, sums, odd);
    if (layer.codes) {
      uint8_t* codes = reinterpret_cast<uint8_t*>(hidden) + row * call.kernel().code_bytes;
      call.kernel().quantize(sums, m.rows_in_group(g), call.width, layer.roundings[1].range, codes);
    } else if (!layer.roundings.empty()) {
      call.kernel().fake_quantize(sums, size_t(m.rows_in_group(g)) * call.width, layer.roundings[1].range, sums);
    }
  }
}

// All of one panel on one thread: nothing is shared, everything stays near.
void whole_panel(const Call& call, size_t index) {
  const pofa_layer& layer = call.layer;
  float* panel = t_input.get(size_t(call.in().columns()) * call.width);
  float* odd = t_odd.get(call.width);
  call.kernel().load_panel(call.rows_of(index), call.tokens_in(index), call.in().columns(), call.width, panel, odd);
  const float* ready = nullptr;
  for (size_t i = 0; i < (layer.chain ? 1 : layer.matrices.size()); ++i) {
    if (i == 0 || !layer.same_input(i - 1, i)) ready = make_ready(call, i, panel, t_ready.get(ready_size(call, i)));
    if (!layer.chain)
      groups_to_output(call, i, layer.activation, 0, layer.matrices[i].groups_count(), ready, index, call.y[i]);
  }
  if (layer.chain) {
    float* hidden = t_hidden.get(hidden_size(call));
    groups_to_hidden(call, 0, call.in().groups_count(), ready, hidden, odd);
    groups_to_output(call, 1, kIdentity, 0, layer.matrices[1].groups_count(), hidden, index, call.y[0]);
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
  const size_t panels = call.panels(), width = call.width, inputs = layer.chain ? 1 : layer.matrices.size();
  const size_t input = size_t(call.in().columns()) * width, rounded = ready_size(call, 0);
  const size_t hidden = layer.chain ? hidden_size(call) : 0, groups_in = call.in().groups_count();
  // Each task of the chain's first half keeps its own marks of odd tokens: they may not write the same ones.
  const size_t of_panel = input + inputs * rounded + hidden;
  float* base = t_shared.get(panels * (of_panel + width * (1 + (layer.chain ? groups_in : 0))));
  float* odds = base + panels * of_panel;
  float* marks = odds + panels * width;
  std::vector<const float*> ready(panels * inputs);

  run_parallel(parallel, panels, [&](size_t p) {
    float* panel = base + p * of_panel;
    call.kernel().load_panel(call.rows_of(p), call.tokens_in(p), call.in().columns(), call.width, panel, odds + p * width);
    for (size_t i = 0; i < inputs; ++i) ready[p * inputs + i] = make_ready(call, i, panel, panel + input + i * rounded);
  });
  if (layer.chain) {
    auto hidden_of = [&](size_t p) { return base + p * of_panel + input + rounded; };
    run_parallel(parallel, panels * groups_in, [&](size_t task) {
      const size_t p = task / groups_in, g = task % groups_in;
      float* mark = marks + task * width;
      std::fill(mark, mark + width, 0.f);
      groups_to_hidden(call, uint32_t(g), uint32_t(g) + 1, ready[p], hidden_of(p), mark);
    });
    for (size_t task = 0; task < panels * groups_in; ++task)
      for (size_t t = 0; t < width; ++t) odds[task / groups_in * width + t] += marks[task * width + t];
    const size_t groups = layer.matrices[1].groups_count();
    run_parallel(parallel, panels * groups, [&](size_t task) {
      const size_t p = task / groups, g = task % groups;
      groups_to_output(call, 1, kIdentity, uint32_t(g), uint32_t(g) + 1, hidden_of(p), p, call.y[0]);
    });
  } else {
    struct Task {
      size_t panel;
      size_t matrix;
      uint32_t group;
    };
    std::vector<Task> tasks;
    for (size_t p = 0; p < panels; ++p)
      for (size_t i = 0; i < inputs; ++i)
        for (uint32_t g = 0; g < layer.matrices[i].groups_count(); ++g) tasks.push_back({p, i, g});
    run_parallel(parallel, tasks.size(), [&](size_t i) {
      const Task& task = tasks[i];
      groups_to_output(call, task.matrix, layer.activation, task.group, task.group + 1,
                       ready[task.panel * inputs + task.matrix], task.panel, call.y[task.matrix]);
    });
  }
  for (size_t p = 0; p < panels; ++p) mend(call, p, odds + p * width);
}

// The widest panel that leaves no thread with more than its share, and no vector empty that need not be. Not narrower than
// two vectors: each panel decodes all the weights anew. Threads that are still without one share its rows.
uint32_t panel_width(const pofa_layer& layer, size_t tokens, uint32_t threads) {
  const Kernel& k = *layer.kernel;
  const size_t most = k.max_vectors;
  const size_t vectors = (tokens + k.lanes - 1) / k.lanes;
  size_t panels = (vectors + most - 1) / most;
  if (panels > 1 && panels % threads) panels = std::min((vectors + 1) / 2, (panels + threads - 1) / threads * threads);
  return uint32_t((vectors + panels - 1) / panels) * k.lanes;
}

// Sums of codes are sums of steps above `low`: with those steps' size in the scales and `low` in the biases, they are right.
Rounding rounding(const Matrix& m, Range range) {
  Rounding r{range, std::vector<float>(m.rows()), std::vector<float>(m.rows())};
  std::vector<double> codes(m.rows(), 0);
  each_value(m, [&](uint32_t row, uint32_t, uint64_t at) { codes[row] += value_of(m, at); });
  for (uint32_t i = 0; i < m.rows(); ++i) {
    const float scale = read_at<float>(m.scales, i);
    r.scales[i] = scale * range.step();
    r.biases[i] = float(read_at<float>(m.biases, i) + codes[i] * scale * range.low);
  }
  return r;
}

// Whether sums of codes may take the place of floats: they must fit 32 bits.
bool has_codes(const Matrix& m) {
  return m.header.value_type == kI8 && m.header.block_rows == 4 && m.columns() <= (1u << 31) / (255 * 128);
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
    case kOlder: return "the packed weights were written by an older PruneOFA than this library reads: export the model again";
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

int pofa_open(const void* const* blobs, const size_t* sizes, uint32_t count, int chain, int activation, const float* ranges,
              const char* isa, pofa_layer** layer) try {
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
    if (!ranges) continue;
    const Range range{ranges[2 * i], ranges[2 * i + 1]};
    if (!(range.step() > 0 && range.step() < INFINITY && range.per_step() < INFINITY)) return kBadArgument;
    opened->roundings.push_back(rounding(m, range));
  }
  opened->codes = ranges && opened->kernel->multiply_codes &&
                  std::all_of(opened->matrices.begin(), opened->matrices.end(), has_codes);
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
