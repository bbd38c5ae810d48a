// C interface of the kernels, and the distribution of a layer's work among threads.
#include "sparse_linear.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "layer.h"
#include "pack.h"
#include "work.h"

using namespace pofa;

namespace {

thread_local Scratch t_input, t_operand, t_hidden, t_sums, t_non_finite;
thread_local Scratch t_shared;  // the calling thread's buffer, used by all threads of the call

// Arguments of one pofa_run.
struct Call {
  const pofa_layer& layer;
  const float* x;
  size_t tokens;
  float* const* y;
  uint32_t width;  // tokens per panel, rounded up to full vectors

  const Matrix& first_matrix() const { return layer.projections.front().matrix(); }
  const Kernel& kernel() const { return *layer.kernel; }
  size_t panels() const { return (tokens + width - 1) / width; }
  uint32_t tokens_in(size_t panel) const { return uint32_t(std::min<size_t>(width, tokens - panel * width)); }
  // Pointers to the rows, one per token, of the panel's part of an array [tokens][columns].
  template <typename T>
  std::array<T*, kMaxWidth> rows_of(size_t panel, T* array, uint32_t columns) const {
    std::array<T*, kMaxWidth> rows = {};
    for (uint32_t t = 0; t < tokens_in(panel); ++t) rows[t] = array + (panel * width + t) * columns;
    return rows;
  }
  void load(size_t panel, float* to, float* non_finite) const {
    const uint32_t columns = first_matrix().columns();
    kernel().load_panel(rows_of(panel, x, columns).data(), tokens_in(panel), columns, width, to, non_finite);
  }
};

// Computes each token that has a NaN or an infinity again, as dense MatMuls do.
void recompute_non_finite(const Call& call, size_t panel, const float* non_finite) {
  for (uint32_t t = 0; t < call.tokens_in(panel); ++t)
    if (non_finite[t] != 0.f) reference_product(call.layer, call.x, panel * call.width + t, call.y);  // true for NaN, too
}

// ---- one panel of tokens

// Size of the operand of a chain's second matrix, in floats.
size_t hidden_size(const Call& call) {
  const Projection& second = call.layer.projections[1];
  return second.quantized() ? second.operand_size(call.width) : size_t(second.matrix().columns() + 4) * call.width;
}

// Computes groups from .. to - 1 of matrix i, with scale, bias and activation, and writes them to y.
void groups_to_output(const Call& call, size_t i, Activation activation, uint32_t from, uint32_t to, const float* operand,
                      size_t panel, float* y) {
  const Projection& p = call.layer.projections[i];
  const Matrix& m = p.matrix();
  float* sums = t_sums.get(p.sums_size(call.width));
  const auto rows = call.rows_of(panel, y, m.rows());
  for (uint32_t g = from; g < to; ++g) {
    p.multiply(g, activation, operand, call.width, sums, nullptr);
    const size_t offset = size_t(g) * m.header.group_rows;
    call.kernel().store(sums, m.rows_in_group(g), call.width, call.tokens_in(panel), rows.data(), offset);
  }
}

// Computes groups of a chain's first matrix. The result stays transposed, as the operand of the second matrix.
void groups_to_hidden(const Call& call, uint32_t from, uint32_t to, const float* operand, float* hidden, float* non_finite) {
  const Projection &first = call.layer.projections[0], &second = call.layer.projections[1];
  float* sums = t_sums.get(first.sums_size(call.width));
  for (uint32_t g = from; g < to; ++g)
    first.multiply_for(second, g, call.layer.activation, operand, call.width, sums, hidden, non_finite);
}

// Computes one panel on one thread, so that no data is shared and all of it stays in this core's caches.
void run_panel(const Call& call, size_t index) {
  const pofa_layer& layer = call.layer;
  float* panel = t_input.get(size_t(call.first_matrix().columns()) * call.width);
  float* non_finite = t_non_finite.get(call.width);
  call.load(index, panel, non_finite);
  const float* operand = nullptr;
  for (size_t i = 0; i < (layer.chain ? 1 : layer.projections.size()); ++i) {
    const Projection& p = layer.projections[i];
    if (i == 0 || !p.has_same_operand(layer.projections[i - 1]))
      operand = p.operand(panel, call.width, t_operand.get(p.operand_size(call.width)));
    if (!layer.chain)
      groups_to_output(call, i, layer.activation, 0, p.matrix().group_count(), operand, index, call.y[i]);
  }
  if (layer.chain) {
    float* hidden = t_hidden.get(hidden_size(call));
    groups_to_hidden(call, 0, call.first_matrix().group_count(), operand, hidden, non_finite);
    groups_to_output(call, 1, kIdentity, 0, layer.projections[1].matrix().group_count(), hidden, index, call.y[0]);
  }
  recompute_non_finite(call, index, non_finite);
}

// ---- fewer panels than threads: each panel's groups of rows are distributed among the threads

void run_groups(const Call& call, pofa_parallel_for parallel) {
  const pofa_layer& layer = call.layer;
  const size_t panels = call.panels(), width = call.width, inputs = layer.chain ? 1 : layer.projections.size();
  const size_t input_floats = size_t(call.first_matrix().columns()) * width;
  size_t operand_floats = 0;
  for (size_t i = 0; i < inputs; ++i)
    operand_floats = std::max(operand_floats, layer.projections[i].operand_size(call.width));
  const size_t hidden_floats = layer.chain ? hidden_size(call) : 0, groups_in = call.first_matrix().group_count();
  const size_t panel_floats = input_floats + inputs * operand_floats + hidden_floats;
  // Each task of the chain's first half marks non-finite tokens in a buffer of its own: writes to a common one would race.
  float* base = t_shared.get(panels * (panel_floats + width * (1 + (layer.chain ? groups_in : 0))));
  float* panel_non_finite = base + panels * panel_floats;
  float* group_non_finite = panel_non_finite + panels * width;
  std::vector<const float*> operands(panels * inputs);

  run_parallel(parallel, panels, [&](size_t p) {
    float* panel = base + p * panel_floats;
    call.load(p, panel, panel_non_finite + p * width);
    for (size_t i = 0; i < inputs; ++i)
      operands[p * inputs + i] = layer.projections[i].operand(panel, call.width, panel + input_floats + i * operand_floats);
  });
  if (layer.chain) {
    auto hidden_of = [&](size_t p) { return base + p * panel_floats + input_floats + operand_floats; };
    run_parallel(parallel, panels * groups_in, [&](size_t task) {
      const size_t p = task / groups_in, g = task % groups_in;
      float* non_finite = group_non_finite + task * width;
      std::fill(non_finite, non_finite + width, 0.f);
      groups_to_hidden(call, uint32_t(g), uint32_t(g) + 1, operands[p], hidden_of(p), non_finite);
    });
    for (size_t task = 0; task < panels * groups_in; ++task)
      for (size_t t = 0; t < width; ++t) panel_non_finite[task / groups_in * width + t] += group_non_finite[task * width + t];
    const size_t groups = layer.projections[1].matrix().group_count();
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
        for (uint32_t g = 0; g < layer.projections[i].matrix().group_count(); ++g) tasks.push_back({p, i, g});
    run_parallel(parallel, tasks.size(), [&](size_t i) {
      const Task& task = tasks[i];
      groups_to_output(call, task.matrix, layer.activation, task.group, task.group + 1,
                       operands[task.panel * inputs + task.matrix], task.panel, call.y[task.matrix]);
    });
  }
  for (size_t p = 0; p < panels; ++p) recompute_non_finite(call, p, panel_non_finite + p * width);
}

// Widest panel that balances the load of the threads and leaves no avoidable empty vector. Panels are not split below two
// vectors, because each decodes all weights again; with fewer panels than threads, the threads share the panels' rows.
uint32_t panel_width(const pofa_layer& layer, size_t tokens, uint32_t threads) {
  const Kernel& k = *layer.kernel;
  const size_t max_vectors = k.max_vectors;
  const size_t vectors = (tokens + k.lanes - 1) / k.lanes;
  size_t panels = (vectors + max_vectors - 1) / max_vectors;
  if (panels > 1 && panels % threads) panels = std::min((vectors + 1) / 2, (panels + threads - 1) / threads * threads);
  return uint32_t((vectors + panels - 1) / panels) * k.lanes;
}

}  // namespace

const char* pofa_error(int code) {
  switch (code) {
    case kOk: return "no error";
    case kWrongSize: return "packed weights: truncated, or longer than the header specifies";
    case kBadMagic: return "packed weights: not in the packed format of PruneOFA";
    case kNewerVersion:
      return "packed weights: written by a newer PruneOFA than this library, rebuild it (pruneofa kernels build)";
    case kOlderVersion:
      return "packed weights: written by an older PruneOFA than this library supports, export the model again";
    case kBadHeader: return "packed weights: invalid header";
    case kBadChecksum: return "packed weights: damaged, checksum mismatch";
    case kBadIndex: return "packed weights: index out of range";
    case kBadArgument: return "argument out of range";
    case kOutOfMemory: return "out of memory";
  }
  return "unknown error code";
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
  return kOutOfMemory;
}

int pofa_describe(const void* blob, size_t size, uint64_t facts[6]) {
  Matrix m;
  if (Error error = open_matrix(blob, size, &m)) return error;
  describe(m, facts);
  return kOk;
}

int pofa_layer_facts(const pofa_layer* layer, uint32_t i, uint64_t facts[6]) {
  if (!layer || i >= layer->projections.size()) return kBadArgument;
  describe(layer->projections[i].matrix(), facts);
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
  opened->projections.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    Projection& p = opened->projections[i];
    if (Error error = p.open(blobs[i], sizes[i], *opened->kernel)) return error;
    const Matrix& first = opened->projections[0].matrix();
    if (p.matrix().columns() != (i > 0 && chain ? first.rows() : first.columns())) return kBadArgument;
    if (Error error = ranges ? p.quantize_input({ranges[2 * i], ranges[2 * i + 1]}) : kOk) return error;
  }
  *layer = opened.release();
  return kOk;
} catch (const std::bad_alloc&) {
  return kOutOfMemory;
}

void pofa_close(pofa_layer* layer) { delete layer; }

int pofa_run(const pofa_layer* layer, const float* x, size_t tokens, float* const* y, pofa_parallel_for parallel,
             uint32_t threads) try {
  if (!layer || !tokens) return layer ? kOk : kBadArgument;
  threads = parallel ? std::max(threads, 1u) : 1;
  const Call call{*layer, x, tokens, y, panel_width(*layer, tokens, threads)};
  if (call.panels() >= threads)
    run_parallel(parallel, call.panels(), [&](size_t p) { run_panel(call, p); });
  else
    run_groups(call, parallel);
  return kOk;
} catch (const std::bad_alloc&) {
  return kOutOfMemory;
}
