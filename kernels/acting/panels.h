// Products of a tile of rows, for everything that takes tiles through several layers.

#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

#include "../gemm.h"

namespace statewise {
namespace {  // every library has its own

constexpr int64_t kTileRows = 24;

// c (rows, N) = a (rows, K) b (K, N), b and c dense; a panel of b stays in the nearest cache for all
// rows.
template <typename A>
void multiply_panels(const A* a, int64_t lda, const A* b, A* c, int64_t rows, int64_t K,
                     int64_t N) {
  for (int64_t j = 0; j < N; j += Lanes<A>::pair)
    multiply<A>(a, lda, b + j, N, c + j, N, rows, K, Lanes<A>::pair, false);
}

// Call f(buffers, first, rows) for every tile of B rows; threads share the tiles, and each makes its
// own buffers.
template <typename Make, typename F>
void for_tiles(int64_t B, Make&& make, F&& f) {
  at::parallel_for(0, (B + kTileRows - 1) / kTileRows, 1, [&](int64_t begin, int64_t end) {
    auto buffers = make();
    for (int64_t first = begin * kTileRows; first < std::min(end * kTileRows, B);
         first += kTileRows)
      f(buffers, first, std::min(kTileRows, B - first));
  });
}

}  // namespace
}  // namespace statewise
