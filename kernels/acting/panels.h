// Products of a tile of rows, for everything that takes tiles through several layers.

#pragma once

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

}  // namespace
}  // namespace statewise
