// What the division of work among threads needs: scratch buffers and a parallel loop over a lambda.
#pragma once
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "sparse_linear.h"

namespace pofa {

// Scratch buffer of one thread. Memory is kept between calls, because a model requests the same sizes every time.
class Scratch {
 public:
  float* get(size_t floats) {
    if (floats > size_) {
      void* memory = std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64);
      if (!memory) throw std::bad_alloc();
      data_.reset(static_cast<float*>(memory));
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

template <typename F>
void run_parallel(pofa_parallel_for parallel, size_t n, F&& body) {
  using Body = std::remove_reference_t<F>;
  if (!parallel || n < 2)
    for (size_t i = 0; i < n; ++i) body(i);
  else
    parallel(n, [](void* context, size_t i) { (*static_cast<Body*>(context))(i); }, &body);
}

}  // namespace pofa
