// NNCF's fake quantization on the CPU, forward and backward, in one pass over memory each.
//
// NNCF's own functions (functions_cpu.cpp of its package) make some thirty element-wise passes per quantizer and step.
// The arithmetic here is the same, operation by operation and without fused multiply-add, so outputs and gradients of
// the input are equal to the last bit; the gradients of the range are sums in another order.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <cmath>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_CPU __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_CPU
#endif

namespace {

constexpr int64_t kBlock = 4096;  // elements of a tensor with one range that are summed at a time
constexpr int64_t kPiece = 512;   // of a block, whose parts in the sums are kept in the first-level cache
constexpr int kLanes = 16;        // partial sums of a piece

// Constants of one range, as NNCF computes them.
struct Range {
    float low, high, scale, zero_point, reciprocal;
};

inline float quantize(float x, const Range& r) {
    float y = x > r.high ? r.high : x;
    y = y < r.low ? r.low : y;
    return std::nearbyint((y - r.low) * r.scale - r.zero_point) / r.scale;
}

FOR_EACH_CPU void forward_block(const float* __restrict__ x, float* __restrict__ y, int64_t n, Range r) {
    for (int64_t i = 0; i < n; ++i) y[i] = quantize(x[i], r);
}

// Writes the gradients of the input, and each element's part in those of the range and of its low end.
FOR_EACH_CPU void gradients(const float* __restrict__ g, const float* __restrict__ x, float* __restrict__ of_input,
                            float* __restrict__ of_range, float* __restrict__ of_low, int64_t n, Range r, float below) {
    for (int64_t i = 0; i < n; ++i) {
        const bool above = x[i] > r.high, under = x[i] < r.low;
        const float error = above ? 1.0f : under ? below : (quantize(x[i], r) - x[i]) * r.reciprocal;
        of_range[i] = error * g[i];
        of_input[i] = above || under ? 0.0f : g[i];
        of_low[i] = above || under ? g[i] : 0.0f;
    }
}

FOR_EACH_CPU float sum(const float* values, int64_t n) {
    float lanes[kLanes] = {};
    for (int64_t i = 0; i + kLanes <= n; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
    double total = 0;
    for (int64_t i = n - n % kLanes; i < n; ++i) total += values[i];
    for (float lane : lanes) total += lane;
    return static_cast<float>(total);
}

// Writes the gradients of the input, and the sums for the range and for its low end.
void backward_block(const float* g, const float* x, float* of_input, int64_t n, const Range& r, float below,
                    float* of_range, float* of_low) {
    float ranges[kPiece], lows[kPiece];
    double range_sum = 0, low_sum = 0;
    for (int64_t i = 0; i < n; i += kPiece) {
        const int64_t some = std::min(kPiece, n - i);
        gradients(g + i, x + i, of_input + i, ranges, lows, some, r, below);
        range_sum += sum(ranges, some);
        low_sum += sum(lows, some);
    }
    *of_range = static_cast<float>(range_sum);
    *of_low = static_cast<float>(low_sum);
}

// Division of a tensor into blocks: a row if each row has a range, else kBlock elements.
struct Blocks {
    std::vector<Range> ranges;
    int64_t size, count, total;

    Blocks(const at::Tensor& x, const at::Tensor& low, const at::Tensor& range, int64_t levels) {
        TORCH_CHECK(x.is_cpu() && x.scalar_type() == at::kFloat && x.is_contiguous(), "a contiguous float tensor");
        TORCH_CHECK(low.numel() == range.numel() && (low.numel() == 1 || low.numel() == x.size(0)), "a range per row");
        const auto scale = (static_cast<float>(levels) - 1) / range;
        const auto zero_point = (-low * scale).round_();
        const auto all = at::stack({low.flatten(), (low + range).flatten(), scale.flatten(), zero_point.flatten(),
                                    (1 / range).flatten()}, 1).to(at::kFloat).contiguous();
        const float* values = all.const_data_ptr<float>();
        for (int64_t i = 0; i < low.numel(); ++i, values += 5)
            ranges.push_back({values[0], values[1], values[2], values[3], values[4]});
        total = x.numel();
        size = ranges.size() > 1 ? std::max<int64_t>(total / static_cast<int64_t>(ranges.size()), 1) : kBlock;
        count = (total + size - 1) / size;
    }

    template <class Function>
    void each(const Function& run) const {
        at::parallel_for(0, count, std::max<int64_t>(1, 32768 / size), [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i)
                run(i, i * size, std::min(size, total - i * size), ranges[ranges.size() > 1 ? i : 0]);
        });
    }
};

at::Tensor forward(const at::Tensor& x, const at::Tensor& low, const at::Tensor& range, int64_t levels) {
    const Blocks blocks(x, low, range, levels);
    auto y = at::empty_like(x);
    const float* in = x.const_data_ptr<float>();
    float* out = y.data_ptr<float>();
    blocks.each([&](int64_t, int64_t at, int64_t n, const Range& r) { forward_block(in + at, out + at, n, r); });
    return y;
}

std::vector<at::Tensor> backward(const at::Tensor& gradient, const at::Tensor& x, const at::Tensor& low,
                                 const at::Tensor& range, int64_t levels, int64_t level_low, int64_t level_high) {
    TORCH_CHECK(gradient.is_contiguous() && gradient.sizes() == x.sizes() && gradient.scalar_type() == at::kFloat);
    const Blocks blocks(x, low, range, levels);
    const float below = static_cast<float>(level_low) / static_cast<float>(level_high);
    auto of_input = at::empty_like(x);
    auto of_range = at::empty({blocks.count}, x.options()), of_low = at::empty_like(of_range);
    const float *g = gradient.const_data_ptr<float>(), *in = x.const_data_ptr<float>();
    float *out = of_input.data_ptr<float>(), *ranges = of_range.data_ptr<float>(), *lows = of_low.data_ptr<float>();
    blocks.each([&](int64_t block, int64_t at, int64_t n, const Range& r) {
        backward_block(g + at, in + at, out + at, n, r, below, ranges + block, lows + block);
    });
    if (range.numel() == 1) of_range = of_range.sum(), of_low = of_low.sum();
    return {of_input, of_low.reshape(low.sizes()), of_range.reshape(range.sizes())};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
    module.def("forward", &forward, py::call_guard<py::gil_scoped_release>());
    module.def("backward", &backward, py::call_guard<py::gil_scoped_release>());
}
