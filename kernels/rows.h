// What the operations on rows of numbers share: dtypes, and tasks of threads.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace statewise {
namespace {  // every library has its own

constexpr int64_t kGrain = 16384;  // numbers per task, at least

// Call function(float{}) or function(double{}).
template <typename F>
void with_dtype(const at::Tensor& x, F&& function) {
  if (x.scalar_type() == at::kDouble) function(double{});
  else function(float{});
}

// Call f(i) for i in [0, count), each with `width` numbers to read.
template <typename F>
void for_rows(int64_t count, int64_t width, F&& f) {
  at::parallel_for(0, count, (kGrain + width - 1) / width, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

}  // namespace
}  // namespace statewise
