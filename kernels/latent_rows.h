// Rows of categorical latents: logarithms of their probabilities, and samples.
//
// K is often 8, 16 or 32: the loops over a row are then compiled for it.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "elementary.h"

namespace statewise {
namespace {  // every library has its own

// Call f with K, as a constant where it is a usual one.
template <typename F>
void with_classes(int64_t K, F&& f) {
  if (K == 8) f(std::integral_constant<int64_t, 8>{});
  else if (K == 16) f(std::integral_constant<int64_t, 16>{});
  else if (K == 32) f(std::integral_constant<int64_t, 32>{});
  else f(K);
}

// x and y (rows, K). Loops over all of a tile overlap, those over one short row wait for each other.
template <typename A, typename Count>
void mixed_tile(const A* x, A* y, A keep, A floor, int64_t rows, Count K) {
  for (int64_t i = 0; i < rows * K; i += K) {
    A largest = x[i];
#pragma omp simd reduction(max : largest)
    for (int64_t k = 0; k < K; ++k) largest = x[i + k] > largest ? x[i + k] : largest;
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) y[i + k] = exp2_(A(kLog2E) * (x[i + k] - largest));
    if (floor != A(0)) continue;
    A sum = 0;  // without a share a class of no probability has a logarithm all the same
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; ++k) sum += y[i + k];
    const A log_sum = log_(sum);
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) y[i + k] = x[i + k] - largest - log_sum;
  }
  if (floor == A(0)) return;
  for (int64_t i = 0; i < rows * K; i += K) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < K; ++k) sum += y[i + k];
    const A scale = keep / sum;
#pragma omp simd
    for (int64_t k = 0; k < K; ++k) y[i + k] = y[i + k] * scale + floor;
  }
#pragma omp simd
  for (int64_t i = 0; i < rows * K; ++i) y[i] = log_(y[i]);
}

// One row: 1 where log p + noise is largest, the first of equals; NaN is larger than all numbers.
// Without a jump where numbers are: the place of a sample cannot be foreseen.
template <typename A, typename Count>
void draw_row(const A* log_p, const A* noise, A* to, Count K) {
  const int classes = static_cast<int>(K);
  A largest = -std::numeric_limits<A>::infinity();
  int broken = 0, best = classes - 1;
#pragma omp simd reduction(max : largest) reduction(| : broken)
  for (int k = 0; k < classes; ++k) {
    const A value = to[k] = log_p[k] + noise[k];
    largest = value > largest ? value : largest;
    broken |= value != value;
  }
#pragma omp simd reduction(min : best)
  for (int k = 0; k < classes; ++k) {
    const bool here = broken ? to[k] != to[k] : to[k] == largest;
    best = std::min(best, here ? k : classes - 1);
  }
#pragma omp simd
  for (int k = 0; k < classes; ++k)
    to[k] = (log_p[k] - log_p[k]) + (k == best ? A(1) : A(0));  // 0 or 1, or NaN
}

}  // namespace
}  // namespace statewise
