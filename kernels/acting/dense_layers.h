// Fully connected layers, a tile of rows after the other.
//
//   y = x W^T + b;   y = norm(y) if there is one;   y = y sigmoid(y) if asked
//
// A tile goes through all layers while it is in the nearest cache; threads share the tiles.

#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "../elementary.h"
#include "../row_norm.h"
#include "panels.h"

namespace statewise {
namespace {  // every library has its own

template <typename A>
struct DenseLayer {
  std::vector<A> weight;  // (K, columns): W^T, zeros in the columns from N on
  const A *bias, *norm_weight, *norm_bias;
  RowNorm norm;
  bool silu;
  int64_t K, N, columns;
};

// w (N, K).
template <typename A>
DenseLayer<A> dense_layer(const A* w, int64_t N, int64_t K, const A* bias, RowNorm norm,
                          const A* norm_weight, const A* norm_bias, bool silu) {
  const int64_t columns = round_up(N, Lanes<A>::pair);
  DenseLayer<A> layer{std::vector<A>(K * columns), bias, norm_weight, norm_bias, norm, silu,
                      K, N, columns};
  transpose(w, K, N, K, layer.weight.data(), columns);
  return layer;
}

// y (rows, columns) of x (rows, K).
template <typename A>
void layer_on_tile(const DenseLayer<A>& layer, double eps, const A* x, int64_t ldx, A* y,
                   int64_t rows) {
  const int64_t columns = layer.columns, N = layer.N;
  multiply_panels<A>(x, ldx, layer.weight.data(), y, rows, layer.K, columns);
  for (int64_t i = 0; i < rows; ++i) {
    A* __restrict row = y + i * columns;
    const A* __restrict bias = layer.bias;
    if (bias)
#pragma omp simd
      for (int64_t k = 0; k < N; ++k) row[k] += bias[k];
    if (layer.norm != RowNorm::none)
      norm_row<A>(layer.norm, eps, layer.norm_weight, layer.norm_bias, row, row, N);
    if (layer.silu)
#pragma omp simd
      for (int64_t k = 0; k < N; ++k) row[k] *= sigmoid2_(A(kLog2E) * row[k]);
  }
}

template <typename A>
int64_t widest_of(std::initializer_list<const std::vector<DenseLayer<A>>*> networks) {
  int64_t widest = 0;
  for (const auto* layers : networks)
    for (const DenseLayer<A>& layer : *layers) widest = std::max(widest, layer.columns);
  return widest;
}

// What layers of at most this width return, in turns.
template <typename A>
struct LayerBuffers {
  explicit LayerBuffers(int64_t widest) : y{std::vector<A>(kTileRows * widest), {}} { y[1] = y[0]; }
  std::vector<A> y[2];
};

// to (rows, N of the last layer) of x (rows, K of the first); both buffers hold any layer's y.
template <typename A>
void layers_on_tile(const std::vector<DenseLayer<A>>& layers, double eps, const A* x, A* to,
                    LayerBuffers<A>& buffers, int64_t rows) {
  int64_t ldx = layers.front().K;
  for (size_t i = 0; i < layers.size(); ++i) {
    const DenseLayer<A>& layer = layers[i];
    const bool straight = i + 1 == layers.size() && layer.columns == layer.N;
    A* y = straight ? to : buffers.y[i % 2].data();
    layer_on_tile<A>(layer, eps, x, ldx, y, rows);
    x = y;
    ldx = layer.columns;
  }
  if (x == to) return;
  const int64_t N = layers.back().N;
  for (int64_t i = 0; i < rows; ++i) std::copy_n(x + i * ldx, N, to + i * N);
}

}  // namespace
}  // namespace statewise
