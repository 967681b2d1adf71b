// Layer norm and root-mean-square norm of one row, for acting and for training.

#pragma once

#include <cmath>
#include <cstdint>
#include <utility>

namespace statewise {
namespace {  // every library has its own

enum class RowNorm : int64_t { none, layer, rms };

// Mean and 1 / deviation of a row; of "rms", 0 and 1 / root mean square.
template <typename A>
std::pair<A, A> moments(RowNorm norm, const A* x, int64_t H, double eps) {
  A sum = 0, square = 0;
  if (norm == RowNorm::layer) {
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < H; ++k) sum += x[k];
  }
  const A mean = sum / static_cast<A>(H);
#pragma omp simd reduction(+ : square)
  for (int64_t k = 0; k < H; ++k) square += (x[k] - mean) * (x[k] - mean);
  return {mean, A(1) / std::sqrt(square / static_cast<A>(H) + static_cast<A>(eps))};
}

// y = (x - mean) scale w + b, y may be x; without w it is 1, without b 0.
template <typename A>
void normed_row(const A* x, A mean, A scale, const A* w, const A* b, A* y, int64_t H) {
  if (b) {
#pragma omp simd
    for (int64_t k = 0; k < H; ++k) y[k] = (x[k] - mean) * scale * w[k] + b[k];
  } else {
#pragma omp simd
    for (int64_t k = 0; k < H; ++k) y[k] = (x[k] - mean) * scale * (w ? w[k] : A(1));
  }
}

template <typename A>
void norm_row(RowNorm norm, double eps, const A* w, const A* b, const A* x, A* y, int64_t H) {
  const auto [mean, scale] = moments(norm, x, H, eps);
  normed_row(x, mean, scale, w, b, y, H);
}

}  // namespace
}  // namespace statewise
